"""Find jobs by what is in them, and do something to all that fit: count, cancel, run again, change, delete. Needs no worker."""

from __future__ import annotations

from greenroom.client import Client


def main(client: Client) -> None:
    """Do all of it to jobs of its own."""
    client.submit_many([("send_mail", {"to": f"user{number}@example.org"}) for number in range(30)], queue="letters")

    for view in client.jobs('queue:letters "user7@EXAMPLE.org"', payload=True):
        print("found:", view["task"], view["payload"][-17:])

    print("would be cancelled:", client.bulk("cancel", "queue:letters task:send_*", dry_run=True)["matched"])
    print("cancelled:", client.bulk("cancel", "queue:letters task:send_*")["done"])
    print("run again:", client.bulk("retry", 'queue:letters user2')["done"])
    print("go first now:", client.bulk("change", "queue:letters user2", priority=1)["done"])
    print("deleted:", client.bulk("delete", "queue:letters created>-1h", on_progress=lambda sums: print("… so far", sums["done"]))["done"])
    print("left:", [view["state"] for view in client.jobs("queue:letters", limit=3)])


if __name__ == "__main__":
    with Client() as connected:
        main(connected)
