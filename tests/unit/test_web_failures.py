"""How failed jobs are put together, and how far the route reads for it."""

from __future__ import annotations

import time

import pytest

from greenroom.errors import BusyError
from greenroom.webui import api_failures
from greenroom.webui.api_failures import FailureRoutes
from greenroom.webui.failures import Failures, place_of, plain_message

TRACEBACK = '''Traceback (most recent call last):
  File "/srv/app/run.py", line 3, in main
    send()
  File "/srv/venv/lib/shop/mail.py", line {line}, in send
    raise Refused(text)
Refused: {text}
'''


def failed(job_id: int, text: str = "no answer", line: int = 88, **more: object) -> dict:
    """Return a view of a failed job."""
    error = {"name": "Refused", "message": text, "traceback": TRACEBACK.format(line=line, text=text)}
    return {"id": job_id, "task": "send_mail", "worker": "w1", "finished_at": 1000.0 + job_id, "error": error, **more}


def grouped(*jobs: dict) -> list[dict]:
    found = Failures()
    for job in jobs:
        found.add(job)
    return found.shown()["groups"]


@pytest.mark.parametrize(("traceback", "place"), [
    (TRACEBACK.format(line=8, text="x"), "shop/mail.py in send"),
    ('  File "mail.py", line 8, in <module>\n', "mail.py in <module>"),
    ('  |   File "C:\\app\\shop\\mail.py", line 8, in send\n', "shop/mail.py in send"),
    (TRACEBACK.format(line=8, text='cannot open File "x"'), "shop/mail.py in send"),
    ("", ""), ("no frame at all", ""), ('File "' * 3000, ""),
])
def test_the_place_is_file_and_function_of_the_last_line(traceback: str, place: str) -> None:
    assert place_of(traceback) == place


@pytest.mark.parametrize(("message", "plain"), [
    ("job 17 of 23", "job # of #"), ("at 0x7f3a2b", "at #"), ("no user 'ann'", "no user '…'"), ("id 5f3c9a1b-77aa-4c1d", "id #"),
    ("a dead face", "a dead face"), ("", ""),
])
def test_what_names_the_job_is_not_part_of_the_message(message: str, plain: str) -> None:
    assert plain_message(message) == plain


def test_alike_failures_are_one_group_with_its_newest_as_the_example() -> None:
    [group] = grouped(failed(9, "no answer after 3 s", worker="w2"), failed(7, "no answer after 14 s", line=91), failed(2, "no answer after 5 s"))

    assert (group["count"], group["newest"], group["jobs"], group["message"]) == (3, 9, [9, 7, 2], "no answer after 3 s")
    assert (group["first_at"], group["last_at"], group["workers"], group["workers_total"]) == (1002.0, 1009.0, ["w1", "w2"], 2)
    assert (group["task"], group["error"], group["place"]) == ("send_mail", "Refused", "shop/mail.py in send")


@pytest.mark.parametrize("other", [
    failed(1, task="send_letter"), failed(1, "refused"), failed(1, error={"name": "Other", "message": "no answer", "traceback": ""}), failed(1, error=None),
])
def test_what_failed_otherwise_is_a_group_of_its_own(other: dict) -> None:
    groups = grouped(failed(3), failed(2), other)

    assert [group["count"] for group in groups] == [2, 1]
    assert groups[0]["fingerprint"] != groups[1]["fingerprint"]


def test_only_the_largest_groups_are_told() -> None:
    found = Failures()
    for job_id in range(600, 0, -1):
        found.add(failed(job_id, task=f"t{job_id % 250}"))

    shown = found.shown()

    assert (len(shown["groups"]), shown["groups_total"], shown["groups"][0]["count"]) == (200, 250, 3)


def routes(pages: object, **query: str) -> FailureRoutes:
    return FailureRoutes(pages, lambda *allowed: query, lambda name, text, limit: int(text))


def test_the_newest_failed_jobs_are_read_up_to_a_bound_and_the_answer_says_so() -> None:
    asked: list[dict] = []

    def call(verb: str, fields: dict) -> dict:
        asked.append(dict(fields))
        before = fields.get("before", 5001)
        jobs = [failed(job_id) for job_id in range(before - 1, before - 1 - fields["limit"], -1)]
        return {"jobs": jobs, "next": jobs[-1]["id"]}

    answer = routes(call, task="send_mail").failures()

    assert answer["scanned"] == {"jobs": 2000, "newest": 5000, "oldest": 3001}
    assert (answer["next"], answer["groups"][0]["count"]) == (3001, 2000)
    assert all((fields["state"], fields["task"], fields["limit"]) == ("failed", "send_mail", 100) for fields in asked)


def test_among_few_failed_jobs_it_reads_on_to_the_end() -> None:
    pages = iter([{"jobs": [], "next": 50}, {"jobs": [failed(40)], "next": 30}, {"jobs": [], "next": None}])

    answer = routes(lambda verb, fields: next(pages)).failures()

    assert (answer["scanned"]["jobs"], answer["next"]) == (1, None)


def test_a_slow_disk_ends_the_reading_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    answer = routes(lambda verb, fields: {"jobs": [failed(fields.get("before", 90) - 1)], "next": fields.get("before", 90) - 1}).failures()

    assert (answer["scanned"]["jobs"], answer["next"]) == (4, 86)


def test_a_third_reader_at_once_is_told_to_come_back() -> None:
    def call(verb: str, fields: dict) -> dict:
        if len(waiting) < api_failures.MAX_SCANS:
            waiting.append(api)
            try:
                api.failures()
            except BusyError as exc:
                refused.append(exc)
        return {"jobs": [], "next": None}

    waiting, refused = [], []
    api = routes(call)

    api.failures()

    assert len(refused) == 1 and refused[0].retry_after_s > 0
    assert api.failures()["groups"] == []
