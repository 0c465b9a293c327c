"""What changed between two runs: their reports beside each other, case by case."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict

ERROR = "ERROR"
GRAVITY = {str(Verdict.PASS): 0, str(Verdict.INCONCLUSIVE): 1, str(Verdict.FAIL): 2, ERROR: 3}
ABSENT = "-"
TINY = 1e-16
"""Added to what is compared by its factor: a distance may be zero."""
WORSE, BETTER, CASES, LEAVES = "worse", "better", "cases", "leaves"
ENVIRONMENT, SEED, NUMBERS, EVALUATIONS = "environment", "seed", "numbers", "evaluations"
ORDER = (WORSE, BETTER, CASES, LEAVES, ENVIRONMENT, SEED, NUMBERS, EVALUATIONS)
"""Kinds of changes, the gravest first."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was."""

    kind: str
    what: str
    """ "verdict", "leaf x", "torch"."""
    case: str
    """Empty where it is of all of them."""
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Told:
    """One case of a file."""

    verdict: str
    expected: str
    report: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed, the gravest first, and how many cases were compared."""

    changes: Sequence[Change]
    compared: int

    @property
    def is_worse(self) -> bool:
        return any(change.kind == WORSE for change in self.changes)

    @property
    def headline(self) -> str:
        """The whole in a sentence."""
        cases = "1 case" if self.compared == 1 else f"{self.compared} cases"
        if not self.changes:
            return f"{cases}: nothing changed but times"
        counts = Counter(change.kind for change in self.changes)
        said = [f"{counts[WORSE] or 'no'} {_verdicts(counts[WORSE] or 2)} got worse"]
        if counts[BETTER]:
            said.append(f"{counts[BETTER]} got better")
        others = sum(count for kind, count in counts.items() if kind not in (WORSE, BETTER))
        if others:
            said.append(f"{others} other {'change' if others == 1 else 'changes'}")
        return f"{cases}: {', '.join(said)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and strings."""
        return {
            "compared": self.compared,
            "worse": self.is_worse,
            "changes": [asdict(change) for change in self.changes],
        }


def _verdicts(count: int) -> str:
    return "verdict" if count == 1 else "verdicts"


def difference(before: Path, after: Path, factor: float) -> Difference:
    """What changed from one file to the other; distances and floors count from this factor on."""
    old, new = read(before), read(after)
    if len(old) == len(new) == 1:  # the same thing, whatever it is called by now
        new = dict(zip(old, new.values(), strict=True))
    shared = [name for name in old if name in new]
    if not shared:
        raise InvalidCase(
            f"{before} and {after} have no case in common: compare two reports of the same cases."
        )
    changes = [
        Change(CASES, "case", name, old[name].verdict, ABSENT) for name in old if name not in new
    ]
    changes += [
        Change(CASES, "case", name, ABSENT, new[name].verdict) for name in new if name not in old
    ]
    for name in shared:
        changes += _of_case(name, old[name], new[name], factor)
    changes = _shared_ones(changes, len(shared))
    return Difference(sorted(changes, key=lambda change: ORDER.index(change.kind)), len(shared))


def read(path: Path) -> dict[str, Told]:
    """The cases of a file, which holds one report, several, or those of case files."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidCase(f"{path} cannot be read ({reason}): give what --json wrote.") from None
    found: dict[str, Told] = {}
    counts: Counter[str] = Counter()
    for whole in _documents(text, path):
        for name, told in _cases(whole, path):
            counts[name] += 1
            found[f"{name} ({counts[name]})" if counts[name] > 1 else name] = told
    if not found:
        raise InvalidCase(f"{path} holds no report: give what --json wrote.")
    return found


def _documents(text: str, path: Path) -> Iterator[Any]:
    """What stands in a file, one JSON text after the other."""
    rest = text.strip()
    while rest:
        try:
            whole, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError as error:
            raise InvalidCase(f"{path} is no JSON ({error}): give what --json wrote.") from None
        yield from whole if isinstance(whole, list) else [whole]
        rest = rest[end:].strip()


def _cases(whole: Any, path: Path) -> Iterator[tuple[str, Told]]:
    if _is_report(whole):
        yield whole["name"], Told(whole["verdict"], str(Verdict.PASS), whole)
        return
    if isinstance(whole, dict) and isinstance(whole.get("reports"), list):  # of the pytest plugin
        for report in filter(_is_report, whole["reports"]):
            name = str(report.get("test", report["name"]))
            yield name, Told(report["verdict"], str(Verdict.PASS), report)
        return
    cases = whole.get("cases") if isinstance(whole, dict) else None
    if not isinstance(cases, list) or not all(map(_is_case, cases)):
        what = "a benchmark" if isinstance(whole, dict) and "records" in whole else "no report"
        raise InvalidCase(f"{path} holds {what}: give what check or audit wrote with --json.")
    for case in cases:
        yield case["name"], Told(case["verdict"], case["expect"], case["report"])


def _is_report(whole: Any) -> bool:
    kinds = {"name": str, "verdict": str, "leaves": dict, "environment": dict, "probes": list}
    return isinstance(whole, dict) and all(
        isinstance(whole.get(key), kind) for key, kind in kinds.items()
    )


def _is_case(case: Any) -> bool:
    texts = ("name", "verdict", "expect")
    if not isinstance(case, dict) or not all(isinstance(case.get(key), str) for key in texts):
        return False
    report = case.get("report")
    return report is None or _is_report(report)


def _of_case(name: str, old: Told, new: Told, factor: float) -> Iterator[Change]:
    if (change := _of_verdict("verdict", name, old, new)) is not None:
        yield change
    before, after = old.report, new.report
    if before is None or after is None:
        return
    yield from _of_leaves(name, before["leaves"], after["leaves"], new.expected, factor)
    yield from _of_probes(name, before["probes"], after["probes"], new.expected)
    yield from _of_environment(name, before["environment"], after["environment"])
    for kind, key in ((SEED, "seed"), (EVALUATIONS, "evaluations")):
        if before.get(key) != after.get(key):
            yield Change(kind, key, name, str(before.get(key)), str(after.get(key)))


def _of_verdict(what: str, name: str, old: Told, new: Told) -> Change | None:
    if old.verdict == new.verdict:
        return None
    worse = _gravity(new.verdict, new.expected) > _gravity(old.verdict, old.expected)
    return Change(WORSE if worse else BETTER, what, name, old.verdict, new.verdict)


def _gravity(verdict: str, expected: str) -> int:
    """How far from what was expected: of a planted mistake FAIL is right."""
    if verdict == expected:
        return 0
    return GRAVITY.get(verdict, 1) or GRAVITY[str(Verdict.FAIL)]


def _of_leaves(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], expected: str, factor: float
) -> Iterator[Change]:
    is_only = len(old) == len(new) == 1  # the case's own verdict has said it
    for leaf in [*old, *(leaf for leaf in new if leaf not in old)]:
        one, other = old.get(leaf), new.get(leaf)
        if one is None or other is None:
            told = [ABSENT if part is None else part["verdict"] for part in (one, other)]
            yield Change(LEAVES, f"leaf {leaf}", name, *told)
            continue
        if not is_only:
            yield from _of_part(f"leaf {leaf}", name, one["verdict"], other["verdict"], expected)
        for key in ("distance", "floor"):
            if _is_far(one.get(key), other.get(key), factor):
                told = [_number(part.get(key)) for part in (one, other)]
                yield Change(NUMBERS, f"{key} of {leaf}", name, *told)


def _of_probes(
    name: str, old: Sequence[Any], new: Sequence[Any], expected: str
) -> Iterator[Change]:
    before = {probe["name"]: probe["verdict"] for probe in old}
    after = {probe["name"]: probe["verdict"] for probe in new}
    for probe in [*before, *(probe for probe in after if probe not in before)]:
        one, other = before.get(probe, ABSENT), after.get(probe, ABSENT)
        yield from _of_part(f"probe {probe}", name, one, other, expected)


def _of_part(what: str, name: str, one: str, other: str, expected: str) -> Iterator[Change]:
    """A part of a case: worse where the case was meant to pass, and else only another one."""
    if one == other:
        return
    if expected != Verdict.PASS or one not in GRAVITY or other not in GRAVITY:
        yield Change(LEAVES, what, name, one, other)
    else:
        yield Change(WORSE if GRAVITY[other] > GRAVITY[one] else BETTER, what, name, one, other)


def _of_environment(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in [*old, *(key for key in new if key not in old)]:
        one, other = str(old.get(key, ABSENT)), str(new.get(key, ABSENT))
        if one != other:
            yield Change(ENVIRONMENT, key, name, one, other)


def _shared_ones(changes: Sequence[Change], compared: int) -> list[Change]:
    """What changed in the surroundings is told once, not for each case."""
    told: dict[tuple[str, ...], list[Change]] = {}
    for change in changes:
        is_around = change.kind in (ENVIRONMENT, SEED)
        own = "" if is_around else change.case
        key = (change.kind, change.what, own, change.before, change.after)
        told.setdefault(key, []).append(change)
    return [
        Change(kind, what, _whose(own, same, compared), before, after)
        for (kind, what, own, before, after), same in told.items()
    ]


def _whose(own: str, same: Sequence[Change], compared: int) -> str:
    if own or len(same) == compared:
        return own
    return same[0].case if len(same) == 1 else f"{len(same)} cases"


def _is_far(one: float | None, other: float | None, factor: float) -> bool:
    if one is None or other is None:
        return one is not other
    low, high = sorted((abs(one) + TINY, abs(other) + TINY))
    return high > factor * low


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1e}"
