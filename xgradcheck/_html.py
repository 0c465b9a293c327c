"""The page of one report or of many: one file that needs no other, readable in light and dark,
wide and narrow.
"""

import html
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xgradcheck._errors import lacks
from xgradcheck._judge import Verdict, largest_floor
from xgradcheck._page import MACROS, PAGE, SCRIPT, STYLE
from xgradcheck._text import element_name, graded, headline, measured, printable
from xgradcheck._written import write

if TYPE_CHECKING:
    from xgradcheck._report import LeafReport, ProbeReport, Report

PICTURED = 6
"""Of how many wrong leaves the page has pictures, each of them."""
LISTED = 40
"""Findings and notes of one report that the page shows at once."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the reports of a page do not know themselves: what was expected of them, and what there
    is no report of.
    """

    verdict: str = ""
    """Of all together; else the gravest."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """By title: "as expected"."""
    faults: Sequence[tuple[str, str]] = ()
    """Titles of what has no report, and why."""


NOTHING_ELSE = Expectations()


def write_page(
    reports: "Sequence[tuple[str, Report]]",
    path: str | os.PathLike[str],
    title: str = "",
    beside: Expectations = NOTHING_ELSE,
) -> None:
    """Write the page of these reports, each under its title.

    Raises ``InvalidCase`` where jinja2 or matplotlib is not installed.
    """
    write(path, page(reports, title, beside))


def page(
    reports: "Sequence[tuple[str, Report]]", title: str = "", beside: Expectations = NOTHING_ELSE
) -> str:
    """The page as text."""
    try:
        import jinja2

        from xgradcheck import _figures as drawing
    except ModuleNotFoundError as error:
        raise lacks("a page", error.name, "report") from None
    pictured = PICTURED if len(reports) < PICTURED else 1
    shown = [_shown(name, report, drawing, pictured) for name, report in reports]
    for each in shown:
        each["remark"] = beside.remarks.get(each["key"], "")
    verdict = beside.verdict or str(Verdict.of([report.verdict for _, report in reports]))
    counts = Counter(str(report.verdict) for _, report in reports)
    environment = {
        name: value for _, report in reports for name, value in report.environment.items()
    }
    loader = jinja2.DictLoader({"macros": MACROS, "page": PAGE})
    templates = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    is_one = len(shown) == 1 and not beside.faults
    one = shown[0]["title"] if is_one else ""
    return templates.get_template("page").render(
        shown=shown,
        is_one=is_one,
        faults=[tuple(map(printable, fault)) for fault in beside.faults],
        title=title or (f"{verdict}: {one}" if one else "gradient checks"),
        verdict=verdict,
        counts=", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing checked",
        environment=environment.items(),
        style=STYLE,
        script=SCRIPT,
        most=LISTED,
    )


def _shown(name: str, report: "Report", drawing: Any, pictured: int) -> dict[str, Any]:
    """One report as the page has it."""
    leaves = list(report.leaves.values())
    grave = [leaf for leaf in leaves if leaf.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)]
    grave.sort(key=lambda leaf: (leaf.verdict is not Verdict.FAIL, -_number(leaf.distance)))
    cards = [_card(leaf, report, drawing) for leaf in grave[:pictured]]
    told = {leaf.name for leaf in grave[:pictured]}
    floor = largest_floor(leaf.floor for leaf in leaves)
    facts = [
        ("distance", measured(report.distance)),
        ("grade", graded(report)),
        ("floor", measured(floor)),
        ("leaves", len(leaves)),
        ("coverage", report.coverage),
        ("evaluations", f"{report.evaluations:,}"),
        ("seconds", f"{report.elapsed_s:.2g}"),
        ("seed", report.seed),
    ]
    if report.precision != "float64":
        facts.insert(2, ("computed in", report.precision))
    probed = {probe.name for probe in report.probes}
    others = [
        finding
        for finding in report.findings
        if finding.leaf not in told and finding.kind not in probed
    ]
    cause = next((text for card in cards for text in card["causes"] + card["said"]), "")
    brief = cause or next((finding.text for finding in report.findings), "")
    return {
        "key": name,
        "title": printable(name),
        "report": report,
        "headline": printable(headline(report)),
        "facts": facts,
        "cards": cards,
        "uncarded": _uncarded(len(grave) - len(cards)),
        "rows": [row for leaf in leaves for row in _rows(leaf)],
        "probes": [_probe(probe) for probe in report.probes],
        "probes_first": any(probe.verdict is Verdict.FAIL for probe in report.probes),
        "findings": [printable(f"{finding.kind}: {finding.text}") for finding in others],
        "notes": [
            printable(note)
            for note in (*report.notes, *(f"not checked: {what}" for what in report.skipped))
        ],
        "distance": measured(report.distance),
        "distance_key": _key(report.distance),
        "floor": measured(floor),
        "floor_key": _key(floor),
        "brief": brief,
    }


def _uncarded(count: int) -> str:
    if count <= 0:
        return ""
    return f"{count} more {'leaf is' if count == 1 else 'leaves are'} wrong or undecided: see below"


def _card(leaf: "LeafReport", report: "Report", drawing: Any) -> dict[str, Any]:
    """One wrong or undecided leaf."""
    own = [finding for finding in report.findings if finding.leaf == leaf.name]
    plain = ("wrong gradient", "noise", "no convergence", "not certified")
    worst: list[tuple[str, str]] = []
    if (element := leaf.worst) is not None:
        error = abs(element.analytic - element.truth)
        truth = f"{element.truth:.7g}"
        worst = [
            ("worst element", printable(element_name(leaf, element))),
            (
                "the jvp gives" if leaf.mode == "forward" else "backward gives",
                f"{element.analytic:.7g}",
            ),
            ("truth", truth + (f" ± {element.error_bar:.1g}" if element.error_bar else "")),
            ("off by", f"{error:.2g}"),
            ("allowed", f"{element.allowed:.1g}"),
        ]
        if element.analytic and element.truth and error == error:
            worst.insert(3, ("ratio", f"{element.analytic / element.truth:.4g}"))
        if leaf.wrong:
            worst.append(("wrong", f"{_wrong(leaf)} elements"))
    evidence = leaf.evidence
    kept = ""
    if evidence is not None and evidence.known < evidence.size:
        kept = (
            f"Drawn from the {evidence.known:,} of {evidence.size:,} elements that were looked at."
        )
    elif evidence is not None and evidence.places.size < evidence.known:
        kept = f"Drawn from {evidence.places.size:,} of {evidence.known:,} elements."
    return {
        "leaf": leaf,
        "shape": str([*leaf.shape]),
        "causes": [printable(found.text) for found in own if found.kind not in plain],
        "said": [printable(found.text) for found in own if found.kind in plain],
        "worst": worst,
        "figures": {} if evidence is None else drawing.figures(evidence, leaf.shape),
        "kept": kept,
    }


def _rows(leaf: "LeafReport") -> list[dict[str, Any]]:
    return [
        {
            "name": printable(leaf.name),
            "shape": str([*leaf.shape]),
            "judged": row.judged,
            "verdict": row.verdict,
            "distance": measured(row.distance),
            "distance_key": _key(row.distance),
            "grade": f"{row.baseline:.2g} x" if row.baseline is not None else graded(row),
            "floor": measured(row.floor),
            "floor_key": _key(row.floor),
            "wrong": _wrong(row) if row.wrong else "-",
            "wrong_key": row.wrong,
        }
        for row in leaf.rows or (leaf,)
    ]


def _probe(probe: "ProbeReport") -> dict[str, Any]:
    """One row of the matrix: what was tried, and what became of it."""
    said = [finding.text for finding in probe.findings]
    verdicts = dict.fromkeys(probe.failed, Verdict.FAIL)
    usual = Verdict.PASS if probe.failed else probe.verdict
    trials = [(printable(trial), str(verdicts.get(trial, usual))) for trial in probe.trials]
    trials += [(printable(what), str(Verdict.SKIPPED)) for what in probe.refused]
    return {
        "name": probe.name,
        "verdict": str(probe.verdict),
        "holds": printable(probe.reason or probe.holds),
        "said": [printable(text) for text in said],
        "trials": trials,
    }


def _number(value: float) -> float:
    return value if value == value else 0.0


def _wrong(leaf: "LeafReport") -> str:
    return f"{'~' if leaf.is_estimate else ''}{leaf.wrong:,} of {leaf.size:,}"


def _key(value: float) -> str:
    """A number that a table sorts by."""
    return f"{value:.6g}" if abs(value) < float("inf") else ""


def fragment(report: "Report") -> str:
    """What a notebook shows of a report: its text, the verdict in colour."""
    text, verdict = html.escape(str(report)), str(report.verdict)
    colour = {"PASS": "#18794e", "FAIL": "#c62a2f"}.get(str(report.verdict), "#8a6100")
    marked = text.replace(verdict, f'<b style="color:{colour}">{verdict}</b>')
    return f'<pre style="line-height:1.35;white-space:pre-wrap">{marked}</pre>'
