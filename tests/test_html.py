"""The page of a report: what it says and draws, and what a browser makes of it."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import assuming_contiguous, function, normal, square
from test_diagnose import changed, product
from test_report import SHOWN, network, one_wrong_element, with_notes

from xgradcheck import InvalidCase, Report, audit, check
from xgradcheck._evidence import KEPT, evidence_of
from xgradcheck._html import page, write_page

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PICTURES = ["where it is off", "backward beside truth", "error in units of its bar"]
WITH_STEPS = [*PICTURES, "differences, by step", "Taylor remainder"]


class Read(HTMLParser):
    """The tags of a page in their order, and its text."""

    VOID = frozenset({"meta", "br", "link", "input", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.captions: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data.strip())
        if not {"style", "script"} & {*self.open}:
            self.words += f" {data}"


def words(text: str) -> str:
    return " ".join(Read(text).words.split())


def transposed() -> Report:
    return product((12, 9), changed(np.s_[-3:], 0.0))


def squared(x: np.ndarray) -> np.ndarray:
    return np.asarray(x**2)


def audited() -> Report:
    return audit(
        squared, np.linspace(-1.2, 1.3, 4), grads=lambda u, x: 2 * u * x, raise_exception=False
    )


@pytest.mark.parametrize("kind", SHOWN)
def test_every_report_has_a_page_that_is_well_formed(kind: str) -> None:
    report = SHOWN[kind]()
    read = Read(report.to_html())
    assert report.verdict in read.words
    assert len(set(read.ids)) == len(read.ids)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in read.words)


def test_the_page_says_what_is_wrong_where_and_why() -> None:
    text = words(transposed().to_html())
    for said in (
        "the gradient is wrong in 1 of 2 leaves",
        "dw is zero in the last 3 of 12 rows",
        "27 of 108 elements",
        "backward gives 0",
        "evaluations",
    ):
        assert said in text, said


def test_a_wrong_leaf_has_all_pictures_and_a_right_one_has_none() -> None:
    assert Read(transposed().to_html()).captions == WITH_STEPS
    assert not Read(network().to_html()).captions


def test_a_leaf_that_was_searched_has_the_pictures_of_what_was_looked_at() -> None:
    page = product((60, 100), changed(np.s_[:, -3:], 0.5)).to_html()
    assert Read(page).captions == WITH_STEPS
    assert "of 6,000 elements that were looked at" in words(page)


def test_a_single_number_has_no_map() -> None:
    captions = Read(SHOWN["0-d FAIL"]().to_html()).captions
    assert captions == WITH_STEPS[len(PICTURES) :]


@pytest.mark.parametrize("kind", ["NaN", "infinite"])
def test_a_gradient_that_is_not_finite_has_its_map(kind: str) -> None:
    assert Read(SHOWN[kind]().to_html()).captions[:3] == PICTURES


def test_a_gradient_where_the_truth_is_zero_has_its_map() -> None:
    report = check(
        lambda w: (w**2).sum() * 0.0,
        np.array([1.3, 0.2, 2.1]),
        grads=np.array([0.5, 0.0, 0.0]),
        raise_exception=False,
    )
    assert not report
    assert Read(report.to_html()).captions[:3] == PICTURES


def test_a_page_needs_no_other_file() -> None:
    text = transposed().to_html()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", text)
    assert "@import" not in text and "url(http" not in text


def test_names_are_escaped() -> None:
    name = "<script>alert(1)</script>&'\""
    report = check(
        lambda w: (w[name] ** 2).sum(),
        {name: np.array([1.1, 2.3])},
        grads={name: np.array([1.0, 2.0])},
        name="<img src=x onerror=alert(1)>",
        raise_exception=False,
    )
    text = page([("</title><script>alert(2)</script>", report)])
    assert text.count("<script>") == 1 and "<img" not in text
    assert "alert(1)" in words(text) and "alert(2)" in words(text)


def test_the_page_of_many_reports_lists_them_with_what_was_found() -> None:
    reports = [("one", network()), ("two", one_wrong_element()), ("three", with_notes())]
    text = page(reports)
    read = Read(text)
    assert "2 PASS, 1 FAIL" in " ".join(read.words.split())
    for number, (name, _) in enumerate(reports, 1):
        assert f"r{number}" in read.ids and f'href="#r{number}"' in text
        assert name in read.words
    assert words(text).count("W1, 1 of 6 elements, at W1[2, 0]") == 2


def test_the_page_of_no_reports_says_so() -> None:
    assert "nothing checked" in words(page([]))


def test_probes_are_a_matrix_of_their_trials() -> None:
    report = audited()
    text = report.to_html()
    for probe in report.probes:
        assert probe.name in words(text)
        for trial in probe.trials:
            assert f'title="{trial}: ' in text.replace("&#39;", "'")


def test_the_trials_that_failed_are_marked_and_no_others() -> None:
    packed = function(square, assuming_contiguous)
    report = audit(packed, normal(3, 4), probes="layout", raise_exception=False)
    (probe,) = report.probes
    assert 0 < len(probe.failed) < len(probe.trials) and {*probe.failed} <= {*probe.trials}
    text = report.to_html()
    assert text.count('listitem" class="FAIL"') == len(probe.failed)
    # What is wrong stands before what is right, and once.
    assert text.index("<h2>Probes") < text.index("<h2>Leaves")
    assert words(text).count(report.findings[0].text) == 1


def test_a_page_is_written_and_returned(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    text = one_wrong_element().to_html(target)
    assert target.read_text(encoding="utf-8") == text
    write_page([("one", network())], tmp_path / "many.html", "all of it")
    assert "<title>all of it</title>" in (tmp_path / "many.html").read_text(encoding="utf-8")


def test_the_same_report_has_the_same_page() -> None:
    report = transposed()
    assert report.to_html() == report.to_html()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_page_without_its_packages_is_refused_with_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name == "xgradcheck._figures"]:
        monkeypatch.delitem(sys.modules, module)
    import xgradcheck

    monkeypatch.delattr(xgradcheck, "_figures", raising=False)
    with pytest.raises(InvalidCase, match=rf"'{package}': pip install xgradcheck\[report\]"):
        network().to_html()


def test_the_settings_of_matplotlib_are_neither_used_nor_changed() -> None:
    import matplotlib

    report = transposed()
    before = report.to_html()
    with matplotlib.rc_context({"font.size": 40.0, "axes.facecolor": "red", "text.usetex": True}):
        kept = dict(matplotlib.rcParams)
        assert report.to_html() == before
        assert dict(matplotlib.rcParams) == kept


def test_the_page_of_a_million_elements_is_small() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    found = np.where(np.arange(n) % 1000 < 10, 2 * truth, truth)
    wrong = found != truth
    evidence = evidence_of(np.arange(n), found, truth, 1e-9 * np.abs(truth), wrong)
    assert evidence.places.size <= KEPT and evidence.known == evidence.size == n
    worst = np.argmax(np.abs(found - truth))
    assert worst in evidence.places
    assert evidence.wrong is not None and (evidence.wrong == wrong).all()
    from dataclasses import replace

    leaf = replace(one_wrong_element().leaves["W1"], shape=(1000, 1000), evidence=evidence)
    report = replace(one_wrong_element(), leaves={"W1": leaf})
    assert len(report.to_html()) < 3_000_000


def test_evidence_is_no_part_of_what_a_report_equals_or_writes() -> None:
    report = transposed()
    assert report.leaves["w"].evidence is not None
    assert "evidence" not in report.to_json() and "evidence" not in repr(report)


def test_a_notebook_shows_the_text_with_its_names_escaped() -> None:
    shown = one_wrong_element()._repr_html_()
    assert "W1[2, 0]: backward gives 4" in shown and shown.startswith("<pre")
    name = "<b>W</b>"
    report = check(lambda w: w[name] ** 2, {name: np.array(2.0)}, grads={name: np.array(4.0)})
    assert "<b>W" not in report._repr_html_()


# What a browser makes of it.

browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def opened(path: Path, *more: str, script: str = "", width: int = 1200) -> tuple[str, str]:
    """The page after its scripts and ours have run, and what the console said."""
    text = path.read_text(encoding="utf-8")
    probed = path.with_name(f"probed{width}.html")
    probed.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    assert CHROMIUM is not None
    finished = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--window-size={width},1000", *more, "--dump-dom", probed.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    return finished.stdout, "\n".join(console)


SORTED = """
const table = document.querySelector("table.sortable");
const column = (number) => [...table.tBodies[0].rows].map((row) => row.cells[number].textContent);
const heads = table.querySelectorAll("th button");
heads[4].click();
const up = column(0).join(",");
heads[4].click();
document.title = up + " then " + column(0).join(",");
"""
OVERFLOW = """
document.title = document.documentElement.scrollWidth - document.documentElement.clientWidth;
"""


def title_of(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found is not None
    return found[1]


@browser
def test_a_table_is_sorted_by_the_column_that_is_clicked(tmp_path: Path) -> None:
    network(wrong=["b1"]).to_html(tmp_path / "page.html")
    dom, console = opened(tmp_path / "page.html", script=SORTED)
    assert title_of(dom) == "W2,W1,b1 then b1,W1,W2" and not console


@browser
def test_an_error_of_a_script_would_be_noticed(tmp_path: Path) -> None:
    network().to_html(tmp_path / "page.html")
    _, console = opened(tmp_path / "page.html", script="nothing.at.all()")
    assert "nothing is not defined" in console


@browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["a wrong leaf", "an audit", "many"])
def test_no_page_is_wider_than_its_window(kind: str, width: int, tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "a wrong leaf": lambda: transposed().to_html(),
        "an audit": lambda: audited().to_html(),
        "many": lambda: page([("a" * 90, transposed()), ("b", SHOWN["three long names FAIL"]())]),
    }
    (tmp_path / "page.html").write_text(made[kind](), encoding="utf-8")
    # Chromium's window is no narrower than 500 without this.
    dom, console = opened(
        tmp_path / "page.html", f"--force-device-scale-factor={500 / width:.3f}" if width < 500
        else "--force-device-scale-factor=1", script=OVERFLOW, width=max(width, 500)
    )  # fmt: skip
    assert int(title_of(dom)) <= 0 and not console
