"""How failed jobs are put together, how far the verb reads for it, and what becomes of a group whose newest is tried first."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

from greenroom import bulk_verbs, client_failures, failure_verbs, filters
from greenroom.client_failures import FailureCalls, GroupRetry
from greenroom.dispatch import Dispatch
from greenroom.errors import BusyError, ConflictError, GreenroomError, InvalidError, NotFoundError
from greenroom.failures import MAX_IDS, Failures, fingerprint, place_of, plain_message
from greenroom.matching import matching
from tests.fuzz.test_turns import Caller, dispatch

__all__ = ["dispatch"]  # a fixture

TRACEBACK = '''Traceback (most recent call last):
  File "/srv/app/run.py", line 3, in main
    send()
  File "/srv/venv/lib/shop/mail.py", line {line}, in send
    raise Refused(text)
Refused: {text}
'''


def refused(text: str = "no answer", line: int = 88) -> dict:
    """Return an error."""
    return {"name": "Refused", "message": text, "traceback": TRACEBACK.format(line=line, text=text)}


def failed(job_id: int, text: str = "no answer", line: int = 88, **more: object) -> dict:
    """Return what is told of a failed job."""
    return {"job_id": job_id, "task": "send_mail", "worker": "w1", "finished_at": 1000.0 + job_id, "error": refused(text, line), **more}


def grouped(*jobs: dict) -> list[dict]:
    found = Failures()
    for job in jobs:
        found.add(**job)
    return found.told(None)["groups"]


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
    ("a dead face", "a dead face"), ("dead-1 and cafe-be1f", "#-# and #"), ("", ""),
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
        found.add(**failed(job_id, task=f"t{job_id % 250}"))

    told = found.told(None)

    assert (len(told["groups"]), told["groups_total"], told["groups"][0]["count"]) == (200, 250, 3)
    assert told["scanned"] == {"jobs": 600, "newest": 600, "oldest": 1}


def test_a_group_names_so_many_of_its_jobs_as_a_list_may_hold_and_counts_all() -> None:
    [group] = grouped(*(failed(job_id) for job_id in range(1200, 0, -1)))

    assert (group["count"], len(group["jobs"]), group["jobs"][0]) == (1200, MAX_IDS, 1200)


def test_a_fingerprint_is_the_same_everywhere_and_for_ever() -> None:
    [group] = grouped(failed(3))

    assert group["fingerprint"] == fingerprint("send_mail", refused()) == "8875b89c987c1d74"
    releases = [{"name": "E", "traceback": f'  File "/srv/releases/{release}/mail.py", line 8, in send2'} for release in ("20261127-1", "20261128-2")]
    assert fingerprint("t", releases[0]) == fingerprint("t", releases[1]) != fingerprint("t", {**releases[0], "traceback": releases[0]["traceback"][:-1]})
    assert fingerprint("send_mail", None) == fingerprint("send_mail", {}) != fingerprint("send", None)
    assert len(fingerprint("t", {"name": "E", "message": "\ud800", "traceback": 'File "' * 3000})) == 16


# -- the verb --------------------------------------------------------------------------------------------------------------


def fail_all(dispatch: Dispatch, caller: Caller, *errors: dict, task: str = "send_mail", queue: str = "default") -> list[int]:
    """Submit a job for each error and let it fail so; return the ids."""
    worker = Caller(dispatch, "worker")
    ids = caller.call("submit", jobs=[{"task": task, "queue": queue, "attempts": 1}] * len(errors))["jobs"]
    leases = [job[:2] for job in worker.call("reserve", n=len(errors))["jobs"]]
    worker.call("settle", leases=[[*lease, "fail", error] for lease, error in zip(leases, errors)])
    return ids


def test_the_newest_failed_jobs_are_read_up_to_a_bound_and_the_answer_says_so(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_verbs, "MAX_JOBS", 7)
    monkeypatch.setattr(failure_verbs, "PAGE_JOBS", 3)
    caller = Caller(dispatch)
    ids = fail_all(dispatch, caller, *[refused(f"no answer after {number} s") for number in range(10)])
    other = fail_all(dispatch, caller, refused("no"), queue="other")

    first = caller.call("failures")
    second = caller.call("failures", before=first["next"])

    assert first["scanned"] == {"jobs": 7, "newest": other[0], "oldest": ids[4]} and first["next"] == ids[4]
    assert [(group["count"], group["newest"], group["workers"]) for group in first["groups"]] == [(6, ids[9], ["peer"]), (1, other[0], ["peer"])]
    assert (second["scanned"]["jobs"], second["next"], second["groups"][0]["fingerprint"]) == (4, None, first["groups"][0]["fingerprint"])
    alike = first["groups"][0]["fingerprint"]
    assert caller.call("failures", queue="other")["groups"][0]["jobs"] == other
    assert caller.call("failures", filter={"fingerprint": alike, "id_to": ids[1]})["groups"][0]["jobs"] == ids[1::-1]
    assert caller.call("failures", task="send")["scanned"] == {"jobs": 0, "newest": None, "oldest": None}
    refusal = caller.call("failures", filter={"state": ["queued", "expired"]})
    assert isinstance(refusal, InvalidError) and refusal.field == "state"


def test_all_that_failed_alike_are_listed_counted_and_retried(dispatch: Dispatch) -> None:
    caller = Caller(dispatch)
    ids = fail_all(dispatch, caller, refused("no answer 1"), refused("refused"), refused("no answer 2"))
    wanted = {"state": "failed", "fingerprint": fingerprint("send_mail", refused("no answer 3"))}

    assert [view["id"] for view in caller.call("jobs", filter=wanted)["jobs"]] == [ids[2], ids[0]]
    assert caller.call("bulk", action="retry", filter=wanted, dry_run=True)["matched"] == 2
    assert caller.call("bulk", action="retry", filter=wanted)["done"] == 2
    assert [view["state"] for view in caller.call("get", jobs=ids)["jobs"]] == ["queued", "failed", "queued"]


def test_how_jobs_failed_is_worked_out_with_looks_at_the_time_between_and_only_once_for_each(
        dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(dispatch)
    ids = fail_all(dispatch, caller, *[refused()] * 150)
    wanted = {"state": "failed", "fingerprint": fingerprint("send_mail", refused())}
    hub, since_look, most, calls = threading.get_ident(), 0, 0, 0

    def counted(*args: object) -> str:
        nonlocal since_look, most, calls
        if threading.get_ident() == hub:
            since_look, calls = since_look + 1, calls + 1
            most = max(most, since_look)
        return fingerprint(*args)

    def look(_: Dispatch) -> None:
        nonlocal since_look
        since_look = 0

    monkeypatch.setattr(filters, "fingerprint", counted)
    monkeypatch.setattr(Dispatch, "breathe_if_due", look)
    assert [view["id"] for view in caller.call("jobs", filter=wanted, limit=150)["jobs"]] == ids[::-1]
    assert (most, calls) == (1, 150)

    assert caller.call("bulk", action="retry", filter=wanted)["done"] == 150
    assert (most, calls) == (1, 300)


def test_one_that_failed_otherwise_since_it_was_listed_is_left_out(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(dispatch)
    [job] = fail_all(dispatch, caller, refused())
    wanted = {"state": "failed", "fingerprint": fingerprint("send_mail", refused())}

    def and_then(*args: object) -> tuple:
        found = matching(*args)
        caller.call("retry", jobs=[job])
        worker = Caller(dispatch, "worker")
        [[_, fence, *_]] = worker.call("reserve", n=1)["jobs"]
        worker.call("settle", leases=[[job, fence, "fail", {**refused(), "name": "Other"}]])
        return found

    monkeypatch.setattr(bulk_verbs, "matching", and_then)

    assert caller.call("bulk", action="retry", filter=wanted)["matched"] == 0
    assert caller.call("get", jobs=[job])["jobs"][0]["error"]["name"] == "Other"


def test_a_slow_disk_ends_the_reading_early_and_a_third_reader_is_told_to_come_back(dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(dispatch)
    ids = fail_all(dispatch, caller, *[refused()] * 3)
    monkeypatch.setattr(failure_verbs, "MAX_S", -1.0)
    monkeypatch.setattr(failure_verbs, "PAGE_JOBS", 2)

    answer = caller.call("failures")
    assert (answer["scanned"]["jobs"], answer["next"]) == (2, ids[1])

    dispatch.groupings = failure_verbs.MAX_GROUPINGS
    refusal = caller.call("failures")
    assert isinstance(refusal, BusyError) and refusal.retry_after_s > 0
    dispatch.groupings = 0
    assert caller.call("failures")["groups"] and dispatch.groupings == 0


# -- one first -------------------------------------------------------------------------------------------------------------

VIEW = {"id": 9, "task": "send_mail", "state": "failed", "error": {"name": "Refused", "message": "no"}, "failures": 1}


class Scripted(FailureCalls):
    """A client whose broker answers from a script: what `wait` and `get` show of the canary, one after the other."""

    def __init__(self, *views: dict | None, failed: tuple[dict, ...] = (VIEW,), refuses: GreenroomError | None = None) -> None:
        self.views = iter(views)
        self.failed = failed
        self.refuses = refuses
        self.did: list[object] = []

    def _call(self, message: dict) -> dict:
        assert message["verb"] == "wait" and message["jobs"] == [9] and 0 <= message["wait"] <= 1
        view = next(self.views)
        return {"jobs": [] if view is None else [view]}

    def get(self, ids: list[int]) -> list[dict]:
        return [next(self.views)]

    def jobs(self, wanted: dict, limit: int) -> Iterator[dict]:
        assert wanted == {"state": "failed", "fingerprint": "f" * 16} and limit == 1
        return iter(self.failed)

    def retry(self, ids: list[int]) -> list[object]:
        self.did.append(("retry", ids))
        return [self.refuses or "queued"]

    def bulk(self, action: str, wanted: dict) -> dict:
        self.did.append((action, wanted))
        return {"done": 4, "refused": 0, "why": None}


ALL = ("retry", {"state": "failed", "fingerprint": "f" * 16, "task": "send_mail", "error": "Refused"})


def test_the_others_follow_once_the_first_has_completed() -> None:
    running = {**VIEW, "state": "running", "failures": 0}
    client = Scripted(None, running, None, {**running, "state": "queued"}, {**VIEW, "state": "completed"})

    done = client.retry_group("f" * 16)

    assert done == GroupRetry("f" * 16, "retried", 9, "completed", 5, 0, "job 9 completed, 4 others retried")
    assert client.did == [("retry", [9]), ALL]
    client = Scripted()
    assert client.retry_group("f" * 16, canary=False)[1:6] == ("retried", None, None, 4, 0) and client.did == [ALL]


@pytest.mark.parametrize(("views", "outcome", "state", "sentence"), [
    ([VIEW], "failed", "failed", r"job 9 failed again \(Refused: no\): the others were not retried"),
    ([None, {**VIEW, "state": "scheduled"}], "failed", "scheduled", "failed again and is tried once more later .Refused: no."),
    ([None, {**VIEW, "state": "running"}], "failed", "running", "failed again and is tried once more later"),
    ([{**VIEW, "state": "cancelled", "error": None}], "failed", "cancelled", "job 9 is cancelled: the others"),
    ([{"id": 9, "error": {"code": "GONE", "message": "it is gone"}}], "failed", "gone", "job 9 is gone"),
])
def test_the_others_are_left_when_the_first_does_not_complete(views: list, outcome: str, state: str, sentence: str) -> None:
    client = Scripted(*views)

    done = client.retry_group("f" * 16)

    assert (done.outcome, done.state, done.retried) == (outcome, state, 1) and client.did == [("retry", [9])]
    assert re.search(sentence, done.message)


def test_the_others_are_left_when_the_first_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 2.5, 5.5])
    monkeypatch.setattr(client_failures.time, "monotonic", lambda: next(clock))
    queued = {**VIEW, "state": "queued", "failures": 0}
    client = Scripted(None, queued, None, queued, None, queued)

    done = client.retry_group("f" * 16, timeout=5.0)

    assert (done.outcome, done.state, done.message) == ("timeout", "queued", "job 9 is still queued: the others were not retried")


def test_a_group_that_is_not_there_and_a_first_that_cannot_be_retried_are_errors() -> None:
    with pytest.raises(NotFoundError, match="f{16}"):
        Scripted(failed=()).retry_group("f" * 16)
    with pytest.raises(ConflictError):
        Scripted(refuses=ConflictError("job 9 is queued")).retry_group("f" * 16)
