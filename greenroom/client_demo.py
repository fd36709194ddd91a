"""`client.py demo`: shows on real workers that a job of priority 1 comes back before a waiting one of priority 5.

Must not know the wire or the command line: it gets a Client and a function that prints a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from greenroom.client import Client
from greenroom.errors import WaitTimeoutError

SLOW_S = 2.0
LONG, SHORT = "slow_task", "reverse_string"

#: More slots than this are not worth filling for a demonstration.
MOST_SLOTS = 1000


def run_demo(client: Client, tell: Callable[[str], None], *, timeout_s: float) -> int:
    """Submit slow_task first and reverse_string second, tell what happens; 0 if the second came back first.

    Raises:
        GreenroomError: as the client does; WaitTimeoutError if it takes longer than `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    slots = free_slots(client.workers())
    if slots is None:
        tell(f"No connected worker takes {LONG} and {SHORT} from the queue `default`. Start one and run this again:")
        tell("    python worker.py")
        return 7
    if slots > MOST_SLOTS:
        tell(f"The connected workers have {slots} free slots, too many to fill for this. Run it with fewer.")
        return 7
    tell(f"The connected workers have {slots} free slots. {slots + 1} jobs {LONG} of {SLOW_S:g} s, priority 5, fill them all,")
    tell("and the last one has to wait in the queue.")
    slow = client.submit_many([(LONG, {"seconds": SLOW_S})] * (slots + 1), priority=5)
    waiting = slow[-1]
    _until_running(client, [handle.id for handle in slow[:slots]], deadline)
    tell(f"The slots are busy, job {waiting.id} ({LONG}, priority 5) waits. Only now comes the urgent one:")
    urgent = client.submit(SHORT, {"data": "stressed"}, priority=1)
    tell(f"job {urgent.id} ({SHORT}, priority 1) was submitted after all the others.")
    order: list[int] = []
    for view in client.wait([waiting.id, urgent.id], max(0.1, deadline - time.monotonic())):
        order.append(view["id"])
        result = urgent.result(1.0) if view["id"] == urgent.id else waiting.result(1.0)
        tell(f"  {len(order)}. back: job {view['id']}, {view['task']}, priority {view['priority']}, result {result!r}, "
             f"begun {view['started_at'] - view['submitted_at']:.2f} s after it was submitted")
    views = {view["id"]: view for view in client.get([waiting.id, urgent.id])}
    if views[urgent.id]["finished_at"] <= views[waiting.id]["finished_at"] and order[0] == urgent.id:
        tell("The job of priority 1 was submitted last and came back first: lower numbers run first.")
        return 0
    tell("The waiting job came back first. Was a worker started or stopped meanwhile? Run it again.")
    return 1


def free_slots(workers: list[dict]) -> int | None:
    """Return how many jobs more the workers that can run the demo's two tasks ask for; None without such a worker."""
    fitting = [worker for worker in workers if worker["status"] != "lost"
               and (worker["tasks"] is None or {LONG, SHORT} <= set(worker["tasks"]))
               and (worker["queues"] is None or "default" in worker["queues"])]
    return sum(worker["free"] or 0 for worker in fitting) if fitting else None


def _until_running(client: Client, ids: list[int], deadline: float) -> None:
    """Wait until these jobs have begun, or as many as will: other jobs may be before them."""
    begun, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        states = [view.get("state") for view in client.get(ids)]
        now_begun = sum(state not in ("queued", "scheduled") for state in states)
        if now_begun == len(ids):
            return
        if now_begun != begun:
            begun, since = now_begun, time.monotonic()
        elif time.monotonic() - since > SLOW_S / 4:
            return
        time.sleep(0.02)
    raise WaitTimeoutError("the workers did not take the jobs in time")
