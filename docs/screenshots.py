"""Takes the pictures of the documentation from a running dashboard. Must not start anything.

    python docs/screenshots.py http://127.0.0.1:8080 [FOLDER]

Writes overview-light.png, overview-dark.png, job.png and phone.png to FOLDER (by default docs/img). `./run screenshots` starts the
demo and calls this.
"""

from __future__ import annotations

import os
import shutil
import sys

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

#: File name -> width, height, theme, whether a job is open.
PICTURES = {
    "overview-light.png": (1440, 900, "light", False),
    "overview-dark.png": (1440, 900, "dark", False),
    "job.png": (1440, 900, "light", True),
    "phone.png": (360, 800, "light", False),
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
        for name, (width, height, theme, with_job) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce")
            page.goto(url)
            page.wait_for_selector("#link.tone-ok")
            page.wait_for_selector("tr[data-job]")
            if with_job:
                page.click("tr[data-job] button >> nth=0")
                page.wait_for_selector(".sheet .facts")
            path = os.path.join(folder, name)
            page.screenshot(path=path)
            page.close()
            print(path)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
