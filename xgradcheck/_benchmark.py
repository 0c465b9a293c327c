"""Implementations of one function, timed as long as they are right."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xgradcheck._adapters import Case, Taken, Timed, claim, name_of
from xgradcheck._as_run import is_nearly_the_same
from xgradcheck._bench_report import BenchRecord, BenchReport, Times
from xgradcheck._errors import InvalidCase, refuse_class, short
from xgradcheck._judge import Verdict
from xgradcheck._layout import bits_of
from xgradcheck._reference import asked_dtypes, known_factors
from xgradcheck._report import Report
from xgradcheck._stages import cotangent_of, environment, refuse_seed, report_on, run
from xgradcheck._three import Bound
from xgradcheck._variants import all_kinds, in_dtype

SHARE = 0.125
"""By what share of itself a number changes from run to run: all stay where they belong."""
WARM_UPS, FEWEST, MOST = 3, 5, 1000
"""Runs that are not timed, and how many are."""
VERIFIED, FEW = 5, 1 << 17
"""How many of the timed runs are verified that have no more numbers than the second; else one."""
SIZES = (64, 256, 1024)
"""What a function that makes arguments is called with."""


def benchmark(
    implementations: Mapping[str, Callable[..., Any]],
    args: tuple[Any, ...],
    title: str,
    *,
    reference: Callable[..., Any] | None,
    dtypes: str | Sequence[str] | None,
    shapes: Any,
    factors: Mapping[str, float] | None,
    kwargs: Mapping[str, Any] | None,
    wrt: Any,
    loss: Callable[[Any], Any] | None,
    seconds: float,
    seed: int,
    backend: str | None,
) -> BenchReport:
    """The report of ``bench``."""
    started = time.perf_counter()
    first, places = _first(implementations), _places(args, shapes)
    _refuse_options(reference, seconds, seed)
    allowed = known_factors(factors)
    given = dict(kwargs or {})
    work = _Work(implementations, reference, given, wrt, loss, allowed, seconds, int(seed))
    adapter = claim(work.case(first, places[0][1]), backend)
    if not hasattr(adapter, "timed"):
        raise InvalidCase(f"{name_of(adapter)} has no backward pass to time: use torch or jax.")
    records = [record for label, own in places for record in work.at(label, own, adapter, dtypes)]
    return BenchReport(
        name=title,
        records=tuple(records),
        notes=tuple(dict.fromkeys(work.notes)),
        device=work.device,
        seed=work.seed,
        elapsed_s=time.perf_counter() - started,
        environment=environment(adapter),
    )


def _refuse_options(reference: Any, seconds: Any, seed: Any) -> None:
    if reference is not None and not callable(reference):
        raise InvalidCase(f"the reference is a {type(reference).__name__}: give a function.")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidCase(f"seconds={seconds!r} is no time: give a number above 0.")
    refuse_seed(seed)


def _first(implementations: Any) -> Callable[..., Any]:
    if not isinstance(implementations, Mapping) or not implementations:
        raise InvalidCase('give the implementations as a dict by name: bench({"mine": fn}, x).')
    for name, fn in implementations.items():
        if not callable(fn):
            raise InvalidCase(f"{name} is a {type(fn).__name__}: give functions.")
        refuse_class(fn, name)
    first: Callable[..., Any] = next(iter(implementations.values()))
    return first


def _places(args: tuple[Any, ...], shapes: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """The arguments to time with, by what they are called."""
    if shapes is None:
        if not args:
            raise InvalidCase("there are no arguments: give them, or shapes that make them.")
        return [("", args)]
    if callable(shapes):
        made = shapes
        shapes = {str(size): made(size) for size in SIZES}
    if not isinstance(shapes, Mapping) or not shapes:
        raise InvalidCase("shapes is a dict of tuples of arguments, or a function of a size.")
    return [
        (str(label), tuple(given) if isinstance(given, tuple | list) else (given,))
        for label, given in shapes.items()
    ]


@dataclass(slots=True)
class _Work:
    """What all implementations have in common."""

    implementations: Mapping[str, Callable[..., Any]]
    reference: Callable[..., Any] | None
    kwargs: dict[str, Any]
    wrt: Any
    loss: Callable[[Any], Any] | None
    factors: Mapping[str, float]
    seconds: float
    seed: int
    device: str = ""
    notes: list[str] = field(default_factory=list)

    def at(self, label: str, args: tuple[Any, ...], adapter: Any, dtypes: Any) -> list[BenchRecord]:
        """The records for one set of arguments."""
        case = self.case(_first(self.implementations), args)
        kinds = all_kinds(case)
        if not kinds:
            raise InvalidCase("the arguments hold no floating arrays: pass what is differentiated.")
        asked, records = asked_dtypes(dtypes, kinds), list[BenchRecord]()
        proof = None
        if self.reference is not None:
            plain = in_dtype(self.case(self.reference, args), adapter, asked[0])
            proof = self.checked(in_dtype(plain, adapter, "float64"), adapter)
            if proof.verdict is not Verdict.PASS:
                self.notes.append(f"the reference is {proof.verdict}: {_said(proof)}")
        for dtype in asked:
            given = in_dtype(case, adapter, dtype)
            for name, fn in self.implementations.items():
                blank = BenchRecord(name=name, dtype=dtype, shape=label)
                if proof is not None:
                    blank = replace(blank, evaluations=proof.evaluations)
                if proof is None or proof.verdict is Verdict.PASS:
                    record = _One(self, replace(given, fn=fn), adapter, dtype).record(blank)
                else:
                    text = "the gradient of the reference is not proven"
                    record = replace(blank, verdict=Verdict.INCONCLUSIVE, reason=text)
                records.append(record)
        return records

    def case(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Case:
        return Case(fn, args, self.kwargs, self.wrt, self.loss, None)

    def checked(self, case: Case, adapter: Any) -> Report:
        """The report of ``check``."""
        return report_on(
            case.fn,
            case.args,
            "the function",
            kwargs=case.kwargs,
            wrt=case.wrt,
            loss=case.loss,
            seed=self.seed,
            backend=name_of(adapter),
        )


class _Wrong(Exception):
    """What is wrong with an implementation."""


@dataclass(slots=True)
class _One:
    """One implementation, in one dtype and with one set of arguments."""

    work: _Work
    case: Case
    adapter: Any
    dtype: str

    def record(self, blank: BenchRecord) -> BenchRecord:
        """Its record; no exception of its own leaves this."""
        try:
            with _caught(""):
                timed: Timed = self.adapter.timed(self.case)
            self.work.device = self.work.device or timed.device
            with timed.problem.held():
                timed.start(cotangent_of(timed.problem, self.work.seed))
                # On numbers that nobody has seen, neither it nor the reference.
                first = self.kept(timed, 0)
            record = self.verified(blank, first, timed)
            if record.verdict is not Verdict.PASS:
                return record
            with timed.problem.held(), _uncollected():
                seconds, kept = self.timed(timed)
            for taken in kept:
                record = self.verified(record, taken, timed)
                if record.verdict is not Verdict.PASS:
                    text = f"right at first, and not while it is timed: {record.reason}"
                    return replace(record, reason=text)
            with _caught(""), timed.problem.held():
                peak = timed.peak()
        except _Wrong as wrong:
            return replace(blank, verdict=Verdict.FAIL, reason=str(wrong))
        forward, backward = zip(*seconds, strict=True)
        return replace(
            record,
            forward=Times.of(forward),
            backward=Times.of(backward),
            both=Times.of([*map(sum, seconds)]),
            peak_bytes=peak,
        )

    def timed(self, timed: Timed) -> tuple[list[tuple[float, float]], list[Taken]]:
        """Seconds of forward and backward passes, each on fresh numbers in the same place; and what
        some of them took and gave, and one more after them.
        """
        for number in range(WARM_UPS):
            self.run(timed, 1 + number)
        draws = np.random.default_rng([self.work.seed, 0xBE7C4])
        seconds, kept, chosen = list[tuple[float, float]](), list[Taken](), 0
        size = timed.problem.layout.size + timed.problem.outputs.size
        most = VERIFIED if size <= FEW else 1
        until = time.perf_counter() + self.work.seconds
        while len(seconds) < FEWEST or (time.perf_counter() < until and len(seconds) < MOST):
            count = len(seconds)
            seconds.append(self.run(timed, 1 + WARM_UPS + count))
            if count == chosen:
                # Which ones are verified cannot be guessed while they run.
                kept = [*kept, timed.taken()][-most:]
                chosen += int(draws.integers(1, 2 + count))
        kept.append(self.kept(timed, 1 + WARM_UPS + len(seconds)))
        return seconds, kept

    def run(self, timed: Timed, number: int) -> tuple[float, float]:
        """The seconds of one run."""
        timed.stir((self.work.seed << 20) + number, SHARE)
        with _caught("no backward: "):
            seconds = timed.run()
        if written := timed.written:
            raise _Wrong(f"writes to {', '.join(dict.fromkeys(written))}")
        return seconds

    def kept(self, timed: Timed, number: int) -> Taken:
        """What one run took and gave."""
        self.run(timed, number)
        return timed.taken()

    def verified(self, record: BenchRecord, taken: Taken, timed: Timed) -> BenchRecord:
        """The record with the verdict on one run."""
        layout, severed = timed.problem.layout, taken.backward.severed
        if len(severed) == len(layout):
            raise _Wrong(f"no backward: no gradient reaches {', '.join(layout.names)}")
        if self.work.reference is None:
            return self.by_differences(record, taken, timed)
        plain = replace(
            self.case, fn=self.work.reference, args=taken.args, kwargs=dict(taken.kwargs)
        )
        found = taken.values, taken.backward
        with _caught(""):
            three = Bound.around(
                timed.problem, taken.cotangent, plain, self.adapter, self.dtype
            ).three(found)
        if text := three.forward(self.work.factors):
            return replace(record, verdict=Verdict.FAIL, reason=text)
        judged = three.judged(self.work.factors)
        return replace(
            record,
            verdict=Verdict.of([verdict for verdict, _, _ in judged]),
            reason="; ".join(text for _, text, _ in judged if text),
            error=max(record.error or 0.0, *(beside.norm for _, _, beside in judged)),
        )

    def by_differences(self, record: BenchRecord, taken: Taken, timed: Timed) -> BenchRecord:
        """The same where there is no reference: as it is called anew with these numbers."""
        case, problem = replace(self.case, args=taken.args, kwargs=taken.kwargs), timed.problem
        with _caught("no backward: "):
            report = self.work.checked(case, self.adapter)
        record = replace(
            record,
            verdict=report.verdict,
            reason="" if report else _said(report),
            evaluations=record.evaluations + report.evaluations,
        )
        if not report:
            return record
        values, backward = run(self.adapter.bind(case), taken.cotangent)
        for found, anew, layout in (
            (taken.values, values, problem.outputs),
            (taken.backward.gradient, backward.gradient, problem.layout),
        ):
            for leaf in layout:
                own, there = found[leaf.part], anew[leaf.part]
                size = float(np.max(np.abs(there), initial=0.0))
                bits = min(bits_of(leaf.dtype), bits_of(self.dtype))
                if not is_nearly_the_same((there, ()), (own, ()), size, bits):
                    text = f"gives another {leaf.name} than where it is called anew"
                    return replace(record, verdict=Verdict.FAIL, reason=text)
        return record


@contextmanager
def _caught(what: str) -> Iterator[None]:
    """An exception of an implementation as what is wrong with it."""
    try:
        yield
    except InvalidCase as refusal:
        raise _Wrong(str(refusal)) from None
    except Exception as error:
        raise _Wrong(f"{what}raises {short(error)}") from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection for the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _said(report: Report) -> str:
    """What a report found, in one line."""
    return "; ".join(finding.text for finding in report.findings) or "it could not be told"
