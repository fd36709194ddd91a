"""The command that prints what happens: events. Stands on client_cli.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from greenroom import tables
from greenroom.client import Client
from greenroom.client_cli import DONE, Output
from greenroom.events import KINDS

#: Fields that every line of text shows in places of their own, or not at all.
_PLACED = ("kind", "at", "job", "queue", "task", "seq", "position", "state")


def add_events_command(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the command; `command` makes its parser."""
    events = command("events", do_events, "print what happens to jobs, as it happens")
    events.add_argument("-q", "--queue", metavar="QUEUE", help="only in this queue")
    events.add_argument("--task", metavar="TASK", help="only of this task")
    events.add_argument("--kind", dest="kinds", action="append", choices=KINDS, metavar="KIND",
                        help="only these, may be given again; default: all but progress. " + ", ".join(KINDS))
    events.add_argument("--after", metavar="POSITION", help="also what came after the event with this position")


def do_events(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`events`: print them as they come, with --timeout until so many seconds bring none."""
    with client.events(queue=args.queue, task=args.task, kinds=args.kinds, after=args.after, timeout=args.timeout) as stream:
        output.lines(stream, line_of)
    return DONE


def line_of(event: dict) -> str:
    """Return an event as a line for people."""
    if event["kind"] == "gap":
        return "--------  events are missing here"
    of = f"job {event['job']} {event['queue']}/{event['task']}" if "job" in event else \
        f"queue {event['queue']}" if "queue" in event else f"task {event['task']}"
    more = " ".join(f"{name}={_shown(name, value)}" for name, value in event.items() if name not in _PLACED and value not in (None, ""))
    return f"{tables.clock_time(event['at'])}  {event['kind']:<10} {of}  {more}".rstrip()


def _shown(name: str, value: object) -> object:
    return tables.clock_time(value) if name in ("run_at", "until") else value
