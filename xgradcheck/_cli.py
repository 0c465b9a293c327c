"""The command: ``xgradcheck check FILE:FUNCTION ARGS...``, ``audit`` and ``bench`` likewise."""

import argparse
import ast
import importlib
import importlib.util
import itertools
import json
import re
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from rich.console import Console

from xgradcheck._adapters import adapter
from xgradcheck._audit import ALL_PROBES, audit
from xgradcheck._bench import SECONDS, bench
from xgradcheck._bench_report import BenchReport
from xgradcheck._check import check
from xgradcheck._constraints import NAMES
from xgradcheck._errors import InvalidCase
from xgradcheck._judge import Verdict
from xgradcheck._layout import BITS
from xgradcheck._measured import FORWARD, REVERSE
from xgradcheck._probes import PROBES
from xgradcheck._report import Report
from xgradcheck._selftest import outcomes
from xgradcheck._sensitivity import limits, lines, missed
from xgradcheck._stages import COVERAGES, METHODS, environment
from xgradcheck._stated import SURROGATE
from xgradcheck._text import bare_table
from xgradcheck._tree import positional_parameters

# Of several targets the first status that applies in this order is returned.
MISUSE, FAILED, UNSURE, PASSED = 2, 1, 3, 0
STATUS = {Verdict.PASS: PASSED, Verdict.FAIL: FAILED, Verdict.INCONCLUSIVE: UNSURE}

BACKENDS = ("numpy", "torch", "jax")
DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "c128": "complex128", "c64": "complex64",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip
ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")
TARGET = re.compile(r"[^=\[\]{}()'\"]+:[A-Za-z_][\w.]*")
KEYWORD = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.+)", re.DOTALL)

USAGE = """\
targets and arguments:
  file.py:function      what is checked, also package.module:function;
                        a target's arguments follow it
  f64[4,8]              a float64 array of that shape, drawn from N(0, 1);
                        f64[] is a scalar
  i64[4]<10             integers from 0 to 9 (below 2 without a bound); bool[4]
  point.npz             the arrays of a file: by name where the names are the
                        function's parameters, in order where they are arr_0,
                        arr_1, ..., else one argument, the dict of them
  point.npz:W1          one array of a file
  3, 0.5, None, "sum"   a Python literal
  name=ARGUMENT         any of these as a keyword argument

exit status:
  0 PASS, 1 FAIL, 2 misuse, 3 INCONCLUSIVE; of several targets the first that
  applies in the order 2, 1, 3, 0

examples:
  xgradcheck check ops.py:swish 'f64[4,8]'
  xgradcheck check net.py:cost params.npz --grads net.py:backprop
  xgradcheck check ops.py:layer_norm 'f64[4,8]' 'f64[8]' eps=1e-5
  xgradcheck audit ops.py:swish 'f64[4,8]' --probe layout --probe purity
  xgradcheck bench ops.py:mine ops.py:theirs 'f32[64,512]'
"""


@dataclass(slots=True)
class Target:
    """One target of the command line, and the arguments that follow it."""

    written: str
    arguments: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = _parser().parse_args(argv)
    if options.verb == "env":
        return _env(options)
    if options.verb == "selftest":
        return _selftest(options.backend or [name for name in BACKENDS if _is_installed(name)])
    targets = _targets(options.words)
    if not targets:
        return _misuse(
            f"the first word has to be a target, file.py:function (got {options.words[0]!r})"
        )
    if options.seed < 0:
        return _misuse(f"--seed {options.seed} is no seed: give an integer, 0 or more")
    if options.verb == "bench":
        return _bench(targets, options)
    numbers = range(1, len(targets) + 1) if len(targets) > 1 else [0]
    statuses = {_check_one(target, options, n) for n, target in zip(numbers, targets, strict=True)}
    return next(status for status in (MISUSE, FAILED, UNSURE, PASSED) if status in statuses)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xgradcheck", description="Verify hand-written gradients."
    )
    listed = "{check,audit,bench,selftest,env}"
    verbs = parser.add_subparsers(dest="verb", required=True, metavar=listed)
    checking = _verb(verbs, "check", "compare a backward pass with finite differences")
    checking.add_argument(
        "--order", type=int, choices=(1, 2), default=1, help="2: the second derivative as well (1)"
    )
    checking.add_argument(
        "--mode",
        choices=(REVERSE, FORWARD),
        action="append",
        help="what is checked; may be given twice (reverse)",
    )
    auditing = _verb(verbs, "audit", "check it, and try what else a backward pass has to do")
    auditing.add_argument(
        "--probe",
        metavar="NAME",
        choices=[*PROBES],
        action="append",
        help=f"may be given more than once, all if left out: {', '.join(PROBES)}",
    )
    auditing.add_argument(
        "--shapes", metavar="TARGET", help="a function that makes the arguments of a size"
    )
    auditing.add_argument(
        "--batch",
        metavar="NAME[:AXIS]",
        action="append",
        help="an argument that holds samples, by name or number; may be given more than once",
    )
    auditing.add_argument(
        "--large",
        metavar="COUNT",
        nargs="?",
        type=int,
        const=True,
        default=False,
        help="compare samples with a launch of so many elements (2147483648)",
    )
    auditing.add_argument(
        "--expect",
        metavar="TARGET",
        help=f"what the gradient is meant to be: its function, or {SURROGATE!r}",
    )
    auditing.add_argument("--strict", action="store_true", help="let probes that are skipped fail")
    _add_bench(verbs)
    selftest = verbs.add_parser(
        "selftest", help="plant wrong and right rules, and tell what became of them"
    )
    selftest.add_argument(
        "--backend", choices=BACKENDS, action="append", help="all that are installed if left out"
    )
    env = verbs.add_parser("env", help="print the versions that a report depends on")
    env.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _add_bench(verbs: Any) -> None:
    benching = _targeted(
        verbs,
        "bench",
        "time implementations of one function, those that are right",
        "TARGET [TARGET ...] [ARGUMENT ...] [option ...]",
    )
    benching.add_argument(
        "--shapes", metavar="TARGET", help="a function that makes the arguments of a size"
    )
    benching.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"how long each is timed ({SECONDS})"
    )
    benching.add_argument("--html", metavar="PATH", help="write a page here")


def _verb(verbs: Any, name: str, does: str) -> argparse.ArgumentParser:
    """The parser of a verb that checks its targets, with what all of those take."""
    parser = _targeted(verbs, name, does, "TARGET [ARGUMENT ...] [TARGET ...] [option ...]")
    parser.add_argument(
        "--grads", metavar="TARGET", help="the gradient's function, where the framework has none"
    )
    parser.add_argument(
        "--eps", type=float, help="the textbook's step; chosen for each element if left out"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="differences or the complex step (chosen where left out)",
    )
    parser.add_argument(
        "--coverage",
        choices=COVERAGES,
        default="auto",
        help="a sweep up to 256 coordinates, directions beyond (auto)",
    )
    parser.add_argument("--budget", help="when to stop: evaluations, as 500, or a time, as 2s")
    parser.add_argument("--memory", help="what it may hold, as 4GiB (a quarter of what is free)")
    parser.add_argument("--constraint", choices=NAMES, help="of every argument that satisfies it")
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="print the smallest errors that this run would have caught",
    )
    parser.add_argument(
        "--min-sensitivity",
        metavar="[KIND=]NUMBER",
        action="append",
        help="fail where an error of that size would not have been caught: scale (if left out), "
        "element or row",
    )
    parser.add_argument("--rtol", type=float, help="relative error allowed (1e-6)")
    parser.add_argument("--atol", type=float, default=0.0, help="absolute error allowed on top (0)")
    return parser


def _targeted(verbs: Any, name: str, does: str, usage: str) -> argparse.ArgumentParser:
    """The parser of a verb that takes targets."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=does,
        usage=f"xgradcheck {name} {usage}",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="TARGET [ARGUMENT ...]", help="see below")
    parser.add_argument(
        "--reference", metavar="TARGET", help="a plain function to compare a kernel with"
    )
    parser.add_argument(
        "--dtype",
        choices=("float64", *sorted(BITS)),
        action="append",
        help="to compare in, with --reference; may be given more than once (the arguments' own)",
    )
    parser.add_argument("--backend", choices=BACKENDS, help="where the target's file does not tell")
    parser.add_argument(
        "--wrt", metavar="NAME", action="append", help="a leaf to check: name, glob or number"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the arguments' values and every other choice (0)"
    )
    parser.add_argument(
        "--json", metavar="PATH", help="write the report here too; - for standard output instead"
    )
    return parser


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _selftest(backends: Sequence[str]) -> int:
    """Plant rules in these frameworks; whether all became of them that should."""
    table = bare_table()
    for column in ("backend", "right rules", "wrong rules", "seconds"):
        table.add_column(column, no_wrap=True)
    missed = []
    for backend in backends:
        started = time.perf_counter()
        found = [*outcomes(backend)]
        missed += [(backend, outcome) for outcome in found if not outcome.is_as_expected]
        right = [outcome for outcome in found if not outcome.mistake]
        wrong = [outcome for outcome in found if outcome.mistake]
        table.add_row(
            backend,
            f"{sum(o.is_as_expected for o in right)} of {len(right)} passed",
            f"{sum(o.is_as_expected for o in wrong)} of {len(wrong)} caught",
            f"{time.perf_counter() - started:.1f}",
        )
    console = Console()
    console.print(table)
    for backend, outcome in missed:
        what = f"{outcome.rule} {outcome.mistake}".rstrip()
        console.print(f"· {backend}: {what}: {outcome.verdict}", highlight=False)
    return FAILED if missed else PASSED


def _env(options: argparse.Namespace) -> int:
    for name in filter(_is_installed, BACKENDS):
        importlib.import_module(name)
    versions = environment()
    if options.json:
        print(json.dumps(versions, indent=2))
    else:
        for name, version in versions.items():
            print(f"{name:<{max(map(len, versions))}}  {version}")
    return PASSED


def _targets(words: Sequence[str]) -> list[Target]:
    targets: list[Target] = []
    for word in words:
        if TARGET.fullmatch(word) and ".npz:" not in word:
            targets.append(Target(word))
        elif targets:
            targets[-1].arguments.append(word)
        else:
            return []
    return targets


def _misuse(text: str) -> int:
    print(f"xgradcheck: {text}", file=sys.stderr)
    return MISUSE


def _check_one(target: Target, options: argparse.Namespace, number: int) -> int:
    """Check one target and print its report; ``number`` counts several targets from 1, else 0."""
    try:
        asked = limits(options.min_sensitivity or ())
        fn, module = _load(target.written)
        grads = _named(options.grads)
        backend = options.backend or _backend_of(fn, module, target.written)
        if backend == "numpy" and grads is None:
            raise InvalidCase(
                f"{target.written} imports neither torch nor jax, and NumPy has no backward "
                f"pass: name the gradient's "
                "function with --grads file.py:function."
            )
        args, kwargs = _arguments(target, fn, backend, options.seed)
        run: Callable[..., Report] = audit if options.verb == "audit" else check
        report = run(
            fn,
            *args,
            **_of_verb(options),
            kwargs=kwargs,
            wrt=_leaves(options),
            grads=grads,
            reference=_named(options.reference),
            dtypes=options.dtype,
            constraint=options.constraint,
            coverage=options.coverage,
            method=options.method,
            eps=options.eps,
            rtol=options.rtol,
            atol=options.atol,
            budget=int(budget) if (budget := options.budget or "").isdecimal() else budget or None,
            memory=options.memory,
            seed=options.seed,
            name=target.written if number else None,
            backend=backend,
            raise_exception=False,
        )
    except InvalidCase as refusal:
        return _misuse(str(refusal))
    except Exception as error:  # the user's own function: show where, in the user's files
        traceback.print_exception(error)
        return MISUSE
    status = _told(report, options, number)
    if options.json != "-" and options.sensitivity:
        print("\n".join(lines(report)))
    said = missed(report, asked) if report else []
    for text in said:
        print(f"xgradcheck: not sensitive enough: {text}", file=sys.stderr)
    return FAILED if said else status


def _bench(targets: Sequence[Target], options: argparse.Namespace) -> int:
    """Time the targets, which share the arguments behind the last of them."""
    *others, last = targets
    if any(target.arguments for target in others):
        return _misuse("the arguments follow the last target: all implementations take the same")
    try:
        loaded = [(target.written, *_load(target.written)) for target in targets]
        made: dict[str, Any] = {}
        for written, found, _ in loaded:
            name = written.rpartition(":")[2]
            named = {written if name in made else name: found}
            made |= found if isinstance(found, Mapping) else named
        first = next(iter(made.values()), None)
        backend = options.backend or _backend_of(first, loaded[0][2], loaded[0][0])
        args, kwargs = _arguments(last, first, backend, options.seed)
        report = bench(
            made,
            *args,
            kwargs=kwargs,
            reference=_named(options.reference),
            dtypes=options.dtype,
            shapes=_named(options.shapes),
            wrt=_leaves(options),
            seconds=options.seconds,
            seed=options.seed,
            backend=backend,
        )
        if options.html:
            report.to_html(options.html)
    except InvalidCase as refusal:
        return _misuse(str(refusal))
    except OSError as error:
        return _misuse(f"the page cannot be written to {options.html}: {error.strerror}")
    except Exception as error:  # what makes the arguments: show where, in the user's files
        traceback.print_exception(error)
        return MISUSE
    return _told(report, options, 0)


def _leaves(options: argparse.Namespace) -> list[int | str] | None:
    """The leaves that were asked for: numbers of arguments are numbers."""
    asked = options.wrt or ()
    return [int(w) if re.fullmatch(r"-?\d+", w) else w for w in asked] or None


def _told(report: Report | BenchReport, options: argparse.Namespace, number: int) -> int:
    """Print a report and write it; the exit status."""
    if options.json == "-":
        print(report.to_json())
        return STATUS[report.verdict]
    if options.json:
        path = Path(options.json)
        if number:
            path = path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            report.to_json(path)
        except OSError as error:
            return _misuse(f"the report cannot be written to {path}: {error.strerror}")
    console = Console()
    if console.is_terminal:
        console.print(report)
    else:
        print(report)
    return STATUS[report.verdict]


def _of_verb(options: argparse.Namespace) -> dict[str, Any]:
    """The options that only one verb has."""
    if options.verb == "audit":
        expect = options.expect
        return {
            "probes": options.probe or ALL_PROBES,
            "shapes": _named(options.shapes),
            "batch": _batch(options.batch) if options.batch else None,
            "large": options.large,
            "expect": _load(expect)[0] if expect not in (None, SURROGATE) else expect,
            "strict": options.strict,
        }
    return {"order": options.order, "modes": options.mode or (REVERSE,)}


def _batch(written: Sequence[str]) -> dict[str | int, int]:
    """Batch axes as ``name:axis`` means them, or ``name`` for the first."""
    axes: dict[str | int, int] = {}
    for word in written:
        name, _, axis = word.partition(":")
        if axis and not axis.isdecimal():
            raise InvalidCase(f"--batch {word} is no batch axis: write NAME, or NAME:AXIS.")
        axes[int(name) if name.isdecimal() else name] = int(axis or 0)
    return axes


def _named(written: str | None) -> Any:
    """The function that an option names; None where it was left out."""
    return _load(written)[0] if written else None


def _load(written: str) -> tuple[Any, ModuleType]:
    """The function that ``file.py:name`` or ``package.module:name`` means, and its module."""
    where, _, name = written.rpartition(":")
    if not where or not name:
        raise InvalidCase(
            f"{written!r} is no target: write file.py:function or package.module:function."
        )
    try:
        module = (
            _module_from_file(Path(where))
            if where.endswith(".py")
            else importlib.import_module(where)
        )
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise InvalidCase(
            f"there is no module {where!r}: give a file, path/to/{where}.py:{name}."
        ) from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = (
                ", ".join(
                    n for n, v in vars(module).items() if callable(v) and not n.startswith("_")
                )
                or "nothing"
            )
            raise InvalidCase(f"{where} has no {name!r}; what can be called there: {names}.")
        found = getattr(found, part)
    return found, module


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidCase(
            f"there is no file {path}: give the path of the Python file, then :function."
        )
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(
            0, folder
        )  # as `python file.py` does, so that the file finds its neighbours
    name = f"_xgradcheck_{zlib.crc32(str(path.resolve()).encode()):08x}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


FRAMEWORK_OF = {
    "torch": "torch",
    "jax": "jax",
    "flax": "jax",
    "equinox": "jax",
    "optax": "jax",
    "haiku": "jax",
}


def _backend_of(fn: Any, module: ModuleType, written: str) -> str:
    """The one framework that the target's file imports; NumPy where it imports neither."""
    owner = getattr(fn, "__self__", None)  # Function.apply belongs to the class that was written
    written_by = owner if isinstance(owner, type) else fn
    own = isinstance(written_by, type | FunctionType)
    home = sys.modules.get(written_by.__module__, module) if own else module
    found = sorted({FRAMEWORK_OF[root] for root in _imports(home) if root in FRAMEWORK_OF})
    if len(found) > 1:
        raise InvalidCase(
            f"{written} imports {' and '.join(found)}: say which one is meant with --backend."
        )
    return found[0] if found else "numpy"


def _imports(module: ModuleType) -> set[str]:
    """The packages that a module's source imports; none where there is no source."""
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py":
        return set()
    roots = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.partition(".")[0])
    return roots


def _arguments(
    target: Target, fn: Any, backend: str, seed: int
) -> tuple[list[Any], dict[str, Any]]:
    to_framework = adapter(backend).from_numpy
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for number, word in enumerate(target.arguments):
        keyword = KEYWORD.fullmatch(word)
        name, text = (keyword["name"], keyword["value"]) if keyword else (None, word)
        rng = np.random.default_rng([seed, number])
        values = _file(text, fn, not args) if text.endswith(".npz") else _one(text, rng)
        if isinstance(values, _Spread):
            args += map(to_framework, values.positional)
            kwargs |= {key: to_framework(value) for key, value in values.named.items()}
            continue
        if isinstance(values, dict):
            values = {key: to_framework(value) for key, value in values.items()}
        elif isinstance(values, np.ndarray):
            values = to_framework(values)
        if name is None:
            args.append(values)
        else:
            kwargs[name] = values
    return args, kwargs


@dataclass(slots=True)
class _Spread:
    """The arrays of one file as several arguments."""

    positional: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)


def _one(text: str, rng: np.random.Generator) -> Any:
    if ".npz:" in text:
        path, _, key = text.rpartition(":")
        arrays = _read(path)
        if key not in arrays:
            raise InvalidCase(f"{path} has no array {key!r}; it has {', '.join(arrays)}.")
        return arrays[key]
    if (array := ARRAY.fullmatch(text)) is not None:
        return _drawn(text, array, rng)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise InvalidCase(
            f"{text!r} is no argument: write an array as f64[4,8] or i64[4]<10, a file as "
            f"point.npz, or a literal."
        ) from None


def _drawn(text: str, array: re.Match[str], rng: np.random.Generator) -> Any:
    dtype = DTYPES.get(array["dtype"])
    if dtype is None:
        raise InvalidCase(f"{text!r} has an unknown dtype; the dtypes are {', '.join(DTYPES)}.")
    shape = tuple(int(extent) for extent in array["shape"].replace(" ", "").split(",") if extent)
    kind = np.dtype(dtype)
    if kind.kind in "iub":
        below = int(array["below"] or 2)
        if below < 1:
            raise InvalidCase(f"{text!r} has no integer to draw: give a bound of 1 or more.")
        return rng.integers(below, size=shape).astype(kind)
    if array["below"]:
        raise InvalidCase(f"{text!r}: only integers have a bound.")
    values = rng.standard_normal(shape)
    return np.asarray(
        values + 1j * rng.standard_normal(shape) if kind.kind == "c" else values, dtype=kind
    )


def _read(path: str) -> dict[str, Any]:
    """The arrays of an ``.npz`` file; a file is data, so nothing in it is unpickled."""
    if not Path(path).is_file():
        raise InvalidCase(f"there is no file {path}: save the point with numpy.savez.")
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.lib.npyio.NpzFile):
                return {key: file[key] for key in file.files}
            reason = "it holds a single array"
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error)
    raise InvalidCase(f"{path} is no file of arrays ({reason}): write it with numpy.savez.")


def _file(path: str, fn: Any, first: bool) -> Any:
    """The arrays of a file as arguments: by the function's names, in order, or as one dict."""
    arrays = _read(path)
    parameters = [parameter.name for parameter in positional_parameters(fn)]
    if arrays and set(arrays) <= set(parameters):
        leading = list(itertools.takewhile(arrays.__contains__, parameters)) if first else []
        named = {key: array for key, array in arrays.items() if key not in leading}
        return _Spread([arrays[key] for key in leading], named)
    if arrays and all(f"arr_{number}" in arrays for number in range(len(arrays))):
        return _Spread(positional=[arrays[f"arr_{number}"] for number in range(len(arrays))])
    return arrays
