"""The frameworks that peers.py compares, each by its own documented client: the application that its worker loads, and a producer.

A worker imports this file (`celery -A peer_frameworks:app`, `worker.py --tasks bench/peer_frameworks.py` …). Run as a script it is the
producer: it takes orders as JSON lines on stdin and answers on stdout. PEER in the environment says which framework, PEER_PORT where
its server is. It runs in the peers' virtual environment, so it must import nothing of ours but peer_payload; only Greenroom's own
producer runs in the project's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peer_payload import make_text, noop

HOST = "127.0.0.1"
CHUNK = 1000  # jobs in one bulk call, for those who have one
RESULT_WITHIN_S = 30


def _chunks(items: list) -> Iterator[list]:
    return (items[first:first + CHUNK] for first in range(0, len(items), CHUNK))


class CeleryRedis:
    """Celery with Redis as broker and result backend. It has no bulk call: one `delay` a job."""

    def __init__(self, port: int) -> None:
        from celery import Celery
        url = f"redis://{HOST}:{port}"
        self.app = Celery("peers", broker=url + "/0", backend=url + "/1")
        self.app.conf.worker_prefetch_multiplier = int(os.environ.get("PEER_PREFETCH", "4"))
        self.app.conf.broker_connection_retry_on_startup = True
        self._task = self.app.task(noop, name="peers.noop")

    def submit(self, payloads: list[str]) -> list:
        return [self._task.delay(payload) for payload in payloads]

    def results(self, handles: list) -> list[str]:
        return [handle.get(timeout=RESULT_WITHIN_S) for handle in handles]


class RqRedis:
    """RQ; `Queue.enqueue_many` writes a pipeline of 1,000 jobs."""

    app = None

    def __init__(self, port: int) -> None:
        from redis import Redis
        from rq import Queue
        self._redis = Redis(host=HOST, port=port)
        self._queue = Queue("peers", connection=self._redis)

    def submit(self, payloads: list[str]) -> list[str]:
        jobs = []
        for chunk in _chunks(payloads):
            jobs += self._queue.enqueue_many([self._queue.prepare_data("peer_payload.noop", (payload,)) for payload in chunk])
        return [job.id for job in jobs]

    def results(self, handles: list[str]) -> list[str]:
        from rq.job import Job
        deadline = time.monotonic() + RESULT_WITHIN_S
        found: list[str] = []
        for chunk in _chunks(handles):
            values: list = [None]
            while None in values:
                if time.monotonic() > deadline:
                    raise TimeoutError("a result did not come")
                values = [job.return_value() for job in Job.fetch_many(chunk, self._redis)]
            found += values
        return found


class _Dramatiq:
    def _declare(self, *, has_results: bool) -> None:
        import dramatiq
        dramatiq.set_broker(self.app)
        self._actor = dramatiq.actor(noop, actor_name="peers.noop", broker=self.app, **({"store_results": True} if has_results else {}))

    def submit(self, payloads: list[str]) -> list:
        return [self._actor.send(payload) for payload in payloads]


class DramatiqRedis(_Dramatiq):
    """Dramatiq with Redis as broker and result backend. No bulk call: a group sends one by one too."""

    def __init__(self, port: int) -> None:
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.results import Results
        from dramatiq.results.backends import RedisBackend
        self.app = RedisBroker(host=HOST, port=port)
        self.app.add_middleware(Results(backend=RedisBackend(host=HOST, port=port)))
        self._declare(has_results=True)

    def results(self, handles: list) -> list[str]:
        return [handle.get_result(block=True, timeout=RESULT_WITHIN_S * 1000) for handle in handles]


class DramatiqRabbit(_Dramatiq):
    """Dramatiq with RabbitMQ, durable queues and publisher confirms. Its result store would be another server: no results."""

    def __init__(self, port: int) -> None:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker
        self.app = RabbitmqBroker(host=HOST, port=port, confirm_delivery=True)
        self._declare(has_results=False)

    def results(self, handles: list) -> None:
        return None


class HueyRedis:
    """Huey with Redis. No bulk call."""

    def __init__(self, port: int) -> None:
        from huey import RedisHuey
        self.app = RedisHuey("peers", host=HOST, port=port)
        self._task = self.app.task(name="peers_noop")(noop)

    def submit(self, payloads: list[str]) -> list:
        return [self._task(payload) for payload in payloads]

    def results(self, handles: list) -> list[str]:
        return [handle.get(blocking=True, timeout=RESULT_WITHIN_S) for handle in handles]


class ProcrastinatePostgres:
    """Procrastinate; `batch_defer` inserts 1,000 jobs in one statement. It stores no results."""

    def __init__(self, port: int) -> None:
        import procrastinate
        conninfo = f"host={HOST} port={port} dbname=postgres user=postgres"
        self.app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo))
        self._task = self.app.task(noop, name="peers.noop")

    def set_up(self) -> None:
        self.app.open()
        self.app.schema_manager.apply_schema()

    def submit(self, payloads: list[str]) -> list[int]:
        ids: list[int] = []
        for chunk in _chunks(payloads):
            ids += self._task.batch_defer(*({"payload": payload} for payload in chunk))
        return ids

    def results(self, handles: list) -> None:
        return None


class Greenroom:
    """Greenroom's own `Client.submit_many`."""

    app = None

    def __init__(self, port: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from greenroom.tasks import task
        self.task = task(name="peers.noop")(noop)
        self._port = port
        self._client = None

    def submit(self, payloads: list[str]) -> list:
        from greenroom.client import Client
        if self._client is None:
            self._client = Client(f"greenroom://localhost:{self._port}")
        return self._client.submit_many(("peers.noop", {"payload": payload}) for payload in payloads)

    def results(self, handles: list) -> list[str]:
        from greenroom.client import decode_result
        views = {view["id"]: view for view in self._client.wait([handle.id for handle in handles], RESULT_WITHIN_S)}
        return [decode_result(views[handle.id]) for handle in handles]


FRAMEWORKS = {"celery": CeleryRedis, "rq": RqRedis, "dramatiq redis": DramatiqRedis, "dramatiq rabbitmq": DramatiqRabbit, "huey": HueyRedis,
              "procrastinate": ProcrastinatePostgres, "greenroom": Greenroom}

if os.environ.get("PEER"):
    _peer = FRAMEWORKS[os.environ["PEER"]](int(os.environ["PEER_PORT"]))
    app = _peer.app
    greenroom_task = getattr(_peer, "task", None)  # where worker.py finds it


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Take orders: `{"submit": [first, count]}`, `{"check": true}` for the results of the last submit."""
    if hasattr(_peer, "set_up"):
        _peer.set_up()
    _say(ready=True)
    handles: list = []
    first = 0
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "submit" in order:
                first, count = order["submit"]
                payloads = [make_text(number) for number in range(first, first + count)]
                began_at = time.monotonic()
                handles = _peer.submit(payloads)
                _say(began_at=began_at, ended_at=time.monotonic(), submitted=len(handles))
            else:
                results = _peer.results(handles)
                right = results is None or results == [f"{number:016x}" for number in range(first, first + len(handles))]
                _say(results=None if results is None else len(results), right=right)
        except Exception as exc:  # noqa: BLE001 - whatever a framework raises is what is told
            _say(error=f"{type(exc).__name__}: {exc}")


if __name__ == "__main__":
    main()
