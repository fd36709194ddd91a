"""The pytest plugin: fixtures for tests of code that enqueues tasks. Installed with the package (entry point `greenroom`).

Imports nothing of Greenroom before a fixture is used: pytest loads this before a user's conftest may patch the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from greenroom.testing import LocalClient
    from greenroom.testing_broker import LocalBroker


@pytest.fixture
def greenroom_inline() -> Iterator[LocalClient]:
    """Each enqueued job runs at once, here; what its task raises is raised. The client without a broker that does it."""
    yield from _local_client(inline=True)


@pytest.fixture
def greenroom_capture() -> Iterator[LocalClient]:
    """Nothing that is enqueued runs before `run_due()`; `assert_enqueued` and `assert_not_enqueued` look at it."""
    yield from _local_client(inline=False)


def _local_client(*, inline: bool) -> Iterator[LocalClient]:
    from greenroom.default_client import set_default_client
    from greenroom.testing import LocalClient

    client = LocalClient(inline=inline)
    before = set_default_client(client)
    yield client
    set_default_client(before)


@pytest.fixture(scope="session")
def greenroom_certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates of the test brokers."""
    from greenroom.testing_broker import make_certificates

    return make_certificates(tmp_path_factory.mktemp("greenroom-certs"))


@pytest.fixture
def greenroom_broker(tmp_path: Path, greenroom_certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBroker]:
    """A real broker with an empty store, stopped after the test. Tasks are enqueued there, and `Client()` finds it."""
    from greenroom.default_client import set_default_client
    from greenroom.testing_broker import LocalBroker

    with LocalBroker(tmp_path / "greenroom", certificates=greenroom_certificates) as broker:
        monkeypatch.setenv("GREENROOM_URL", broker.url)
        monkeypatch.setenv("GREENROOM_CA", broker.ca)
        before = set_default_client(broker.client)
        yield broker
        set_default_client(before)
