"""When cron lines and intervals come: time zones, both changes of the clock, what is refused."""

from __future__ import annotations

import random
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest

from greenroom.errors import InvalidError
from greenroom.recurrence import parse_recurrence

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
NOW = datetime(2026, 11, 27, tzinfo=timezone.utc).timestamp()


def local(text: str, zone: str, fold: int = 0) -> float:
    """Return the time of a wall clock in a zone; fold 1: the second time that it shows this."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def runs(line: str, zone: str, begin: float, end: float) -> list[str]:
    """Return all runs after `begin` and before `end`, as the zone's clock shows them, with its distance from UTC."""
    when = parse_recurrence(line, None, zone, begin)
    found = []
    at = when.next_after(begin)
    while at is not None and at < end:
        found.append(f"{datetime.fromtimestamp(at, ZoneInfo(zone)):%d %H:%M %z}")
        at = when.next_after(at)
    return found


# In 2026 Berlin skips 02:00-03:00 on 29 March and repeats 02:00-03:00 on 25 October; New York skips 02:00-03:00 on 8 March and
# repeats 01:00-02:00 on 1 November.
@pytest.mark.parametrize("line, zone, day, expected", [
    ("30 2 * * *", BERLIN, "2026-03-28", ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]),
    ("0,30 2 * * *", BERLIN, "2026-03-29", ["29 03:00 +0200", "30 02:00 +0200", "30 02:30 +0200", "31 02:00 +0200", "31 02:30 +0200"]),
    ("0 2,3 * * *", BERLIN, "2026-03-29", ["29 03:00 +0200", "30 02:00 +0200", "30 03:00 +0200", "31 02:00 +0200", "31 03:00 +0200"]),
    ("30 2 * * *", NEW_YORK, "2026-03-07", ["07 02:30 -0500", "08 03:00 -0400", "09 02:30 -0400"]),
    ("30 2 * * *", BERLIN, "2026-10-24", ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]),
    ("30 1 * * *", NEW_YORK, "2026-10-31", ["31 01:30 -0400", "01 01:30 -0400", "02 01:30 -0500"]),
])
def test_a_time_of_the_day_runs_once_on_each_day(line: str, zone: str, day: str, expected: list[str]) -> None:
    begin = local(f"{day}T00:00", zone)

    assert runs(line, zone, begin, begin + 3 * 86400 - 7200) == expected


@pytest.mark.parametrize("line, zone, begin, expected", [
    ("30 * * * *", BERLIN, "2026-03-29T01:00", ["29 01:30 +0100", "29 03:30 +0200", "29 04:30 +0200"]),
    ("30 * * * *", BERLIN, "2026-10-25T01:00", ["25 01:30 +0200", "25 02:30 +0200", "25 02:30 +0100"]),
    ("*/30 1 * * *", NEW_YORK, "2026-11-01T00:45", ["01 01:00 -0400", "01 01:30 -0400", "01 01:00 -0500", "01 01:30 -0500"]),
    ("30 * * * *", NEW_YORK, "2026-03-08T01:00", ["08 01:30 -0500", "08 03:30 -0400", "08 04:30 -0400"]),
])
def test_a_line_with_a_star_goes_by_elapsed_time(line: str, zone: str, begin: str, expected: list[str]) -> None:
    start = local(begin, zone)

    assert runs(line, zone, start, start + 3 * 3600) == expected


def test_a_line_put_within_the_repeated_hour_does_not_run_in_the_past() -> None:
    second_time = local("2026-10-25T02:10", BERLIN, fold=1)

    found = parse_recurrence("30 2 * * *", None, BERLIN, second_time).next_after(second_time)

    assert found == local("2026-10-26T02:30", BERLIN)


def test_a_zone_makes_the_difference_and_without_one_it_is_utc() -> None:
    assert parse_recurrence("0 12 * * *", None, None, NOW).next_after(NOW) == NOW + 12 * 3600
    assert parse_recurrence("0 12 * * *", None, "UTC", NOW).next_after(NOW) == NOW + 12 * 3600
    assert parse_recurrence("0 12 * * *", None, "Asia/Kolkata", NOW).next_after(NOW) == NOW + 6.5 * 3600


@pytest.mark.parametrize("text, seconds", [("1s", 1), ("10s", 10), ("5m", 300), ("2h", 7200), ("366d", 366 * 86400)])
def test_an_interval_is_counted_from_where_it_began(text: str, seconds: int) -> None:
    when = parse_recurrence(None, text, None, NOW)

    assert when.next_after(NOW + 0.25) == NOW + 0.25 + seconds
    assert when.latest(NOW, NOW + 3.5 * seconds, 2) == [NOW + 2 * seconds, NOW + 3 * seconds]
    assert when.latest(NOW, NOW, 2) == [NOW]


@pytest.mark.parametrize("fields, field", [
    ((None, None, None), "cron"), (("* * * * *", "5m", None), "cron"), ((None, "5m", BERLIN), "timezone"),
    (("* * * *", None, None), "cron"), (("0 * * * * *", None, None), "cron"), (("60 * * * *", None, None), "cron"),
    (("0 0 30 2 *", None, None), "cron"), (("0 0 */29 2 MON#5", None, None), "cron"), (("@daily", None, None), "cron"),
    (("٣ * * * *", None, None), "cron"), (("1," * 127 + "1 * * * *", None, None), "cron"),
    ((None, "0s", None), "every"), ((None, "367d", None), "every"), ((None, "1.5s", None), "every"), ((None, "5", None), "every"),
    ((None, "999999999d", None), "every"),
    (("* * * * *", None, "Europe/Atlantis"), "timezone"), (("* * * * *", None, "../../etc/passwd"), "timezone"),
    (("* * * * *", None, "Europe"), "timezone"), (("* * * * *", None, ""), "timezone"), (("* * * * *", None, "a\0b"), "timezone"),
    (("* * * * *", None, "/etc/localtime"), "timezone"),
])
def test_what_says_no_time_is_refused_by_name(fields: tuple[str | None, ...], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_recurrence(*fields, NOW)

    assert caught.value.field == field


def test_the_latest_times_are_those_that_going_forward_finds() -> None:
    rng = random.Random(20261127)
    lines = ["* * * * *", "*/7 * * * *", "30 2 * * *", "0,30 2 * * *", "0 2,3 * * *", "15 1-4 * * *", "0 */2 * * *", "45 23 * * *"]
    changes = [local(day, zone) for day, zone in (("2026-03-29", BERLIN), ("2026-10-25", BERLIN), ("2026-03-08", NEW_YORK),
                                                  ("2026-11-01", NEW_YORK))]
    for _ in range(200):
        line, zone = rng.choice(lines), rng.choice([BERLIN, NEW_YORK, "Australia/Lord_Howe", "America/Santiago"])
        begin = rng.choice(changes) + rng.uniform(-43200, 43200)
        end, count = begin + rng.uniform(0, 86400), rng.randint(1, 30)
        when = parse_recurrence(line, None, zone, begin)
        forward = []
        at = first = when.next_after(begin)
        while at <= end:
            forward.append(at)
            at = when.next_after(at)

        assert when.latest(first, end, count) == forward[-count:], (line, zone, begin, end, count)


def test_whatever_is_given_as_a_line_is_a_line_or_refused() -> None:
    rng = random.Random(7)
    pieces = ["*", "/", "-", ",", "#", "L", "W", "0", "1", "5", "29", "31", "59", "MON", "FEB", "?", "²", "x"]
    accepted = 0
    for _ in range(3000):
        fields = ["*"] * 5
        for place in rng.sample(range(5), rng.choice((1, 1, 2))):
            fields[place] = "".join(rng.choice(pieces) for _ in range(rng.choice((1, 2, 3, 4))))
        line = " ".join(fields)
        try:
            parse_recurrence(line, None, None, NOW)
            accepted += 1
        except InvalidError as exc:
            assert exc.field == "cron"
    assert accepted > 100
