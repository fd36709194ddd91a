"""A child process that loads a broker with raw, pipelined connections, kills it when told, and writes the history of what it saw.

Unpatched and without any code of ours: sockets, TLS and msgpack as docs/protocol_v1.md says, so that the broker is judged from
outside. One thread, one selector. tests/checker.py describes the history.

    python tests/load_process.py PORT CA HISTORY SEED PRODUCERS WORKERS PREFIX   (of the workers' names)

Commands are JSON lines on standard input, each answered by one on standard output:
    {"do": "load", "pid": N, "kill_after": answers, "in_flight": at least, "number": signal, "seconds": at least,
     "held_s": a lease at least so old, "times": signals, "hear_out": false if it is not the broker that is signalled}
                                                                             load until then, signal the broker, hear it out
    {"do": "load_until_ended", "seconds": at most, "window": requests of each producer}
                                                                             load until the broker ends by itself
    {"do": "work"}                                                           take and finish until killed; nothing is kept back from
                                                                             the history
    {"do": "drain", "seconds": at most}                                      resend, take and finish until nothing is left
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import selectors
import signal
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgpack

#: Submits that one producer keeps unanswered; together with settles that makes the requests in flight at a kill.
WINDOW = 500
RESERVE = 400
TASKS = ("alpha", "beta")
CONNECT_WITHIN_S = 20.0
#: The signal comes so long after all that it waits for, and so long after the last look at answers: else it would always find the broker
#: at the same point of its cycle.
KILL_WITHIN_S, BLIND_S = 0.06, 0.005
KILL_IS_DUE_WITHIN_S = 60.0
#: Some jobs are held so long before they are settled: longer than it takes until a lease is on disk.
HOLD_S = 2.0
HOLD_SHARE = 0.05
#: The queue is empty when a reserve that waited so long at the broker got nothing. Longer than the restart grace of the tests.
LAST_WAIT_S = 1.3


class History:
    """The events of this process, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def note(self, by: str, op: str, kind: str, call: str, **fields: object) -> None:
        """Write an event that happens now."""
        event = {"at": time.monotonic_ns(), "by": by, "op": op, "type": kind, "call": call, **fields}
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Let others read it."""
        self._file.flush()


class Connection:
    """One TLS connection: frames out as fast as the kernel takes them, frames in to a callback.

    Attributes:
        open_calls: request id -> what to do with the answer, for each request without one.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        raw = socket.create_connection(address, timeout=CONNECT_WITHIN_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(raw, server_hostname="localhost")
        self.sock.setblocking(False)
        self.is_open = True
        self.open_calls: dict[int, Callable[[dict | None], None]] = {}
        self._out: deque[tuple[int, memoryview]] = deque()  # (request id, rest of its frame)
        self._in = b""
        self._next_id = 0

    def request(self, answered: Callable[[dict | None], None], verb: str, **fields: object) -> None:
        """Queue a request; `answered` gets the reply, or None when the connection ended without one."""
        self._next_id += 1
        body = msgpack.packb({"id": self._next_id, "verb": verb, **fields})
        self._out.append((self._next_id, memoryview(struct.pack(">I", len(body)) + body)))
        self.open_calls[self._next_id] = answered

    @property
    def in_flight(self) -> int:
        """Requests that are wholly with the kernel and have no answer yet."""
        return len(self.open_calls) - len(self._out)

    def write(self) -> None:
        """Send what the kernel takes."""
        try:
            while self._out:
                request_id, rest = self._out[0]
                sent = self.sock.send(rest)
                if sent < len(rest):
                    self._out[0] = request_id, rest[sent:]
                else:
                    self._out.popleft()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError:
            pass  # its answers may still lie there: reading finds the end

    def read(self) -> None:
        """Take what is there and hand each answer on."""
        try:
            while True:
                data = self.sock.recv(1 << 18)
                if not data:
                    self.is_open = False
                    break
                self._in += data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.is_open = False
        position = 0
        while len(self._in) - position >= 4:
            (length,) = struct.unpack_from(">I", self._in, position)
            if len(self._in) - position - 4 < length:
                break
            message = msgpack.unpackb(self._in[position + 4:position + 4 + length])
            position += 4 + length
            answered = self.open_calls.pop(message.get("id"), None)
            if answered is not None:
                answered(message)
        self._in = self._in[position:]
        if not self.is_open:
            self.sock.close()
            for answered in list(self.open_calls.values()):
                answered(None)
            self.open_calls.clear()
            self._out.clear()


class Producer:
    """Submits jobs with a submission id each; what got no answer is sent again first thing on the next connection."""

    def __init__(self, name: str, history: History, rng: random.Random) -> None:
        self.name = name
        self.connection: Connection | None = None
        self.answered = 0
        self.repeated = 0  # resends that the broker had stored before it was killed
        self.unknown: dict[str, list[dict]] = {}  # call -> jobs
        self._history = history
        self._rng = rng
        self._made = 0
        self._submissions: dict[str, bytes] = {}

    def connected(self, connection: Connection) -> None:
        """Use a new connection."""
        self.connection = connection
        connection.request(lambda _: None, "hello", version=1, role="client", name=self.name)
        again, self.unknown = self.unknown, {}
        for call, jobs in again.items():
            self._send(call, jobs)

    def fill(self, window: int = WINDOW) -> None:
        """Submit until the window is full."""
        while self.connection.is_open and len(self.connection.open_calls) < window:
            call = f"{self.name}/{self._made}"
            self._made += 1
            count = 1 if self._rng.random() < 0.95 else self._rng.randint(2, 10)
            jobs = [self._job(f"{call}/{place}") for place in range(count)]
            self._submissions[call] = struct.pack(">Q", time.time_ns()) + self._rng.randbytes(8)
            self._history.note(self.name, "submit", "invoke", call, jobs=[
                [job["payload"].split(b" ", 1)[0].decode(), digest(job["payload"]), job["priority"]] for job in jobs])
            self._send(call, jobs)

    def _job(self, key: str) -> dict:
        size = 2000 if self._rng.random() < 0.02 else self._rng.randint(0, 60)
        return {"task": self._rng.choice(TASKS), "priority": self._rng.randint(1, 10), "encoding": "raw",
                "payload": key.encode() + b" " + self._rng.randbytes(size)}

    def _send(self, call: str, jobs: list[dict]) -> None:
        def answered(reply: dict | None) -> None:
            if reply is None or reply.get("error", {}).get("code") == "UNKNOWN":
                self._history.note(self.name, "submit", "unknown", call)
                self.unknown[call] = jobs
                return
            self.answered += 1
            del self._submissions[call]
            if "error" in reply:
                self._history.note(self.name, "submit", "fail", call, why=reply["error"]["code"])
                return
            self.repeated += bool(reply.get("repeated"))
            self._history.note(self.name, "submit", "ok", call, ids=[
                outcome if isinstance(outcome, int) else None for outcome in reply["jobs"]])

        self.connection.request(answered, "submit", jobs=jobs, submission=self._submissions[call])


class Worker:
    """Reserves and settles jobs; comes back with the leases it holds, and sends again the settles that got no answer."""

    def __init__(self, name: str, history: History, rng: random.Random) -> None:
        self.name = name
        self.connection: Connection | None = None
        self.answered = 0
        self.lost = 0  # settles answered LEASE_LOST: the grant had not been on disk
        self.unknown: dict[str, list[list]] = {}  # call -> leases with outcomes
        self.slow: deque[tuple[float, list]] = deque()  # (when it is done, lease with outcome)
        self.adopted = 0  # leases of before a kill that were still ours after it
        self.was_empty = False  # the latest reserve that waited to its end got nothing
        self._history = history
        self._rng = rng
        self._instance = rng.randbytes(16)
        self._connected_at = 0.0
        self._calls = 0

    def connected(self, connection: Connection) -> None:
        """Use a new connection."""
        self.connection = connection
        self._connected_at = time.monotonic()
        self.was_empty = False
        again, self.unknown = self.unknown, {}
        held = [lease[:2] for _, lease in self.slow] + [lease[:2] for leases in again.values() for lease in leases]

        def greeted(reply: dict | None) -> None:
            self.adopted += reply["leases"].count("OK") if reply is not None else 0

        connection.request(greeted, "hello", version=1, role="worker", name=self.name, instance=self._instance, leases=held[:1000])
        for call, leases in again.items():
            self._send_settle(call, leases)
        self.reserve(1.0)

    def reserve(self, wait_s: float) -> None:
        """Ask for jobs; the next reserve follows the answer by itself."""
        self._calls += 1
        call = f"{self.name}/r{self._calls}"

        def answered(reply: dict | None) -> None:
            if reply is None or "error" in reply:
                self._history.note(self.name, "reserve", "unknown", call)
                self._history.note(self.name, "gone", "ok", call)  # one is always open, so this is the connection's end
                return
            self.answered += 1
            jobs = reply["jobs"]
            self.was_empty = not jobs and wait_s >= LAST_WAIT_S
            self._history.note(self.name, "reserve", "ok", call, jobs=[
                [job, fence, payload.split(b" ", 1)[0].decode(), digest(payload)] for job, fence, _, payload, *_ in jobs])
            self._settle(jobs)
            self.reserve(1.0 if jobs else LAST_WAIT_S)

        self._history.note(self.name, "reserve", "invoke", call)
        self.connection.request(answered, "reserve", n=RESERVE, wait=wait_s)

    def _settle(self, jobs: list[list]) -> None:
        leases = [[job, fence, "nack" if self._rng.random() < 0.05 else "ack", payload[:8]] for job, fence, _, payload, *_ in jobs]
        leases = [lease if lease[2] == "ack" else lease[:3] for lease in leases]
        done_at = time.monotonic() + HOLD_S
        self.slow.extend((done_at, lease) for lease in leases if lease[0] % int(1 / HOLD_SHARE) == 0)
        leases = [lease for lease in leases if lease[0] % int(1 / HOLD_SHARE)]
        while leases:
            count = 1 if self._rng.random() < 0.7 else self._rng.randint(2, 50)
            self._calls += 1
            self._send_settle(f"{self.name}/s{self._calls}", leases[:count])
            leases = leases[count:]

    def held_s(self) -> float:
        """Return for how long it has held the oldest lease that it got over this connection; 0.0: it holds none."""
        now = time.monotonic()
        return now - next((done_at - HOLD_S for done_at, _ in self.slow if done_at - HOLD_S >= self._connected_at), now)

    def settle_slow(self) -> None:
        """Settle the jobs whose time is over."""
        while self.slow and self.slow[0][0] <= time.monotonic():
            self._calls += 1
            self._send_settle(f"{self.name}/s{self._calls}", [self.slow.popleft()[1]])

    def _send_settle(self, call: str, leases: list[list]) -> None:
        def answered(reply: dict | None) -> None:
            if reply is None or "error" in reply:
                self._history.note(self.name, "settle", "unknown", call)
                self.unknown[call] = leases
                return
            self.answered += 1
            outcomes = [outcome if isinstance(outcome, str) else outcome["code"] for outcome in reply["outcomes"]]
            self.lost += outcomes.count("LEASE_LOST")
            self._history.note(self.name, "settle", "ok", call, outcomes=outcomes)

        self._history.note(self.name, "settle", "invoke", call, leases=[lease[:3] for lease in leases])
        self.connection.request(answered, "settle", leases=leases)


def digest(payload: bytes) -> str:
    """Return a short digest of a payload."""
    return hashlib.blake2b(payload, digest_size=6).hexdigest()


class Load:
    """All connections of the process, driven by one selector."""

    def __init__(self, port: int, ca: str, history: History, seed: int, producers: int, workers: int, prefix: str) -> None:
        self._address = ("127.0.0.1", port)
        self._context = ssl.create_default_context(cafile=ca)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.set_alpn_protocols(["greenroom/1"])
        self._history = history
        rng = random.Random(seed)
        self._rng = random.Random(seed)
        self.producers = [Producer(f"p{number}", history, rng) for number in range(producers)]
        self.workers = [Worker(f"{prefix}{number}", history, rng) for number in range(workers)]
        self._selector = selectors.DefaultSelector()

    @property
    def _peers(self) -> list[Producer | Worker]:
        return [*self.producers, *self.workers]

    @property
    def _open(self) -> list[Producer | Worker]:
        return [peer for peer in self._peers if peer.connection is not None and peer.connection.is_open]

    @property
    def _answered(self) -> int:
        return sum(peer.answered for peer in self._peers)

    def _connect(self, within_s: float = CONNECT_WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        for peer in self._peers:
            if peer.connection is not None and peer.connection.is_open:
                continue
            while True:
                try:
                    peer.connected(Connection(self._address, self._context))
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
            self._selector.register(peer.connection.sock, selectors.EVENT_READ, peer.connection)

    def _turn(self) -> None:
        """Write and read once, on all connections. What a turn notes is sent by the next one: `work` lets others read it in between."""
        for peer in self._open:
            peer.connection.write()
        for key, _ in self._selector.select(0.005):
            sock = key.fileobj
            key.data.read()
            if not key.data.is_open:
                self._selector.unregister(sock)
        for peer in self._open:
            if isinstance(peer, Worker):
                peer.settle_slow()

    def load_and_kill(self, pid: int, kill_after: int, in_flight: int, number: int, seconds: float, times: int = 1,
                      held_s: float = 0.0, hear_out: bool = True) -> dict:
        """Load until so many answers came, seconds passed, requests are in flight and a lease of this connection is held for `held_s`
        (below HOLD_S), then a little longer; signal; return the figures of that moment.

        Half as many again must be in flight, as some are answered between the last look and a SIGKILL; those don't count.
        """
        self._connect()
        goal = self._answered + kill_after
        until = time.monotonic() + seconds
        deadline = until + KILL_IS_DUE_WITHIN_S
        kill_at = None
        while kill_at is None or time.monotonic() < kill_at or self._in_flight() < 1.5 * in_flight:
            if kill_at is None and self._answered >= goal and time.monotonic() >= until and max(
                    (worker.held_s() for worker in self.workers), default=0.0) >= held_s:
                kill_at = time.monotonic() + self._rng.uniform(0.0, KILL_WITHIN_S)
            if time.monotonic() > deadline:
                return {"error": f"{self._answered} answers, {self._in_flight()} in flight"}
            for producer in self.producers:
                producer.fill()
            self._turn()
        flying, answered = self._in_flight(), self._answered
        time.sleep(self._rng.uniform(0.0, BLIND_S))
        for _ in range(times):
            os.kill(pid, number)  # a process that ended is there until its parent has asked for its exit code
            time.sleep(0.02)
        killed_at = time.monotonic_ns()
        while hear_out and self._open:
            if time.monotonic() > deadline:
                return {"error": "the broker does not close its connections"}
            self._turn()
        if number == signal.SIGKILL:  # a broker that stops answers after the signal too
            flying -= self._answered - answered  # their answers had left by then
        self._history.flush()
        return {"in_flight": flying, "killed_at": killed_at, **self._figures()}

    def load_until_ended(self, seconds: float, window: int) -> dict:
        """Load until the broker has closed all connections, or accepts none any more; return the figures of then."""
        deadline = time.monotonic() + seconds
        try:
            self._connect(0.0)
        except OSError:
            pass  # it has ended already
        while self._open:
            if time.monotonic() > deadline:
                return {"error": f"the broker has not ended; {self._answered} answers"}
            for peer in self._open:
                if isinstance(peer, Producer):
                    peer.fill(window)
            self._turn()
        self._history.flush()
        return self._figures()

    def work(self) -> dict:
        """Take and finish jobs until the process is killed. What is sent is in the history before, what was received soon after."""
        self._connect()
        print("{}", flush=True)
        deadline = time.monotonic() + KILL_IS_DUE_WITHIN_S
        while time.monotonic() < deadline:
            self._history.flush()
            self._turn()
        return {"error": "nobody killed it"}

    def drain(self, seconds: float) -> dict:
        """Submit nothing new; resend, reserve and settle until nothing is unknown and nothing comes any more."""
        self._connect()
        deadline = time.monotonic() + seconds
        while not self._is_drained():
            if time.monotonic() > deadline:
                return {"error": "not drained in time", **self._figures()}
            # A producer that has nothing more to ask is closed by the broker after a minute; what it asked must be answered before.
            if not all(peer.connection.is_open for peer in [*self.workers, *(one for one in self.producers if one.unknown)]):
                return {"error": "the broker closed a connection", **self._figures()}
            self._turn()
        self._history.note("load", "drain", "ok", "drain")
        self._history.flush()
        return self._figures()

    def _is_drained(self) -> bool:
        # A worker always has its next reserve open; anything else open is a settle.
        return (not any(producer.connection.open_calls or producer.unknown for producer in self.producers)
                and all(worker.was_empty and not worker.slow and len(worker.connection.open_calls) == 1 for worker in self.workers))

    def _in_flight(self) -> int:
        return sum(peer.connection.in_flight for peer in self._open)

    def _figures(self) -> dict:
        return {"answered": self._answered, "unknown": sum(len(peer.unknown) for peer in self._peers),
                "repeated": sum(producer.repeated for producer in self.producers),
                "leases_lost": sum(worker.lost for worker in self.workers),
                "leases_adopted": sum(worker.adopted for worker in self.workers)}


def main() -> None:
    """Obey commands until standard input ends."""
    port, ca, history, seed, producers, workers, prefix = sys.argv[1:]
    load = Load(int(port), ca, History(Path(history)), int(seed), int(producers), int(workers), prefix)
    for line in sys.stdin:
        command = json.loads(line)
        do = {"load": load.load_and_kill, "load_until_ended": load.load_until_ended, "work": load.work, "drain": load.drain}[command.pop("do")]
        answer = do(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
