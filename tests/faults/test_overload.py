"""More work than the broker can take: it says BUSY, and when that is over it is as quick as before, without a restart (L3)."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from greenroom import batches
from tests.processes import BrokerProcess, RawPeer

SEED = 20_251_127
FLOODERS = 4
FRAME = 1000  # jobs in a submit
PAYLOAD = 8  # bytes: jobs are what fills a batch, and on a busy machine too the flooders must be quicker than the broker
#: Submits that a flooder keeps unanswered: together far more than a batch may gather, so that BUSY must come.
WINDOW = 4 * batches.MAX_BATCH_JOBS // (FLOODERS * FRAME)
#: The flood goes on until somebody was told BUSY.
FLOOD_AT_LEAST_S, FLOOD_AT_MOST_S = 3.0, 30.0
PROBES = 40
#: After the last answer of the flood a submit is as quick as before within so long.
BACK_WITHIN_S = 5.0
#: "As quick": the median of some probes, in multiples of the median before, and at least so much for the noise of the machine.
AS_QUICK, NOISE_S = 2.0, 0.02


def median_s(peer: RawPeer, probes: int = PROBES) -> float:
    """Submit one job after the other; returns the median time until it is acknowledged."""
    took = []
    for _ in range(probes):
        began = time.perf_counter()
        assert "error" not in peer.call("submit", jobs=[{"task": "probe"}])
        took.append(time.perf_counter() - began)
    return sorted(took)[probes // 2]


class Flood:
    """Producers that never wait for an answer before they send more, up to a window.

    Attributes:
        outcomes: what their submits were answered: "OK" or an error's code.
    """

    def __init__(self, broker: BrokerProcess) -> None:
        self.outcomes: Counter[str] = Counter()
        self._failures: list[BaseException] = []
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._run, args=(broker.connect(timeout=60.0), random.Random(SEED + number).randbytes(PAYLOAD)))
                         for number in range(FLOODERS)]
        for thread in self._threads:
            thread.start()

    @property
    def is_on(self) -> bool:
        """True while they send more."""
        lasts_s = time.monotonic() - self._began
        return lasts_s < FLOOD_AT_LEAST_S or lasts_s < FLOOD_AT_MOST_S and not self.outcomes["BUSY"] and not self._failures

    def _run(self, peer: RawPeer, payload: bytes) -> None:
        try:
            jobs = [{"task": "flood", "payload": payload}] * FRAME
            waiting: list[int] = []
            while self.is_on or waiting:
                if self.is_on and len(waiting) < WINDOW:
                    waiting.append(peer.send("submit", jobs=jobs))
                    continue
                reply = peer.reply(waiting.pop(0))
                self.outcomes[reply["error"]["code"] if "error" in reply else "OK"] += 1
            peer.close()
        except BaseException as exc:
            self._failures.append(exc)

    def end(self) -> None:
        """Wait until they have heard every answer."""
        for thread in self._threads:
            thread.join(FLOOD_AT_MOST_S + 60.0)
        assert not any(thread.is_alive() for thread in self._threads) and self._failures == [], self._failures


def test_after_a_flood_a_submit_is_as_quick_as_before(make_broker: Callable[..., BrokerProcess]) -> None:
    broker = make_broker()
    peer = broker.connect(timeout=60.0)
    median_s(peer)  # what is made once is made
    before = median_s(peer)
    flood = Flood(broker)
    during = []
    while flood.is_on:
        began = time.perf_counter()
        peer.call("submit", jobs=[{"task": "probe"}])
        during.append(time.perf_counter() - began)
    flood.end()
    over_at = time.monotonic()

    limit = max(AS_QUICK * before, before + NOISE_S)
    after = median_s(peer)
    while after > limit and time.monotonic() < over_at + BACK_WITHIN_S:
        after = median_s(peer)

    print(f"submit {before * 1000:.1f} ms, in the flood {sorted(during)[len(during) // 2] * 1000:.0f}, after it {after * 1000:.1f} "
          f"within {time.monotonic() - over_at:.1f} s; {flood.outcomes}")
    assert flood.outcomes.keys() == {"OK", "BUSY"}, "the flood must be more than it can take"
    assert max(during) > limit, "the flood must have been felt"
    assert after <= limit
    assert broker.stats()["total"] >= flood.outcomes["OK"] * FRAME and "Traceback" not in broker.output
