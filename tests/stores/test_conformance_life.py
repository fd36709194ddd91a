"""What every store must do for rare options, runs, expiry and unique keys, run against each of them as test_conformance.py does."""

from __future__ import annotations

from greenroom.job import Extras, Job, Run, State, rank_of
from greenroom.records import Lost
from greenroom.unique import Taken
from tests.stores.test_conformance import NOW, House, build, finish, grant, house, ids

__all__ = ["build", "house"]  # fixtures


# -- options that few jobs have, runs that did not complete their job -------------------------------------------------------


def test_rare_options_and_what_becomes_of_them_survive(house: House) -> None:
    job = house.new()
    job.extras = Extras(attempts=7, backoff="fixed", backoff_base=1.5, jitter=True, retry_on=("A", "B"))
    plain = house.new()
    house.save(job, plain)

    for one in (job, plain):
        grant(one, 1 + one.id)
        one.failures, one.failed_since, one.settled_fence = 2, NOW + 3, one.fence
        one.state, one.run_at, one.lease, one.error = State.SCHEDULED, NOW + 9, None, {"name": "A", "message": "", "traceback": ""}
    house.save(job, plain)
    house.reopen()

    for found, extras in ((house.loaded(job), job.extras), (house.loaded(plain), None)):
        assert (found.extras, found.failures, found.failed_since, found.settled_fence) == (extras, 2, NOW + 3, found.fence)
        assert found.damage is None and found.state is State.SCHEDULED
    assert ids(house.store.take_scheduled((0.0, 0), 10)) == ids([job, plain])


def test_runs_are_kept_in_order_with_their_job_and_go_with_it(house: House) -> None:
    job, other = house.new(), house.new()
    runs = [Run(number, f"w{number}", NOW + number, NOW + number + 0.5, "failed", {"name": "E", "message": "m", "traceback": "t"})
            for number in (1, 2)]
    job.runs = runs[:1]
    house.save(job, other)
    assert job.runs is None, "taken"
    job.runs = [Run(2, "w2", None, NOW + 2, "lost", None), runs[1]]  # the second says better what became of the same run
    house.save(job)
    house.reopen()

    assert house.store.reader().runs(job.id) == runs and house.store.reader().runs(other.id) == []

    job.attempt = 2
    finish(job, at=NOW - 30 * 86400)
    house.save(job)
    while house.store.prune(NOW, 10):
        house.store.commit()
    house.store.commit()
    assert house.loaded(job) == Lost(True) and house.store.reader().runs(job.id) == []


def test_a_finished_job_that_is_queued_again_counts_as_waiting(house: House) -> None:
    job = house.saved(payload=b"12345")
    house.save(finish(job, state=State.FAILED, result=None))
    again = house.loaded(job)
    again.state, again.finished_at, again.error = State.QUEUED, None, None
    again.place = house.store.block("job", 1)
    again.rank = rank_of(again.priority, again.place)
    house.save(again)
    house.reopen()

    (counts,) = house.restored.lanes
    assert (counts.queued, counts.failed, counts.waiting_bytes) == (1, 0, 5)
    assert ids(house.store.take("default", "t", rank_of(-1000, 0), 10)) == [job.id]


def test_waiting_jobs_that_should_have_begun_are_found_soonest_first(house: House) -> None:
    def expiring(at: float, **fields: object) -> Job:
        job = house.new(**fields)
        job.extras, job.expires_at = Extras(expires_in=1.0), at
        return job

    later, soon, scheduled = expiring(NOW + 9), expiring(NOW + 3), expiring(NOW + 5, run_at=NOW + 4)
    begun, cancelled, plain = expiring(NOW + 1), expiring(NOW + 1), house.new()
    grant(begun, 1)
    house.save(later, soon, scheduled, begun, finish(cancelled, state=State.CANCELLED, result=None), plain)
    house.reopen()

    assert house.store.next_expiry() == NOW + 3
    assert house.store.take_expired(NOW + 2, 10) == []
    assert ids(house.store.take_expired(NOW + 100, 10)) == ids([soon, scheduled, later])
    assert ids(house.store.take_expired(NOW + 100, 1)) == [soon.id]
    house.save(finish(soon, state=State.EXPIRED, result=None))
    assert house.store.next_expiry() == NOW + 5
    assert house.store.reader().counts()[0].expired == 1
    scheduled.expires_at = NOW + 20  # changed while it waits
    house.save(scheduled)
    house.reopen()
    assert house.store.next_expiry() == NOW + 9 and ids(house.store.take_expired(NOW + 100, 10)) == ids([later, scheduled])


def test_unique_keys_are_kept_until_their_jobs_are_finished_or_their_time_is_over(house: House) -> None:
    def unique(key: str, **extras: object) -> Job:
        job = house.new()
        job.extras = Extras(unique_key=key, **extras)
        return job

    held, done, thrown, at_once = unique("held"), unique("done"), unique("thrown \u00e9", unique_mode="throttle", unique_for=60.0), unique("at once")
    house.save(held, done, thrown)
    house.save(finish(done), finish(thrown), finish(at_once))
    again = unique("done")
    house.save(again)
    house.reopen()

    assert dict(house.restored.keys) == {"held": Taken(held.id, None, True), "thrown \u00e9": Taken(thrown.id, NOW + 60.0, False),
                                         "done": Taken(again.id, None, True)}
    while house.store.prune(NOW + 61.0, 10):
        house.store.commit()
    house.reopen()
    assert {key for key, _ in house.restored.keys} == {"held", "done"}


def test_a_debounced_job_has_its_key_until_a_worker_gets_it(house: House) -> None:
    def debounced(key: str) -> Job:
        job = house.new()
        job.extras = Extras(unique_key=key, unique_mode="debounce", unique_for=9.0, debounce_max=20.0)
        return job

    waits, begun, cancelled, at_once = (debounced(key) for key in ("waits", "begun", "cancelled", "at once"))
    at_once.fence = 4
    house.save(waits, begun, cancelled, at_once)
    begun.fence, cancelled.state, cancelled.finished_at = 3, State.CANCELLED, NOW
    house.save(begun, cancelled)
    second = debounced("begun")
    house.save(second)
    begun.crashes = 1
    house.save(begun)  # written again while another has the key
    finish(begun)
    house.save(begun)
    house.reopen()

    assert dict(house.restored.keys) == {"waits": Taken(waits.id, None, True), "begun": Taken(second.id, None, True)}
    assert house.store.load([waits.id])[waits.id].extras == waits.extras


def test_a_debounced_job_that_ran_and_waits_again_does_not_take_its_key_from_another(house: House) -> None:
    first, second = house.new(), house.new()
    first.extras = second.extras = Extras(unique_key="k", unique_mode="debounce", unique_for=9.0)
    first.fence = 3
    house.save(finish(first))
    first.state, first.finished_at = State.QUEUED, None
    house.save(second, first)  # one batch: submitted, and the other retried by hand
    house.reopen()

    assert house.restored.keys == [("k", Taken(second.id, None, True))]


def test_a_key_may_change_hands_in_one_batch(house: House) -> None:
    first, second = house.new(), house.new()
    first.extras = second.extras = Extras(unique_key="k")
    house.save(first)
    house.save(finish(first), second)
    house.reopen()

    assert house.restored.keys == [("k", Taken(second.id, None, True))]
