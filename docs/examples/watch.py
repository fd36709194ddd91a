"""Watch a queue: print what ends badly. Started again, it goes on where it was, and says when it missed something."""

from __future__ import annotations

from pathlib import Path

from greenroom.client import Client


def main(client: Client, place: Path, timeout: float | None = None) -> None:
    """Print events of the queue `orders`; `place` keeps how far it is. Ends when `timeout` seconds (None: never) bring none."""
    after = place.read_text() if place.exists() else None
    with client.events(queue="orders", kinds=["failed", "cancelled", "expired"], after=after, timeout=timeout) as events:
        for event in events:
            if event["kind"] == "gap":
                print("events were missed: look at the failed jobs themselves")
            else:
                print(f"job {event['job']} ({event['task']}) {event['kind']} {event.get('error', '')}".rstrip())
            place.write_text(event["position"])


if __name__ == "__main__":
    with Client() as connected:
        main(connected, Path("watch.position"))
