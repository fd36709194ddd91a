"""Takes the pictures of the documentation from a running dashboard. Must not start anything.

    python docs/screenshots.py http://127.0.0.1:8080 [FOLDER]

Writes the files of PICTURES to FOLDER (by default docs/img). `./run screenshots` starts the demo, with something for every page, and
calls this.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import NamedTuple

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

TIMEOUT_MS = 120_000  # the demo beside it is a load


class Picture(NamedTuple):
    """One picture: where the page is, how large the window, and what must be there before it is taken."""

    address: str = ""
    width: int = 1440
    height: int = 900
    theme: str = "light"
    shows: str = "tr[data-job]"
    clicks: str | None = None  # then this is clicked
    opens: str = ".sheet .facts"  # and this must be there


PICTURES = {
    "overview-light.png": Picture(),
    "events.png": Picture("#/events", shows="[data-event] >> nth=20"),
    "jobs.png": Picture("#/jobs"),
    "overview-dark.png": Picture(theme="dark"),
    "job.png": Picture(clicks="tr[data-job] button >> nth=0"),
    "phone.png": Picture(width=360, height=800),
    "failures.png": Picture("#/failures", shows="tr[data-group] >> nth=1"),
    "queues.png": Picture("#/queues", shows="tr[data-queue] .s-paused"),
    "schedules.png": Picture("#/schedules", shows="tr[data-schedule] .s-paused", clicks="tr[data-schedule=order-check] button:has-text('Edit')",
                            opens="#preview details"),
}


def find_chromium() -> str:
    """Return the path of a Chromium, or end with a sentence that says how to get one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    sys.exit("no chromium found: apt-get install chromium")


def main(url: str, folder: str = os.path.join(os.path.dirname(os.path.abspath(__file__)), "img")) -> None:
    """Take all pictures."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is missing: pip install -r requirements-test.txt")
    os.makedirs(folder, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for name, picture in PICTURES.items():
            page = browser.new_page(viewport={"width": picture.width, "height": picture.height}, color_scheme=picture.theme,
                                    reduced_motion="reduce")
            page.set_default_timeout(TIMEOUT_MS)
            page.goto(url + picture.address)
            page.wait_for_selector("#link.tone-ok")
            page.wait_for_selector(picture.shows)
            if picture.clicks is not None:
                page.click(picture.clicks)
                page.wait_for_selector(picture.opens)
            path = os.path.join(folder, name)
            page.screenshot(path=path)
            page.close()
            print(path)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
