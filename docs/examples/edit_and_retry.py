"""Edit and retry: jobs failed over a mistake in their payloads, so copies with the right ones are handed in. The failed ones stay to be seen.

Needs a worker:             python worker.py
"""

from __future__ import annotations

from greenroom.client import Client
from greenroom.protocol import unpack_value


def main(client: Client) -> None:
    """Hand in two jobs that must fail, then a copy of each."""
    wrong = client.submit_many([("fibonacci", {"n": -10}), ("fibonacci", {"n": -20})], queue="sums", attempts=1)
    for view in client.wait([job.id for job in wrong], timeout=30):
        print(f"job {view['id']} {view['state']}: {view['error']['name']}")

    for view in client.jobs("state:failed queue:sums", payload=True):
        arguments = unpack_value(view["payload"])
        copy = client.resubmit(view["id"], {"n": -arguments["n"]}, priority=1)
        print(f"job {view['id']} with {copy.result(timeout=30)} as job {copy.id}")

    print("the first ones:", [job.status()["state"] for job in wrong])


if __name__ == "__main__":
    with Client() as connected:
        main(connected)
