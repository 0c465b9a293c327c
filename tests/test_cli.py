"""The command line: what it reads, what it prints, and its exit status."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors
from safetensors import torch as safetensors_torch

from xgradcheck import InvalidCase, Verdict, _cli_env, _cli_output, _selftest
from xgradcheck._cli import main
from xgradcheck._stages import report_on

CHECKOUT = Path(__file__).resolve().parents[1]

NUMPY = """
import numpy as np

def cost(W, b=0.0, power=2):
    return ((W - b) ** power).sum()

def right(W, b=0.0, power=2):
    return power * (W - b) ** (power - 1)

def wrong(W, b=0.0, power=2):
    return 3 * (W - b)

def unsure(W):
    return (W**2).sum() + np.random.default_rng().normal()

def cubes(W):
    return (W**3).sum()

def cubes_gradient(W):
    return 3 * W**2

def loss(params):
    return sum((w**2).sum() for w in params.values())

def loss_gradient(params):
    return {name: 2 * w for name, w in params.items()}

def both(x, y):
    return (x * y).sum()

def both_gradient(x, y):
    return y

def seen(*values, **named):
    for value in (*values, *named.values()):
        print("got", getattr(value, "dtype", type(value).__name__), getattr(value, "shape", value))
    return (values[0] ** 2).sum()

def seen_gradient(*values, **named):
    return 2 * values[0]

def breaks(W):
    raise ZeroDivisionError("the user's own words")

number = 3
"""
TORCH = """
import torch

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * FACTOR * ctx.saved_tensors[0]

FACTOR = 2
square = Square.apply

def total(x, w, scale=1.0):
    return scale * (x * w).sum()

def both(x, y):
    return (x * y).sum()

def sum_of_squares(x):
    return x.square().sum()

def picked(x, index, mask):
    assert index.dtype == torch.int64 and mask.dtype == torch.bool
    return x[index][mask].square().sum()
"""
JAX = """
import jax
import jax.numpy as jnp

@jax.custom_vjp
def square(x):
    return x * x

square.defvjp(lambda x: (x * x, x), lambda x, cotangent: (cotangent * x,))

def cubes(x):
    return jnp.sum(x**3)
"""


@pytest.fixture(autouse=True)
def folder(working_folder):
    """A working folder with a file for each framework."""
    for name, source in (("by_hand", NUMPY), ("in_torch", TORCH), ("in_jax", JAX)):
        (working_folder / f"{name}.py").write_text(source, encoding="utf-8")
    return working_folder


@pytest.fixture
def report(run):
    """The report that ``xgradcheck check`` gives as JSON."""

    def report(*words):
        _, out, err = run(*words, "--json", "-")
        assert err == ""
        return json.loads(out)

    return report


@pytest.fixture
def refused(run):
    """The sentence on standard error of a command that is misuse."""

    def refused(*words):
        status, out, err = run(*words)
        assert status == 2
        assert out == ""
        assert "Traceback" not in err
        return err

    return refused


def is_one_sentence(text):
    return text.count("\n") == 1 and text.startswith("xgradcheck: ") and len(text) < 400


RIGHT = ["by_hand.py:cost", "f64[3]", "--grads", "by_hand.py:right"]
WRONG = ["by_hand.py:cost", "f64[3]", "--grads", "by_hand.py:wrong"]
UNSURE = ["by_hand.py:unsure", "f64[3]", "--grads", "by_hand.py:right"]
MISUSE = ["by_hand.py:cost", "f64[3]", "--grads", "by_hand.py:gone"]


@pytest.mark.parametrize(
    ("words", "status", "verdict"),
    [(RIGHT, 0, "PASS"), (WRONG, 1, "FAIL"), (UNSURE, 3, "INCONCLUSIVE")],
)
def test_the_exit_status_is_that_of_the_verdict(words, status, verdict, run):
    got, out, err = run(*words)
    assert got == status
    assert out.startswith(f"{verdict}  ")
    assert err == ""


def test_misuse_has_exit_status_2(run):
    status, out, err = run(*MISUSE)
    assert (status, out) == (2, "")
    assert is_one_sentence(err)


# Against the gradient `right`: `cost` passes, `cubes` fails, `unsure` cannot be judged.
PASSES, FAILS, UNSURE_TARGET, MISSING = (
    ["by_hand.py:cost", "f64[3]"],
    ["by_hand.py:cubes", "f64[3]"],
    ["by_hand.py:unsure", "f64[3]"],
    ["by_hand.py:gone", "f64[3]"],
)


@pytest.mark.parametrize(
    ("targets", "status"),
    [
        ([PASSES, PASSES], 0),
        ([PASSES, UNSURE_TARGET], 3),
        ([UNSURE_TARGET, PASSES], 3),
        ([UNSURE_TARGET, FAILS, PASSES], 1),
        ([FAILS, UNSURE_TARGET], 1),
        ([FAILS, MISSING, UNSURE_TARGET], 2),
        ([MISSING, PASSES], 2),
    ],
)
def test_of_several_targets_the_gravest_decides(targets, status, run):
    assert run(*chain(*targets), "--grads", "by_hand.py:right")[0] == status


def test_several_targets_are_all_checked_and_told_apart(run):
    _, out, err = run(*MISSING, *FAILS, *PASSES, "--grads", "by_hand.py:right")
    assert "FAIL  by_hand.py:cubes: " in out
    assert "PASS  by_hand.py:cost: " in out
    assert "'gone'" in err


def test_a_target_behind_the_options_is_not_silently_left_out(run):
    status, out, err = run(*PASSES, "--grads", "by_hand.py:right", *FAILS)
    assert "FAIL  by_hand.py:cubes" in out if status == 1 else "by_hand.py:cubes" in err
    assert status in (1, 2)


def test_the_report_is_the_text_of_the_library(run):
    _, out, _ = run(*WRONG)
    assert out.splitlines()[1].strip().startswith("W[")
    assert "\x1b" not in out
    # But for the command, which is to be copied.
    lines = [line for line in out.splitlines() if not line.startswith("· again: ")]
    assert max(map(len, lines)) <= 80 and len(lines) == len(out.splitlines()) - 1
    assert out.splitlines()[-1].endswith("seed 0")


def test_the_report_has_no_trailing_blanks(run):
    _, out, _ = run(*WRONG)
    assert [line for line in out.splitlines() if line != line.rstrip()] == []


def test_a_module_of_a_package_is_a_target(folder, report, monkeypatch):
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").touch()
    (folder / "pack" / "ops.py").write_text(NUMPY, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    grads = ["--grads", "pack.ops:right"]
    assert report("pack.ops:cost", "f64[3]", *grads)["verdict"] == "PASS"


def test_a_function_that_a_package_hands_on_is_a_target(folder, report, monkeypatch):
    (folder / "handed_on").mkdir()
    (folder / "handed_on" / "__init__.py").write_text("from handed_on.ops import square\n")
    (folder / "handed_on" / "ops.py").write_text(TORCH, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    assert report("handed_on:square", "f64[3]")["verdict"] == "PASS"


def test_a_file_finds_its_neighbours(folder, report):
    (folder / "below").mkdir()
    (folder / "below" / "neighbour.py").write_text("def square(W):\n    return W**2\n")
    source = "from neighbour import square\ndef cost(W):\n    return square(W).sum()\n"
    (folder / "below" / "net.py").write_text(source)
    assert report("below/net.py:cost", "f64[3]", "--grads", "by_hand.py:right")["verdict"] == "PASS"


def test_a_target_may_be_an_attribute_of_a_class(report):
    assert report("in_torch.py:Square.apply", "f64[3]")["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("target", "instead"),
    [
        ("in_torch.py:Square", "give Square.apply"),
        ("in_torch.py:Square.forward", "name in_torch.py:Square.apply"),
        ("layers.py:Layer", "give an object of it"),
        ("layers.py:Layer.forward", "name layers.py:layer"),
    ],
)
def test_what_cannot_be_called_by_itself_is_refused_with_what_can(target, instead, folder, refused):
    source = "class Layer:\n    def forward(self, x):\n        return x\n"
    (folder / "layers.py").write_text(source, encoding="utf-8")
    err = refused(target, "f64[3]", "--backend", "torch")
    assert is_one_sentence(err) and instead in err


def test_bfloat16_is_drawn_for_a_framework_that_has_it(run):
    assert "bfloat16" in run("in_torch.py:square", "bf16[3]")[1]
    assert "bfloat16" in run("in_jax.py:square", "bfloat16[3]")[1]


@pytest.mark.parametrize(
    ("spec", "dtype", "shape"),
    [
        ("f64[4,8]", "float64", (4, 8)),
        ("float64[4,8]", "float64", (4, 8)),
        ("f64[4, 8]", "float64", (4, 8)),
        ("f64[]", "float64", ()),
        ("f64[5]", "float64", (5,)),
        ("f32[2]", "float32", (2,)),
        ("c128[2]", "complex128", (2,)),
        ("i64[4]<10", "int64", (4,)),
        ("i32[2,2]", "int32", (2, 2)),
        ("u8[2]<200", "uint8", (2,)),
        ("bool[3]", "bool", (3,)),
        ("bool[]", "bool", ()),
    ],
)
def test_an_array_is_written_as_dtype_and_shape(spec, dtype, shape, run):
    words = ["by_hand.py:seen", "f64[2]", spec, "--grads", "by_hand.py:seen_gradient"]
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert f"got {dtype} {shape}\n" in out


def drawn(folder, spec, seed=0):
    """The values that an array of the command line gets."""
    code = "import numpy\ndef keep(x, y):\n    numpy.save('kept.npy', y)\n    return (x**2).sum()\n"
    (folder / "keeper.py").write_text(code)
    words = ["keeper.py:keep", "f64[2]", spec, "--grads", "by_hand.py:seen_gradient"]
    assert main(["check", *words, "--seed", str(seed)]) == 0
    return np.load(folder / "kept.npy")


def test_floating_values_are_normal_and_integers_stay_below_their_bound(folder):
    values = drawn(folder, "f64[4000]")
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    assert set(drawn(folder, "i64[400]<5")) == set(range(5))
    assert set(drawn(folder, "bool[40]")) == {False, True}


def test_the_same_seed_draws_the_same_values_and_another_seed_others(folder):
    assert (drawn(folder, "f64[9]", seed=4) == drawn(folder, "f64[9]", seed=4)).all()
    assert (drawn(folder, "f64[9]", seed=4) != drawn(folder, "f64[9]", seed=5)).any()


def test_two_arrays_of_one_command_differ(report):
    leaves = report("in_torch.py:total", "f64[3]", "f64[3]")["leaves"]
    assert leaves["x"]["worst"]["truth"] != leaves["w"]["worst"]["truth"]


def test_the_seed_reaches_the_report(report):
    assert report(*RIGHT, "--seed", "11")["seed"] == 11


def test_the_same_seed_gives_the_same_report(report):
    first, second = report(*WRONG, "--seed", "2"), report(*WRONG, "--seed", "2")
    for times in (first, second):
        del times["elapsed_s"], times["plan"]["seconds"]
    assert first == second


@pytest.mark.parametrize("word", ["3", "0.5", "None", "'sum'", "(1, 2)", "True", "[1, 'a']", "-2"])
def test_a_literal_is_an_argument(word, run):
    words = ["by_hand.py:seen", "f64[2]", word, "--grads", "by_hand.py:seen_gradient"]
    status, out, _ = run(*words)
    assert status == 0
    assert f"got {type(eval(word)).__name__} {eval(word)}\n" in out


@pytest.mark.parametrize("word", ["power=3", "b=f64[3]", "b=0.5"])
def test_a_keyword_argument_reaches_the_function_and_its_gradient(word, report):
    words = ["by_hand.py:cost", "f64[3]", word, "--grads", "by_hand.py:right"]
    assert report(*words)["verdict"] == "PASS"


def test_a_keyword_argument_changes_the_value(report):
    plain = report("in_torch.py:total", "f64[3]", "f64[3]")
    twice = report("in_torch.py:total", "f64[3]", "f64[3]", "scale=2.0")
    ratio = twice["leaves"]["x"]["worst"]["analytic"] / plain["leaves"]["x"]["worst"]["analytic"]
    assert twice["verdict"] == "PASS" and abs(ratio) > 1.05


def test_arrays_of_a_file_go_to_the_parameters_of_their_names(folder, report):
    np.savez(folder / "point.npz", y=np.array([3.0, 4.0]), x=np.array([1.0, 2.0]))
    leaves = report("by_hand.py:both", "point.npz", "--grads", "by_hand.py:both_gradient")["leaves"]
    assert leaves["x"]["worst"]["truth"] in (pytest.approx(3), pytest.approx(4))


def test_arrays_of_a_file_without_names_go_in_order(folder, report):
    np.savez(folder / "point.npz", np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    leaves = report("by_hand.py:both", "point.npz", "--grads", "by_hand.py:both_gradient")["leaves"]
    assert leaves["x"]["worst"]["truth"] in (pytest.approx(3), pytest.approx(4))


def test_arrays_of_a_file_with_other_names_are_one_dict(folder, report):
    np.savez(folder / "point.npz", W1=np.ones((2, 2)), b1=np.ones(2))
    leaves = report("by_hand.py:loss", "point.npz", "--grads", "by_hand.py:loss_gradient")["leaves"]
    assert list(leaves) == ["params['W1']", "params['b1']"]


def test_one_array_of_a_file_is_an_argument(folder, report):
    np.savez(folder / "point.npz", W1=np.array([5.0]), b1=np.ones(2))
    words = ["by_hand.py:cost", "point.npz:W1", "--grads", "by_hand.py:right"]
    assert report(*words)["leaves"]["W"]["worst"]["analytic"] == 10
    words[1:2] = ["f64[2]", "b=point.npz:b1"]
    assert report(*words)["verdict"] == "PASS"


def test_nothing_in_a_file_is_unpickled(folder, refused):
    np.savez(folder / "point.npz", W=np.array([print], dtype=object))
    err = refused("by_hand.py:cost", "point.npz", "--grads", "by_hand.py:right")
    assert is_one_sentence(err) and "point.npz" in err


@pytest.mark.parametrize("content", ["PK\x03\x04junk", "junk", ""])
def test_a_file_that_holds_no_arrays_is_refused(content, folder, refused):
    (folder / "point.npz").write_text(content)
    err = refused("by_hand.py:cost", "point.npz", "--grads", "by_hand.py:right")
    assert is_one_sentence(err) and "point.npz" in err


def test_a_single_array_under_the_name_of_a_file_of_arrays_is_refused(folder, refused):
    np.save(folder / "point.npy", np.ones(3))
    (folder / "point.npy").rename(folder / "point.npz")
    err = refused("by_hand.py:cost", "point.npz", "--grads", "by_hand.py:right")
    assert is_one_sentence(err) and "point.npz" in err


SAVED = {"x": np.array([1.0, 2.0, 3.0]), "y": np.array([3.0, 4.0, 5.0])}


def saved_npz(path, arrays):
    np.savez(path, **arrays)


def saved_pt(path, arrays):
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


SAVERS = {".npz": saved_npz, ".pt": saved_pt, ".pth": saved_pt, ".safetensors": None}


def save(path, arrays):
    if path.suffix == ".safetensors":
        safetensors.save_file(arrays, path)
    else:
        SAVERS[path.suffix](path, arrays)


@pytest.mark.parametrize("ending", SAVERS)
@pytest.mark.parametrize("framework", ["by_hand.py:both", "in_torch.py:both"])
def test_inputs_are_arguments_by_their_names(ending, framework, folder, report):
    save(folder / f"point{ending}", SAVED)
    grads = ["--grads", "by_hand.py:both_gradient"] if "hand" in framework else []
    for words in (["--inputs", f"point{ending}"], [f"point{ending}"]):
        leaves = report(framework, *words, *grads)["leaves"]
        assert abs(leaves["x"]["worst"]["truth"]) == pytest.approx(3, abs=2.1)
        assert leaves["x"]["shape"] == [3]


@pytest.mark.parametrize("ending", SAVERS)
def test_inputs_are_arguments_in_order(ending, folder, report):
    save(folder / f"point{ending}", {"arr_0": SAVED["x"], "arr_1": SAVED["y"]})
    words = ["by_hand.py:both", "--inputs", f"point{ending}", "--grads", "by_hand.py:both_gradient"]
    assert report(*words)["verdict"] == "PASS"


@pytest.mark.parametrize("ending", SAVERS)
def test_inputs_with_other_names_are_one_dict(ending, folder, report):
    save(folder / f"point{ending}", {"W1": np.ones((2, 2)), "b1": np.ones(2)})
    words = ["by_hand.py:loss", "--inputs", f"point{ending}", "--grads", "by_hand.py:loss_gradient"]
    for _ in range(3):  # in the same order every time
        assert list(report(*words)["leaves"]) == ["params['W1']", "params['b1']"]
    one = ["by_hand.py:cost", f"point{ending}:b1", "--grads", "by_hand.py:right"]
    assert report(*one)["leaves"]["W"]["shape"] == [2]


def test_words_follow_what_inputs_hold(folder, report):
    np.savez(folder / "point.npz", W=np.ones(3))
    words = ["by_hand.py:cost", "0.5", "--inputs", "point.npz", "--grads", "by_hand.py:right"]
    assert report(*words)["leaves"]["W"]["worst"]["analytic"] == 1.0


def test_a_list_of_tensors_is_arguments_in_order_and_one_tensor_is_one(folder, report):
    torch.save([torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)], "list.pt")
    assert set(report("in_torch.py:total", "--inputs", "list.pt")["leaves"]) == {"x", "w"}
    torch.save(torch.ones(4, dtype=torch.float64), "one.pt")
    assert report("in_torch.py:square", "--inputs", "one.pt")["leaves"]["args[0]"]["shape"] == [4]
    words = ["by_hand.py:cost", "--inputs", "one.pt", "--grads", "by_hand.py:right"]
    assert report(*words)["verdict"] == "PASS"


def test_a_state_dict_in_a_dict_stays_a_tree(folder, report):
    layer = torch.nn.Linear(2, 1, dtype=torch.float64)
    torch.save({"layer": layer.state_dict(), "step": 3}, "state.pt")
    source = """
import torch
def loss(state):
    assert state["step"] == 3
    return sum(part.square().sum() for part in state["layer"].values())
"""
    (folder / "stateful.py").write_text(source)
    leaves = report("stateful.py:loss", "--inputs", "state.pt")["leaves"]
    assert list(leaves) == ["state['layer']['weight']", "state['layer']['bias']"]


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_bfloat16_stays_as_it_is_in_torch_and_is_exact_elsewhere(ending, folder, run, report):
    tensors = {"x": torch.tensor([1.0, -3.140625, 2.0**-100]).bfloat16()}
    if ending == ".pt":
        torch.save(tensors, f"low{ending}")
    else:
        safetensors_torch.save_file(tensors, f"low{ending}")
    assert (
        report("in_torch.py:sum_of_squares", f"low{ending}")["leaves"]["x"]["dtype"] == "bfloat16"
    )
    code = "import numpy\ndef keep(x):\n    numpy.save('kept.npy', x)\n    return (x**2).sum()\n"
    (folder / "keeper.py").write_text(code)
    run("keeper.py:keep", f"low{ending}", "--coverage", "projection", "--grads", "keeper.py:keep")
    kept = np.load(folder / "kept.npy")
    assert kept.dtype == np.float32
    assert kept.tolist() == tensors["x"].double().tolist()


BROKEN = {
    "gone.npz": None,
    "gone.pt": None,
    "gone.safetensors": None,
    "junk.pt": b"junk",
    "empty.pt": b"",
    "junk.safetensors": b"junk and more junk",
    "empty.safetensors": b"",
    "pickled.pt": b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02R.",
    "point.bin": b"1234",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_what_it_says_is_refused(name, folder, refused):
    if BROKEN[name] is not None:
        (folder / name).write_bytes(BROKEN[name])
    err = refused("by_hand.py:cost", "--inputs", name, "--grads", "by_hand.py:right")
    assert is_one_sentence(err) and name in err, err


@pytest.mark.parametrize("ending", SAVERS)
def test_a_truncated_file_is_refused(ending, folder, refused):
    path = folder / f"point{ending}"
    save(path, SAVED)
    path.write_bytes(path.read_bytes()[:-30])
    for target, *grads in (
        ["by_hand.py:cost", "--grads", "by_hand.py:right"],
        ["in_torch.py:total"],
    ):
        err = refused(target, "--inputs", path.name, *grads)
        assert is_one_sentence(err) and path.name in err, err


def test_a_module_in_a_file_is_not_loaded(folder, refused):
    torch.save(torch.nn.Linear(2, 1), "module.pt")
    err = refused("in_torch.py:square", "module.pt")
    assert is_one_sentence(err) and "module.pt" in err and "torch.save" in err


def test_safetensors_that_are_not_installed_are_asked_for(folder, refused, monkeypatch):
    save(folder / "point.safetensors", SAVED)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for target in (["by_hand.py:cost", "--grads", "by_hand.py:right"], ["in_torch.py:total"]):
        err = refused(*target, "--inputs", "point.safetensors")
        assert is_one_sentence(err) and "pip install xgradcheck[safetensors]" in err


def test_a_benchmark_takes_inputs_and_writes_a_table(run, folder):
    (folder / "ops.py").write_text(IMPLEMENTATIONS)
    torch.save({"x": torch.linspace(-1, 1, 32)}, "point.pt")
    words = ["ops.py:plain", "ops.py:wrong", "--inputs", "point.pt", "--reference", "ops.py:plain"]
    status, _, _ = run(*words, "--seconds", "0.01", "--markdown", "table.md", verb="bench")
    assert status == 1
    *_, plain, wrong = (folder / "table.md").read_text().splitlines()
    assert plain.startswith("| `plain` | float32 | PASS |") and "fastest" in plain
    assert wrong.startswith("| `wrong` | float32 | **FAIL** |")


def test_second_derivatives_and_forward_mode(report):
    leaves = report("in_torch.py:total", "f64[3]", "f64[3]", "--order", "2")["leaves"]
    assert len(leaves) == 5 and any(name.endswith("(order 2)") for name in leaves)
    both = report("in_torch.py:total", "f64[3]", "f64[3]", "--mode", "reverse", "--mode", "forward")
    assert {len(leaf["rows"]) for leaf in both["leaves"].values()} == {2}


def test_arrays_below_float64_are_judged_twice(report):
    for dtype in ("f32", "f16"):
        leaves = report("in_torch.py:total", f"{dtype}[3]", f"{dtype}[3]")["leaves"]
        assert {len(leaf["rows"]) for leaf in leaves.values()} == {2}


def test_the_file_of_a_torch_function_is_told_by_its_imports(report):
    written = report("in_torch.py:square", "f64[2,3]")
    assert written["verdict"] == "PASS"
    assert "torch" in written["environment"]


def test_a_wrong_jax_rule_is_caught(run):
    status, out, _ = run("in_jax.py:square", "f64[3]")
    assert status == 1
    assert "x[" in out


def test_a_jax_function_is_checked_in_float64(report):
    leaf = report("in_jax.py:cubes", "f64[3]")["leaves"]["x"]
    assert (leaf["verdict"], leaf["dtype"]) == ("PASS", "float64")


def test_integers_and_masks_reach_a_torch_function(report):
    words = ["in_torch.py:picked", "f64[6]", "i64[4]<6", "bool[4]"]
    assert report(*words)["verdict"] == "PASS"


def test_a_file_that_imports_both_frameworks_is_refused_unless_one_is_named(folder, refused, run):
    (folder / "mixed.py").write_text("import jax\n" + TORCH)
    err = refused("mixed.py:square", "f64[3]")
    assert is_one_sentence(err)
    assert all(word in err for word in ("jax", "torch", "--backend"))
    assert run("mixed.py:square", "f64[3]", "--backend", "torch")[0] == 0


def test_a_file_that_imports_neither_framework_needs_a_gradient(refused):
    err = refused("by_hand.py:cost", "f64[3]")
    assert is_one_sentence(err) and "--grads" in err


@pytest.mark.parametrize("name", ["square", "layer", "partly"])
def test_what_a_file_imports_from_another_keeps_its_framework(name, folder, run):
    layer = "class Layer:\n    def __call__(self, x):\n        return square(x)\nlayer = Layer()\n"
    partly = "from functools import partial\npartly = partial(square)\n"
    (folder / "origin.py").write_text(JAX + layer + partly, encoding="utf-8")
    (folder / "shop.py").write_text("from origin import square, layer, partly\n")
    assert run(f"{'origin' if name == 'partly' else 'shop'}.py:{name}", "f64[3]")[0] == 1


def test_an_import_inside_a_function_counts(folder, run):
    (folder / "late.py").write_text("def f(x):\n    import torch\n    return torch.sin(x)\n")
    assert run("late.py:f", "f64[3]")[0] == 0


def test_a_word_in_a_comment_is_no_import(folder, refused):
    (folder / "words.py").write_text('"""Like import torch."""\n# import jax\n' + NUMPY)
    assert "--grads" in refused("words.py:cost", "f64[3]")


def test_wrt_chooses_leaves(report):
    names = {"x": ["x"], "w": ["w"], "1": ["w"], "*": ["x", "w"]}
    for asked, chosen in names.items():
        written = report("in_torch.py:total", "f64[3]", "f64[3]", "--wrt", asked)
        assert list(written["leaves"]) == chosen
    written = report("in_torch.py:total", "f64[3]", "f64[3]", "--wrt", "w", "--wrt", "x")
    assert set(written["leaves"]) == {"x", "w"}


def test_wrt_that_matches_nothing_is_refused_with_the_names(refused):
    err = refused("in_torch.py:total", "f64[3]", "f64[3]", "--wrt", "v")
    assert is_one_sentence(err) and "'v'" in err and "x, w" in err


def test_eps_is_the_step_of_the_textbook(run, report):
    cubes = ["by_hand.py:cubes", "f64[3]", "--grads", "by_hand.py:cubes_gradient"]
    status, out, _ = run(*cubes, "--eps", "0.1")
    assert status == 3
    assert "eps=0.1" in out
    assert report(*cubes, "--eps", "1e-5")["verdict"] == "PASS"


def test_rtol_and_atol_are_allowed_on_top(folder, run):
    source = NUMPY.replace("return 3 * (W - b)", "return 2.001 * (W - b)")
    (folder / "close.py").write_text(source)
    words = ["close.py:cost", "f64[3]", "--grads", "close.py:wrong"]
    assert run(*words)[0] == 1
    assert run(*words, "--rtol", "1e-2")[0] == 0
    assert run(*words, "--atol", "1e-2")[0] == 0


def test_json_is_written_beside_the_text(folder, run):
    status, out, _ = run(*WRONG, "--json", "report.json")
    assert status == 1 and out.startswith("FAIL")
    written = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (written["verdict"], written["schema"]) == ("FAIL", 1)


def test_json_on_standard_output_stands_alone(run):
    status, out, err = run(*WRONG, "--json", "-")
    assert (status, err) == (1, "")
    assert json.loads(out)["verdict"] == "FAIL"


def test_json_of_several_targets_goes_to_a_file_each(folder, run):
    run(*PASSES, *FAILS, "--grads", "by_hand.py:right", "--json", "report.json")
    written = [json.loads(path.read_text()) for path in sorted(folder.glob("report*.json"))]
    assert sorted(report["verdict"] for report in written) == ["FAIL", "PASS"]


def test_json_of_one_function_at_two_shapes_loses_neither(folder, run):
    words = ["by_hand.py:cost", "f64[3]", "by_hand.py:cost", "f64[2]"]
    run(*words, "--grads", "by_hand.py:right", "--json", "report.json")
    assert len(list(folder.glob("report*.json"))) == 2


def test_json_of_several_targets_on_standard_output_can_be_read(run):
    _, out, _ = run(*PASSES, *FAILS, "--grads", "by_hand.py:right", "--json", "-")
    decoder, rest, verdicts = json.JSONDecoder(), out.strip(), []
    while rest:
        written, end = decoder.raw_decode(rest)
        verdicts += [
            one["verdict"] for one in (written if isinstance(written, list) else [written])
        ]
        rest = rest[end:].strip()
    assert verdicts == ["PASS", "FAIL"]


def test_a_json_file_that_cannot_be_written_is_misuse_and_no_verdict(run):
    status, _, err = run(*RIGHT, "--json", "no/such/folder/report.json")
    assert status == 2
    assert is_one_sentence(err)


def test_a_page_is_written_of_every_report(folder, run, monkeypatch):
    written = []
    monkeypatch.setattr("xgradcheck._html.write_page", lambda *given: written.append(given))
    run(*PASSES, *FAILS, "--grads", "by_hand.py:right", "--html", "page.html")
    ((entries, path, title, beside),) = written
    assert beside.verdict == "FAIL" and not beside.faults
    assert (path, title) == ("page.html", "xgradcheck check: 2 cases: 1 PASS, 1 FAIL")
    told = [(title, str(report.verdict)) for title, report in entries]
    assert told == [("by_hand.py:cost", "PASS"), ("by_hand.py:cubes", "FAIL")]


def test_the_page_can_be_opened(folder, run):
    run(*WRONG, "--html", "page.html")
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "by_hand.py:wrong" in page


def test_a_page_that_needs_a_package_says_so_after_the_report(folder, run, monkeypatch):
    def refuse(*given):
        raise InvalidCase("a page needs the package 'jinja2': pip install xgradcheck[report].")

    monkeypatch.setattr("xgradcheck._html.write_page", refuse)
    status, out, err = run(*RIGHT, "--html", "page.html", "--json", "report.json")
    assert status == 2 and out.startswith("PASS  ") and is_one_sentence(err)
    assert (folder / "report.json").exists()


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--html"])
def test_a_file_that_could_not_be_written_is_refused_before_anything_runs(option, run):
    words = ["by_hand.py:seen", "f64[2]", "--grads", "by_hand.py:seen_gradient"]
    status, out, err = run(*words, option, "no/such/folder/report")
    assert (status, out) == (2, "") and is_one_sentence(err) and "no/such/folder" in err
    status, out, err = run(*words, option, ".")
    assert (status, out) == (2, "") and is_one_sentence(err)


@pytest.mark.parametrize(
    "words",
    [
        WRONG,
        [*WRONG, "--eps", "1e-5", "--wrt", "W"],
        [*WRONG[:2], "b=0.5", *WRONG[2:], "--seed", "7"],
    ],
)
def test_the_replay_of_a_report_is_a_command_that_gives_it_again(words, report):
    first = report(*words)
    program, verb, *again = shlex.split(first["replay"])
    assert (program, verb) == ("xgradcheck", "check")
    assert "--seed" in again and "--json" not in again
    second = report(*again)
    for times in (first, second):
        del times["elapsed_s"], times["plan"]["seconds"]
    assert first == second


def test_the_replay_of_one_of_several_targets_is_of_that_one(run):
    words = [*FAILS, *PASSES, "--grads", "by_hand.py:right", "--json", "-"]
    _, out, _ = run(*words)
    replay = json.JSONDecoder().raw_decode(out)[0]["replay"]
    again = "xgradcheck check by_hand.py:cubes 'f64[3]' --grads by_hand.py:right --seed 0"
    assert replay == again


def test_an_audit_is_replayed_as_an_audit(run):
    options = ["--probe", "purity", "--json", "-"]
    _, out, _ = run("in_torch.py:total", "f64[3]", "f64[3]", *options, verb="audit")
    replay = json.loads(out)["replay"]
    again = "xgradcheck audit in_torch.py:total 'f64[3]' 'f64[3]' --probe purity --seed 0"
    assert replay == again


def test_verbose_is_the_long_text_of_the_report(run, monkeypatch):
    shown = []
    text = _cli_output.text

    def seen(report, verbose=False):
        shown.append(verbose)
        return text(report, verbose)

    monkeypatch.setattr(_cli_output, "text", seen)
    run(*WRONG)
    run(*WRONG, "--verbose")
    assert shown == [False, True]


def test_targets_that_are_shared_by_processes_are_told_in_the_same_words(run):
    words = [*PASSES, *FAILS, *MISSING, "--grads", "by_hand.py:right"]
    alone, shared = run(*words), run(*words, "--jobs", "2")
    times = re.compile(r", \S+ s, seed")
    assert shared[0] == alone[0] == 2
    assert times.sub("", shared[1]) == times.sub("", alone[1])
    assert shared[2] == alone[2]


def test_an_exception_is_shown_from_the_users_frame_on(run):
    _, _, err = run("by_hand.py:breaks", "f64[3]", "--grads", "by_hand.py:right")
    assert re.findall(r'File ".*?([^/\\]+)", line', err) == ["by_hand.py"]


def test_what_exits_is_an_error_and_no_verdict(folder, run):
    (folder / "leaves.py").write_text("import sys\ndef f(x):\n    sys.exit(0)\n")
    status, out, err = run("leaves.py:f", "f64[3]", "--grads", "by_hand.py:right")
    assert (status, out) == (2, "") and "SystemExit: 0" in err


def test_a_target_that_is_interrupted_has_no_verdict(folder, run):
    (folder / "stopped.py").write_text("def f(x):\n    raise KeyboardInterrupt\n")
    words = [*PASSES, "stopped.py:f", "f64[3]", *FAILS, "--grads", "by_hand.py:right"]
    status, out, err = run(*words, "--json", "report.json")
    assert status == 130 and out.startswith("PASS  by_hand.py:cost") and "FAIL" not in out
    assert err == "xgradcheck: interrupted: 1 of 3 cases done.\n"
    assert [path.name for path in folder.glob("report*.json")] == ["report-1.json"]


def test_a_closed_pipe_ends_quietly(folder):
    command = [sys.executable, "-m", "xgradcheck", "check", *WRONG]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["f64[3]"], "'f64[3]'"),
        (["by_hand"], "'by_hand'"),
        (["gone.py:cost", "f64[3]"], "gone.py"),
        (["no_such_package.ops:cost", "f64[3]"], "no_such_package.ops"),
        (["by_hand.py:gone", "f64[3]"], "cost"),
        (["by_hand.py:number", "f64[3]"], "by_hand.py:number"),
        ([*RIGHT[:1], "f64[3", *RIGHT[2:]], "'f64[3'"),
        ([*RIGHT[:1], "f63[3]", *RIGHT[2:]], "f64"),
        ([*RIGHT[:1], "f64[3]<4", *RIGHT[2:]], "integers"),
        ([*RIGHT[:1], "i64[3]<0", *RIGHT[2:]], "bound"),
        ([*RIGHT[:1], "i64[3]", *RIGHT[2:]], "floating"),
        ([*RIGHT[:1], "gone.npz", *RIGHT[2:]], "gone.npz"),
        ([*RIGHT[:1], "gone.npz:W", *RIGHT[2:]], "gone.npz"),
        ([*RIGHT[:1], "word", *RIGHT[2:]], "'word'"),
        ([*RIGHT[:1], "b=word", *RIGHT[2:]], "'word'"),
        ([*RIGHT, "--seed", "-1"], "seed"),
        ([*RIGHT, "--jobs", "-1"], "--jobs -1"),
        ([*RIGHT, "-k", "none of it"], "by_hand.py:cost"),
        ([*RIGHT, "--rtol", "-1"], "rtol"),
        ([*RIGHT, "--atol", "nan"], "atol"),
        ([*RIGHT, "--eps", "0"], "eps"),
        ([*RIGHT[:2], "--grads", "by_hand.py"], "by_hand.py"),
        ([*RIGHT[:2], "--grads", "by_hand.py:number"], "number"),
        (["math:sqrt", "f64[3]"], "math"),
        (["by_hand.py:cost", "--grads", "by_hand.py:right"], "cost"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_misuse_is_told_in_one_sentence_without_a_traceback(words, said, refused):
    err = refused(*words)
    assert is_one_sentence(err), err
    assert said in err


def test_a_key_that_a_file_lacks_is_refused_with_those_it_has(folder, refused):
    np.savez(folder / "point.npz", W1=np.ones(2), b1=np.ones(2))
    err = refused("by_hand.py:cost", "point.npz:W2", "--grads", "by_hand.py:right")
    assert is_one_sentence(err) and "'W2'" in err and "W1, b1" in err


@pytest.mark.parametrize("words", [["--nonsense"], ["--eps", "small"], ["--backend", "numpie"]])
def test_an_option_that_is_none_is_misuse(words, refused):
    assert "usage: xgradcheck" in refused(*RIGHT, *words)


def test_a_command_without_a_target_is_misuse(refused):
    assert "TARGET" in refused()


def test_an_exception_of_the_function_shows_the_users_file_and_line(run):
    status, out, err = run("by_hand.py:breaks", "f64[3]", "--grads", "by_hand.py:right")
    assert status == 2 and out == ""
    assert "by_hand.py" in err and "in breaks" in err
    assert "ZeroDivisionError: the user's own words" in err


def test_an_exception_while_the_file_is_imported_shows_it_too(folder, run):
    (folder / "broken.py").write_text("import numpy\nraise OSError('at import')\n")
    status, _, err = run("broken.py:f", "f64[3]")
    assert status == 2
    assert "broken.py" in err and "OSError: at import" in err


def test_a_module_that_the_file_needs_and_lacks_is_named(folder, run):
    (folder / "needy.py").write_text("import no_such_module_at_all\n")
    status, _, err = run("needy.py:f", "f64[3]")
    assert status == 2
    assert "no_such_module_at_all" in err


def test_a_file_is_not_imported_under_its_own_name(folder, run):
    (folder / "json.py").write_text(NUMPY)
    run("json.py:cost", "f64[3]", "--grads", "json.py:right")
    assert sys.modules["json"] is json


def env(capsys):
    """What ``xgradcheck env`` prints, by name."""
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines)


def test_env_lists_versions(capsys):
    shown = env(capsys)
    assert {"python", "platform", "xgradcheck", "numpy", "torch", "jax"} <= shown.keys()
    assert shown["numpy"] == np.__version__


def test_env_lists_flags_and_devices(capsys):
    shown = env(capsys)
    assert {"torch matmul precision", "jax x64", "jax device", "cpus"} <= shown.keys()
    assert shown["torch devices"].startswith("cpu")


def test_env_says_what_is_not_installed(capsys, monkeypatch):
    shown = env(capsys)
    assert shown["jinja2"][0].isdigit()

    def without(name, find=_cli_env.is_installed):
        return name not in ("jinja2", "jax") and find(name)

    monkeypatch.setattr(_cli_env, "is_installed", without)
    shown = env(capsys)
    assert shown["jinja2"] == "not installed (pages; pip install xgradcheck[report])"
    assert shown["jax"] == "not installed (pip install xgradcheck[jax])"


def test_env_as_json_says_the_same(capsys):
    shown = env(capsys)
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shown


@pytest.mark.parametrize("words", [["f64[3]", "f64[3]"], ["f64[3]", "y=3"]])
def test_a_call_that_python_refuses_is_told_without_a_traceback_of_ours(words, run):
    status, _, err = run("by_hand.py:cubes", *words, "--grads", "by_hand.py:cubes_gradient")
    assert status == 2
    assert "TypeError: cubes() " in err
    assert "Traceback" not in err


def test_a_file_that_python_cannot_read_is_told_by_its_line(folder, run):
    (folder / "broken.py").write_text("def f(x:\n    return x\n", encoding="utf-8")
    status, _, err = run("broken.py:f", "f64[3]")
    assert status == 2
    assert "broken.py" in err and "SyntaxError" in err
    assert "Traceback" not in err


def test_help_tells_the_forms_the_options_and_the_exit_status(run):
    status, out, _ = run("--help")
    assert status == 0
    forms = {"file.py:function", "package.module:function", "f64[4,8]", "i64[4]<10", ".npz"}
    forms |= {"cases.toml", "[[case]]", "cases.py"}
    options = {"--grads", "--backend", "--wrt", "--eps", "--rtol", "--atol", "--seed", "--json"}
    options |= {"--inputs", "--junit", "--markdown", "--html", "--jobs", "--verbose", "-k TEXT"}
    statuses = {"0 PASS", "1 FAIL", "2 misuse", "3 INCONCLUSIVE", "130 interrupted"}
    assert {word for word in forms | options | statuses if word not in out} == set()


@pytest.mark.parametrize("verb", ["check", "audit", "bench", "diff"])
def test_help_fits_a_terminal(verb, run):
    _, out, _ = run("--help", verb=verb)
    assert max(map(len, out.splitlines())) <= 80


def test_the_commands_own_help_names_its_verbs(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("check", "audit", "bench", "diff", "selftest", "env"))


def as_a_process(*words, columns="80"):
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "COLUMNS": columns}
    return subprocess.run(
        [sys.executable, "-m", "xgradcheck", *words],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_command_runs_as_a_process():
    finished = as_a_process("check", *WRONG)
    assert finished.returncode == 1
    assert finished.stdout.startswith("FAIL  cost: ")
    assert finished.stderr == ""


def test_the_process_ends_with_the_status_of_misuse():
    finished = as_a_process("check", *MISUSE)
    assert finished.returncode == 2
    assert is_one_sentence(finished.stderr)


def test_a_check_that_takes_too_much_memory_is_refused(refused):
    said = refused(*RIGHT, "--memory", "10")
    assert "may hold 10 bytes" in said
    assert is_one_sentence(said)


def test_an_audit_tries_probes(run, tmp_path):
    source = """
import torch

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x ** 2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad.view(-1).view(grad.shape)
"""
    (tmp_path / "viewed.py").write_text(source, encoding="utf-8")
    target = "viewed.py:Square.apply", "f64[3,4]"
    status, out, err = run(*target, verb="audit")
    assert (status, err) == (1, "")
    assert out.startswith("FAIL  Square: the gradient is right here, but the probe layout failed")
    assert run(*target, "--probe", "purity", "--probe", "form", verb="audit")[0] == 0
    assert run(*target, "--probe", "aliasing", "--strict", verb="audit")[0] == 1
    status, _, err = run(*target, "--probe", "layouts", verb="audit")
    assert status == 2
    assert "invalid choice: 'layouts'" in err


def test_an_audit_takes_samples_sizes_and_what_is_expected(run, tmp_path):
    source = """
import torch

class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad

def rounded(x: torch.Tensor):
    return Round.apply(x)

def clipped(grad, x):
    return grad * (x.abs() < 1)

def of_size(size):
    return (torch.ones(size, 2, dtype=torch.float64),)
"""
    (tmp_path / "rounded.py").write_text(source, encoding="utf-8")
    target = "rounded.py:rounded", "f64[4,2]"
    declared = run(*target, "--expect", "surrogate", verb="audit")
    assert declared[0] == 0
    assert "a surrogate, whose gradient was not compared" in declared[1]
    status, out, _ = run(*target, "--expect", "rounded.py:clipped", verb="audit")
    assert status == 1
    assert "beside the gradient that is expected" in " ".join(out.split())
    samples = "--probe", "slices", "--batch", "x", "--large", "100", "--expect", "surrogate"
    status, out, _ = run(*target, *samples, verb="audit")
    assert status == 0
    assert "slices  PASS          2  a batch gives what its parts give" in out
    sizes = "--probe", "shapes", "--shapes", "rounded.py:of_size"
    assert run("rounded.py:rounded", "f64[4,2]", *sizes, verb="audit")[0] == 1
    status, _, err = run(*target, "--batch", "x:a", verb="audit")
    assert status == 2
    assert "--batch x:a is no batch axis: write NAME, or NAME:AXIS." in err


def test_a_kernel_is_compared_with_its_reference(run, tmp_path):
    source = """
import torch

def plain(x: torch.Tensor):
    return x.softmax(-1)

class Softmax(torch.autograd.Function):
    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        p = (x - x.amax(-1, keepdim=True)).exp()
        p = p / p.sum(-1, keepdim=True)
        ctx.save_for_backward(p)
        return p

    @classmethod
    def backward(cls, ctx, grad):
        (p,) = ctx.saved_tensors
        return cls.factor * p * (grad - (p * grad).sum(-1, keepdim=True))

class Wrong(Softmax):
    factor = 1.1
"""
    (tmp_path / "kernels.py").write_text(source, encoding="utf-8")
    options = "f32[8,16]", "--reference", "kernels.py:plain", "--dtype", "float32"
    status, out, _ = run("kernels.py:Softmax.apply", *options, "--dtype", "bfloat16")
    assert status == 0
    assert "x baseline" in out
    assert "bfloat16 PASS" in " ".join(out.split())
    assert run("kernels.py:Wrong.apply", *options)[0] == 1
    status, _, err = run("kernels.py:Softmax.apply", "f32[8,16]", "--dtype", "float32")
    assert status == 2
    assert "dtypes and factors go with reference=" in err


def test_a_selftest_tells_what_became_of_planted_rules(capsys, monkeypatch):
    assert main(["selftest", "--backend", "numpy"]) == 0
    assert "numpy    20 of 20 passed  60 of 60 caught" in capsys.readouterr().out

    def blind(*args, **options):
        return replace(report_on(*args, **options), verdict=Verdict.PASS)

    monkeypatch.setattr(_selftest, "report_on", blind)
    assert main(["selftest", "--backend", "numpy"]) == 1
    out = capsys.readouterr().out
    assert "0 of 60 caught" in out
    assert "· numpy: square zero: PASS" in out


def test_a_selftest_is_told_as_json_too(capsys):
    assert main(["selftest", "--backend", "numpy", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["numpy"]
    assert (told["right"], told["passed"], told["wrong"], told["caught"]) == (20, 20, 60, 60)
    assert told["missed"] == []


def test_every_mistake_of_the_selftest_is_made_often():
    made = [mistake for _, mistake in _selftest.planted()]
    assert made.count("") == len(_selftest.RULES) == 20
    assert {made.count(mistake) for mistake in _selftest.MISTAKES} == {5}


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.slow
def test_a_selftest_holds_in_other_frameworks(backend):
    # Its rules add a bias to rows, which the settings of these tests forbid.
    with jax.numpy_rank_promotion("allow"):
        assert main(["selftest", "--backend", backend]) == 0


def test_coverage_and_budget_are_options(report):
    assert report(*RIGHT, "--coverage", "projection")["coverage"] == "projection"
    assert report(*WRONG, "--coverage", "rows")["verdict"] == "FAIL"
    assert report(*RIGHT, "--coverage", "sweep", "--budget", "8")["verdict"] == "INCONCLUSIVE"
    assert report(*RIGHT, "--budget", "60s")["verdict"] == "PASS"


IMPLEMENTATIONS = """
import torch
from torch.nn import functional as F

def plain(x): return F.softplus(x)
def mine(x): return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)
class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.softplus(x)
    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].sigmoid() * 1.01
wrong = Wrong.apply
several = {"torch": plain, "mine": mine}
def made(size): return (torch.linspace(-1, 1, size),)
"""


def test_implementations_are_timed(run, tmp_path):
    file = tmp_path / "ops.py"
    file.write_text(IMPLEMENTATIONS)
    quick = ("--reference", f"{file}:plain", "--seconds", "0.01")
    status, out, _ = run(f"{file}:several", "f32[64]", *quick, verb="bench")
    assert status == 0 and "2 implementations are right" in out and "fastest" in out
    page, record = tmp_path / "bench.html", tmp_path / "bench.json"
    words = (f"{file}:plain", f"{file}:wrong", "f32[64]", "--json", record, "--html", page)
    status, out, _ = run(*words, *quick, verb="bench")
    assert status == 1 and "1 of 2 implementations are right" in out
    assert json.loads(record.read_text())["records"][1]["both"] is None
    assert page.read_text().startswith("<!doctype html>")
    words = (f"{file}:mine", "--shapes", f"{file}:made", "--dtype", "bfloat16", *quick)
    status, out, _ = run(*words, "--json", "-", verb="bench")
    shapes = [(one["shape"], one["dtype"]) for one in json.loads(out)["records"]]
    assert status == 0 and shapes == [(size, "bfloat16") for size in ("64", "256", "1024")]


def test_what_cannot_be_timed_is_misuse(run, tmp_path):
    file = tmp_path / "ops.py"
    file.write_text(IMPLEMENTATIONS)
    status, _, err = run(f"{file}:mine", "f32[3]", f"{file}:plain", "f32[3]", verb="bench")
    assert status == 2 and "the arguments follow the last target" in err
    status, _, err = run(f"{file}:mine", verb="bench")
    assert status == 2 and "there are no arguments" in err
    words = (f"{file}:mine", "f32[3]", "--seconds", "0.01", "--html", tmp_path / "no" / "page.html")
    status, _, err = run(*words, verb="bench")
    assert status == 2 and "cannot be written" in err


def test_the_arguments_lie_on_the_device_that_is_asked_for(folder, run):
    (folder / "placed.py").write_text(
        "import torch\n"
        "def fn(x, part):\n"
        "    assert x.device.type == part['b'][0].device.type == 'cpu'\n"
        "    return (x * part['b'][0]).sum()\n"
    )
    (folder / "cases.toml").write_text(
        "[[case]]\ntarget = 'placed.py:fn'\ndevice = 'cpu'\nargs = ['f64[3]', {b = ['f64[3]']}]\n"
    )
    assert run("cases.toml")[0] == 0
    status, _, err = run("cases.toml", "--device", "nowhere")
    assert status == 0 and not err  # a case's own word stands
    status, _, err = run("in_torch.py:square", "f64[3]", "--device", "nowhere")
    assert status == 2 and "no tensor can lie on device 'nowhere'" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(run):
    status, _, err = run("in_torch.py:square", "f64[3]", "--device", "cuda")
    assert status == 2 and "device 'cuda'" in err


def test_only_torch_is_told_of_a_device(run):
    words = "by_hand.py:seen", "f64[2]", "f64[2]", "--grads", "by_hand.py:seen_gradient"
    status, _, err = run(*words, "--device", "cuda")
    assert status == 2 and "--device is for PyTorch: arrays of NumPy lie on the CPU" in err


@pytest.mark.parametrize("option", ["--markdown", "--junit", "--html"])
def test_standard_output_takes_the_json_alone(option, run, folder):
    status, _, err = run("in_torch.py:square", "f64[3]", option, "-")
    assert status == 2 and f"{option} writes a file: give a path in the place of -." in err
    assert not (folder / "-").exists()
    assert run("in_torch.py:square", "f64[3]", "--json", "-")[0] == 0
