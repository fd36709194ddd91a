"""A child process that is many workers: each holds one lease, and when the broker goes away comes back as Worker does.

One thread, one epoll. Unlike greenroom/link.py it never blocks, so that thousands fit into a process; its pauses are the same.
Unpatched.

    python tests/faults/reconnecting_process.py PORT CA COUNT SEED

Commands are lines on standard input, each answered by one JSON line on standard output:
    open      connect all, and let each reserve one job                 {"open": N}
    wait      go on until all had lost their connection and are back    {"back": N, "adopted": leases kept, "refused": lost, …}
    settle    ack every job                                             {"settled": N}
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "bench")]

from common import BenchError, Peer, percentile, raise_file_limit

from greenroom.endpoint import Endpoint, find_endpoint
from greenroom.link import Backoff

#: Longer than a worker's 5 s, because all these share one processor and must not give up for their own slowness.
CONNECT_TIMEOUT_S = 15.0
HEARTBEAT_S = 5.0
#: Attempts under way at once. All these workers share one processor: with more of them its own slowness would end each in time.
UNDER_WAY = 400
TASK = "storm.hold"
COMMAND_WITHIN_S = 300.0


class Member(Peer):
    """One worker: a connection at a time, and the lease that it holds."""

    def __init__(self, endpoint: Endpoint, number: int, rng: random.Random) -> None:
        super().__init__(endpoint, "worker", number, f"member-{number}")
        self._rng = rng
        self._hello |= {"instance": rng.randbytes(16), "tasks": [TASK]}
        self.lease: list[int] | None = None
        self.backoff = Backoff(rng)
        self.due_at = 0.0  # when to connect, or when to give up connecting, or the next heartbeat
        self.is_up = False
        self.attempts = 0

    def begin(self) -> Member:
        """Start to connect, without waiting for anything."""
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.connect_ex(("127.0.0.1", self._endpoint.port))
        self.greeting, self._outgoing, self._has_shaken_hands = {}, bytearray(), False
        self._partial = b""
        self._hello["leases"] = [self.lease] if self.lease else []
        self.sock = plain
        self.attempts += 1
        return self

    def advance(self) -> int:
        """Go on with connecting; see Peer. Raises OSError if it failed."""
        if not isinstance(self.sock, ssl.SSLSocket):
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            self.sock = self._endpoint.context.wrap_socket(self.sock, server_hostname=self._endpoint.host,
                                                           do_handshake_on_connect=False)
        return super().advance()


class Crowd:
    """All members of the process.

    Attributes:
        adopted, refused: leases that the broker kept or did not, over all reconnects.
    """

    def __init__(self, endpoint: Endpoint, count: int, rng: random.Random) -> None:
        self.members = [Member(endpoint, number, rng) for number in range(count)]
        self.adopted = self.refused = 0
        self.down = 0  # connections that ended, ever
        self.back_at: list[float] = []  # when each was greeted, after the latest "open" or end
        self._poll = select.epoll()
        self._by_file: dict[int, Member] = {}
        self._looked_at = 0.0
        self._under_way = 0

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Drive all until the condition holds. Raises BenchError after COMMAND_WITHIN_S."""
        deadline = time.monotonic() + COMMAND_WITHIN_S
        while not is_done():
            if time.monotonic() > deadline:
                raise BenchError(f"{sum(member.is_up for member in self.members)} of {len(self.members)} are up")
            self.turn()

    def turn(self) -> None:
        """Do what is due."""
        for number, _ in self._poll.poll(0.02, 512):
            self._serve(self._by_file[number])
        self._look_at_clocks(time.monotonic())

    def _look_at_clocks(self, now: float) -> None:
        if now - self._looked_at < 0.02:
            return
        self._looked_at = now
        for member in self.members:
            if member.due_at > now:
                continue
            if member.is_up:
                member.due_at = now + HEARTBEAT_S
                member.in_flight[member.ask("heartbeat", leases=[member.lease] if member.lease else [])] = "heartbeat"
                self._guarded(member, member.flush)
            elif member.sock is None and self._under_way < UNDER_WAY:
                self._under_way += 1
                member.begin()
                member.due_at = now + CONNECT_TIMEOUT_S
                self._by_file[member.sock.fileno()] = member
                self._poll.register(member.sock.fileno(), select.EPOLLOUT)
            elif member.sock is not None:
                self._lost(member)  # it took too long

    def _serve(self, member: Member) -> None:
        self._guarded(member, lambda: self._take(member) if member.is_up else self._go_on(member))

    def _guarded(self, member: Member, step: Callable[[], object]) -> None:
        try:
            step()
        except (OSError, BenchError) as exc:
            if isinstance(exc, BenchError) and "BUSY" not in str(exc) and "DRAINING" not in str(exc):
                raise
            self._lost(member)

    def _go_on(self, member: Member) -> None:
        file = member.sock.fileno()
        events = member.advance()
        if events:
            self._poll.modify(file, events)
            return
        self._poll.modify(file, select.EPOLLIN)
        now = time.monotonic()
        self._under_way -= 1
        member.is_up, member.backoff, member.due_at = True, Backoff(member._rng), now + HEARTBEAT_S * member._rng.random()
        self.back_at.append(now)
        for outcome in member.greeting["leases"]:
            self.adopted += outcome == "OK"
            self.refused += outcome != "OK"
            if outcome != "OK":
                member.lease = None

    def _lost(self, member: Member) -> None:
        self.down += member.is_up
        self._under_way -= not member.is_up
        self._by_file.pop(member.sock.fileno(), None)
        member.sock.close()
        member.sock, member.is_up = None, False
        member.in_flight.clear()
        member.due_at = time.monotonic() + member.backoff.next()

    def _take(self, member: Member) -> None:
        for message in member.receive():
            kind = member.in_flight.pop(message.get("id"), None)
            if "error" in message:
                raise BenchError(f"{kind}: {message['error']}")
            if kind == "reserve":
                (delivery,) = message["jobs"]
                member.lease = delivery[:2]
            elif kind == "settle":
                if message["outcomes"] != ["OK"]:
                    raise BenchError(f"a settle was answered {message['outcomes']}")
                member.lease = None

    def ask_all(self, kind: str) -> None:
        """Let each reserve its job, or settle it."""
        for member in self.members:
            fields = {"n": 1, "tasks": [TASK], "wait": 60} if kind == "reserve" else {"leases": [[*member.lease, "ack"]]}
            member.in_flight[member.ask(kind, **fields)] = kind
            self._guarded(member, member.flush)

    @property
    def all_up(self) -> bool:
        """True if all are greeted."""
        return all(member.is_up for member in self.members)


def obey(crowd: Crowd, command: str) -> dict:
    """Do what a command says; returns its answer."""
    count = len(crowd.members)
    if command == "open":
        crowd.run_until(lambda: crowd.all_up)
        crowd.ask_all("reserve")
        crowd.run_until(lambda: all(member.lease for member in crowd.members))
        crowd.back_at.clear()
        return {"open": count}
    if command == "wait":
        before = sum(member.attempts for member in crowd.members)
        crowd.run_until(lambda: crowd.down >= count)
        crowd.run_until(lambda: crowd.all_up)
        times = [at - crowd.back_at[0] for at in crowd.back_at]
        return {"back": count, "first_at": crowd.back_at[0], "last_at": crowd.back_at[-1], "p50_s": percentile(times, 50),
                "attempts": sum(member.attempts for member in crowd.members) - before, "adopted": crowd.adopted,
                "refused": crowd.refused}
    crowd.ask_all("settle")
    crowd.run_until(lambda: not any(member.lease for member in crowd.members))
    return {"settled": count}


def main() -> None:
    """Obey commands; heartbeats go on while waiting for the next."""
    port, ca, count, seed = sys.argv[1:]
    raise_file_limit()
    crowd = Crowd(find_endpoint(f"greenroom://localhost:{port}", ca=ca, environ={}), int(count), random.Random(int(seed)))
    poller = select.poll()
    poller.register(sys.stdin, select.POLLIN)
    while True:
        _idle(crowd, poller)
        command = sys.stdin.readline().strip()
        if not command:
            return
        try:
            answer = obey(crowd, command)
        except (BenchError, OSError, ValueError) as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)


def _idle(crowd: Crowd, poller: select.poll) -> None:
    """Keep those that are up alive until there is a command."""
    while not poller.poll(0 if crowd.down or crowd.all_up else None):
        crowd.turn()


if __name__ == "__main__":
    main()
