"""An example of schedules: a program that makes sure of its schedules at each start, and the task that they run.

Make sure of them:          python docs/examples/schedules.py
Run a worker:               python worker.py --tasks docs/examples/schedules.py
Look, try one, hold it:     python client.py schedules
                            python client.py schedule night-report --run
                            python client.py schedule night-report --pause "the database moves"
"""

from __future__ import annotations

from datetime import datetime

from greenroom.client import Client
from greenroom.tasks import task


@task(name="report")
def report(kind: str) -> dict:
    """Stand for something that takes a while."""
    return {"kind": kind, "made_at": datetime.now().isoformat()}


def ensure_schedules(client: Client) -> None:
    """Make or replace the schedules; what they say already stays as it is, with its next run."""
    # Each working day at half past two in Berlin. While one report is unfinished no other begins; after a downtime one is made for all missed.
    client.schedule("night-report", "report", {"kind": "full"}, cron="30 2 * * MON-FRI", timezone="Europe/Berlin", queue="reports")
    # Every two seconds, for impatient readers: only the latest counts, and nobody wants those that were missed.
    client.schedule("pulse", "report", {"kind": "short"}, every="2s", overlap="replace", missed="skip", priority=8)


if __name__ == "__main__":
    with Client() as broker:
        ensure_schedules(broker)
        for schedule in broker.schedules():
            print(schedule["name"], "next at", datetime.fromtimestamp(schedule["next_at"]))
