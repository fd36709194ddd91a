"""Limit a queue, and choose what a producer does when it is full. Needs no worker: nothing makes room but what is said below."""

from __future__ import annotations

import threading

from greenroom.client import Client
from greenroom.errors import FullError


def main(client: Client) -> None:
    """Do all of it on a queue of its own."""
    client.limit("import", jobs=10, urgent=2, extra=20, reason="the database is slow", by="ann")
    client.submit_many([("import_row", {"row": row}) for row in range(10)], queue="import")

    try:
        client.submit("import_row", {"row": 10}, queue="import")
    except FullError as exc:
        print(f"refused: {exc.message}; come back in {exc.retry_after_s:g} s")

    lost = client.submit("import_metrics", {}, queue="import", on_full="drop")
    print("dropped:", lost.is_dropped, "so far:", client.dropped)

    urgent = client.submit_many([("import_row", {"row": row}) for row in (11, 12, 13)], queue="import", priority=1, on_full="drop")
    print("urgent ones that got in:", sum(not handle.is_dropped for handle in urgent))

    roomier = threading.Timer(0.2, client.limit, ["import"], {"jobs": 1000})
    roomier.start()
    client.submit("import_row", {"row": 14}, queue="import", on_full="wait", full_timeout=60)
    roomier.join()
    (limit,) = [limit for limit in client.limits() if limit["queue"] == "import"]
    print(f"waiting: {limit['waiting']} of {limit['jobs']}, full: {limit['full']}, kept out: {limit['refused'] > 0}")

    client.purge("import")
    client.unlimit("import")


if __name__ == "__main__":
    with Client() as connected:
        main(connected)
