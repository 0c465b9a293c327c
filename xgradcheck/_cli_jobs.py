"""Many cases: one after the other, or shared by processes; stopped with Ctrl-C, what is done is
kept.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from xgradcheck._cli_cases import cases_of
from xgradcheck._cli_run import outcome_of, traceback_of
from xgradcheck._cli_words import Command, NamedCase
from xgradcheck._outcomes import DIED, RAISED, REFUSED, Outcome, Run
from xgradcheck._progress import bar_of_cases
from xgradcheck._report import portable

Tell = Callable[[Outcome], None]
Numbered = Generator[tuple[int, Outcome], None, None]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
"""What libraries read when they are loaded; the last is that of JAX."""
PATIENCE_S = 2.0


@dataclass(slots=True)
class _Ledger:
    """What is done, told in the order of the cases whichever is done first."""

    tell: Tell
    done: dict[int, Outcome] = field(default_factory=dict)
    told: int = 0

    def add(self, number: int, outcome: Outcome) -> None:
        self.done[number] = outcome
        while self.told in self.done:
            self.told += 1
            self.tell(self.done[self.told - 1])

    def add_rest(self) -> None:
        """Tell what was done ahead of its turn, when no more is to come."""
        for number in sorted(number for number in self.done if number >= self.told):
            self.tell(self.done[number])


def run_all(cases: Sequence[NamedCase], command: Command, jobs: int, tell: Tell) -> Run:
    """Run all of them; each is told as soon as those before it are."""
    started = time.perf_counter()
    ledger = _Ledger(tell)
    interrupted = False
    try:
        with bar_of_cases(len(cases)) as tick:
            # A case may take its process with it: those of files have one of their own.
            is_shared = jobs > 1 or (jobs == 1 and any(case.source for case in cases))
            found = _shared(cases, command, jobs) if is_shared else _in_turn(cases, command, tick)
            with contextlib.closing(found):
                for number, outcome in found:
                    ledger.add(number, outcome)
                    tick(len(ledger.done), outcome.name)
    except KeyboardInterrupt:
        interrupted = True
        ledger.add_rest()
    return Run(
        title=f"xgradcheck {command.verb}",
        outcomes=[ledger.done[number] for number in sorted(ledger.done)],
        left=[case.name for number, case in enumerate(cases) if number not in ledger.done],
        interrupted=interrupted,
        elapsed_s=time.perf_counter() - started,
    )


def _in_turn(
    cases: Sequence[NamedCase], command: Command, tick: Callable[[int, str], None]
) -> Numbered:
    # What functions print must not get between the lines of JSON.
    aside = sys.stderr if command.given.get("json") == "-" else sys.stdout
    for number, case in enumerate(cases):
        tick(number, case.name)
        with contextlib.redirect_stdout(aside):
            found = outcome_of(case)
        yield number, found


def _shared(cases: Sequence[NamedCase], command: Command, jobs: int) -> Numbered:
    """By so many processes, each of which takes the next case when it is done with one."""
    waiting = list(range(len(cases)))
    homes = [_home(case) for case in cases]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                number = _next_for(set(), workers, waiting, homes)
                workers.append(_Worker.started(command, threads))
                workers[-1].give(number, homes[number])
            for ready in connection.wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is ready)
                done, outcome = worker.number, worker.answer()
                if outcome is None:
                    workers.remove(worker)
                    outcome = worker.epitaph()
                elif waiting:
                    others = [other for other in workers if other is not worker]
                    following = _next_for(worker.homes, others, waiting, homes)
                    worker.give(following, homes[following])
                else:
                    workers.remove(worker)
                    worker.pipe.close()  # at which it ends
                    idle.append(worker)
                case = cases[done]
                yield done, replace(outcome, name=case.name, expected=case.expected)
    finally:
        with _no_interrupt():
            for worker in workers:
                worker.process.terminate()
            for worker in (*workers, *idle):
                worker.end()


def _home(case: NamedCase) -> str:
    """The file or module of a case, which has to be loaded for it."""
    return case.target.rpartition(":")[0] if isinstance(case.target, str) else case.source


def _next_for(
    known: set[str], others: "Sequence[_Worker]", waiting: list[int], homes: Sequence[str]
) -> int:
    """The number of the case that a process takes next: one whose file it has loaded, else one
    whose file no other has, so that frameworks are loaded as few times as may be.
    """
    taken = {home for other in others for home in other.homes}
    own = (number for number in waiting if homes[number] in known)
    new = (number for number in waiting if homes[number] not in taken)
    chosen = next(own, next(new, waiting[0]))
    waiting.remove(chosen)
    return chosen


@dataclass(slots=True)
class _Worker:
    """One process, and the number of the case that it is at."""

    process: SpawnProcess
    pipe: Any
    number: int = -1
    since: float = 0.0
    homes: set[str] = field(default_factory=set)
    """The files that it has loaded."""

    @classmethod
    def started(cls, command: Command, threads: int) -> "_Worker":
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(command, theirs))
        with _variables(dict.fromkeys(THREADS, str(threads))), _no_interrupt():
            process.start()
        theirs.close()  # so that its end is the end of the pipe
        return cls(process, ours)

    def give(self, number: int, home: str) -> None:
        self.number, self.since = number, time.perf_counter()
        self.homes.add(home)
        with contextlib.suppress(OSError):  # what has died is seen when it is listened to
            self.pipe.send(number)

    def answer(self) -> Outcome | None:
        """What it found; None where it died."""
        try:
            found: Outcome = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return found

    def epitaph(self) -> Outcome:
        """What is left to say of the case that it died of."""
        self.end()
        code = self.process.exitcode or 0
        how = f"exit status {code}"
        if code < 0:
            known = [own.name for own in signal.Signals if own == -code]
            how = f"signal {-code}" + (f", {known[0]}" if known else "")
        error = (
            f"the process that ran it died ({how}): run this case alone with its target and "
            f"arguments, under 'python -X faulthandler -m xgradcheck'."
        )
        return Outcome("", fault=DIED, error=error, elapsed_s=time.perf_counter() - self.since)

    def end(self) -> None:
        """Wait for it, but not for long."""
        self.pipe.close()
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def work(command: Command, pipe: Any) -> None:
    """What a process does: find the same cases, and run those that it is told the numbers of."""
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cases: list[NamedCase] | None = None
    while True:
        try:
            number = pipe.recv()
        except (EOFError, OSError):
            return
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cases = cases_of(command) if cases is None else cases
                found = _portable(outcome_of(cases[number]))
            except Exception as error:  # a case file that cannot be read twice
                found = Outcome("", fault=RAISED, error=traceback_of(error))
        found = replace(found, out=out.getvalue(), err=err.getvalue())
        try:
            pipe.send(found)
        except (AttributeError, TypeError, ValueError) as error:  # what cannot be pickled says so
            refusal = f"its report cannot be handed to another process ({error}): leave --jobs out."
            pipe.send(replace(found, report=None, fault=REFUSED, error=refusal))


def _portable(found: Outcome) -> Outcome:
    return found if found.report is None else replace(found, report=portable(found.report))


@contextlib.contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set yet; processes that are started take them along."""
    new = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """A process that is started meanwhile is deaf to Ctrl-C from its beginning."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # only the main thread can
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
