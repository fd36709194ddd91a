"""Thread and process pools under real threads: each scenario is a script of its own (tests/pool_scripts.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pool_scripts import run_script

both_pools = pytest.mark.parametrize("kind", ["thread", "process"])


@both_pools
def test_sixty_items_at_once_each_give_their_own_result(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(4, done)
        pool.start()
        submitters = [threading.Thread(target=lambda part=part: [
            pool.submit(item(n, "add", {"a": n, "b": 1})) for n in range(part, 61, 6)]) for part in range(1, 7)]
        for thread in submitters: thread.start()
        for thread in submitters: thread.join()
        outcomes = done.wait(*range(1, 61))
        assert [(o.kind, unpack_value(o.result), o.fence, o.encoding, o.error) for o in outcomes] == [
            ("ack", n + 1, 1000 + n, "msgpack", None) for n in range(1, 61)]
        assert all(0 <= o.seconds < 30 for o in outcomes)
        assert pool.stop(5) == [] and pool.stop(5) == []
        assert (pool.running(), pool.waiting()) == (0, 0)
    """)


@both_pools
def test_whatever_a_task_raises_is_a_fail_and_the_slot_serves_on(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done, max_result=5000)
        pool.start()
        for job_id, name in enumerate(["boom", "leave", "interrupt", "unpackable", "nowhere"], 1):
            pool.submit(item(job_id, name))
        pool.submit(item(6, "large", {"size": 5000}))
        pool.submit(item(7, "add", {"a": 1}))
        pool.submit(RunItem(8, 1, "add", b"\\xc1 no msgpack"))
        pool.submit(item(9, "echo", 2**63))
        pool.submit(item(10, "fibonacci", {"n": -1}))
        pool.submit(item(11, "large", {"size": 4997}))
        outcomes = done.wait(*range(1, 12))
        assert [o.kind for o in outcomes] == ["fail"] * 8 + ["ack", "fail", "ack"]
        errors = [o.error["name"] for o in outcomes if o.error]
        assert errors == ["LookupError", "SystemExit", "KeyboardInterrupt", "ResultError", "UnknownTaskError",
                          "ResultTooLargeError", "BadPayloadError", "BadPayloadError", "BadPayloadError"], errors
        assert all(o.result is None for o in outcomes if o.kind == "fail")
        assert outcomes[0].error["message"] == "nothing here" and "boom" in outcomes[0].error["traceback"]
        assert "5,003 bytes" in outcomes[5].error["message"] and "5,000 allowed" in outcomes[5].error["message"]
        assert "can't be decoded" in outcomes[7].error["message"]
        assert len(outcomes[10].result) == 5000
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_task_ends_its_run_in_a_way_of_its_own(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        for job_id, how in enumerate(["snooze", "give up", "later"], 1):
            pool.submit(item(job_id, "own_end", {"how": how}))
        snooze, give_up, later = (o.settle_item() for o in done.wait(1, 2, 3))
        assert snooze == [1, 1001, "snooze", 30.0]
        assert give_up[:3] == [2, 1002, "fail"] and give_up[4] == {"retry": False}
        assert (give_up[3]["name"], give_up[3]["message"]) == ("DontRetry", "no such address")
        assert later[:3] == [3, 1003, "fail"] and later[4] == {"retry_at": 2e9}
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_raw_payload_reaches_the_task_as_bytes_and_the_context_is_filled(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(RunItem(1, 5, "echo", b"\\xc1\\x00raw", encoding="raw"))
        pool.submit(item(2, "ident", queue="mail", attempt=3, worker="anna", fence=77))
        pool.submit(item(3, "echo", b"packed"))
        assert [unpack_value(o.result) for o in done.wait(1, 2, 3)] == [
            b"\\xc1\\x00raw", [2, 77, 3, "ident", "mail", "anna"], b"packed"]
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_running_job_sees_its_cancel_and_a_waiting_one_never_begins(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        pool.submit(item(2, "until_cancelled", {"mark": MARK + "2"}))
        pool.submit(item(3, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK))
        assert (pool.running(), pool.waiting()) == (1, 2)
        assert pool.cancel(2) and pool.cancel(1) and pool.cancel(1)
        assert not pool.cancel(99)
        first, second, third = done.wait(1, 2, 3)
        assert (first.kind, first.error["name"], first.error["message"]) == ("fail", "CancelledTaskError", "stopped")
        assert (second.kind, second.error["name"]) == ("fail", "CancelledTaskError")
        assert not os.path.exists(MARK + "2")
        assert third.kind == "ack" and not pool.cancel(1)
        assert pool.stop(5) == []
    """)


@both_pools
def test_a_cancel_of_a_lease_leaves_the_next_try_of_its_job_alone(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        ended = []
        pool = make(2, ended.append)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}, fence=10))  # its lease ended, and it was tried again at once
        pool.submit(item(1, "add", {"a": 1, "b": 1}, fence=11))
        pool.submit(item(1, "until_cancelled", {"mark": MARK + "2"}, fence=12))
        until(lambda: os.path.exists(MARK) and os.path.exists(MARK + "2") and len(ended) == 1)
        assert pool.cancel(1, 10) and not pool.cancel(1, 11)
        until(lambda: len(ended) == 2)
        assert [(o.fence, o.kind) for o in ended] == [(11, "ack"), (10, "fail")] and pool.running() == 1
        assert pool.cancel(1)
        until(lambda: len(ended) == 3)
        assert pool.stop(5) == []
    """)


@both_pools
def test_what_has_not_begun_can_be_withdrawn_and_what_has_cannot(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        pool.submit(item(2, "until_cancelled", {"mark": MARK + "2"}))
        pool.submit(item(3, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK))
        assert pool.waiting_leases() == {(2, 1002), (3, 1003)}
        assert not pool.withdraw(1, 1001) and not pool.withdraw(2, 1) and not pool.withdraw(9, 9)
        assert pool.withdraw(2, 1002) and not pool.withdraw(2, 1002)
        assert (pool.running(), pool.waiting()) == (1, 1)
        assert pool.cancel(1) and not pool.cancel(2)
        assert done.wait(3)[0].kind == "ack"
        assert pool.stop(5) == [] and not os.path.exists(MARK + "2")
        assert set(done.outcomes) == {1, 3}
    """)


def test_a_parked_item_begins_when_it_is_released_and_not_before(tmp_path: Path) -> None:
    run_script("thread", tmp_path, """
        pool = make(2, done)
        pool.start()
        for n in (1, 2, 3):
            pool.submit(item(n, "add", {"a": n, "b": 1}), parked=True)
        pool.submit(item(4, "add", {"a": 4, "b": 1}))
        done.wait(4)
        assert pool.waiting_leases() == {(1, 1001), (2, 1002), (3, 1003)} and pool.withdraw(2, 1002)
        pool.release(2, 1002)
        pool.release(1, 1001)
        done.wait(1)
        assert set(done.outcomes) == {4, 1}
        assert [left.job_id for left in pool.stop(1)] == [3]
    """)


@both_pools
def test_withdrawing_races_with_the_slots_and_each_item_has_one_end(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        sys.setswitchinterval(0.0001)  # so that threads meet in the middle of things
        pool = make(2, done)
        pool.start()
        numbers = range(1, 901)
        for n in numbers:  # some sleep, so that not all are done before this thread has its turn again
            pool.submit(item(n, "add", {"a": n, "b": 1}) if n % 50 else item(n, "slow_task", {"seconds": 0.002}))
        done.wait(1)
        withdrawn = [n for n in reversed(numbers) if pool.withdraw(n, 1000 + n)]
        until(lambda: not pool.running() and not pool.waiting())
        assert pool.stop(5) == []
        assert withdrawn and sorted([*done.outcomes, *withdrawn]) == list(numbers)
    """)


@both_pools
def test_a_cancel_right_after_the_submit_is_never_lost(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(2, done)
        pool.start()
        pool.submit(item(1, "add", {"a": 1, "b": 1}))
        done.wait(1)
        for n in range(2, 102):
            pool.submit(item(n, "until_cancelled", {"mark": MARK + "x" * (n % 3) * 50}))
            if n % 2:
                time.sleep(0.0005 * (n % 7))  # meets the item in another stage each time
            assert pool.cancel(n)
            [outcome] = done.wait(n)
            assert outcome.error["name"] == "CancelledTaskError"
        assert pool.stop(5) == []
    """)


@both_pools
def test_stop_lets_running_items_finish_within_the_grace(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "slow_task", {"seconds": 0.5}))
        pool.submit(item(2, "add", {"a": 1, "b": 1}))
        until(lambda: pool.running() == 1)
        left = pool.stop(20)
        assert [i.job_id for i in left] == [2]
        assert list(done.outcomes) == [1] and done.outcomes[1].kind == "ack"
        from greenroom.errors import DrainingError
        try:
            pool.submit(item(3, "add", {"a": 1, "b": 1}))
        except DrainingError:
            pass
        else:
            raise AssertionError("a stopped pool took an item")
    """)


@both_pools
def test_stop_hands_back_what_did_not_finish_and_reports_nothing_of_it(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        pool = make(2, done)
        pool.start()
        pool.submit(item(1, "until_cancelled", {"mark": MARK}))
        pool.submit(item(2, "slow_task", {"seconds": 50}))
        for n in (3, 4, 5):
            pool.submit(item(n, "add", {"a": 1, "b": 1}))
        until(lambda: os.path.exists(MARK) and pool.running() == 2)
        pids = pool.pids() if KIND == "process" else []
        began = time.monotonic()
        left = pool.stop(0.3)
        assert sorted(i.job_id for i in left) == [1, 2, 3, 4, 5], left
        assert time.monotonic() - began < 10
        # Cancelled tasks end by themselves, children are ended; neither is reported any more.
        until(lambda: not any("greenroom-" in thread.name for thread in threading.enumerate()))
        assert done.outcomes == {} and not any(is_alive(pid) for pid in pids)
        assert pool.stop(1) == []
    """)


@both_pools
def test_a_receiver_that_raises_is_logged_and_harms_nobody(kind: str, tmp_path: Path) -> None:
    logged = run_script(kind, tmp_path, """
        def receiver(outcome):
            done(outcome)
            raise RuntimeError("the receiver is broken")
        pool = make(1, receiver)
        pool.start()
        for n in range(1, 6):
            pool.submit(item(n, "add", {"a": n, "b": n}))
        assert [unpack_value(o.result) for o in done.wait(1, 2, 3, 4, 5)] == [2, 4, 6, 8, 10]
        assert pool.stop(5) == []
    """)

    assert logged.count("RuntimeError: the receiver is broken") == 5


@both_pools
def test_a_pool_refuses_the_same_lease_twice_and_more_than_it_may_hold(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        from greenroom.errors import BusyError
        pool = make(1, done)
        pool.submit(item(1, "add", {"a": 1, "b": 1}))
        pool.submit(item(1, "add", {"a": 1, "b": 1}, fence=2))  # the same job under a new lease is another run
        try:
            pool.submit(item(1, "add", {"a": 1, "b": 1}))
        except ValueError:
            pass
        else:
            raise AssertionError("the same lease was taken twice")
        for n in range(3, 1002):
            pool.submit(item(n, "add", {"a": 1, "b": 1}))
        try:
            pool.submit(item(5000, "add", {"a": 1, "b": 1}))
        except BusyError:
            pass
        else:
            raise AssertionError("the line has no bound")
        assert len(pool.stop(1)) == 1001
    """)


def test_pool_threads_are_named_daemons(tmp_path: Path) -> None:
    run_script("thread", tmp_path, """
        pool = make(2, done)
        pool.start()
        threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        assert sorted(thread.name for thread in threads) == ["greenroom-task-1", "greenroom-task-2"]
        assert all(thread.daemon for thread in threads)
        assert pool.stop(5) == []
        assert threading.active_count() == 1
    """)


@both_pools
def test_a_run_over_its_soft_limit_is_told_and_not_killed(kind: str, tmp_path: Path) -> None:
    run_script(kind, tmp_path, """
        import greenroom.pools
        greenroom.pools.CANCEL_GRACE_S = 0.1
        pool = make(1, done)
        pool.start()
        pool.submit(item(1, "tells", {"mark": MARK}))
        until(lambda: os.path.exists(MARK))
        assert pool.cancel(1, is_forced=False)
        [told] = done.wait(1)
        assert told.kind == "ack" and unpack_value(told.result) is True, told
        pool.stop(5)
    """)
