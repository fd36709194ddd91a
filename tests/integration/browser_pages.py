"""Scenarios of the pages beside the overview: jobs, failures, queues, schedules, events. See browser_scenarios.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from playwright.sync_api import Page

from browser_visit import FOREIGN, Visit, at, check_contrast, check_refused, send, run_job


def wait_jobs(page: Page, numbers: list[int]) -> None:
    """Wait until exactly these jobs are shown."""
    page.wait_for_function(
        "(numbers) => JSON.stringify([...document.querySelectorAll('tr[data-job]')].map((row) => Number(row.dataset.job))) === JSON.stringify(numbers)",
        arg=sorted(numbers, reverse=True))


def jobs_are_filtered_by_the_address(visit: Visit) -> None:
    page, facts = visit.page, visit.facts
    at(visit, "#/jobs?task=fibonacci&state=failed")
    wait_jobs(page, facts["failed"])
    assert [page.input_value(f"#filter-{name}") for name in ("task", "queue", "worker")] == ["fibonacci", "", ""]

    page.select_option("#filter", "completed")
    page.wait_for_url("**/#/jobs?state=completed&task=fibonacci")
    wait_jobs(page, facts["completed"])
    page.fill("#filter-task", "")
    page.press("#filter-task", "Enter")
    page.select_option("#filter", "")
    page.focus("#filter-queue")
    with page.expect_response(lambda response: "/api/jobs?" in response.url):  # news come, and must not undo what was typed
        page.keyboard.type("oth")
    page.keyboard.type("er")
    page.keyboard.press("Enter")
    wait_jobs(page, facts["other"])
    page.click(f"tr[data-job='{facts['other'][0]}'] button")
    page.wait_for_url(f"**/#/jobs?queue=other&job={facts['other'][0]}")
    page.wait_for_selector(f"#h-drawer:has-text('#{facts['other'][0]}')")
    page.wait_for_selector(".facts dt:has-text('Kept until') + dd:has-text('in 24 h')")

    page.go_back()
    page.wait_for_selector(".sheet", state="detached")
    wait_jobs(page, facts["other"])
    for _ in range(4):
        page.go_back()
    wait_jobs(page, facts["failed"])
    assert page.url.endswith("#/jobs?task=fibonacci&state=failed")
    at(visit, f"#/failures?job={facts['failed'][0]}")
    page.wait_for_selector(f"#h-drawer:has-text('#{facts['failed'][0]}')")
    page.keyboard.press("Escape")
    page.wait_for_url("**/#/failures")


def pages_of_jobs_go_back_in_time(visit: Visit) -> None:
    page, jobs = visit.page, visit.facts["jobs"]
    at(visit, "#/jobs")
    wait_jobs(page, jobs[-50:])

    page.click("#older")
    wait_jobs(page, jobs[:-50])
    assert page.is_disabled("#older")
    page.go_back()
    wait_jobs(page, jobs[-50:])
    page.go_forward()
    page.click("#newest")
    wait_jobs(page, jobs[-50:])


def many_jobs_are_cancelled_and_retried(visit: Visit) -> None:
    page, queued, failed = visit.page, visit.facts["queued"], visit.facts["failed"]
    at(visit, "#/jobs?queue=mine")
    wait_jobs(page, queued)
    for number in queued[:2]:
        page.check(f"tr[data-job='{number}'] input")
    page.click("#cancel-chosen")
    page.wait_for_selector(".bulk:has-text('Cancelled 2 of 2.')")
    for number in queued[:2]:
        visit.wait_row(number, "status", "cancelled")
    page.check("#choose-all")
    page.click("#retry-chosen")
    page.wait_for_selector(f".bulk:has-text('Retried 2 of {len(queued)}. {len(queued) - 2} not possible, such as: job')")

    page.click("#change-all")
    page.click(".actions form button.go")
    page.wait_for_selector(".actions form:has-text('Say what shall change')")
    page.fill(".actions input[name=priority]", "1")
    page.fill(".actions input[name=delay]", "3600")
    page.click(".actions form button.go")
    page.wait_for_selector(f".bulk:has-text('{len(queued)} jobs match and can be changed.')")
    page.click(".bulk button.go")
    page.wait_for_selector(f".bulk:has-text('Changed {len(queued)} of {len(queued)}.')")
    for number in queued:
        visit.wait_row(number, "status", "scheduled")

    at(visit, "#/jobs?task=fibonacci")
    page.click("#retry-all")
    page.wait_for_selector(f".bulk:has-text('{len(failed)} jobs match and can be retried.')")
    page.click(".bulk button.go")
    page.wait_for_selector(f".bulk:has-text('Retried {len(failed)} of {len(failed)}.')")


def jobs_are_searched_and_deleted(visit: Visit) -> None:
    page, facts = visit.page, visit.facts
    at(visit, "#/jobs")
    page.fill("#filter-q", f'"{facts["text"].upper()}"')
    page.press("#filter-q", "Enter")
    wait_jobs(page, facts["found"])
    page.fill("#filter-q", "finished>soon")
    page.press("#filter-q", "Enter")
    page.wait_for_selector(".banner.tone-bad:has-text('finished must be a time')")

    at(visit, "#/jobs?q=" + quote("state:completed " + facts["text"]))
    wait_jobs(page, facts["found"])
    page.check(f"tr[data-job='{facts['found'][0]}'] input")
    page.click("#delete-chosen")
    page.wait_for_selector(".bulk:has-text('Delete 1 job? Nothing brings them back.')")
    wait_jobs(page, facts["found"])
    page.click(".bulk button.go")
    page.wait_for_selector(".bulk:has-text('Deleted 1 of 1.')")
    wait_jobs(page, facts["found"][1:])
    page.click("#delete-all")
    page.wait_for_selector(f".bulk:has-text('{len(facts['found']) - 1} jobs match and can be deleted.')")
    page.click(".bulk button.go")
    page.wait_for_selector(f".bulk:has-text('Deleted {len(facts['found']) - 1} of {len(facts['found']) - 1}.')")
    wait_jobs(page, [])
    at(visit, "#/jobs")
    wait_jobs(page, facts["others"])


def failures_are_grouped_and_one_is_tried_first(visit: Visit) -> None:
    page, flaky = visit.page, visit.facts["flaky"]
    at(visit, "#/failures")
    page.wait_for_selector("tr[data-group]")
    groups = page.evaluate("[...document.querySelectorAll('tr[data-group]')].map((row) => row.innerText.replaceAll('\\n', ' '))")
    assert len(groups) == 2 and "TimeoutError" in groups[0] and "tasks.py in flaky" in groups[0], groups
    assert page.inner_text("tr[data-group] .num >> nth=0") == str(len(flaky))
    page.wait_for_selector(f"#scanned:has-text('All {visit.facts['total']} failed jobs.')")
    page.click("tr[data-group] .num a >> nth=0")
    wait_jobs(page, flaky[::-1])
    at(visit, "#/failures")

    page.click("tr:has-text('BadPayloadError') button:has-text('Retry one first')")
    page.wait_for_selector(".first.tone-bad:has-text('It failed again. BadPayloadError')")
    number = page.get_attribute(".first.tone-bad", "data-first")
    page.wait_for_selector(f"tr:has-text('BadPayloadError') button:text-is('#{number}')")  # it is in its group again
    with page.expect_response(lambda response: response.url.endswith(f"/api/jobs/{number}")):  # the same one again is looked at anew
        page.click("tr:has-text('BadPayloadError') button:has-text('Retry one first')")
    page.wait_for_selector(".first.tone-bad:has-text('It failed again. BadPayloadError')")
    page.click("tr:has-text('TimeoutError') button:has-text('Retry one first')")
    page.wait_for_selector(f".first.tone-ok[data-first='{flaky[-1]}']:has-text('It went well this time')")
    page.click(f".first.tone-ok button:has-text('Retry the other {len(flaky) - 1}')")
    page.wait_for_selector(f".bulk:has-text('Retried {len(flaky) - 1} of {len(flaky) - 1}.')")
    page.wait_for_selector("tr:has-text('TimeoutError')", state="detached")
    at(visit, "#/failures?task=flaky")
    page.wait_for_selector(".empty:has-text('No failed job')")


def queues_are_paused_and_resumed(visit: Visit) -> None:
    page = visit.page
    at(visit, "#/queues")
    page.click("tr[data-queue='mail'] button:has-text('Pause')")
    page.wait_for_selector("#in-reason:focus")
    page.keyboard.type("the <b>server</b> moves")
    page.select_option("tr[data-queue='mail'] select", "3600")
    page.click("tr[data-queue='mail'] .fields button.go")

    page.wait_for_selector("tr[data-queue='mail'] .s-paused")
    page.wait_for_selector("tr[data-queue='mail']:has-text('by web, goes on in 60 min: the <b>server</b> moves')")
    page.wait_for_selector("#paused:has-text('1 queue is paused')")
    page.click("tr[data-queue='mail'] td[data-label=queued] a")
    page.wait_for_url("**/#/jobs?queue=mail&state=queued")
    page.click("tr[data-job] button >> nth=0")
    page.wait_for_selector(".why [data-gate=queue_paused]:has-text('the <b>server</b> moves')")
    at(visit, "#/queues")
    page.click("tr[data-queue='mail'] button:has-text('Resume')")
    page.wait_for_selector("tr[data-queue='mail'] .s-paused", state="detached")
    page.wait_for_selector("#paused", state="detached")


def queues_are_limited(visit: Visit) -> None:
    page, row = visit.page, "tr[data-queue='mail']"
    at(visit, "#/queues")
    page.click(f"{row} button:has-text('Limit')")
    page.wait_for_selector(f"{row} input[name=jobs]:focus")
    page.keyboard.type("2")
    page.fill(f"{row} input[name=urgent]", "3")
    page.fill(f"{row} input[name=reason]", "the <b>server</b> is slow")
    page.click(f"{row} button.go")

    page.wait_for_selector(f"{row} .limit:has-text('2 of 2 jobs wait: new jobs are refused, priorities up to 3 are not')")
    page.wait_for_selector(f"{row} .limit:has-text('by web: the <b>server</b> is slow')")
    page.wait_for_selector("#full-queues:has-text('1 queue is full')")
    page.click(f"{row} td[data-label=queued] a")
    page.click("tr[data-job] button >> nth=0")
    page.wait_for_selector(".why [data-gate=queue_full]:has-text('is full for new jobs')")
    at(visit, "#/queues")
    page.click(f"{row} button:has-text('Limit')")
    assert page.input_value(f"{row} input[name=jobs]") == "2"
    page.fill(f"{row} input[name=jobs]", "")
    page.fill(f"{row} input[name=mib]", "0.5")
    page.click(f"{row} button.go")
    page.wait_for_selector(f"{row} .limit:has-text('of 512 KiB wait')")
    page.wait_for_selector("#full-queues", state="detached")
    page.click(f"{row} button:has-text('Limit')")
    page.click(f"{row} button:has-text('Remove limit')")
    page.wait_for_selector(f"{row} .limit", state="detached")


def schedules_are_paused_and_run(visit: Visit) -> None:
    page, row = visit.page, "tr[data-schedule='night']"
    at(visit, "#/schedules")
    page.wait_for_selector(f"{row}:has-text('30 2 * * *')")
    page.click(f"{row} summary")
    assert page.locator(f"{row} details li").count() == 9

    page.click(f"{row} button:has-text('Run now')")
    page.wait_for_selector(f"{row}:has-text('was submitted')")
    page.click(f"{row} td[data-label=Last] button")
    page.wait_for_selector("#h-drawer:has-text('to_uppercase')")
    page.keyboard.press("Escape")
    page.click(f"{row} button:has-text('Pause')")
    page.wait_for_selector("#in-reason:focus")
    page.keyboard.type("holidays")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{row} .s-paused")
    page.wait_for_selector(f"{row}:has-text(': holidays')")
    page.wait_for_selector(f"{row} td[data-label=Next]:has-text('not while paused')")
    page.click(f"{row} button:has-text('Resume')")
    page.wait_for_selector(f"{row} .s-paused", state="detached")


def schedules_are_made_edited_and_deleted(visit: Visit) -> None:
    page, row = visit.page, "tr[data-schedule='letters']"
    at(visit, "#/schedules")
    page.click("button:has-text('New schedule')")
    page.wait_for_selector("#in-name:focus")
    page.keyboard.press("Escape")
    page.wait_for_selector("button:has-text('New schedule'):focus")
    page.keyboard.press("Enter")
    page.fill("#in-when", "61 * * * *")
    page.wait_for_selector("#preview:has-text('no cron line')")
    page.fill("#in-when", "30 2 * * *")
    page.fill("#in-timezone", "Asia/Kolkata")
    page.wait_for_function("() => document.querySelectorAll('#preview li[title*=\"T21:00:00.000Z\"]').length === 9")
    for name, problem in (("a b", "characters"), ("night", "already")):
        check_refused(page, "#in-name", name, problem)
        page.wait_for_selector("#in-name:focus")
    page.fill("#in-name", "letters")
    check_refused(page, "#in-task", "", "must be")
    page.fill("#in-task", "to_uppercase")
    page.fill("#in-payload", '{"n": 9007199254740993}')
    page.fill("#in-options", '{"attempts": 0}')
    page.focus("#preview summary")
    page.keyboard.press("Tab")
    page.wait_for_selector(".fields button.go:focus")
    page.keyboard.press("Enter")
    page.wait_for_selector(".fields [role=status]:has-text('attempts must be')")
    send(page, options='{"attempts": 2}')
    page.wait_for_selector(f"{row}:has-text('30 2 * * *'):has-text('Asia/Kolkata')")

    page.click(f"{row} button:has-text('Edit')")
    page.wait_for_selector("#in-task:focus")
    assert page.is_disabled("#in-name") and page.input_value("#in-options") == '{"attempts":2}'
    assert page.input_value("#in-payload") == ""  # the page can't show such a number as a number: left empty it stays
    send(page, when="2h")
    page.wait_for_selector("#in-timezone-said:has-text('goes with cron')")
    page.fill("#in-timezone", "")
    page.select_option("#in-overlap", "queue")
    page.select_option("#in-missed", "all")
    send(page, missed_max="5")
    page.wait_for_selector(f"{row}:has-text('every 2h'):has-text('overlap: queue, missed: all')")
    kept = page.evaluate("fetch('/api/schedules/letters').then((answer) => answer.json())")["schedule"]
    assert (kept["missed_max"], kept["job"]["attempts"], kept["payload"]["preview"]) == (5, 2, {"n": "9007199254740993"})
    assert kept["payload"]["inexact"] is True  # still the number

    page.click(f"{row} button:has-text('Delete')")
    page.wait_for_selector(".confirm button:has-text('Not now'):focus")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{row} button:has-text('Delete'):focus")
    page.keyboard.press("Enter")
    page.click(".confirm button.danger")
    page.wait_for_selector(row, state="detached")


def waiting_jobs_are_changed_deleted_and_purged(visit: Visit) -> None:
    page, number = visit.page, visit.facts["job"]
    at(visit, f"#/jobs?queue=mail&job={number}")
    page.wait_for_selector(".sheet .facts:has-text('Option unique key'):has-text('<i>key</i>'):has-text('Option timeout')")
    page.click(".sheet button:has-text('Change')")
    page.wait_for_selector("#in-priority:focus")
    page.keyboard.press("Escape")
    page.wait_for_selector(".sheet .fields", state="detached")
    page.keyboard.press("Enter")  # on the button again
    check_refused(page, "#in-priority", "11", "from 1")
    page.fill("#in-priority", "2")
    check_refused(page, "#in-queue", "a b", "characters")
    send(page, queue="mail", run_at="2101-02-03T04:05:06", payload='{"n": 2}')
    page.wait_for_selector(".sheet .said:has-text('Changed')")
    page.wait_for_selector(".sheet .s-scheduled")
    page.wait_for_selector(".sheet .priority:has-text('P2')")
    page.wait_for_selector(".sheet pre:has-text('\"n\": 2')")
    page.click(".sheet button:has-text('Change')")
    assert page.input_value("#in-run_at") == "2101-02-03T04:05:06"
    send(page, run_at="")
    page.wait_for_selector(".sheet .s-queued")

    page.click(".sheet button:has-text('Cancel job')")
    page.click(".sheet button:has-text('Delete')")
    page.click(".confirm button.danger")
    page.wait_for_selector(".sheet", state="detached")
    page.wait_for_selector(f"tr[data-job='{number}']", state="detached")

    at(visit, "#/queues")
    page.click("tr[data-queue='mail'] button:has-text('Explain')")
    page.wait_for_selector(".explained:has-text('2 queued') [data-gate=no_worker]:has-text('a_task_that_nobody_has')")
    page.click("tr[data-queue='mail'] button:has-text('Purge')")
    page.wait_for_selector(".confirm:has-text('all 2 that wait here (2 queued, 0 scheduled)')")
    page.click(".confirm button.danger")
    page.wait_for_selector("tr[data-queue='mail']:has-text('2 jobs were cancelled.')")
    page.wait_for_selector("tr[data-queue='mail'] button:has-text('Purge')", state="detached")


def events_are_listed_as_they_happen(visit: Visit) -> None:
    page = visit.page
    at(visit, "#/events?queue=seen")
    page.wait_for_selector(".note:has-text('latest 200')")
    run_job(page, "fibonacci", payload={"n": 1})
    failed = run_job(page, "fibonacci", payload={"n": -1}, queue="seen", attempts=1)
    page.wait_for_selector("[data-event=failed]:has-text('fibonacci'):has-text('on w1'):has-text('BadPayloadError')")
    kinds = "[...document.querySelectorAll('[data-event]')].map((line) => line.dataset.event)"
    assert page.evaluate(kinds) == ["failed", "started", "submitted"]  # newest first, of this queue alone

    page.click("button:has-text('Pause')")
    page.wait_for_selector(".note:has-text('Paused')")
    run_job(page, "fibonacci", payload={"n": 1}, queue="seen")
    assert page.evaluate(kinds) == ["failed", "started", "submitted"]
    page.click("button:has-text('Go on')")
    page.wait_for_selector("[data-event=completed]")
    assert page.evaluate(kinds) == ["completed", "started", "submitted", "failed", "started", "submitted"]

    show_or_hide = "(isHidden) => { Object.defineProperty(document, 'hidden', {value: isHidden, configurable: true}); document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(show_or_hide, True)
    page.wait_for_selector(".note:has-text('Connecting')")  # its stream is let go
    run_job(page, "fibonacci", payload={"n": 1}, queue="seen")
    page.evaluate(show_or_hide, False)
    page.wait_for_function("() => document.querySelectorAll('[data-event=completed]').length === 2")
    page.click("button:has-text('Pause')")
    page.route("**/api/events/jobs?*", lambda route: route.continue_(url=re.sub("after=[^&]*", "after=another-start:1", route.request.url)))
    page.click("button:has-text('Go on')")
    page.wait_for_selector(".events li:has-text('were missed')")
    page.unroute("**/api/events/jobs?*")

    page.select_option("#filter", "what ended")
    page.wait_for_url("**/#/events?queue=seen&kinds=completed*")
    page.wait_for_selector("[data-event]", state="detached")
    page.wait_for_selector(".note:has-text('latest 200')")
    again = run_job(page, "fibonacci", payload={"n": -1}, queue="seen", attempts=1)
    page.click(f"[data-event=failed] button:has-text('#{again}')")
    page.wait_for_selector(f"#h-drawer:has-text('#{again}')")
    assert again > failed and page.evaluate(kinds) == ["failed"]


def hostile_text_stays_text_on_every_page(visit: Visit) -> None:
    page = visit.page
    page.add_init_script("document.addEventListener('securitypolicyviolation', (e) => { window.violated = e.violatedDirective; });")
    for address, row in (("#/jobs?state=failed", "tr[data-job]"), ("#/failures", "tr[data-group]"), ("#/queues", "tr[data-queue] .s-paused"),
                         ("#/schedules", "tr[data-schedule] .s-paused")):
        at(visit, address)
        page.wait_for_selector(row)
        assert visit.facts["text"] in page.text_content("main"), address
        assert page.locator(FOREIGN).count() == 0
    at(visit, "#/events")
    page.wait_for_selector(".note:has-text('latest 200')")
    run_job(page, "evil_error", queue="not-paused", attempts=1)
    page.wait_for_selector("[data-event=failed]:has-text('window.pwned=1')")
    assert page.locator(FOREIGN).count() == 0
    at(visit, "#/jobs?task=" + quote(visit.facts["evil"]))
    page.wait_for_selector(".banner:has-text('task must')")
    assert page.input_value("#filter-task") == visit.facts["evil"]
    at(visit, "#/%ff?job=%00<img>&&=")
    assert page.evaluate("[window.violated, window.pwned]") == [None, None]


OTHER_PAGES = {"jobs": "tr[data-job]", "failures": "tr[data-group]", "queues": "tr[data-queue]", "schedules": "tr[data-schedule]",
               "events": "[data-event=completed]"}

#: Buttons on them that open something.
OPENS = {"queues": {"Pause": "#in-length", "Limit": "#in-jobs", "Explain": ".explained h3"},
         "schedules": {"Pause": "#in-reason", "New schedule": "#in-name", "Delete": ".confirm"}}


def open_with_all_it_can_show(visit: Visit, name: str) -> None:
    """Open one of the other pages; on that of events something happens."""
    at(visit, f"#/{name}")
    if name == "events":
        visit.page.wait_for_selector(".note:has-text('latest 200')")
        run_job(visit.page, "fibonacci", payload={"n": 1}, queue="a-name-" * 9)
    visit.page.wait_for_selector(OTHER_PAGES[name])


def the_other_pages_fit_a_phone(visit: Visit) -> None:
    page = visit.page
    for name in OTHER_PAGES:
        open_with_all_it_can_show(visit, name)
        for word in ["", *OPENS.get(name, ())]:
            if word:
                page.click(f"main button:has-text('{word}') >> nth=0")
                page.wait_for_selector(OPENS[name][word])
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, (name, word)
            page.set_viewport_size({"width": 320, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 320, (name, word)
            page.set_viewport_size({"width": 360, "height": 800})
            out = page.evaluate("""() => [...document.querySelectorAll('main button, main input, main select, main a, main bdi')]
                .filter((e) => e.checkVisibility() && !e.matches('.jobs td bdi') && e.getBoundingClientRect().right > 360).map((e) => e.outerHTML)""")
            assert not out, (name, word, out)


def the_other_pages_have_contrast_and_fit_a_window(visit: Visit) -> None:
    page = visit.page
    for name in OTHER_PAGES:
        open_with_all_it_can_show(visit, name)
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [1440, 900], name
        assert page.get_attribute(f"nav a[href='#/{name}']", "aria-current") == "page"
        for word in OPENS.get(name, [""]):
            if word:
                page.click(f"main button:has-text('{word}') >> nth=0")
                page.wait_for_selector(OPENS[name][word])
            for theme in ("light", "dark"):
                page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
                check_contrast(page, f"{name}, {theme}, {word}", at_least=25)


SCENARIOS: tuple[Callable[[Visit], None], ...] = (
    jobs_are_filtered_by_the_address, pages_of_jobs_go_back_in_time, many_jobs_are_cancelled_and_retried,
    jobs_are_searched_and_deleted, failures_are_grouped_and_one_is_tried_first, queues_are_paused_and_resumed, queues_are_limited,
    schedules_are_paused_and_run, schedules_are_made_edited_and_deleted, waiting_jobs_are_changed_deleted_and_purged,
    events_are_listed_as_they_happen, hostile_text_stays_text_on_every_page, the_other_pages_fit_a_phone,
    the_other_pages_have_contrast_and_fit_a_window)
