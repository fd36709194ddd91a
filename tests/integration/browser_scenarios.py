"""Scenarios in a real Chromium, run by test_dashboard.py in a process of their own (playwright and gevent do not mix).

    python browser_scenarios.py CHROMIUM URL SCENARIO [JSON]

Ends with 0 if the scenario passed. A scenario that needs something done to the broker prints a word and waits for a line on stdin.
Every scenario also checks that no dialog opened, no policy was violated and no request left the origin.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

from playwright.sync_api import ConsoleMessage, Dialog, Page, Request, sync_playwright

DEADLINE_MS = 20_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

FIBONACCI_100 = "354224848179261915075"


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
        print(word, flush=True)
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


def submit_from_the_form_and_watch_it(visit: Visit) -> None:
    visit.open()

    number = visit.submit("slow_task", '{"seconds": 3}')

    visit.wait_row(number, "status", "running")
    visit.wait_card("busy", "1")
    visit.page.wait_for_selector("#workers .s-busy")
    visit.wait_row(number, "status", "completed")
    visit.page.wait_for_selector("#workers .s-idle")


def results_are_exact(visit: Visit) -> None:
    visit.open()

    visit.wait_row(visit.submit("fibonacci"), "result", FIBONACCI_100)
    number = visit.submit("is_prime")
    visit.wait_row(number, "status", "completed")
    visit.wait_row(number, "result", "true")
    visit.page.click(f"tr[data-job='{number}'] button")
    visit.page.wait_for_selector(".sheet pre:has-text('618970019642690137449562111')")


def hostile_text_stays_text(visit: Visit) -> None:
    page = visit.page
    page.add_init_script("document.addEventListener('securitypolicyviolation', (e) => { window.violated = e.violatedDirective; });")
    visit.open()

    for number in visit.facts["jobs"]:
        page.wait_for_selector(f"tr[data-job='{number}'] :is(.s-completed, .s-failed)")
        page.click(f"tr[data-job='{number}'] button")
        page.wait_for_selector(f"#h-drawer:has-text('#{number}')")
        page.wait_for_selector(".sheet pre.block >> nth=0")
        assert visit.facts["text"] in page.text_content(".sheet").replace('\\"', '"'), f"job {number} does not show the text"
        page.keyboard.press("Escape")
        page.wait_for_selector(".sheet", state="detached")

    assert page.locator("#app img:not([src^='/static/']), #app script, #app iframe, #app a").count() == 0
    assert page.evaluate("[window.violated, window.pwned]") == [None, None]


def progress_and_log_lines_are_live(visit: Visit) -> None:
    page, text = visit.page, visit.facts["text"]
    page.add_init_script("document.addEventListener('securitypolicyviolation', (e) => { window.violated = e.violatedDirective; });")
    visit.open()
    page.click(f"tr[data-job='{visit.facts['job']}'] button")
    bar_is = "(value) => document.querySelector('.sheet progress')?.value === value"

    page.wait_for_function(bar_is, arg=0.25)
    page.wait_for_selector(".sheet .lines div:has-text('line one')")
    assert text in page.text_content(".sheet .progress") and text in page.text_content(".sheet .lines")
    visit.ask_test("more")
    page.wait_for_function(bar_is, arg=0.75)
    page.wait_for_selector(".sheet .lines div:has-text('line two')")
    assert page.evaluate("(([box]) => box.scrollTop + box.clientHeight >= box.scrollHeight - 2)(document.querySelectorAll('.sheet .lines'))")
    visit.ask_test("finish")
    page.wait_for_selector(".sheet .s-completed")
    page.wait_for_selector(".sheet .lines div:has-text('line three')")

    assert page.locator(".sheet progress").count() == 0 and page.locator(".sheet .facts dd:has-text('75 %')").count() == 1
    assert page.locator(".sheet .lines div").count() == visit.facts["lines"]
    assert page.locator("#app img:not([src^='/static/']), #app script, #app iframe, #app a").count() == 0
    assert page.evaluate("[window.violated, window.pwned]") == [None, None]


def the_page_recovers_after_a_restart(visit: Visit) -> None:
    page = visit.page
    visit.open()
    number = visit.submit("reverse_string")
    visit.wait_row(number, "result", "desserts")

    visit.ask_test("kill")
    page.wait_for_selector("#lost")
    page.wait_for_selector("#link.tone-bad")
    visit.ask_test("restart")

    visit.wait_live()
    page.wait_for_selector("#lost", state="detached")
    assert page.locator(f"tr[data-job='{number}']").count() == 1
    visit.wait_row(visit.submit("reverse_string"), "result", "desserts")


def without_events_the_page_polls_and_comes_back(visit: Visit) -> None:
    page = visit.page
    page.route("**/api/events", lambda route: route.abort())
    page.goto(visit.url)
    page.wait_for_selector("#link.tone-warn")

    visit.wait_row(visit.submit("reverse_string"), "result", "desserts")
    assert page.locator("#link.tone-warn").count() == 1
    page.unroute("**/api/events")

    visit.wait_live()


def everything_fits_1440_by_900(visit: Visit) -> None:
    page = visit.page
    visit.open()
    page.wait_for_selector("tr[data-job] >> nth=7")

    sizes = page.evaluate("""() => ({
        scroll: [document.documentElement.scrollWidth, document.documentElement.scrollHeight],
        bottoms: [...document.querySelectorAll('header, .cards, #status-chart, #task-chart, #workers, #security, #submit button'),
                  ...[...document.querySelectorAll('tr[data-job]')].slice(0, 8)].map((e) => [e.id || e.className || e.tagName, e.getBoundingClientRect().bottom]),
        rows: document.querySelector('.rows').getBoundingClientRect().bottom,
        charts: [...document.querySelectorAll('#status-chart tbody tr, #task-chart tbody tr')].every(
            (e) => e.getBoundingClientRect().bottom <= e.closest('.panel').getBoundingClientRect().bottom)})""")

    assert sizes["scroll"] == [1440, 900], sizes
    assert all(bottom <= min(900, sizes["rows"]) for _, bottom in sizes["bottoms"]), sizes
    assert sizes["charts"], sizes
    line = page.evaluate("[...document.querySelectorAll('#vitals div')].map((e) => e.getBoundingClientRect().bottom)")
    assert len(set(line)) == 1 and line[0] <= 900, line  # one line, at the bottom
    # A broker that was restored from a backup numbers its jobs from 10^12 on.
    widths = page.evaluate("""() => {
        const link = document.querySelector('tr[data-job] .c-id button');
        link.textContent = '#1000000400001';
        return [link.getBoundingClientRect().right, link.closest('td').getBoundingClientRect().right]}""")
    assert widths[0] <= widths[1], "the number of a job is cut off"


def the_broker_itself_is_watched(visit: Visit) -> None:
    page = visit.page
    visit.open()
    visit.submit("fibonacci")
    page.wait_for_function("/^[0-9.]+ (ms|s)$/.test(document.querySelector('#vital-commit dd')?.innerText)")

    shown = dict(page.evaluate("[...document.querySelectorAll('#vitals div')].map((e) => [e.id.slice(6), e.querySelector('dd').innerText])"))
    titles = page.evaluate("[...document.querySelectorAll('#vitals div')].map((e) => e.title)")

    assert list(shown) == ["lag", "commit", "batch", "window", "lost", "stale", "connections", "disk", "memory", "files"]
    assert (shown["window"], shown["lost"], shown["stale"]) == ("100 %", "0", "0")
    assert re.fullmatch(r"[0-9.]+ (ms|s)", shown["lag"]) and re.fullmatch(r"[0-9.]+ [KMGT]iB", shown["disk"])
    assert re.fullmatch(r"[0-9.]+ MiB", shown["memory"]) and int(shown["connections"]) >= 1 and int(shown["files"]) > 5
    assert all(titles) and not any("undefined" in text or "NaN" in text for text in [*shown.values(), *titles])


def nothing_scrolls_sideways_on_a_phone(visit: Visit) -> None:
    page = visit.page
    visit.open()
    page.wait_for_selector("tr[data-job]")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.click("tr[data-job] button >> nth=0")
    page.wait_for_selector(".sheet .facts")
    assert page.evaluate("[document.documentElement.scrollWidth, document.querySelector('.sheet').scrollWidth]") == [360, 359]


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


def text_has_contrast_in_both_themes(visit: Visit) -> None:
    page = visit.page
    visit.open()
    page.wait_for_selector("tr[data-job]")

    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        page.fill("#f-payload", "{}")
        check_contrast(page, f"{theme}, as it opens")
        page.fill("#f-payload", "{")
        page.wait_for_selector("#e-payload:has-text('Not JSON')")
        check_contrast(page, f"{theme}, with a problem")
        page.click("tr[data-job] button >> nth=0")
        page.wait_for_selector(".sheet .facts")
        check_contrast(page, f"{theme}, with a job open")
        page.keyboard.press("Escape")
        page.wait_for_selector(".sheet", state="detached")


def check_contrast(page: Page, what: str) -> None:
    seen, poor = page.evaluate(CONTRASTS)
    assert seen > 60, (what, seen)
    assert not poor, (what, poor)


def the_keyboard_is_enough(visit: Visit) -> None:
    page = visit.page
    visit.open()
    focused = "document.activeElement.id || document.activeElement.textContent"

    page.keyboard.press("n")
    assert page.evaluate(focused) == "f-task"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "f-payload"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#submit .outcome .link")
    number = page.inner_text("#submit .outcome .link").removeprefix("Job #")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type(number)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#h-drawer:has-text('#{number}')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".sheet", state="detached")
    assert page.evaluate(focused) == "filter"
    page.keyboard.press("Escape")
    page.focus(f"tr[data-job='{number}'] button")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#h-drawer:has-text('#{number}')")


def wrong_input_is_told_at_its_field(visit: Visit) -> None:
    page = visit.page
    visit.open()

    page.fill("#f-payload", "{")
    page.wait_for_selector("#e-payload:has-text('Not JSON')")
    assert page.is_disabled("#submit button[type=submit]")
    page.fill("#f-payload", '{"n": 99999999999999999999999}')
    page.click("#submit button[type=submit]")
    page.wait_for_selector("#e-payload:has-text('64 bits')")
    page.fill("#f-payload", '{"n": 1}')
    page.fill("#f-priority", "11")
    page.click("#submit button[type=submit]")
    page.wait_for_selector("#e-priority:has-text('from 1')")
    page.fill("#f-priority", "10")
    page.fill("#f-queue", "a b")
    page.click("#submit button[type=submit]")
    page.wait_for_selector("#e-queue:has-text('characters')")


def without_a_worker_the_page_says_how_to_start_one(visit: Visit) -> None:
    page = visit.page
    visit.open()

    page.wait_for_selector("#workers .command:has-text('python worker.py')")
    assert page.locator("#f-task optgroup[label='Built in'] option").all_inner_texts() == [
        "reverse_string", "to_uppercase", "fibonacci", "is_prime", "slow_task"]
    number = visit.submit("slow_task", '{"seconds": 60}')
    page.wait_for_selector("#submit .outcome:has-text('no connected worker')")
    page.click(f"tr[data-job='{number}'] button")
    page.click(".sheet button.danger")
    page.wait_for_selector(".sheet .s-cancelled")
    page.keyboard.press("Escape")
    visit.wait_row(number, "status", "cancelled")


WINDOWS = {nothing_scrolls_sideways_on_a_phone: (360, 800)}
SCENARIOS: dict[str, Callable[[Visit], None]] = {scenario.__name__: scenario for scenario in (
    submit_from_the_form_and_watch_it, results_are_exact, hostile_text_stays_text, progress_and_log_lines_are_live, the_page_recovers_after_a_restart,
    without_events_the_page_polls_and_comes_back, everything_fits_1440_by_900, nothing_scrolls_sideways_on_a_phone,
    the_broker_itself_is_watched, text_has_contrast_in_both_themes, the_keyboard_is_enough, wrong_input_is_told_at_its_field,
    without_a_worker_the_page_says_how_to_start_one)}


def main(chromium: str, url: str, name: str, facts: str = "{}") -> None:
    """Run one scenario; raises AssertionError or playwright's TimeoutError when it fails."""
    scenario = SCENARIOS[name]
    width, height = WINDOWS.get(scenario, (1440, 900))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
        visit = Visit(context.new_page(), url, json.loads(facts))
        try:
            scenario(visit)
            assert not visit.wrong, visit.wrong
        finally:
            browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
