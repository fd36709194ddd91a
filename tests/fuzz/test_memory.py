"""A real broker under hostile frames: it answers, closes, goes on for others, and its memory stays where it was (F26, F27, S16-S18)."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.protocol import encode_frame
from tests.fuzz.seeds import HOSTILE_BODIES
from tests.processes import BrokerProcess, RawPeer

SECONDS = 8.0
LONG_SECONDS = 300.0
MIB = 2**20
#: Buffers of a few connections at once, the allocator's own hoard. A leak of a hundredth of what is sent would be ten times as much.
MAX_GROWTH = 48 * MIB


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


LIST = b"\xdc\x03\xe8"  # of 1,000
BOMBS: dict[str, bytes] = {
    "a million nils in lists in lists": b"\x81\xa1a" + (LIST + b"\xc0" * 999) * 1022 + b"\xc0",
    "a million texts in lists in lists": b"\x81\xa1a" + (LIST + b"\xa2ab" * 999) * 1022 + b"\xc0",
    "lists of a hundred in lists": b"\x81\xa1a" + LIST + (b"\xdc\x00\x64" + b"\xa2ab" * 99) * 1020 + b"\xc0",
    "maps in maps": b"\x81\xa1a" + (b"\xde\x00\x20" + b"".join(b"\xa2%02d\xa3abc" % key for key in range(31)) + b"\xa2xx") * 1000 + b"\xc0",
    "very many empty lists": b"\x81\xa1a" + LIST + (LIST + b"\x90" * 1000) * 1000,
    "very many empty maps": b"\x81\xa1a" + LIST + (b"\xdc\x00\x64" + b"\x80" * 100) * 1000,
    "a list said to be huge": b"\x81\xa1a\xdd\xff\xff\xff\xff", "lists said to be huge in lists": b"\x81\xa1a" + b"\xdd\x00\x0f\x42\x40" * 1023,
    "a text of 4 MiB": b"\x81\xa1a\xdb" + struct.pack(">I", 4 * MIB - 10) + "\U0001f600".encode() * (MIB - 3) + b"ab",
    "bad UTF-8 at the end of a megabyte": b"\x81\xa1a\xdb" + struct.pack(">I", MIB) + b"a" * (MIB - 1) + b"\xff",
    "very deep": b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0", "extensions": b"\x81\xa1a\x9f" + b"\xc7\x00\x01" * 15,
    "the same key ever again": b"\xde\x00\x20" + b"\xa1a\xc4\x80" * 1 + bytes(128) + (b"\xa1a\xc4\x80" + bytes(128)) * 31,
    "a length of 0": b"", **{f"hostile {body[:8].hex()}": body for body in HOSTILE_BODIES},
}
STREAMS: dict[str, bytes] = {
    **{name: framed(body) for name, body in BOMBS.items()}, "a length of 4 GiB - 1": b"\xff\xff\xff\xff",
    "thousands of frames of one byte": framed(b"\x80") * 20_000, "no frame at all": bytes(range(255, -1, -1)) * 100}
#: What is taken, and costs much: it must leave nothing behind either.
ACCEPTED = [
    {"verb": "get", "jobs": list(range(2**50, 2**50 + 1000))}, {"verb": "settle", "leases": [[]] * 1000},
    {"verb": "settle", "leases": [[number, 1, "fail", {"traceback": "é" * 1500}] for number in range(2**50, 2**50 + 900)]},
    {"verb": "submit", "jobs": [{"task": "not a name", "payload": bytes(4000)}] * 1000}, {"verb": "x" * 1000},
    {"verb": "wait", "jobs": list(range(1, 1001)), "wait": 0.01},
    {"verb": "reserve", "n": 1, "queues": [f"{'q' * 100}{number}" for number in range(1000)], "tasks": ["t"] * 1000}]
PARTIAL = framed(bytes(3 * MIB))[:2 * MIB]


def rss(broker: BrokerProcess) -> int:
    status = Path(f"/proc/{broker.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


class Attack:
    """A few connections at a time that send every stream again and again, and count what came of it."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.connections = self.frames = self.bytes = 0
        self.refusals = 0  # told to us; a broker that closes while we still send cannot tell
        self.codes: set[str] = set()

    def round(self) -> None:
        """Send everything once."""
        for stream in STREAMS.values():
            self._refused(stream)
        self._accepted()
        self._partial()

    def _connect(self) -> RawPeer:
        self.connections += 1
        return self.broker.connect(role="worker")

    def _refused(self, stream: bytes) -> None:
        peer = self._connect()
        try:
            peer.sock.sendall(stream)
            error = peer.reply(0)["error"]
            assert error["code"] == "PROTOCOL_ERROR" and error["message"] and "\n" not in error["message"]
            self.refusals += 1
            assert peer.closes()
        except OSError:
            pass  # closed while we still sent: then the answer may be lost
        finally:
            peer.close()
        self._count(stream)

    def _accepted(self) -> None:
        peer = self._connect()
        for request in ACCEPTED:
            number = peer.send(**request)
            answer = peer.reply(number)
            self.codes.add(answer["error"]["code"] if "error" in answer else "OK")
            self._count(encode_frame({**request, "id": number}))
        peer.close()

    def _partial(self) -> None:
        peer = self._connect()
        peer.sock.sendall(PARTIAL)
        peer.close()
        self._count(PARTIAL)

    def _count(self, stream: bytes) -> None:
        self.frames += max(1, stream.count(b"\x00\x00\x00\x01\x80"))
        self.bytes += len(stream)


def attack_for(broker: BrokerProcess, seconds: float) -> tuple[Attack, list[int]]:
    """Attack from two threads; returns the counts and the memory after each round of the first."""
    attack = Attack(broker)
    attack.round()
    grown = [rss(broker)]
    deadline = time.monotonic() + seconds
    failures: list[BaseException] = []

    def go_on(note: Callable[[], None]) -> None:
        try:
            while time.monotonic() < deadline:
                attack.round()
                note()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=go_on, args=(note,)) for note in (lambda: grown.append(rss(broker)), lambda: None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert not failures, failures
    return attack, grown


def check(make_broker: Callable[..., BrokerProcess], seconds: float) -> None:
    broker = make_broker("--data", "memory:")
    good = broker.connect()

    attack, grown = attack_for(broker, seconds)

    print(f"{attack.connections:,} connections, {attack.frames:,} frames, {attack.bytes / MIB:,.0f} MiB; memory after the first round "
          f"{grown[0] / MIB:.0f} MiB, at most {max(grown) / MIB:.0f}, at the end {grown[-1] / MIB:.0f}")
    assert max(grown) - grown[0] < MAX_GROWTH and len(grown) >= 2
    assert attack.codes == {"OK", "UNKNOWN_VERB"} and attack.refusals >= len(STREAMS) // 2
    assert "now" in good.call("ping") and "Traceback" not in broker.output
    assert good.call("stats")["states"]["queued"] == 0


@pytest.mark.timeout(180)
def test_memory_stays_flat_under_hostile_frames(make_broker: Callable[..., BrokerProcess]) -> None:
    check(make_broker, SECONDS)


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS + 180)
def test_memory_stays_flat_under_hostile_frames_for_minutes(make_broker: Callable[..., BrokerProcess]) -> None:
    check(make_broker, LONG_SECONDS)


def test_every_bomb_is_refused_or_harmless_before_the_greeting_too(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker("--data", "memory:")
    for name, stream in STREAMS.items():
        peer = RawPeer(broker, say_hello=False)
        try:
            peer.sock.sendall(stream)
            error = peer.reply(0)["error"]
            assert error["code"] == "PROTOCOL_ERROR", name
        except OSError:
            pass
        assert peer.closes(), name
    assert "now" in broker.connect().call("ping")
