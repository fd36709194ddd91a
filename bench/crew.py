"""Processes that load a broker: forked, started together, each handing back one outcome. Knows no broker and no script."""

from __future__ import annotations

from common import START_WITHIN_S, BenchError

import gc
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from greenroom.errors import GreenroomError

_fork = multiprocessing.get_context("fork")


class Member:
    """What a process of a crew knows of its parent."""

    def __init__(self, pipe: Connection, is_over: object) -> None:
        self._pipe = pipe
        self._is_over = is_over
        self._cpu_s = 0.0

    def ready(self) -> None:
        """Tell the parent, and wait until it lets all begin. CPU time counts from here."""
        self._pipe.send("ready")
        self._pipe.recv()
        self._cpu_s = time.process_time()

    @property
    def is_over(self) -> bool:
        """True when the parent wants it to end; costs a look into memory."""
        return bool(self._is_over.value)

    def run(self, main: Callable[..., object], arguments: tuple) -> None:
        """Call the main, and hand over what it returns or how it failed; the process's main."""
        # What the processes keep are numbers in arrays; there is nothing for the collector but to look at.
        gc.disable()
        failure, outcome = "", None
        try:
            outcome = main(self, *arguments)
        except (BenchError, GreenroomError, OSError) as exc:
            failure = f"{main.__name__} failed: {exc}"
        self._pipe.send((failure, outcome, time.process_time() - self._cpu_s))


class Crew:
    """Forked processes that load a broker. A context manager: at its end none of them is left.

    Attributes:
        cpu_s: once they ended, the processor time of each from `go` to its end, in the order of their start.
    """

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self._over: list[object] = []  # of each, shared: whether it is to end
        self._collected: set[Connection] = set()  # pipes of those whose outcome was taken
        self._processes: list[multiprocessing.Process] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *details: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def start(self, main: Callable[..., object], *arguments: object) -> multiprocessing.Process:
        """Run `main(member, *arguments)` in a process of its own. It must call `member.ready()` once, then return its outcome."""
        pipe, its_pipe = _fork.Pipe()
        self._over.append(_fork.RawValue("b", 0))
        process = _fork.Process(target=Member(its_pipe, self._over[-1]).run, args=(main, arguments), daemon=True)
        process.start()
        its_pipe.close()
        self._processes.append(process)
        self._pipes.append(pipe)
        return process

    def go(self, within_s: float = START_WITHIN_S) -> None:
        """Wait until all are ready, and let them begin. Raises BenchError with the words of one that failed."""
        for pipe, first in self._collect(within_s).items():
            assert first == "ready"
            pipe.send("go")

    def end(self, place: int | None = None) -> None:
        """Tell all, or the one that was started as number `place`, to end soon: `member.is_over`."""
        for over in self._over if place is None else [self._over[place]]:
            over.value = 1

    def has_ended(self, within_s: float) -> bool:
        """Wait, and tell whether one of them has ended, well or not, besides those whose outcome was taken."""
        return bool(multiprocessing.connection.wait([pipe for pipe in self._pipes if pipe not in self._collected], max(0.0, within_s)))

    def outcomes(self, within_s: float) -> list[object]:
        """Wait for the end of all and return what their mains returned. Raises BenchError if one failed or takes too long."""
        ends = list(self._collect(within_s).values())
        self.cpu_s = [cpu_s for _, _, cpu_s in ends]
        return [outcome for _, outcome, _ in ends]

    def outcome(self, place: int, within_s: float) -> object:
        """Wait for the end of one and return what its main returned. Raises BenchError if it failed or takes too long."""
        pipe = self._pipes[place]
        end = self._collect(within_s, [pipe])[pipe]
        self._collected.add(pipe)
        return end[1]

    def _collect(self, within_s: float, pipes: list[Connection] | None = None) -> dict[Connection, object]:
        """Return one message of each. The first failure ends it: the others may wait for the one that failed."""
        deadline = time.monotonic() + within_s
        found: dict[Connection, object] = dict.fromkeys(self._pipes if pipes is None else pipes)
        missing = set(found)
        while missing:
            readable = multiprocessing.connection.wait(missing, max(0.0, deadline - time.monotonic()))
            if not readable:
                raise BenchError(f"a process of the benchmark did not come so far within {within_s:.0f} s")
            for pipe in readable:
                try:
                    found[pipe] = message = pipe.recv()
                except EOFError:
                    raise BenchError("a process of the benchmark died") from None
                if message != "ready" and message[0]:
                    raise BenchError(message[0])
                missing.discard(pipe)
        return found
