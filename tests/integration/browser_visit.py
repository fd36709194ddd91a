"""One browser window on the dashboard, and what scenarios of every page do with it. See browser_scenarios.py."""

from __future__ import annotations

import json
import sys

from playwright.sync_api import ConsoleMessage, Dialog, Page, Request

DEADLINE_MS = 20_000

#: Elements that no text may become; links to the page's own places are ours.
FOREIGN = "#app img:not([src^='/static/']), #app script, #app iframe, #app a:not([href^='#/'])"


def say(**what: object) -> None:
    """Print a line for test_dashboard.py."""
    print(json.dumps(what), flush=True)


class Visit:
    """One browser window on the dashboard, and what happened in it that must not."""

    def __init__(self, page: Page, url: str, facts: dict) -> None:
        self.page = page
        self.url = url
        self.facts = facts  # what the test wants the scenario to know
        self.wrong: list[str] = []
        page.set_default_timeout(DEADLINE_MS)
        page.on("dialog", self._on_dialog)
        page.on("request", self._on_request)
        page.on("pageerror", lambda error: self.wrong.append(f"script error: {error}"))
        page.on("console", self._on_console)

    def _on_dialog(self, dialog: Dialog) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith(self.url):
            self.wrong.append(f"request left the origin: {request.url}")

    def _on_console(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "Trusted" in message.text:
            self.wrong.append(f"policy: {message.text}")

    def open(self) -> None:
        """Load the page and wait until it is live."""
        self.page.goto(self.url)
        self.wait_live()

    def wait_live(self) -> None:
        self.page.wait_for_selector("#link.tone-ok")

    def ask_test(self, word: str) -> None:
        """Have the test do something to the broker."""
        say(ask=word)
        sys.stdin.readline()

    def submit(self, task: str, payload: str | None = None) -> int:
        """Submit with the form; return the job's number."""
        page = self.page
        page.select_option("#f-task", task)
        if payload is not None:
            page.fill("#f-payload", payload)
        page.click("#submit button[type=submit]")
        page.wait_for_selector("#submit .outcome .link")
        number = int(page.inner_text("#submit .outcome .link").removeprefix("Job #"))
        page.wait_for_selector(f"tr[data-job='{number}']")
        return number

    def wait_row(self, number: int, part: str, text: str) -> None:
        """Wait until a cell of a row of the job log shows a text."""
        self.page.wait_for_function(
            "([number, part, text]) => document.querySelector(`tr[data-job='${number}'] .c-${part}`)?.innerText.includes(text)",
            arg=[number, part, text])

    def wait_card(self, name: str, text: str) -> None:
        self.page.wait_for_function("([name, text]) => document.getElementById(`card-${name}`)?.innerText === text", arg=[name, text])


def at(visit: Visit, address: str) -> None:
    """Open a page by its address, as from a bookmark."""
    visit.page.goto("about:blank")
    visit.page.goto(visit.url + address)
    visit.wait_live()


CONTRASTS = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3])).concat(1);
  const backdrop = (e) => { const layers = []; for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); layers.push(c); if (c[3] === 1) break; }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const poor = []; let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest('.sr, option')) continue;
    const below = backdrop(e); const [a, b] = [light(over(parse(getComputedStyle(e).color), below)), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); seen++;
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${walker.currentNode.data.slice(0, 30)}`);
  }
  return [seen, [...new Set(poor)]];
}"""


def check_contrast(page: Page, what: str, at_least: int = 60) -> None:
    seen, poor = page.evaluate(CONTRASTS)
    assert seen > at_least, (what, seen)
    assert not poor, (what, poor)


def check_refused(page: Page, field: str, value: str, problem: str) -> None:
    """Send a form with a wrong value: what is wrong is told at its field."""
    page.fill(field, value)
    page.click("#submit button[type=submit], .fields button[type=submit]")
    page.wait_for_selector(f"{field}-said:has-text('{problem}')")


def send(page: Page, **values: str) -> None:
    """Fill in fields of the form that is open, and send it."""
    for name, value in values.items():
        page.fill(f"#in-{name}", value)
    page.click(".fields button.go")


def run_job(page: Page, task: str, **options: object) -> int:
    """Submit a job and wait for its end; return its number."""
    return page.evaluate("""async (job) => {
        const ask = async (path, options) => (await fetch(path, options)).json();
        const { id } = await ask('/api/submit', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(job) });
        while (['queued', 'running'].includes((await ask(`/api/jobs/${id}`)).job.state));
        return id;
    }""", {"task": task, **options})
