"""Look at what failed lately, grouped by how it failed, and retry the largest group: one job first, the others once that has completed."""

from __future__ import annotations

from greenroom.client import Client


def main(client: Client, timeout: float = 300.0) -> bool:
    """Print the groups and what became of the largest; False: it was not retried as a whole. Raises IndexError if nothing failed."""
    found = client.failures("finished>-1h")
    for group in found.groups:
        print(f"{group.fingerprint} {group.count} x {group.task}: {group.error} @ {group.place}: {group.message}")
    done = client.retry_group(found.groups[0].fingerprint, timeout=timeout)
    print(f"{done.outcome}: {done.message}")
    return done.outcome == "retried"


if __name__ == "__main__":
    with Client() as connected:
        raise SystemExit(0 if main(connected) else 1)
