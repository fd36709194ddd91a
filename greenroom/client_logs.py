"""Reading the log of a job, the client's side: page by page, and waiting at the broker for what comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

#: The longest wait that a broker grants.
MOST_WAIT_S = 60.0
#: Pause after an answer without lines that came sooner than it was to: a broker that does not wait must not be asked without end.
PAUSE_S = 0.5


def read_lines(call: Callable[[dict], dict], job_id: int, after: int, *, wait_s: float) -> Iterator[dict]:
    """Yield lines as maps, see Client.logs.

    Args:
        call: asks the broker, again after a lost connection.
        wait_s: how long each question stays at the broker; 0: do not wait for lines, end with the last there is.
    """
    while True:
        asked_at = time.monotonic()
        answer = call({"verb": "logs", "job": job_id, "after": after, "wait": wait_s})
        for seq, at, attempt, text in (line[:4] for line in answer["lines"]):
            yield {"seq": seq, "at": at, "attempt": attempt, "text": text}
        after = max(after, answer["next"])
        if answer["finished"] or not (answer["lines"] or wait_s):
            return
        if not answer["lines"] and time.monotonic() - asked_at < min(PAUSE_S, wait_s):
            time.sleep(PAUSE_S)
