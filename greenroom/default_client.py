"""The client that tasks are enqueued with when none is named: one a process, made at the first use.

Workers import it too (`@task` needs it), so it must not load the client before somebody enqueues something.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenroom.client import Client

_lock = threading.Lock()  # held by the one thread that makes the client
_client: Client | None = None


def default_client() -> Client:
    """Return the default client, made from the environment (GREENROOM_URL, GREENROOM_CA …) at the first call.

    Safe in any thread, and in a forked child, where the client makes a connection of its own. Raises ConfigError as Client does.
    """
    global _client
    client = _client
    if client is None:
        # The one import that points upward: the decorator is in user modules, which a worker and each of its children load.
        from greenroom.client import Client
        with _lock:
            client = _client = _client or Client()
    return client


def set_default_client(client: Client | None) -> Client | None:
    """Let `enqueue` use this client (None: make one from the environment when needed); returns the one before, or None."""
    global _client
    with _lock:
        before, _client = _client, client
    return before


def _forked() -> None:
    # Another thread may have held it at the moment of the fork, and that thread does not exist here.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
