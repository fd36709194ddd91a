"""The commands `schedules` and `schedule` of the client's command line. Must not know the wire."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from greenroom import tables
from greenroom.client import Client
from greenroom.clock import Clock
from greenroom.errors import ConfigError

if TYPE_CHECKING:
    from greenroom.client_cli import Output

#: Flags that say what a schedule is -> the argument of Client.schedule.
_DEFINING = ("cron", "every", "timezone", "task", "payload", "queue", "priority", "overlap", "missed", "missed_max")


def add_schedule_commands(command: Callable[..., argparse.ArgumentParser], read_payload: Callable[[str | None], object],
                          positive: Callable[[str], int]) -> None:
    """Add both commands.

    Args:
        command: adds one: name, function and help in, parser out.
        read_payload, positive: how a payload and a count are read.
    """
    command("schedules", do_schedules, "list schedules").add_argument(
        "-n", type=positive, default=1000, metavar="COUNT", help="at most so many, default 1000")
    one = command("schedule", lambda client, args, output: do_schedule(client, args, output, read_payload),
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
    one.add_argument("--missed-max", type=positive, metavar="N", help="with --missed all: the last N at most, default 10")
    action = one.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="submit its job once, now; prints the job's id")
    action.add_argument("--pause", metavar="REASON", help="submit nothing until --resume")
    action.add_argument("--resume", action="store_true", help="go on with the next planned time")
    action.add_argument("--delete", action="store_true", help="delete it; its jobs stay")


def do_schedules(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`schedules`: print all of them."""
    output.rows(islice(client.schedules(), args.n), COLUMNS)
    return 0


def do_schedule(client: Client, args: argparse.Namespace, output: Output, read_payload: Callable[[str | None], object]) -> int:
    """`schedule`: act on one, make it, or show it."""
    given = {name: getattr(args, name) for name in _DEFINING if getattr(args, name) is not None}
    acts = args.run or args.resume or args.delete or args.pause is not None
    if given and acts:
        raise ConfigError("--run, --pause, --resume and --delete stand alone")
    if given:
        if "task" not in given or not ("cron" in given or "every" in given):
            raise ConfigError("a schedule needs --task, and --cron or --every")
        given["payload"] = read_payload(given.get("payload"))
        output.one(_readable(client.schedule(args.name, **given)))
    elif args.run:
        handle = client.run_schedule(args.name)
        output.one({"id": handle.id}, text=str(handle.id))
    elif args.delete:
        client.delete_schedule(args.name)
        output.one({"name": args.name, "deleted": True}, text="")
    elif args.resume or args.pause is not None:
        output.one(_readable(client.resume_schedule(args.name) if args.resume else client.pause_schedule(args.name, args.pause)))
    else:
        output.one(_readable(client.get_schedule(args.name)))
    return 0


def _readable(schedule: dict) -> dict:
    """Return a schedule for people: its payload decoded where it is one msgpack value, its runs as times."""
    from greenroom.client_cli import readable  # it imports this module
    job = schedule.get("job") or {}
    shown = readable({**schedule, "encoding": job.get("encoding")}) if "payload" in schedule else dict(schedule)
    shown.pop("encoding", None)
    return shown


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
