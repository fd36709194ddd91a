"""Many events, one job: an index that is made anew once a page has been left alone for a while, from its latest version.

Run a worker:               python worker.py --tasks docs/examples/debounce.py
Save a page five times:     python docs/examples/debounce.py
"""

from __future__ import annotations

import time

from greenroom.client import Client
from greenroom.tasks import task


@task(name="reindex", unique="reindex:{page}", unique_mode="debounce", unique_for=1, debounce_max=30)
def reindex(page: int, version: int) -> str:
    """Stand for something that takes a while, and is worth doing once."""
    return f"page {page} is indexed as of version {version}"


@task(name="publish", unique="publish:{page}", on_duplicate="replace")
def publish(page: int, version: int) -> str:
    """Publish what is newest when a worker comes to it."""
    return f"page {page} is published as of version {version}"


def main(client: Client) -> None:
    """Save one page again and again."""
    for version in range(1, 6):
        index = reindex.using(client=client).enqueue(page=7, version=version)
        page = publish.using(client=client, delay=2).enqueue(page=7, version=version)
        print(f"version {version}: index job {'again' if index.is_replaced else 'new'}, page job {'again' if page.is_replaced else 'new'}")
        time.sleep(0.2)
    print(index.result(60))
    print(page.result(60))


if __name__ == "__main__":
    with Client() as broker:
        main(broker)
