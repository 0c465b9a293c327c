"""The XML that test runners write, for tools that show it."""

import re
from xml.etree import ElementTree as Tree

from xgradcheck._outcomes import PASSED, Outcome, Run, floor_of

# What XML 1.0 has no way to say, escaped or not.
FORBIDDEN = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def junit(run: Run) -> str:
    """A test case for each case. INCONCLUSIVE is a failure, since it is no pass; a case that was
    interrupted before it ran is skipped.
    """
    failures = sum(o.report is not None and o.status != PASSED for o in run.outcomes)
    errors = sum(o.report is None for o in run.outcomes)
    counts = {
        "tests": str(len(run.outcomes) + len(run.left)),
        "failures": str(failures),
        "errors": str(errors),
        "skipped": str(len(run.left)),
        "time": f"{run.elapsed_s:.3f}",
    }
    root = Tree.Element("testsuites", {"name": "xgradcheck", **counts})
    suite = Tree.SubElement(root, "testsuite", {"name": run.title, **counts})
    if run.interrupted:
        _add_properties(suite, {"interrupted": "true"})
    for outcome in run.outcomes:
        _add(suite, outcome, run.title)
    for name in run.left:
        case = Tree.SubElement(suite, "testcase", _names(name, run.title))
        Tree.SubElement(case, "skipped", {"message": "interrupted before it ran"})
    Tree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Tree.tostring(root, "unicode")}\n'


def legal(text: str) -> str:
    """Text with what XML forbids written out: an escape as \\x1b."""
    return FORBIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _names(name: str, title: str) -> dict[str, str]:
    return {"classname": title.replace(" ", "."), "name": legal(name)}


def _add(suite: Tree.Element, outcome: Outcome, title: str) -> None:
    names = _names(outcome.name, title)
    case = Tree.SubElement(suite, "testcase", {**names, "time": f"{outcome.elapsed_s:.3f}"})
    report = outcome.report
    if report is None:
        kinds = {"type": outcome.fault, "message": legal(outcome.said)}
        Tree.SubElement(case, "error", kinds).text = legal(outcome.error)
        return
    floor = floor_of(report)
    told = {
        "verdict": str(report.verdict),
        "distance": f"{report.distance:.3e}",
        "floor": "" if floor is None else f"{floor:.3e}",
        "evaluations": str(report.evaluations),
        "seed": str(report.seed),
        "expect": str(outcome.expected),
    }
    _add_properties(case, told)
    if outcome.status != PASSED:
        first, *_ = str(report).splitlines()
        message = "; ".join(filter(None, (first, outcome.remark, *outcome.missed)))
        kinds = {"type": str(report.verdict), "message": legal(message)}
        Tree.SubElement(case, "failure", kinds).text = legal(str(report))


def _add_properties(parent: Tree.Element, told: dict[str, str]) -> None:
    properties = Tree.SubElement(parent, "properties")
    for name, value in told.items():
        Tree.SubElement(properties, "property", {"name": name, "value": value})
