"""How long results are kept: one for a month, one for half a minute, one for nobody but who waits for it. Needs a worker."""

from __future__ import annotations

import time

from greenroom.client import Client
from greenroom.errors import GoneError

DAY = 86400


def main(client: Client) -> None:
    """Let three jobs run, and look at them again a little later."""
    report = client.submit("fibonacci", {"n": 50}, keep_for=30 * DAY)
    preview = client.submit("reverse_string", {"data": "preview"}, keep_for=30)
    secret = client.submit("reverse_string", {"data": "once"}, keep_for=0)

    print("told to who waits:", secret.result(timeout=30))
    print("report:", report.result(timeout=30), "preview:", preview.result(timeout=30))
    for _ in range(100):  # a second or two
        try:
            secret.status()
        except GoneError as exc:
            print("afterwards:", exc)
            break
        time.sleep(0.1)
    view = report.status()
    print("the report goes in", round((view["finished_at"] + view["options"]["keep_for"] - time.time()) / DAY), "days")


if __name__ == "__main__":
    with Client() as connected:
        main(connected)
