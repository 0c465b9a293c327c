"""Case files: what they may say, what is told of many cases, processes that share them, Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from xgradcheck._cli_jobs import _next_for, _Worker

CHECKOUT = Path(__file__).resolve().parents[1]

OPS = """
import os
import time

import numpy as np

def cost(W, b=0.0):
    return ((W - b) ** 2).sum()

def right(W, b=0.0):
    return 2 * (W - b)

def wrong(W, b=0.0):
    return 3 * (W - b)

def close(W, b=0.0):
    return 2.001 * (W - b)

def unsure(W):
    return (W**2).sum() + np.random.default_rng().normal()

def breaks(W):
    raise ZeroDivisionError("the user's own words")

def talks(W):
    print("said aloud")
    return (W**2).sum()

def dies(W):
    os._exit(7)

def crashes(W):
    os.kill(os.getpid(), 11)

def slow(W):
    time.sleep(0.02)
    return (W**2).sum()

def threads(W):
    print("threads", os.environ.get("OMP_NUM_THREADS"))
    return (W**2).sum()

def loss(params):
    return sum((w**2).sum() for w in params.values())

def loss_gradient(params):
    return {name: 2 * w for name, w in params.items()}
"""
TORCH = """
import torch

def total(x: torch.Tensor, w: torch.Tensor):
    return (x * w).sum()

class Viewed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad.view(-1).view(grad.shape)
"""


@pytest.fixture(autouse=True)
def folder(working_folder):
    (working_folder / "ops.py").write_text(OPS, encoding="utf-8")
    (working_folder / "in_torch.py").write_text(TORCH, encoding="utf-8")
    return working_folder


@pytest.fixture
def told(run):
    """The cases that ``--json`` tells of, by name."""

    def told(*words, verb="check"):
        _, out, _ = run(*words, "--json", "-", verb=verb)
        return {case["name"]: case for case in json.loads(out)["cases"]}

    return told


@pytest.fixture
def refused(run, folder):
    """The sentence on standard error that a case file gets."""

    def refused(text, *words):
        (folder / "cases.toml").write_text(text, encoding="utf-8")
        status, out, err = run("cases.toml", *words)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1 and err.startswith("xgradcheck: ") and "Traceback" not in err
        return err

    return refused


def case(target="cost", args='["f64[3]"]', **more):
    """One case of a TOML file; what is more is written as it stands."""
    lines = ["[[case]]", f'target = "ops.py:{target}"', f"args = {args}"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items()), ""])


RIGHT, WRONG = '"ops.py:right"', '"ops.py:wrong"'
MIXED = f"grads = {RIGHT}\n" + "\n".join(
    [
        case(name='"right"'),
        case(name='"planted"', grads=WRONG, expect='"FAIL"'),
        case(name='"talks"', target="talks", budget=20, coverage='"projection"'),
        case(name='"unsure"', target="unsure"),
        case(name='"wrong"', grads=WRONG),
        case(name='"breaks"', target="breaks"),
        case(name='"gone"', target="gone"),
    ]
)
GOOD = f"grads = {RIGHT}\n" + case(name='"one"') + case(name='"two"', target="slow")


@pytest.fixture
def write(folder):
    def write(text, name="cases.toml"):
        (folder / name).write_text(text, encoding="utf-8")
        return name

    return write


def lines_of(out):
    """The verdict and the remark that stand in the line of each case."""
    table = out.partition("\n\n")[0].splitlines()[1:]
    rows = [re.fullmatch(r"(\w+) +(.+?)  +(\S+) +(\S+) +(\S+)(?:  (.*))?", row) for row in table]
    return {row[2]: (row[1], row[6] or "") for row in rows if row}


def test_a_case_is_a_line_and_the_last_line_counts_them(write, run):
    status, out, err = run(write(MIXED))
    assert status == 2
    assert lines_of(out) == {
        "right": ("PASS", ""),
        "planted": ("FAIL", "as expected"),
        "talks": ("PASS", ""),
        "unsure": ("INCONCLUSIVE", ""),
        "wrong": ("FAIL", ""),
        "breaks": ("ERROR", "raised"),
        "gone": ("ERROR", "refused"),
    }
    counted = "7 cases: 2 PASS, 1 FAIL as expected, 1 INCONCLUSIVE, 1 FAIL, 2 ERROR; "
    assert out.splitlines()[-1].startswith(counted)
    assert max(map(len, out.splitlines())) <= 80
    assert "xgradcheck: gone: ops.py has no 'gone'" in err
    assert "xgradcheck: breaks: raised an exception:" in err and "in breaks" in err


def test_the_text_is_that_of_the_cases_that_are_not_as_they_should_be(write, run):
    _, out, _ = run(write(MIXED))
    heads = [line for line in out.splitlines() if re.match(r"[A-Z]+  \w+: ", line)]
    assert [head.partition(":")[0] for head in heads] == ["INCONCLUSIVE  unsure", "FAIL  wrong"]
    _, out, _ = run(write(GOOD), "--verbose")
    assert "PASS  one: the gradient is right" in out


@pytest.mark.parametrize(
    ("cases", "status"),
    [
        (case(grads=RIGHT), 0),
        (case(grads=WRONG), 1),
        (case(grads=WRONG, expect='"FAIL"'), 0),
        (case(grads=RIGHT, expect='"FAIL"'), 1),
        (case(grads=RIGHT, target="unsure"), 3),
        (case(grads=RIGHT, target="unsure", expect='"FAIL"'), 3),
        (case(grads=RIGHT, target="unsure", expect='"INCONCLUSIVE"'), 0),
        (case(grads=RIGHT, target="breaks", expect='"FAIL"'), 2),
        (case(grads=RIGHT, expect='"PASS"'), 0),
        (case(grads=RIGHT) + case(grads=WRONG) + case(grads=RIGHT, target="unsure"), 1),
        (case(grads=RIGHT, min_sensitivity="1e-9"), 1),
        (case(grads=RIGHT, min_sensitivity='["1e-3", "element=0.1"]'), 0),
    ],
)
def test_the_exit_status_is_the_gravest_and_what_is_expected_is_none(cases, status, write, run):
    assert run(write(cases))[0] == status


def test_a_verdict_that_is_not_the_expected_one_is_said_to_be_none(write, run):
    _, out, _ = run(write(case(grads=RIGHT, expect='"FAIL"')))
    assert lines_of(out) == {"ops.py:cost": ("PASS", "expected FAIL")}
    assert "1 case: 1 PASS expected FAIL; " in out


def test_a_verdict_in_small_letters_is_told_how_it_is_written(write, run):
    status, _, err = run(write(case(grads=RIGHT, expect='"fail"')))
    assert status == 2
    assert "expect = 'fail' is written 'FAIL'" in err


def test_files_of_a_case_are_relative_to_its_case_file(folder, told, monkeypatch):
    (folder / "below").mkdir()
    (folder / "below" / "net.py").write_text(OPS, encoding="utf-8")
    np.savez(folder / "below" / "point.npz", W=np.array([5.0]))
    text = '[[case]]\ntarget = "net.py:cost"\ngrads = "net.py:right"\n'
    (folder / "below" / "cases.toml").write_text(
        text + 'name = "word"\nargs = ["point.npz"]\n' + text + 'inputs = "point.npz"\n'
    )
    for case in told("below/cases.toml").values():
        assert case["report"]["leaves"]["W"]["worst"]["analytic"] == 10.0


def test_text_is_a_word_and_numbers_are_themselves(write, told):
    found = told(
        write(
            f"grads = {RIGHT}\n"
            + case(name='"kwargs"', kwargs="{ b = 0.5 }")
            + case(name='"number"', args='["f64[3]", 0.5]')
            + case(name='"word"', args='["f64[3]", "b=0.5"]')
            + case(name='"array"', kwargs='{ b = "f64[3]" }')
            + case(name='"nested"', target="loss", args='[{ W1 = "f64[2,2]", b1 = "f64[2]" }]',
                   grads='"ops.py:loss_gradient"')
        )
    )  # fmt: skip
    assert {case["verdict"] for case in found.values()} == {"PASS"}
    worst = [found[name]["report"]["leaves"]["W"]["worst"] for name in ("kwargs", "number", "word")]
    assert worst[0] == worst[1] == worst[2]
    assert list(found["nested"]["report"]["leaves"]) == ["params['W1']", "params['b1']"]


OPTIONS = {
    "wrt": ('"W"', ["coverage", "sweep"]),
    "coverage": ('"projection"', ["coverage", "projection"]),
    "rtol": ("0.1", ["verdict", "PASS"]),
    "atol": ("0.02", ["verdict", "PASS"]),
    "budget": ("3", ["verdict", "INCONCLUSIVE"]),
    "eps": ("1e-4", ["verdict", "FAIL"]),
    "method": ('"central"', ["verdict", "FAIL"]),
    "constraint": ('"positive"', ["error", "positive"]),
    "memory": ("10", ["error", "may hold 10 bytes"]),
    "order": ("1", ["verdict", "FAIL"]),
    "mode": ('["reverse"]', ["verdict", "FAIL"]),
    "device": ('"cpu"', ["error", "--device is for PyTorch"]),
    "backend": ('"numpy"', ["verdict", "FAIL"]),
    "reference": ('"ops.py:gone"', ["error", "gone"]),
    "dtype": ('"float32"', ["error", "reference="]),
    "seed": ("9", ["seed", 9]),
    "inputs": ('"gone.npz"', ["error", "gone.npz"]),
    "sensitivity": ("true", ["verdict", "FAIL"]),
    "min-sensitivity": ("1e-3", ["verdict", "FAIL"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_may_stand_in_a_case_and_above_all_cases(name, write, told):
    value, (key, wanted) = OPTIONS[name]
    own = case(grads='"ops.py:close"', **{name: value})
    above = f"{name} = {value}\n" + case(grads='"ops.py:close"')
    for text in (own, above):
        (found,) = told(write(text)).values()
        if key == "error":
            assert wanted in found["error"]
        else:
            assert found["report"][key] == wanted


def test_every_option_that_a_case_may_have_is_tried():
    from xgradcheck._cli_options import of_verb

    known = {option.name for option in of_verb("check") if option.of_a_case}
    assert known == {name.replace("-", "_") for name in OPTIONS} | {"grads"}


def test_the_nearest_option_is_the_strongest(write, told):
    """That of the case, then that of the command, then that of the file."""
    text = f'coverage = "rows"\ngrads = {RIGHT}\n'
    text += case(name='"own"', coverage='"sweep"') + case(name='"not own"')

    def coverages(*words):
        found = told(write(text), *words)
        return [case["report"]["coverage"] for case in found.values()]

    assert coverages() == ["sweep", "rows"]
    assert coverages("--coverage", "projection") == ["sweep", "projection"]


def test_the_seed_and_the_budget_of_the_command_are_the_strongest(write, told):
    text = f"seed = 3\ngrads = {RIGHT}\n" + case(name='"own"', seed=5, budget='"60s"')
    text += case(name='"not own"')
    assert [found["report"]["seed"] for found in told(write(text)).values()] == [5, 3]
    found = told(write(text), "--seed", 7, "--budget", 3)
    assert [case["report"]["seed"] for case in found.values()] == [7, 7]
    assert [case["verdict"] for case in found.values()] == ["INCONCLUSIVE", "INCONCLUSIVE"]


def test_a_case_may_have_a_verb_of_its_own(write, told):
    viewed = '[[case]]\ntarget = "in_torch.py:Viewed.apply"\nargs = ["f64[3,4]"]\n'
    audited = viewed + 'name = "audited"\nverb = "audit"\nprobe = ["layout"]\n'
    found = told(write(viewed + audited))
    assert [case["verdict"] for case in found.values()] == ["PASS", "FAIL"]
    assert found["audited"]["report"]["probes"][0]["name"] == "layout"
    everything = told(write(viewed), "--probe", "layout", verb="audit")
    assert [case["verdict"] for case in everything.values()] == ["FAIL"]


def test_an_audit_may_expect_a_gradient_and_a_verdict(write, told):
    source = """
import torch

class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad

def clipped(grad, x):
    return grad * (x.abs() < 1)
"""
    write(source, "rounded.py")
    own = '[[case]]\ntarget = "rounded.py:Round.apply"\nargs = ["f64[4,4]"]\nverb = "audit"\n'
    own += 'probe = "purity"\n'
    found = told(
        write(
            own + 'name = "declared"\nexpect = "surrogate"\n'
            + own + 'name = "planted"\nexpect = ["rounded.py:clipped", "FAIL"]\n'
        )
    )  # fmt: skip
    assert [(case["verdict"], case["remark"]) for case in found.values()] == [
        ("PASS", ""),
        ("FAIL", "as expected"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no cases"),
        ("[[case]\n", "is no TOML file"),
        ("[case]\n", "[[case]]"),
        ("rtoll = 1\n" + case(), "'rtoll' is no key of a case; the nearest is 'rtol'"),
        (case(tragets='"x"'), "the nearest is 'target'"),
        (case(coverag='"sweep"'), "case 'ops.py:cost': 'coverag' is no key"),
        (case(rtol='"small"'), "rtol = 'small' is not a number"),
        (case(rtol="true"), "rtol = True is not a number"),
        (case(order="3"), "order = 3 is not one of 1, 2"),
        (case(order="1.0"), "order = 1.0 is not a whole number"),
        (case(coverage='"all"'), "coverage = 'all' is not one of 'auto'"),
        (case(wrt="[1.5]"), "wrt = 1.5 is not text or a whole number"),
        (case(grads="3"), "grads = 3 is not text"),
        (case(name="3"), "name = 3 is no text"),
        (case(args='"f64[3]"'), "args is a str: write a list"),
        (case(kwargs="[1]"), "kwargs is a list: write a table"),
        (case(verb='"bench"'), "verb = 'bench' is not one of check, audit"),
        (case(probe='"purity"'), 'probe is no option of check: write verb = "audit"'),
        (case(json='"x.json"'), "json belongs on the command line"),
        (case(expect='["FAIL", "PASS"]'), "is too much"),
        (case(seed="-1"), "seed"),
        ("[[case]]\nargs = []\n", "case 1 has no target"),
        ('[[case]]\ntarget = "x.py:f"\nfn = "x.py:f"\n', "target and fn"),
        ("[[case]]\ntarget = 3\n", "target = 3 is no function"),
        ("case = [3]\n", "case 1 is a int"),
        (case(name='"one"') + case(name='"one"'), "2 cases are called 'one'"),
    ],
)
def test_a_case_file_that_says_nothing_sensible_is_refused(text, said, refused):
    assert said in refused(text)


def test_words_that_do_not_go_with_a_case_file_are_refused(write, run):
    for words, said in (
        ([write(GOOD), "f64[3]"], "'f64[3]' follows the case file cases.toml"),
        (["gone.toml"], "there is no file gone.toml"),
        (["f64[3]", "cases.toml"], "or a case file"),
        (["cases.toml", "-k", "onne"], "the nearest is 'one'"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (2, "") and err.count("\n") == 1 and said in err
    status, _, err = run("cases.toml", verb="bench")
    assert status == 2 and "bench takes targets" in err


def test_cases_without_a_name_are_called_by_their_target_and_numbered(write, told):
    text = f"grads = {RIGHT}\n" + case() + case(args='["f64[2]"]') + case(target="slow")
    assert list(told(write(text))) == ["ops.py:cost", "ops.py:cost (2)", "ops.py:slow"]


def test_several_case_files_and_targets_go_together(write, told, run):
    write(GOOD, "more.toml")
    target = ["ops.py:cost", "f64[3]", "--grads", "ops.py:right"]
    found = told(write(GOOD), *target[:2], "more.toml", *target[2:])
    assert list(found) == ["one", "two", "ops.py:cost", "one (2)", "two (2)"]
    assert {case["verdict"] for case in found.values()} == {"PASS"}


def test_k_chooses_cases_by_a_part_of_their_name(write, told):
    text = f"grads = {RIGHT}\n" + case(name='"swish"') + case(name='"swish twice"') + case()
    assert list(told(write(text), "-k", "swish")) == ["swish", "swish twice"]
    assert list(told(write(text), "-k", "=swish")) == ["swish"]
    assert list(told(write(text), "-k", "cost")) == ["ops.py:cost"]


def test_the_replay_of_a_case_does_that_case_alone_again(write, told):
    text = f"seed = 4\ngrads = {RIGHT}\n"
    text += case(name='"a"') + case(name='"a b"', target="unsure") + case()
    found = told(write(text), "--rtol", "1e-3")
    replays = [case["report"]["replay"] for case in found.values()]
    again = [
        "xgradcheck check cases.toml -k =a --rtol 0.001 --seed 4",
        "xgradcheck check cases.toml -k 'a b' --rtol 0.001 --seed 4",
        "xgradcheck check cases.toml -k ops.py:cost --rtol 0.001 --seed 4",
    ]
    assert replays == again
    for name, replay in zip(found, replays, strict=True):
        assert list(told(*shlex.split(replay)[2:])) == [name]


PYTHON = """
import numpy as np
from ops import cost, right, wrong

def cases():
    for number in range(3):
        yield {
            "name": f"cost {number}",
            "fn": lambda W, number=number: cost(W, number),
            "args": [np.array([1.0, 2.0])],
            "grads": lambda W, number=number: right(W, number),
        }
    yield {"fn": cost, "args": ["f64[3]"], "grads": wrong, "expect": "FAIL"}
    yield {"target": "ops.py:cost", "args": ["f64[3]"], "grads": "ops.py:right", "rtol": 1e-3}
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_python_case_file_hands_over_functions_and_arrays(jobs, write, told):
    found = told(write(PYTHON, "cases.py"), "--jobs", jobs)
    assert list(found) == ["cost 0", "cost 1", "cost 2", "cost", "ops.py:cost"]
    assert [case["verdict"] for case in found.values()] == ["PASS"] * 3 + ["FAIL", "PASS"]
    assert found["cost"]["remark"] == "as expected"
    worst = [found[f"cost {number}"]["report"]["leaves"]["W"]["worst"] for number in range(3)]
    assert len({element["analytic"] for element in worst}) > 1


def test_a_list_of_cases_may_hold_modules_and_tensors(write, told):
    source = """
import jax.numpy as jnp
import torch

layer = torch.nn.Linear(2, 1, dtype=torch.float64)
CASES = [
    {"name": "module", "fn": layer, "args": [torch.ones(3, 2, dtype=torch.float64)]},
    {"name": "closure", "fn": lambda: layer(torch.ones(1, 2, dtype=torch.float64)).sum(),
     "wrt": layer},
    {"name": "jax", "fn": lambda x: (x**2).sum(), "args": [jnp.ones(3)]},
    {"name": "words", "fn": lambda x: (x**2).sum(), "args": ["f64[3]"], "backend": "torch"},
    {"name": "either", "fn": lambda x: (x**2).sum(), "args": ["f64[3]"]},
]
"""
    found = told(write(source, "cases.py"))
    verdicts = [case["verdict"] for case in found.values()]
    assert verdicts == ["PASS"] * 4 + ["ERROR"]
    assert list(found["module"]["report"]["leaves"]) == ["weight", "bias"]
    assert "imports jax and torch" in found["either"]["error"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 3\n", "has no cases: give it a list CASES"),
        ("CASES = 3\n", "CASES is no list"),
        ("CASES = [3]\n", "case 1 is a int: write a dict"),
        ("CASES = [{'fn': 3}]\n", "fn = 3 is no function"),
        ("CASES = [{'fn': len, 'rtoll': 3}]\n", "the nearest is 'rtol'"),
        ("CASES = [{'fn': len, 'rtol': len}]\n", "is not a number"),
    ],
)
def test_a_python_case_file_is_refused_likewise(source, said, write, run):
    status, out, err = run(write(source, "cases.py"))
    assert (status, out) == (2, "") and err.count("\n") == 1 and said in err


def test_an_exception_in_a_python_case_file_shows_its_line(write, run):
    status, _, err = run(write("def cases():\n    yield 1 / 0\n", "cases.py"))
    assert status == 2 and 'cases.py", line 2, in cases' in err and "ZeroDivisionError" in err


TIMES = re.compile(
    r" +\d+\.\d\d$| +\d+\.\d\d(?=  )|[^ ]+ s(?=$|, seed)|time=\"[\d.]+\"", re.MULTILINE
)


def without_times(text):
    return TIMES.sub("", text).splitlines()


def test_processes_tell_the_same_in_the_same_order(write, run, folder):
    text = MIXED.replace("unsure", "cost")
    outs = []
    for jobs in ("1", "3"):
        words = ["--jobs", jobs, "--json", "r.json", "--junit", "r.xml", "--markdown", "r.md"]
        status, out, err = run(write(text), *words)
        written = [(folder / f"r.{ending}").read_text() for ending in ("xml", "md")]
        told = json.loads((folder / "r.json").read_text())
        del told["elapsed_s"]
        for found in told["cases"]:
            del found["elapsed_s"]
            for key in ("elapsed_s", "plan", "environment"):
                (found["report"] or {}).pop(key, None)
        # What a process prints is told with its case; in one process it stands where it was said.
        told = [status, without_times(out), err, told, *map(without_times, written)]
        outs.append(told)
    assert outs[0] == outs[1]


def test_a_process_that_dies_is_an_error_of_its_case_and_the_others_go_on(write, run):
    text = f"grads = {RIGHT}\n" + "".join(
        case(target=name) for name in ("cost", "dies", "crashes", "slow")
    )
    status, out, err = run(write(text), "--jobs", "2")
    assert status == 2
    assert [verdict for verdict, _ in lines_of(out).values()] == ["PASS", "ERROR", "ERROR", "PASS"]
    assert "xgradcheck: ops.py:dies: the process that ran it died (exit status 7)" in err
    assert "xgradcheck: ops.py:crashes: the process that ran it died (signal 11, SIGSEGV)" in err


def test_processes_share_the_threads_of_the_machine(write, run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    text = f"grads = {RIGHT}\n" + case(target="threads") + case(target="threads")
    _, out, _ = run(write(text), "--jobs", "2")
    assert f"threads {max(1, os.cpu_count() // 2)}\n" in out
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "threads 5\n" in run(write(text), "--jobs", "2")[1]


def test_a_process_keeps_to_the_files_that_it_has_loaded():
    numpy, torch, jax = "n.py", "t.py", "j.py"
    homes = [numpy, numpy, torch, torch, jax]
    busy = _Worker(None, None, homes={numpy})
    waiting = [1, 2, 3, 4]
    assert _next_for(set(), [busy], waiting, homes) == 2
    assert _next_for({torch}, [busy], waiting, homes) == 3
    assert _next_for({torch}, [busy], waiting, homes) == 4
    assert _next_for({torch}, [busy], waiting, homes) == 1
    assert waiting == []


def test_keys_that_only_the_users_file_knows_reach_the_report(write, told):
    source = """
import enum

class Part(enum.Enum):
    W = 1

CASES = [
    {"name": name, "fn": lambda p: (p[Part.W] ** 2).sum(), "args": [{Part.W: "f64[3]"}],
     "grads": lambda p: {Part.W: 2 * p[Part.W]}}
    for name in ("one", "two")
]
"""
    alone, shared = told(write(source, "cases.py")), told("cases.py", "--jobs", "2")
    paths = [
        [next(iter(case["report"]["leaves"].values()))["path"] for case in found.values()]
        for found in (alone, shared)
    ]
    assert paths[0] == paths[1] == [[0, "Part.W"]] * 2


def test_the_json_of_a_case_file_is_one_file_with_all_reports(write, run, folder):
    run(write(MIXED), "--json", "report.json")
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (told["schema"], told["interrupted"], told["not_run"]) == (1, False, [])
    verdicts = {case["name"]: case["verdict"] for case in told["cases"]}
    assert verdicts["planted"] == "FAIL" and verdicts["gone"] == "ERROR"
    by_name = {case["name"]: case for case in told["cases"]}
    assert by_name["planted"]["expect"] == "FAIL" and by_name["right"]["expect"] == "PASS"
    assert by_name["right"]["report"]["verdict"] == "PASS" and by_name["right"]["error"] is None
    assert by_name["gone"]["report"] is None and "no 'gone'" in by_name["gone"]["error"]


def test_json_on_standard_output_stands_alone(write, run):
    _, out, err = run(write(GOOD), "--json", "-")
    assert len(json.loads(out)["cases"]) == 2 and err == ""
    for jobs in (1, 2):
        _, out, err = run(write(GOOD.replace("slow", "talks")), "--json", "-", "--jobs", jobs)
        assert len(json.loads(out)["cases"]) == 2 and err.startswith("said aloud\n")


def test_junit_has_a_test_case_for_each_case(write, run, folder):
    run(write(MIXED), "--junit", "report.xml")
    root = ElementTree.parse(folder / "report.xml").getroot()
    (suite,) = root
    counts = {"tests": "7", "failures": "2", "errors": "2", "skipped": "0"}
    assert root.tag == "testsuites" and counts.items() <= suite.attrib.items()
    kinds = {
        case.get("name"): next((c.tag, c.get("type")) for c in [*case[::-1], case])
        for case in suite
    }
    assert kinds == {
        "right": ("properties", None),
        "planted": ("properties", None),
        "talks": ("properties", None),
        "unsure": ("failure", "INCONCLUSIVE"),
        "wrong": ("failure", "FAIL"),
        "breaks": ("error", "raised"),
        "gone": ("error", "refused"),
    }
    cases = {case.get("name"): case for case in suite}
    failure = cases["wrong"].find("failure")
    assert failure.get("message") == "FAIL  wrong: the gradient is wrong in 1 of 1 leaf"
    assert "backward gives" in failure.text
    assert cases["breaks"].find("error").get("message") == (
        "ZeroDivisionError: the user's own words"
    )
    assert all(float(case.get("time")) >= 0 for case in suite)
    told = {p.get("name"): p.get("value") for p in cases["wrong"].find("properties")}
    assert told["verdict"] == "FAIL" and told["seed"] == "0"
    assert float(told["distance"]) == pytest.approx(0.2, rel=1e-3)
    assert float(told["floor"]) < 1e-5 and int(told["evaluations"]) > 6


HOSTILE = 'p["a|b<c>&]]>`@you\\u0000\\u001b[31m\\ud800*"]'


def test_names_that_xml_and_markdown_would_obey_are_written_out(write, run, folder):
    source = f"""
key = {HOSTILE[2:-1]}
CASES = [
    {{"name": key, "fn": lambda p: (p[key] ** 2).sum(), "args": [{{key: "f64[3]"}}],
      "grads": lambda p: {{key: 3 * p[key]}}}}
]
"""
    status, out, _ = run(write(source, "cases.py"), "--junit", "r.xml", "--markdown", "r.md")
    assert status == 1 and "\x1b" not in out
    suite = ElementTree.parse(folder / "r.xml").getroot()[0]
    assert suite[0].get("name") == "a|b<c>&]]>`@you\\x00\\x1b[31m\\ud800*"
    *_, row = (folder / "r.md").read_text(encoding="utf-8").splitlines()
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 8
    assert cells[1].strip() == (
        "a\\|b&lt;c&gt;&amp;\\]\\]&gt;\\`@\u200byou\\\\x00\\\\x1b\\[31m\\\\ud800\\*"
    )


def test_markdown_is_a_row_for_each_case(write, run, folder):
    run(write(MIXED), "--markdown", "report.md")
    first, _, head, bars, *rows = (folder / "report.md").read_text().splitlines()
    assert first.startswith("**xgradcheck check**: 7 cases: 2 PASS, 1 FAIL as expected")
    assert head == "| case | verdict | distance | floor | worst element | cause |"
    assert bars.count("---") == 6
    cells = {row.split(" | ")[0].strip("| `"): row.strip("| ").split(" | ") for row in rows}
    assert cells["right"][1] == "PASS" and cells["planted"][1] == "FAIL as expected"
    assert cells["wrong"][1] == "**FAIL**" and cells["wrong"][2] == "2.0e-01"
    assert cells["wrong"][4].startswith("`W[") and cells["wrong"][5]
    assert cells["unsure"][-1].startswith("stochastic: ")
    assert "no 'gone'" in rows[-1]


def test_sensitivity_is_told_of_cases_that_pass_too(write, run):
    _, out, _ = run(write(GOOD), "--sensitivity")
    assert out.count("W: catches a wrong factor from") == 2


def interrupt(folder, *words):
    """Interrupt a run once its second case is told: (exit status, standard output, error)."""
    text = f"grads = {RIGHT}\n" + "".join(
        case(name=f'"case {number}"', target="slow") for number in range(1, 9)
    )
    (folder / "cases.toml").write_text(text, encoding="utf-8")
    files = ["--json", "r.json", "--junit", "r.xml", "--markdown", "r.md"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xgradcheck", "check", "cases.toml", *files, *words],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen = ""
    while "case 2" not in seen:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        seen += line
    # As a terminal does, to all processes of the group.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process, seen + out, err


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a group of processes")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_leaves_a_partial_report(jobs, folder):
    process, out, err = interrupt(folder, "--jobs", jobs)
    assert process.returncode == 130
    done = list(lines_of(out))
    assert done[:2] == ["case 1", "case 2"] and len(done) < 8
    assert err == f"xgradcheck: interrupted: {len(done)} of 8 cases done.\n"
    assert out.splitlines()[-1].startswith(f"{len(done)} of 8 cases: {len(done)} PASS; ")
    told = json.loads((folder / "r.json").read_text())
    assert told["interrupted"] is True
    assert [case["name"] for case in told["cases"]] == done
    assert [*done, *told["not_run"]] == [f"case {number}" for number in range(1, 9)]
    suite = ElementTree.parse(folder / "r.xml").getroot()[0]
    assert suite.find("properties/property").attrib == {"name": "interrupted", "value": "true"}
    assert len(suite.findall("testcase/skipped")) == 8 - len(done)
    assert f"Interrupted; not run: `{told['not_run'][0]}`" in (folder / "r.md").read_text()
    assert is_gone(process.pid)


def is_gone(group):
    """Whether no process of a group is left; that of Python's own for resources takes a moment."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_fifty_cases_in_three_frameworks_take_less_than_a_minute():
    examples = CHECKOUT / "examples" / "cases.toml"
    command = [sys.executable, "-m", "xgradcheck", "check", str(examples), "--jobs", "2"]
    # Without the strict settings of these tests, as a user has it.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "JAX_"}
    environment |= {"PYTHONPATH": str(CHECKOUT), "COLUMNS": "80", "JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    counted = "50 cases: 35 PASS, 15 FAIL as expected; "
    assert finished.stdout.splitlines()[-1].startswith(counted)
    assert max(map(len, finished.stdout.splitlines())) <= 80


# What a user's file may do to the others, and to the command.


@pytest.mark.parametrize("jobs", ["0", "1", "2"])
def test_files_find_the_modules_beside_them_and_not_those_of_others(folder, run, jobs):
    for name, factor in (("one", 2.0), ("two", 3.0)):
        (folder / name).mkdir()
        (folder / name / "helper.py").write_text(f"FACTOR = {factor}\n", encoding="utf-8")
        text = (
            "from helper import FACTOR\n"
            "def cost(W): return (W**2).sum()\n"
            "def slope(W):\n    import helper\n    assert helper.FACTOR == FACTOR\n"
            "    return FACTOR * W\n"
        )
        (folder / name / "own.py").write_text(text, encoding="utf-8")
    cases = [
        f'[[case]]\nname = "{name} {n}"\ntarget = "{name}/own.py:cost"\nargs = ["f64[3]"]\n'
        f'grads = "{name}/own.py:slope"\nexpect = "{verdict}"\n'
        for n in (1, 2)
        for name, verdict in (("one", "PASS"), ("two", "FAIL"))
    ]
    (folder / "cases.toml").write_text("\n".join(cases), encoding="utf-8")
    status, out, err = run("cases.toml", "--jobs", jobs)
    assert status == 0, out + err


def test_a_case_that_ends_its_process_is_an_error_without_jobs_too(folder, run):
    case = (
        '[[case]]\nname = "{0}"\ntarget = "ops.py:{0}"\nargs = ["f64[2]"]\ngrads = "ops.py:right"\n'
    )
    text = "".join(case.format(name) for name in ("dies", "cost"))
    (folder / "cases.toml").write_text(text, encoding="utf-8")
    status, _, err = run("cases.toml", "--json", "report.json")
    assert status == 2 and "exit status 7" in err
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [case["verdict"] for case in told["cases"]] == ["ERROR", "PASS"]


def test_a_case_that_changes_the_folder_moves_no_report(folder, run):
    (folder / "moves.py").write_text(
        "import os\ndef cost(W):\n    os.chdir('/')\n    return (W**2).sum()\n"
        "def slope(W): return 2 * W\n",
        encoding="utf-8",
    )
    words = ("moves.py:cost", "f64[2]", "moves.py:cost", "f64[2]", "--grads", "moves.py:slope")
    status, _, err = run(*words, "--junit", "report.xml")
    assert status == 0 and not err
    assert (folder / "report.xml").exists() and Path.cwd() == folder


def test_what_stands_above_all_cases_may_expect_a_failure(folder, run):
    case = (
        '[[case]]\nname = "{0}"\ntarget = "ops.py:cost"\nargs = ["f64[2]"]\ngrads = "ops.py:{0}"\n'
    )
    own = case.format("right") + 'expect = "PASS"\n'
    text = 'expect = "FAIL"\n' + case.format("wrong") + own
    (folder / "cases.toml").write_text(text, encoding="utf-8")
    status, out, _ = run("cases.toml")
    assert status == 0 and "1 FAIL as expected" in out


def test_a_message_that_no_encoding_has_loses_no_report(folder, run):
    (folder / "odd.py").write_text(
        "def cost(W): raise ValueError('\\ud800')\ndef slope(W): return W\n", encoding="utf-8"
    )
    text = '[[case]]\ntarget = "odd.py:cost"\nargs = ["f64[2]"]\ngrads = "odd.py:slope"\n'
    (folder / "cases.toml").write_text(text, encoding="utf-8")
    status, _, _ = run("cases.toml", "--json", "a.json", "--junit", "a.xml", "--markdown", "a.md")
    assert status == 2
    assert json.loads((folder / "a.json").read_text(encoding="utf-8"))["cases"]
    assert ElementTree.parse(folder / "a.xml").getroot().tag == "testsuites"


def test_the_page_knows_what_was_expected_and_what_has_no_report(folder, run):
    case = (
        '[[case]]\nname = "{0}"\ntarget = "ops.py:{1}"\nargs = ["f64[2]"]\ngrads = "ops.py:{2}"\n'
    )
    text = case.format("planted", "cost", "wrong") + 'expect = "FAIL"\n'
    (folder / "cases.toml").write_text(text + case.format("fine", "cost", "right"), "utf-8")
    assert run("cases.toml", "--html", "page.html")[0] == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert '<span class="badge PASS">PASS</span>xgradcheck check' in page and "as expected" in page
    (folder / "cases.toml").write_text(case.format("broken", "breaks", "right"), "utf-8")
    assert run("cases.toml", "--html", "page.html")[0] == 2
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert '<span class="badge ERROR">ERROR</span>' in page and "the user&#39;s own words" in page


@pytest.mark.parametrize("name", ["my (old) cases.toml", "a[b].toml", "a'b=c.toml"])
def test_a_file_that_is_there_may_be_called_anything(folder, run, name):
    text = '[[case]]\ntarget = "ops.py:cost"\nargs = ["f64[2]"]\ngrads = "ops.py:right"\n'
    (folder / name).write_text("\ufeff" + text, encoding="utf-8")
    assert run(name)[0] == 0
    (folder / "my (old) ops.py").write_text(OPS, encoding="utf-8")
    words = ("my (old) ops.py:cost", "f64[2]", "--grads", "my (old) ops.py:right")
    assert run(*words)[0] == 0


def test_a_command_that_is_ended_leaves_a_partial_report_and_no_process(folder):
    own = 'target = "ops.py:slow"\nargs = ["f64[60]"]\ngrads = "ops.py:right"\n'
    text = "".join(f'[[case]]\nname = "{number}"\n{own}' for number in range(60))
    (folder / "cases.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "xgradcheck", "check", "cases.toml", "--json", "report.json"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("PASS"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["interrupted"]
    for _ in range(100):  # what shares memory among processes ends a little later
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process is left")
