"""A table for a pull request."""

import re
from collections.abc import Sequence

from xgradcheck._bench_report import BenchRecord, BenchReport
from xgradcheck._bench_text import beside, error, headline, memory, times
from xgradcheck._outcomes import Outcome, Run, floor_of
from xgradcheck._report import Report
from xgradcheck._text import causes_first, element_name, printable, worst_leaves

LONGEST = 200
"""A cause is cut here: the report has the rest."""


def markdown(run: Run) -> str:
    """One row for each case."""
    rows = [_row(outcome) for outcome in run.outcomes]
    head = ("case", "verdict", "distance", "floor", "worst element", "cause")
    parts = [f"**{run.title}**: {escaped(run.counts)}", table(head, rows, right=(2, 3))]
    if run.interrupted:
        left = ", ".join(map(code, run.left))
        parts.append(f"Interrupted; not run: {left or 'none'}.")
    return "\n\n".join(parts) + "\n"


def markdown_of_bench(report: BenchReport) -> str:
    """One row for each implementation, dtype and shape."""
    head = ("implementation", "arguments", "verdict", "error", "time", "beside", "memory", "reason")
    rows = [_bench_row(report, record) for record in report.records]
    notes = [f"- {escaped(note)}" for note in report.notes]
    parts = [f"**{escaped(report.name)}**: {headline(report)}, {escaped(report.device)}"]
    parts += [table(head, rows, right=(3, 4, 5, 6)), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells that are escaped already."""
    bars = ["---:" if number in right else "---" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, bars, *rows))


def escaped(text: str) -> str:
    """Text that says what it says, and is neither a tag, nor a link, nor the end of a cell."""
    flat = printable(" ".join(text.split()))
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*_\[\]|~])", r"\\\1", flat)
    return re.sub(r"@(?=\w)", "@\u200b", flat)  # nobody is called because a name has an @


def code(text: str) -> str:
    """A name, as it is typed."""
    flat = printable(" ".join(text.split()))
    return escaped(text) if "`" in flat or not flat else "`" + flat.replace("|", "\\|") + "`"


def _row(outcome: Outcome) -> list[str]:
    report = outcome.report
    verdict = f"{outcome.verdict} {outcome.remark}".strip()
    if outcome.status:
        verdict = f"**{verdict}**"
    if report is None:
        return [code(outcome.name), verdict, "", "", "", _cut(outcome.said)]
    floor = floor_of(report)
    return [
        code(outcome.name),
        verdict,
        f"{report.distance:.1e}" if report.distance == report.distance else "",
        "" if floor is None else f"{floor:.0e}",
        _worst(report),
        _cut("; ".join([_cause(report), *outcome.missed]).strip("; ")),
    ]


def _worst(report: Report) -> str:
    leaf = next(iter(worst_leaves(report)), None)
    return "" if leaf is None or leaf.worst is None else code(element_name(leaf, leaf.worst))


def _cause(report: Report) -> str:
    """The first finding that names a cause, else the first."""
    found = next(iter(causes_first(report.findings)), None)
    return "" if found is None else f"{found.kind}: {found.text}"


def _cut(text: str) -> str:
    return escaped(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")


def _bench_row(report: BenchReport, record: BenchRecord) -> list[str]:
    return [
        code(record.name),
        escaped(record.place),
        str(record.verdict) if record.verdict == "PASS" else f"**{record.verdict}**",
        error(record),
        times(record.both),
        beside(record, report.fastest(record.dtype, record.shape)),
        memory(record.peak_bytes),
        _cut(record.reason),
    ]
