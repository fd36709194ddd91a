"""Scenarios in a real Chromium, run by test_dashboard.py in a process of their own (playwright and gevent do not mix).

    python browser_scenarios.py CHROMIUM

One browser for all of them; each line of stdin, {"name", "url", "facts"}, is a scenario in a window of its own. A scenario that needs
something done to the broker prints {"ask": WORD} and waits for a line; at its end it prints {"passed"} or {"failed": TRACEBACK}.
Every scenario also checks that no dialog opened, no policy was violated and no request left the origin.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable

from playwright.sync_api import Browser, sync_playwright

import browser_pages
from browser_visit import FOREIGN, say, Visit, at, check_contrast, check_refused

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
FIBONACCI_100 = "354224848179261915075"


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


def a_copy_is_submitted(visit: Visit) -> None:
    page = visit.page
    visit.open()
    number = visit.submit("fibonacci", '{"n": -10}')
    page.click(f"tr[data-job='{number}'] button")
    page.click(".sheet button:has-text('Edit and retry')")
    assert '"n": -10' in page.input_value("#copy-payload")
    page.fill("#copy-payload", '{"n": 10')
    page.wait_for_selector("#copy-payload-said:has-text('Not JSON')")
    assert page.is_disabled(".copy button.go")

    page.fill("#copy-payload", '{"n": 10}')
    page.click(".copy button.go")
    page.click(".copy .link")

    page.wait_for_selector(f"#h-drawer:has-text('#{number + 1}')")
    page.wait_for_selector(".sheet .s-completed")
    page.wait_for_selector(".sheet pre[aria-label=Result]:has-text('55')")


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

    assert page.locator(FOREIGN).count() == 0
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
    assert page.locator(FOREIGN).count() == 0
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


def text_has_contrast_in_both_themes(visit: Visit) -> None:
    page = visit.page
    visit.open()
    page.wait_for_selector("tr[data-job]")

    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        page.fill("#f-payload", "{}")
        check_contrast(page, f"{theme}, as it opens")
        page.fill("#f-payload", "{")
        page.wait_for_selector("#f-payload-said:has-text('Not JSON')")
        check_contrast(page, f"{theme}, with a problem")
        page.click("tr[data-job] button >> nth=0")
        page.wait_for_selector(".sheet .facts")
        check_contrast(page, f"{theme}, with a job open")
        page.keyboard.press("Escape")
        page.wait_for_selector(".sheet", state="detached")


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
    page.keyboard.press("Escape")
    page.wait_for_selector(".sheet", state="detached")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.wait_for_selector("#jobs tr[data-job]")
    page.keyboard.press("/")
    assert page.evaluate(focused) == "filter"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("n")
    page.wait_for_selector("#f-task:focus")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("g")
    page.keyboard.press("e")
    page.wait_for_selector("#events")


def wrong_input_is_told_at_its_field(visit: Visit) -> None:
    page = visit.page
    visit.open()

    page.fill("#f-payload", "{")
    page.wait_for_selector("#f-payload-said:has-text('Not JSON')")
    assert page.is_disabled("#submit button[type=submit]")
    check_refused(page, "#f-payload", '{"n": 99999999999999999999999}', "64 bits")
    page.fill("#f-payload", '{"n": 1}')
    check_refused(page, "#f-priority", "11", "from 1")
    page.fill("#f-priority", "10")
    check_refused(page, "#f-queue", "a b", "characters")


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
    for mode, (job, told) in visit.facts.items():
        page.evaluate(f"location.hash = '#/jobs?job={job}'")
        page.wait_for_selector(f"#h-drawer:has-text('#{job}')")
        said = page.locator(f"dd:has([data-mode='{mode}'])").inner_text()
        assert all(word in said for word in told), said
        page.keyboard.press("Escape")
        page.wait_for_selector(".sheet", state="detached")


WINDOWS = {browser_pages.the_other_pages_fit_a_phone: (360, 800), nothing_scrolls_sideways_on_a_phone: (360, 800)}
SCENARIOS: dict[str, Callable[[Visit], None]] = {scenario.__name__: scenario for scenario in (
    submit_from_the_form_and_watch_it, results_are_exact, a_copy_is_submitted, hostile_text_stays_text,
    progress_and_log_lines_are_live, the_page_recovers_after_a_restart, without_events_the_page_polls_and_comes_back,
    everything_fits_1440_by_900, nothing_scrolls_sideways_on_a_phone, the_broker_itself_is_watched, text_has_contrast_in_both_themes,
    the_keyboard_is_enough, wrong_input_is_told_at_its_field, without_a_worker_the_page_says_how_to_start_one,
    *browser_pages.SCENARIOS)}


def run(browser: Browser, name: str, url: str, facts: dict) -> None:
    """Run one scenario; raises AssertionError or playwright's TimeoutError when it fails."""
    scenario = SCENARIOS[name]
    width, height = WINDOWS.get(scenario, (1440, 900))
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
    try:
        visit = Visit(context.new_page(), url, facts)
        scenario(visit)
        assert not visit.wrong, visit.wrong
    finally:
        context.close()


def main(chromium: str) -> None:
    """Run scenarios until stdin ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        while line := sys.stdin.readline():
            try:
                run(browser, **json.loads(line))
            except Exception:
                say(failed=traceback.format_exc())
            else:
                say(passed=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
