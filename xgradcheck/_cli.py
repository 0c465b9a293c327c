"""The command: ``xgradcheck check FILE:FUNCTION ARGS...``, and its other verbs."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from xgradcheck._cli_cases import cases_of
from xgradcheck._cli_options import ANY, BACKENDS, FILES, complete, of_verb
from xgradcheck._cli_output import Display, complain, refuse_unwritable, write_files
from xgradcheck._cli_words import Command
from xgradcheck._errors import InvalidCase
from xgradcheck._outcomes import CLOSED, INTERRUPTED, MISUSE

VERBS = {
    "check": (
        "compare a backward pass with finite differences",
        "TARGET [ARGUMENT ...] [TARGET ...] [option ...]",
    ),
    "audit": (
        "check it, and try what else a backward pass has to do",
        "TARGET [ARGUMENT ...] [TARGET ...] [option ...]",
    ),
    "bench": (
        "time implementations of one function, those that are right",
        "TARGET [TARGET ...] [ARGUMENT ...] [option ...]",
    ),
}
WORDS = """\
targets and arguments:
  file.py:function      what is checked, also package.module:function;
                        a target's arguments follow it
  f64[4,8]              a float64 array of that shape, drawn from N(0, 1);
                        f64[] is a scalar; also f32, f16, bf16, c128, c64
  i64[4]<10             integers from 0 to 9 (below 2 without a bound); bool[4]
  point.npz             the arrays of a file: by name where the names are the
                        function's parameters, in order where they are arr_0,
                        arr_1, ..., else one argument, the dict of them;
                        point.pt and point.safetensors likewise, and of torch a
                        list of tensors in order, or one tensor
  point.npz:W1          one array of a file
  3, 0.5, None, "sum"   a Python literal
  name=ARGUMENT         any of these as a keyword argument
"""
CASES = """\
case files:
  cases.toml            in place of a target: cases, each written as
                          [[case]]
                          name = "swish"             else its target
                          target = "ops.py:swish"    relative to the file
                          args = ["f64[4,8]", 3]     text is a word as above
                          kwargs = { eps = 1e-5 }
                          expect = "FAIL"            of a planted mistake
                        and any option by its name, as rtol = 1e-3; what
                        stands above the first [[case]] is for all of them
  cases.py              a list CASES of dicts with these keys, or a function
                        cases() that yields them; fn is the function itself,
                        args may hold arrays
  A case's own option is stronger than the command's, which is stronger than one
  for the whole file; --seed and --budget of the command are the strongest.
  --json writes the reports of case files to one file, those of several targets
  to a file each (report-1.json, ...).
"""
STATUSES = """\
exit status:
  0 PASS, 1 FAIL, 2 misuse, 3 INCONCLUSIVE; of several targets the first that
  applies in the order 2, 1, 3, 0; 130 interrupted. An expected FAIL is no FAIL
"""
EXAMPLES = """\
examples:
  xgradcheck check ops.py:swish 'f64[4,8]'
  xgradcheck check net.py:cost params.npz --grads net.py:backprop
  xgradcheck check ops.py:layer_norm 'f64[4,8]' 'f64[8]' eps=1e-5
  xgradcheck check cases.toml --jobs 2 --junit report.xml
  xgradcheck audit ops.py:swish 'f64[4,8]' --probe layout --probe purity
  xgradcheck bench ops.py:mine ops.py:theirs 'f32[64,512]'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may hold what a terminal has no code for
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ended_as_by_ctrl_c():
            return _run(options)
    except InvalidCase as refusal:
        complain(str(refusal))
        return MISUSE
    except KeyboardInterrupt:
        complain("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # as by `| head`; nothing more can be printed, at the exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Whoever ends this process, or closes its terminal, gets the reports of what is done, too."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # not there, or not the main thread
            before[name] = signal.signal(getattr(signal, name), stop)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _run(options: argparse.Namespace) -> int:
    """Each verb loads what it needs."""
    if options.verb == "env":
        from xgradcheck._cli_env import run_env

        return run_env(options)
    if options.verb == "selftest":
        from xgradcheck._cli_env import run_selftest

        return run_selftest(options)
    if options.verb == "diff":
        from xgradcheck._cli_diff import run_diff

        return run_diff(options)
    given = {k: value for k, value in vars(options).items() if k not in ("verb", "words")}
    command = Command(options.verb, tuple(options.words), given)
    for option in of_verb(options.verb):
        if option.name in given:
            option.refuse_too_small(given[option.name])
    refuse_unwritable({name: given.get(name) for name in FILES})
    if options.verb == "bench":
        from xgradcheck._cli_bench import run_bench

        return run_bench(command)
    return _judge(command)


def _judge(command: Command) -> int:
    """Check or audit everything, say what became of it and write it."""
    from xgradcheck._cli_jobs import run_all
    from xgradcheck._cli_run import traceback_of

    options = complete(command.verb, command.given)
    try:
        cases = cases_of(command)
    except (InvalidCase, KeyboardInterrupt):
        raise
    except BaseException as error:  # a case file's own: show where
        print(traceback_of(error), file=sys.stderr)
        return MISUSE
    display = Display(cases, options)
    run = run_all(cases, command, min(options["jobs"], len(cases)), display.of_one)
    status = run.status
    try:
        write_files(run, any(case.source for case in cases), options)
    except InvalidCase as refusal:
        complain(str(refusal))
        status = MISUSE
    display.of_all(run)
    return INTERRUPTED if run.interrupted else status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xgradcheck", description="Verify hand-written gradients."
    )
    listed = "{check,audit,bench,diff,selftest,env}"
    verbs = parser.add_subparsers(dest="verb", required=True, metavar=listed)
    for verb in ANY:
        does, usage = VERBS[verb]
        parts = (WORDS, CASES, STATUSES, EXAMPLES) if verb != "bench" else (WORDS, EXAMPLES)
        own = verbs.add_parser(
            verb,
            help=does,
            usage=f"xgradcheck {verb} {usage}",
            epilog="\n".join(parts),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.add_argument("words", nargs="+", metavar="TARGET [ARGUMENT ...]", help="see below")
        for option in of_verb(verb):
            option.add_to(own)
    differing = verbs.add_parser(
        "diff",
        help="say what changed between two reports",
        description="Say what changed between two reports, or two runs of a case file.",
        epilog="exit status: 0 no verdict got worse, 1 one did, 2 misuse",
    )
    differing.add_argument("before", metavar="A.json", help="what --json wrote")
    differing.add_argument("after", metavar="B.json", help="what it wrote later, or elsewhere")
    differing.add_argument(
        "--factor", type=float, default=10.0, help="distances and floors count from here on (10)"
    )
    differing.add_argument("--json", metavar="PATH", help="- for standard output instead")
    differing.add_argument("--markdown", metavar="PATH", help="write a table for a pull request")
    selftest = verbs.add_parser(
        "selftest", help="plant wrong and right rules, and tell what became of them"
    )
    selftest.add_argument(
        "--backend", choices=BACKENDS, action="append", help="all that are installed if left out"
    )
    selftest.add_argument("--json", action="store_true", help="as JSON")
    env = verbs.add_parser("env", help="print the versions that a report depends on")
    env.add_argument("--json", action="store_true", help="as JSON")
    return parser
