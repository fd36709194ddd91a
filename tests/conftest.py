"""Fixtures of all tests: certificates, real brokers and real workers as processes. Patches gevent before anything else is imported."""

from __future__ import annotations

from greenroom.patching import patch_all

patch_all()

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import BrokerProcess, LoadProcess, WorkerProcess, make_certificates


def pytest_configure(config: pytest.Config) -> None:
    """Raise the file limit: an ordinary user begins with 1,024, and some tests hold thousands of connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long runs to `./run test --long`."""
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="a long run: ./run test --long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skip)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long."""
    parser.addoption("--long", action="store_true", help="also the tests that take minutes")


def skip_or_fail(reason: str) -> None:
    """Skip a test whose means are not there; where CI is set that is a failure."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.crt, server.crt, server.key and a client pair `test-client`."""
    return make_certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def make_broker(tmp_path: Path, certificates: Path) -> Iterator[Callable[..., BrokerProcess]]:
    """Start brokers: `make_broker("--lease-s", "2", name="a")`; they are ended after the test."""
    made: list[BrokerProcess] = []

    def make(*flags: str, name: str = "broker", **options: object) -> BrokerProcess:
        broker = BrokerProcess(tmp_path / name, certificates, flags, **options)
        made.append(broker)
        broker.start()
        return broker

    yield make
    for broker in made:
        broker.end()


@pytest.fixture
def broker(make_broker: Callable[..., BrokerProcess]) -> BrokerProcess:
    """A running broker with an empty store and default settings."""
    return make_broker()


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[BrokerProcess]:
    """One running broker for all tests of a file that ask for it: they must not mind what the others left there."""
    broker = BrokerProcess(tmp_path_factory.mktemp("shared"), certificates)
    try:
        broker.start()
        yield broker
    finally:
        broker.end()


@pytest.fixture
def start_worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start workers of the fixture `broker` (or of `to=`): `start_worker("--concurrency", "1", tasks="file.py", name="w")`."""
    made: list[WorkerProcess] = []

    def start(*flags: str, to: BrokerProcess | None = None, tasks: str | Path | None = None, name: str | None = None,
              wait: bool = True) -> WorkerProcess:
        target = to if to is not None else request.getfixturevalue("broker")
        more = [*flags, *(["--tasks", str(tasks)] if tasks is not None else [])]
        worker = WorkerProcess(target, name or f"w{len(made) + 1}", more, tmp_path)
        made.append(worker)
        worker.start(wait=wait)
        return worker

    yield start
    for worker in made:
        worker.end()


@pytest.fixture
def make_load(tmp_path: Path) -> Iterator[Callable[[BrokerProcess], LoadProcess]]:
    """Start load on a broker: `make_load(broker)`; it is ended after the test."""
    made: list[LoadProcess] = []

    def make(broker: BrokerProcess) -> LoadProcess:
        made.append(LoadProcess(broker, tmp_path / "history.jsonl"))
        return made[-1]

    yield make
    for load in made:
        load.end()
