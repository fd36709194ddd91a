"""Processes that hold many workers' connections, each verified, greeted and heartbeating, for `connections.py`.

A process is one thread around an epoll object. It does what its parent says over a pipe, and comes back like `worker.py` when
the broker goes: at once, then after random pauses. It keeps no times of its own but those it is asked for.
"""

from __future__ import annotations

from common import BenchError, Peer, check

import gc
import heapq
import multiprocessing
import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection

from greenroom.endpoint import Endpoint
from greenroom.link import Backoff

TASK = "bench.turn"
#: Handshakes that each process has under way when it opens its connections; after a loss of the broker there is no such bound.
SHAKING = 24
#: What `worker.py` gives an attempt to connect and greet.
CONNECT_WITHIN_S = 5.0
RESERVE_WAIT_S = 60.0
#: A process sends its heartbeats in so many portions, evenly over the period.
HEARTBEAT_SLICES = 200
EVENTS_PER_TURN = 128

_fork = multiprocessing.get_context("fork")


class Held(Peer):
    """A worker's connection.

    Attributes:
        lease: [job id, fence, payload] of the job that it holds, or None.
        backoff: of its attempts to come back. is_open: greeted. plain: its socket until TLS begins.
    """

    def __init__(self, endpoint: Endpoint, number: int, instance: bytes, backoff: Backoff, lease: list | None) -> None:
        super().__init__(endpoint, "worker", number, hello={"instance": instance, "leases": [] if lease is None else [lease[:2]]})
        self._instance = instance
        self.backoff = backoff
        self.lease = lease
        self.is_open = False
        self.plain: socket.socket | None = None

    def again(self) -> Held:
        """Return the connection that takes this one's place: the same worker with its lease."""
        return Held(self._endpoint, self.number, self._instance, self.backoff, self.lease)

    def dial(self) -> socket.socket:
        """Begin to connect without waiting: a full backlog would make a blocking connect wait for a second."""
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.plain = plain
        plain.connect_ex(("127.0.0.1", self._endpoint.port))
        return plain

    def dialled(self) -> None:
        """Go on to TLS. Raises OSError if nobody listens."""
        code = self.plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self.sock = self._endpoint.context.wrap_socket(self.plain, server_hostname=self._endpoint.host, do_handshake_on_connect=False)

    def hang_up(self) -> None:
        """Close whatever is open."""
        (self.sock or self.plain).close()


class Holder:
    """The connections of one process.

    Commands of the parent are (name, argument); see `COMMANDS`. Each is answered with (its outcome, processor seconds so far).
    """

    def __init__(self, endpoint: Endpoint, count: int, pipe: Connection) -> None:
        self._endpoint = endpoint
        self._count = count
        self._pipe = pipe
        self._rng = random.Random()
        self._epoll = select.epoll()
        self._peers: dict[int, Held] = {}  # file number -> connection, also those that are connecting
        self._open: list[Held] = []  # by their numbers
        self._due: list[tuple[float, int, Callable[[Held], None], Held]] = []  # a heap: retries, and ends of attempts
        self._dues = 0
        self._missing = 0  # connections that are not greeted
        self._is_steady = True  # a connection that breaks is an error
        self._kept = Counter()
        self._before_loss: list[Held] = []  # those of which each has to break
        self._last_back_at = 0.0
        self._working: set[Held] = set()  # those that settle what they get and reserve again
        self._turns: set[int] | None = None  # numbers of those that have to complete a job yet
        self._is_holding = False  # jobs that come are held, not settled
        self._settles = 0  # on their way
        self._next_beat = 0
        self._beat_at = time.monotonic()
        self._beat_s = 5.0

    # -- commands -----------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Open all connections, then do what the parent says until it says "end"."""
        self.open_all()
        self._answer(None)
        while True:
            if self._pipe.poll():
                command, argument = self._pipe.recv()
                if command == "end":
                    return
                self._answer(self.COMMANDS[command](self, argument))
            self._turn(0.005)

    def _answer(self, outcome: object) -> None:
        self._pipe.send((outcome, time.process_time()))

    def open_all(self) -> None:
        """Open all connections, some at a time, heartbeating on those that are open."""
        while len(self._open) < self._count:
            while len(self._open) < self._count and self._missing < SHAKING:
                peer = Held(self._endpoint, len(self._open), os.urandom(16), Backoff(self._rng), None)
                self._open.append(peer)
                self._missing += 1
                self._dial(peer)
            self._turn(0.05)
        while self._missing:
            self._turn(0.05)

    def take_turns(self, _: object) -> int:
        """Let each connection complete one job; returns how many did."""
        self._turns = set(range(self._count))
        for peer in self._open:
            self._reserve(peer)
        while self._turns:
            self._turn(0.005)
        self._turns = None
        return self._count

    def work(self, count: int) -> int:
        """Let the first `count` connections reserve, settle and reserve again, until `rest`."""
        self._working = set(self._open[:count])
        for peer in self._working:
            self._reserve(peer)
        return count

    def rest(self, _: object) -> int:
        """Take back what `work` reserves."""
        resting, self._working = self._working, set()
        for peer in resting:
            self._ask(peer, "reserve", n=0, tasks=[TASK], wait=0)
        while any(peer.in_flight for peer in resting):
            self._turn(0.005)
        return len(resting)

    def take_leases(self, count: int) -> int:
        """Let the first `count` connections take a job each, and keep it."""
        self._is_holding = True
        for peer in self._open[:count]:
            self._reserve(peer)
        while sum(peer.lease is not None for peer in self._open) < count:
            self._turn(0.005)
        return count

    def expect_loss(self, _: object) -> None:
        """From now on a connection that breaks comes back."""
        self._is_steady = False
        self._before_loss = list(self._open)

    def come_back(self, _: object) -> tuple[float, dict[str, int]]:
        """Wait until all broke and are back; returns when (monotonic) the last one was, and what became of leases and attempts."""
        while self._missing or any(peer is other for peer, other in zip(self._open, self._before_loss)):
            self._turn(0.005)
        self._is_steady, self._before_loss = True, []
        return self._last_back_at, dict(self._kept)

    def settle_leases(self, _: object) -> int:
        """Complete the jobs that are held; returns how many there were."""
        self._is_holding = False
        held = [peer for peer in self._open if peer.lease is not None]
        for peer in held:
            lease, peer.lease = peer.lease, None
            self._settle(peer, *lease)
        while self._settles:
            self._turn(0.005)
        return len(held)

    COMMANDS = {"turns": take_turns, "work": work, "rest": rest, "lease": take_leases, "expect loss": expect_loss,
                "come back": come_back, "settle": settle_leases}

    # -- a turn -------------------------------------------------------------------------------------------------------------

    def _turn(self, wait_s: float) -> None:
        """Wait for events and deal with them; heartbeat; do what is due."""
        for number, _ in self._epoll.poll(wait_s, EVENTS_PER_TURN):
            peer = self._peers.get(number)
            if peer is None:
                continue
            try:
                if peer.is_open:
                    self._take_all(peer)
                else:
                    self._advance(peer)
            except OSError as exc:
                self._lost(peer, exc)
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, action, peer = heapq.heappop(self._due)
            action(peer)
        self._beat(now)

    def _later(self, seconds: float, action: Callable[[Held], None], peer: Held) -> None:
        self._dues += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._dues, action, peer))

    def _beat(self, now: float) -> None:
        if now < self._beat_at or not self._open:
            return
        self._beat_at += self._beat_s / HEARTBEAT_SLICES
        for _ in range(-(-self._count // HEARTBEAT_SLICES)):
            peer = self._open[self._next_beat % len(self._open)]
            self._next_beat += 1
            if peer.is_open:
                self._ask(peer, "heartbeat", leases=[] if peer.lease is None else [peer.lease[:2]])

    # -- connecting ---------------------------------------------------------------------------------------------------------

    def _dial(self, peer: Held) -> None:
        number = peer.dial().fileno()
        self._peers[number] = peer
        self._epoll.register(number, select.EPOLLOUT)
        if not self._is_steady:
            self._later(CONNECT_WITHIN_S, self._end_attempt, peer)

    def _advance(self, peer: Held) -> None:
        number = peer.plain.fileno() if peer.sock is None else peer.sock.fileno()
        if peer.sock is None:
            peer.dialled()
        try:
            events = peer.advance()
        except BenchError as exc:  # an error in place of a greeting ends this attempt
            raise ConnectionError(str(exc)) from None
        self._epoll.modify(number, events or select.EPOLLIN)
        if events:
            return
        peer.is_open = True
        self._missing -= 1
        self._last_back_at = time.monotonic()
        self._beat_s = peer.greeting["heartbeat_s"]
        if peer.lease is not None:
            is_kept = peer.greeting["leases"] == ["OK"]
            self._kept["leases kept" if is_kept else "leases lost"] += 1
            if not is_kept:
                peer.lease = None

    def _end_attempt(self, peer: Held) -> None:
        if not peer.is_open and self._open[peer.number] is peer:
            self._kept["attempts given up"] += 1
            self._lost(peer, TimeoutError("it was not greeted in time"))

    def _lost(self, peer: Held, exc: OSError) -> None:
        if self._open[peer.number] is not peer:
            return
        if self._is_steady:
            raise BenchError(f"connection {peer.number} broke: {exc!r}")
        if peer.is_open:
            self._missing += 1
            peer.backoff = Backoff(self._rng)
        else:
            self._kept["attempts failed"] += 1
        self._peers.pop((peer.sock or peer.plain).fileno(), None)
        peer.hang_up()
        other = self._open[peer.number] = peer.again()
        self._later(peer.backoff.next(), self._dial, other)

    # -- working ------------------------------------------------------------------------------------------------------------

    def _ask(self, peer: Held, verb: str, **fields: object) -> None:
        peer.in_flight[peer.ask(verb, **fields)] = verb
        try:
            # What does not fit goes with the next request; a worker's frames are far smaller than a socket's buffer.
            peer.flush()
        except OSError as exc:
            self._lost(peer, exc)

    def _reserve(self, peer: Held) -> None:
        self._ask(peer, "reserve", n=1, tasks=[TASK], wait=RESERVE_WAIT_S)

    def _settle(self, peer: Held, job_id: int, fence: int, payload: bytes) -> None:
        self._settles += 1
        self._ask(peer, "settle", leases=[[job_id, fence, "ack", payload[::-1], True]])

    def _take_all(self, peer: Held) -> None:
        for message in peer.receive():
            if message["id"] == 0:
                raise ConnectionError(f"the broker ended it: {message['error']}")
            verb = peer.in_flight.pop(message["id"])
            check(message)
            if verb == "settle":
                self._settled(peer, message)
            elif verb == "reserve" and message["jobs"]:
                job_id, fence, _, payload = message["jobs"][0][:4]
                if self._is_holding:
                    peer.lease = [job_id, fence, payload]
                else:
                    self._settle(peer, job_id, fence, payload)
                    if peer in self._working:
                        self._reserve(peer)
            elif verb == "reserve" and (peer in self._working or self._turns and peer.number in self._turns):
                self._reserve(peer)

    def _settled(self, peer: Held, message: dict) -> None:
        self._settles -= 1
        if message["outcomes"] != ["OK"]:
            raise BenchError(f"a settle was answered {message['outcomes']}")
        if self._turns is not None:
            self._turns.discard(peer.number)


def hold(endpoint: Endpoint, count: int, pipe: Connection) -> None:
    """Be `count` workers; the process's main."""
    gc.disable()  # thousands of objects that live to the end: the collector would only look at them
    try:
        Holder(endpoint, count, pipe).serve()
    except (BenchError, OSError) as exc:
        pipe.send(f"a client process failed: {exc}")


class Holders:
    """The client processes, seen from the parent.

    Attributes:
        cpu_s: processor seconds of all of them, as of the last answers.
    """

    def __init__(self, endpoint: Endpoint, count: int, processes: int) -> None:
        self.cpu_s = 0.0
        self._processes: list[multiprocessing.Process] = []
        self._pipes: list[Connection] = []
        for number in range(processes):
            pipe, its_pipe = _fork.Pipe()
            process = _fork.Process(target=hold, args=(endpoint, count // processes + (number < count % processes), its_pipe), daemon=True)
            process.start()
            its_pipe.close()
            self._processes.append(process)
            self._pipes.append(pipe)

    def tell(self, command: str, total: int = 0) -> None:
        """Send a command to all; `total` is shared out evenly. Raises BenchError with the words of one that failed."""
        for number, pipe in enumerate(self._pipes):
            try:
                pipe.send((command, total // len(self._pipes) + (number < total % len(self._pipes))))
            except BrokenPipeError:
                _receive(pipe)  # raises with its last words

    def answers(self, within_s: float, meanwhile: Callable[[], None] = lambda: None) -> list:
        """Wait for one answer of each, calling `meanwhile` ten times a second. Raises BenchError with the words of one that failed."""
        deadline = time.monotonic() + within_s
        found = []
        cpu_s = 0.0
        for pipe in self._pipes:
            while not pipe.poll(0.1):
                meanwhile()
                if time.monotonic() > deadline:
                    raise BenchError(f"a client process did not answer within {within_s:g} s")
            outcome, its_cpu_s = _receive(pipe)
            cpu_s += its_cpu_s
            found.append(outcome)
        self.cpu_s = cpu_s
        return found

    def check(self) -> None:
        """Raise BenchError with the words of one that failed."""
        for pipe in self._pipes:
            if pipe.poll():
                _receive(pipe)

    def end(self) -> None:
        """End all."""
        for process in self._processes:
            process.kill()
            process.join()


def _receive(pipe: Connection) -> tuple[object, float]:
    try:
        answer = pipe.recv()
    except EOFError:
        raise BenchError("a client process died") from None
    if isinstance(answer, str):
        raise BenchError(answer)
    return answer
