"""Steer a running broker: hold a queue, see why its jobs wait, let one overtake, throw the rest away. Needs no worker."""

from __future__ import annotations

from greenroom.client import Client


def main(client: Client) -> None:
    """Do all of it on a queue of its own."""
    client.pause("newsletter", seconds=600, reason="the provider is down", by="ann")
    jobs = client.submit_many([("send_mail", {"to": number}) for number in range(5)], queue="newsletter")

    for gate in jobs[4].explain()["gates"]:
        print(f"{gate['code']}: {gate['text']}; opens with: {gate['opens']}")

    jobs[4].change(priority=1)
    print("jobs ahead of the last one now:", jobs[4].explain()["ahead"])

    print("purged:", client.purge("newsletter"))
    client.resume("newsletter")


if __name__ == "__main__":
    with Client() as connected:
        main(connected)
