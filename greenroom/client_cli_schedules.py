"""The commands `schedules` and `schedule` of the client's command line. Must not know the wire."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from greenroom import tables
from greenroom.client import Client
from greenroom.clock import Clock
from greenroom.errors import ConfigError

if TYPE_CHECKING:
    from greenroom.client_cli import Output

#: Flags that say what a schedule is -> the argument of Client.schedule.
_DEFINING = ("cron", "every", "timezone", "task", "payload", "queue", "priority", "overlap", "missed", "missed_max")


class Ways(NamedTuple):
    """How the command line reads and shows what schedules have in common with jobs."""

    read_payload: Callable[[str | None], object]
    positive: Callable[[str], int]
    readable: Callable[[dict], dict]


def add_schedule_commands(command: Callable[..., argparse.ArgumentParser], ways: Ways) -> None:
    """Add both commands.

    Args:
        command: adds one: name, function and help in, parser out.
    """
    command("schedules", do_schedules, "list schedules").add_argument(
        "-n", type=ways.positive, default=1000, metavar="COUNT", help="at most so many, default 1000")
    one = command("schedule", lambda client, args, output: do_schedule(client, args, output, ways),
                  "show, make, replace or change a schedule")
    one.add_argument("name", metavar="NAME")
    one.add_argument("payload", metavar="JSON", nargs="?", help="with --task: a map of arguments; - reads it from stdin")
    when = one.add_mutually_exclusive_group()
    when.add_argument("--cron", metavar="LINE", help="'minute hour day month weekday', as '0 3 * * MON-FRI'")
    when.add_argument("--every", metavar="INTERVAL", help="10s, 5m, 2h, 1d")
    one.add_argument("--tz", dest="timezone", metavar="ZONE", help="time zone of --cron, as Europe/Berlin; default UTC")
    one.add_argument("--task", metavar="TASK", help="what to submit")
    one.add_argument("-q", "--queue", metavar="QUEUE", help="default: default")
    one.add_argument("-p", "--priority", type=int, metavar="N", help="1 (first) to 10 (last), default 5")
    one.add_argument("--overlap", choices=["skip", "queue", "replace"],
                     help="when the previous job is unfinished: no new one (default), a new one all the same, or one in its place")
    one.add_argument("--missed", choices=["skip", "once", "all"], help="runs that fell into a downtime: none, one for all (default), each")
    one.add_argument("--missed-max", type=ways.positive, metavar="N", help="with --missed all: the last N at most, default 10")
    action = one.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="submit its job once, now; prints the job's id")
    action.add_argument("--pause", metavar="REASON", help="submit nothing until --resume")
    action.add_argument("--resume", action="store_true", help="go on with the next planned time")
    action.add_argument("--delete", action="store_true", help="delete it; its jobs stay")


def do_schedules(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`schedules`: print all of them."""
    output.rows(islice(client.schedules(), args.n), COLUMNS)
    return 0


def do_schedule(client: Client, args: argparse.Namespace, output: Output, ways: Ways) -> int:
    """`schedule`: act on one, make it, or show it."""
    given = {name: getattr(args, name) for name in _DEFINING if getattr(args, name) is not None}
    acts = args.run or args.resume or args.delete or args.pause is not None
    if given and acts:
        raise ConfigError("--run, --pause, --resume and --delete stand alone")
    if given:
        if "task" not in given or not ("cron" in given or "every" in given):
            raise ConfigError("a schedule needs --task, and --cron or --every")
        given["payload"] = ways.read_payload(given.get("payload"))
        _show(client.schedule(args.name, **given), output, ways)
    elif args.run:
        handle = client.run_schedule(args.name)
        output.one({"id": handle.id}, text=str(handle.id))
    elif args.delete:
        client.delete_schedule(args.name)
        output.one({"name": args.name, "deleted": True}, text="")
    elif args.pause is not None:
        _show(client.pause_schedule(args.name, args.pause), output, ways)
    elif args.resume:
        _show(client.resume_schedule(args.name), output, ways)
    else:
        _show(client.get_schedule(args.name), output, ways)
    return 0


def _show(schedule: dict, output: Output, ways: Ways) -> None:
    """Print one: its payload decoded where it is one msgpack value; for people its times as times, one run a line."""
    if "payload" in schedule:
        shown = ways.readable({**schedule, "encoding": (schedule.get("job") or {}).get("encoding")})
        schedule = {**schedule, "payload": shown["payload"]}
    rows: list[list[object]] = []
    for field, value in schedule.items():
        if field == "next_runs":
            rows += [["run", tables.moment(at)] for at in value]
        elif field == "job":
            rows += [[f"job.{name}", option] for name, option in value.items()]
        elif value is not None:
            rows.append([field, tables.moment(value) if field.endswith("_at") else value])
    output.one(schedule, text=tables.render(["field", "value"], rows))


def _when(schedule: dict) -> str:
    if schedule.get("error"):
        return f"can't run: {schedule['error']}"
    if schedule["every"]:
        return f"every {schedule['every']}"
    return f"{schedule['cron']} {schedule['timezone'] or 'UTC'}"


def _next(schedule: dict) -> str:
    if schedule.get("paused_at") is not None:
        return f"paused: {schedule['reason']}" if schedule["reason"] else "paused"
    return tables.short_moment(schedule.get("next_at"), Clock().now())


COLUMNS: dict[str, Callable[[dict], object]] = {
    "name": lambda schedule: schedule["name"],
    "when": _when,
    "task": lambda schedule: (schedule.get("job") or {}).get("task"),
    "next": _next,
    "runs": lambda schedule: schedule.get("runs"),
    "skipped": lambda schedule: schedule.get("skipped"),
    "last job": lambda schedule: schedule.get("last_job"),
}
