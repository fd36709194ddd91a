"""What the client without a broker knows of pauses, changes, logs and why a job waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from greenroom import tasks
from greenroom.default_client import set_default_client
from greenroom.errors import ConflictError, FinishedError, GoneError, InvalidError, NotFoundError
from greenroom.protocol import pack_value
from greenroom.tasks import Context, Registry, task
from greenroom.testing import LocalClient

ran: list[object] = []


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalClient]:
    ran.clear()
    registry = Registry()
    monkeypatch.setattr(tasks, "default_registry", registry)
    client = LocalClient(inline=False, raise_errors=False, registry=registry)
    before = set_default_client(client)

    @task(name="note")
    def note(context: Context, what: object, fail: bool = False) -> None:
        context.progress(0.5, "half")
        context.log("first\nsecond")
        if what == "long":
            context.log("x" * 3000)
            context.progress(1.0, "y" * 3000)
        if fail:
            raise LookupError("no")
        ran.append(what)

    yield client
    set_default_client(before)


def codes(client: LocalClient, job: int) -> list[str]:
    return [gate["code"] for gate in client.explain(job)["gates"]]


def test_a_pause_holds_back_its_queue_or_task_until_it_ends(capture: LocalClient) -> None:
    held, free = capture.submit("note", {"what": 1}, queue="mail").id, capture.submit("note", {"what": 2}).id
    made = capture.pause("mail", seconds=60, reason="why", by="ann")
    assert capture.pauses() == [made] and codes(capture, held) == ["queue_paused"] and codes(capture, free) == ["no_worker"]
    assert capture.run_due() == 1 and ran == [2]

    capture.advance(61)
    assert capture.pauses() == [] and capture.run_due() == 1 and ran == [2, 1]

    capture.submit("note", {"what": 3})
    capture.pause(task="note")
    assert capture.run_due() == 0
    assert capture.resume(task="note") is True and capture.resume(task="note") is False
    assert capture.run_due() == 1
    with pytest.raises(InvalidError):
        capture.pause("mail", task="note")


def test_what_failed_alike_is_grouped_found_and_retried_one_first(capture: LocalClient) -> None:
    capture.raise_errors = False
    ids = [capture.submit("note", {"what": what, "fail": True}).id for what in range(3)]
    capture.submit("note", {"what": 9, "fail": False})
    assert capture.run_due() == 4

    [group] = capture.failures().groups
    assert (group.task, group.error, group.count, group.jobs, group.workers) == ("note", "LookupError", 3, ids[::-1], ["local"])
    assert capture.failures(before=ids[1]).groups[0].jobs == ids[:1] and capture.failures("error:KeyError").looked_at == 0
    assert [view["id"] for view in capture.jobs(f"fingerprint:{group.fingerprint}", limit=2)] == ids[:0:-1]
    waits = capture.retry_group(group.fingerprint)
    assert (waits.outcome, waits.canary, waits.state) == ("timeout", ids[2], "queued"), "nothing runs by itself here"

    capture.inline = True
    assert capture.retry_group(group.fingerprint).outcome == "failed"
    assert capture.bulk("retry", {"fingerprint": group.fingerprint}, dry_run=True)["matched"] == 3
    for job in ids:
        capture.submitted[job - 1].payload = pack_value({"what": 5, "fail": False})
    done = capture.retry_group(group.fingerprint)
    assert (done.outcome, done.canary, done.retried) == ("retried", ids[2], 3) and capture.failures().groups == []
    with pytest.raises(NotFoundError):
        capture.retry_group(group.fingerprint)


def test_a_waiting_job_is_changed_and_others_are_not(capture: LocalClient) -> None:
    first, second, third = (capture.submit("note", {"what": what}).id for what in range(3))
    capture.cancel([third])

    assert capture.change([second], priority=1, payload={"what": "new"}) == ["changed"]
    done, missing = capture.change([third, 99], priority=1)
    assert isinstance(done, FinishedError) and isinstance(missing, NotFoundError)
    assert capture.change([first], delay=60) == ["changed"] and codes(capture, first) == ["not_due"]
    assert capture.run_due() == 1 and ran == ["new"]

    capture.change([first], delay=0, priority=9)
    capture.change([first], priority=3)
    assert capture.run_due() == 1 and ran == ["new", 0]
    for wrong in ({}, {"priority": 11}):
        with pytest.raises(InvalidError):
            capture.change([first], **wrong)


def test_progress_log_and_runs_are_kept_and_a_failed_job_can_be_retried(capture: LocalClient) -> None:
    job = capture.submit("note", {"what": 1, "fail": True}).id
    capture.run_due()

    assert capture.get([job])[0]["progress"] == 0.5 and codes(capture, job) == ["finished"]
    assert [(line["seq"], line["attempt"], line["text"]) for line in capture.logs(job, after=1)] == [(2, 1, "second")]
    (run,) = capture.runs(job)
    assert (run["attempt"], run["outcome"], run["error"]["name"]) == (1, "failed", "LookupError")

    assert capture.retry([job]) == ["queued"] and isinstance(capture.retry([job])[0], ConflictError)
    capture.change([job], payload={"what": 2})
    capture.run_due()
    assert ran == [2] and len(list(capture.logs(job))) == 4
    assert [view["id"] for view in capture.jobs(state="completed", limit=1)] == [job] and not list(capture.jobs(queue="other"))
    long = capture.submit("note", {"what": "long"})
    capture.run_due()
    assert (len(list(capture.logs(long.id))[-1]["text"]), len(long.status()["progress_text"])) == (2000, 200), "cut as on the way to a broker"
    with pytest.raises(NotFoundError):
        list(capture.logs(99))


def test_a_failed_job_is_handed_in_again_with_another_payload_and_stays(capture: LocalClient) -> None:
    job = capture.submit("note", {"what": 1, "fail": True}, queue="q", priority=2, attempts=3)
    capture.run_due()
    assert job.status()["state"] == "failed"

    copy = capture.resubmit(job.id, {"what": 2}, priority=1)
    same = capture.resubmit(job.id, attempts=None)
    capture.run_due()

    assert ran == [2] and (same.status()["state"], job.status()["state"]) == ("failed", "failed")
    shown, unchanged = copy.status(), same.status()
    assert shown["state"] == "completed"
    assert (shown["queue"], shown["priority"], shown["options"]) == ("q", 1, {"attempts": 3})
    assert (unchanged["priority"], unchanged.get("options")) == (2, None)
    with pytest.raises(NotFoundError):
        capture.resubmit(99)
    with pytest.raises(InvalidError, match="priority"):
        capture.resubmit(job.id, priority=11)


def test_a_job_that_is_not_begun_in_time_is_expired(capture: LocalClient) -> None:
    late, later = capture.submit("note", {"what": 1}, expires_in=10), capture.submit("note", {"what": 2}, delay=60, expires_in=10)
    capture.advance(11)
    assert late.status()["state"] == "expired" and capture.run_due() == 0

    capture.advance(50)
    assert capture.run_due() == 1 and ran == [2] and later.status()["state"] == "completed"
    assert capture.retry([late.id]) == ["queued"] and capture.run_due() == 1


def test_a_job_is_kept_for_as_long_as_it_asked(capture: LocalClient) -> None:
    unkept, kept, plain = (capture.submit("note", {"what": number}, **options)
                           for number, options in enumerate(({"keep_for": 0}, {"keep_for": 60}, {})))
    capture.advance(1000)
    assert capture.run_due() == 3 and unkept.result() == kept.result() == plain.result(), "they waited, and whoever asks at once is told"

    capture.advance(5)
    for ask in (unkept.result, unkept.status, lambda: list(capture.logs(unkept.id))):
        with pytest.raises(GoneError, match="no longer kept"):
            ask()
    assert [outcome.code for outcome in (*capture.cancel([unkept.id]), *capture.retry([unkept.id]))] == ["GONE", "GONE"]
    assert kept.status()["state"] == "completed" and [view["id"] for view in capture.jobs()] == [plain.id, kept.id]
    capture.advance(60)
    assert [view["id"] for view in capture.jobs()] == [plain.id]


def test_with_retries_a_failed_job_is_tried_again_as_its_options_say(capture: LocalClient) -> None:
    capture.retries = capture.raise_errors = True
    job = capture.submit("note", {"what": 1, "fail": True}, attempts=3, backoff="exponential", backoff_base=10)
    other = capture.submit("note", {"what": 1, "fail": True}, retry_never=["LookupError"])
    assert capture.change([other.id], run_at=capture.now() + 5000) == ["changed"]

    assert capture.run_due() == 1 and job.status()["state"] == "scheduled" and codes(capture, job.id) == ["not_due"]
    capture.advance(9)
    assert capture.run_due() == 0
    capture.advance(1.1)
    assert capture.run_due() == 1
    capture.advance(20.1)
    with pytest.raises(LookupError):
        capture.run_due()
    assert job.status()["state"] == "failed" and len(capture.runs(job.id)) == 3

    capture.retry([job.id])
    assert capture.run_due() == 1 and job.status()["state"] == "scheduled"
    capture.change([job.id], delay=7000)
    capture.advance(6000)
    with pytest.raises(LookupError):
        capture.run_due()
    assert other.status()["state"] == "failed"


def test_what_fits_a_filter_is_listed_changed_cancelled_retried_and_deleted(capture: LocalClient) -> None:
    jobs = capture.submit_many([("note", {"what": f"to {number}", "fail": number == 2}) for number in range(3)], queue="mail", attempts=1)
    other = capture.submit("note", {"what": "else"})
    ids = [job.id for job in jobs]
    assert [view["id"] for view in capture.jobs('queue:mail "TO 1"')] == [ids[1]]
    progress: list[dict] = []

    assert capture.bulk("change", "queue:mail", dry_run=True, priority=1)["done"] == 0
    changed = capture.bulk("change", "queue:mail id<3", on_progress=progress.append, delay=60, priority=1)
    assert progress == [changed] and (changed["matched"], changed["done"], changed["refused"]) == (2, 2, 0)
    assert [(job.status()["state"], job.status()["priority"]) for job in jobs] == [("scheduled", 1)] * 2 + [("queued", 5)]
    assert capture.run_due() == 2 and capture.bulk("retry", "error:LookupError")["done"] == 1
    assert capture.bulk("cancel", {"state": "scheduled"})["done"] == 2
    assert capture.delete([ids[0], ids[2], 99])[0] == "deleted"
    assert [error.code for error in capture.delete([ids[0], ids[2], 99])] == ["GONE", "CONFLICT", "NOT_FOUND"]
    assert capture.bulk("delete", "created>-1h")["done"] == 2 and [view["id"] for view in capture.jobs()] == [ids[2]]
    with pytest.raises(GoneError):
        other.status()
    assert len(capture.submitted) == 4 and capture.get([ids[0]])[0]["error"]["code"] == "GONE"


def test_a_bulk_action_that_cannot_be_meant_is_refused_by_name(capture: LocalClient) -> None:
    for action, filter, changes, field in (("fly", {}, {}, "action"), ("change", {}, {}, "action"), ("change", {}, {"priority": 11}, "priority"),
                                           ("retry", {}, {"queue": "q"}, "queue"), ("retry", "state:queued", {}, "state"), ("retry", {"x": 1}, {}, "x")):
        with pytest.raises(InvalidError) as caught:
            capture.bulk(action, filter, **changes)
        assert caught.value.field == field


def test_what_needs_a_broker_says_what_to_use(capture: LocalClient) -> None:
    for call in (lambda: capture.schedule("s", "note", every="1s"), lambda: capture.events(), lambda: capture.stats()):
        with pytest.raises(NotImplementedError, match="greenroom_broker"):
            call()
    with pytest.raises(AttributeError):
        capture.nonsense()
