"""The commands for those who steer the broker: pause, resume, pauses, change, purge, explain. Stands on client_cli.py."""

from __future__ import annotations

import argparse
import getpass
import re
import socket
from collections.abc import Callable

from greenroom import tables
from greenroom.client import Client
from greenroom.client_cli import (DONE, USAGE, Output, add_bulk_flags, check_target, job_id, moment, on_all, payload, print_outcomes, reader, say)
from greenroom.clock import Clock
from greenroom.errors import ConfigError

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def add_commands(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes the parser of one."""
    pause = command("pause", do_pause, "hold back the jobs of a queue or task; what runs goes on")
    _add_target(pause)
    pause.add_argument("--for", dest="seconds", type=span, metavar="TIME", help="so long: 90s, 10m, 2h, 1d; default: until resume")
    pause.add_argument("--reason", default="", metavar="TEXT", help="shown wherever the queue or task is")
    _add_target(command("resume", do_resume, "end the pause of a queue or task"))
    command("pauses", do_pauses, "list what is paused")
    change = command("change", do_change, "change jobs that wait")
    add_bulk_flags(change)
    change.add_argument("-p", "--priority", type=int, metavar="N", help="1 (first) to 10 (last); each keeps its place")
    change.add_argument("-q", "--queue", metavar="QUEUE", help="they go to the end of that queue")
    change.add_argument("--delay", type=float, metavar="S", help="not before so many seconds from now; 0: now")
    change.add_argument("--run-at", type=moment, metavar="T", help="not before: 2030-01-31T09:00 or Unix seconds")
    change.add_argument("--payload", metavar="JSON", help="another map of arguments; - reads it from stdin; not with --filter")
    purge = command("purge", do_purge, "cancel all jobs that wait in a queue")
    purge.add_argument("queue", metavar="QUEUE")
    purge.add_argument("--task", metavar="TASK", help="only those of this task")
    purge.add_argument("--yes", action="store_true", help="really; without it only how many wait is told")
    explain = command("explain", do_explain, "say why a job, or a queue, does not run")
    target = explain.add_mutually_exclusive_group(required=True)
    target.add_argument("id", metavar="ID", nargs="?", type=job_id)
    target.add_argument("-q", "--queue", metavar="QUEUE")


def _add_target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("queue", metavar="QUEUE", nargs="?")
    target.add_argument("--task", metavar="TASK", help="a task, in all queues")


def do_pause(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`pause`: print the pause."""
    made = client.pause(args.queue, task=args.task, seconds=args.seconds, reason=args.reason, by=args.name or person())
    output.one(made, text=f"{_target_of(made)} is paused{held(made)}")
    return DONE


def do_resume(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`resume`: say whether it was paused."""
    resumed = client.resume(args.queue, task=args.task)
    name = _target_of({"queue": args.queue, "task": args.task})
    output.one({"resumed": resumed}, text=f"{name} is resumed" if resumed else f"{name} was not paused")
    return DONE


def do_pauses(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`pauses`: list them."""
    columns = {name: reader(name) for name in ("queue", "task", "by", "reason")}
    for name in ("paused_at", "until"):
        columns[name] = _moment_reader(name)
    output.rows(client.pauses(), columns)
    return DONE


def do_change(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`change`: print what became of each, or how many there were."""
    changes = {"priority": args.priority, "queue": args.queue, "delay": args.delay, "run_at": args.run_at}
    if args.payload is not None:
        changes["payload"] = payload(args.payload)
    if all(value is None for value in changes.values()):
        raise ConfigError("say what to change: --priority, --queue, --delay, --run-at or --payload")
    check_target(args, is_said=args.filter is not None)
    if args.filter is None:
        return print_outcomes(args.ids, client.change(args.ids, **changes), output)
    if args.payload is not None:
        raise ConfigError("one --payload for all jobs that fit would be a mistake: name them by id")
    return on_all(client, args, output, "change", changes)


def do_purge(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`purge`: print how many were cancelled."""
    if not args.yes:
        shown = client.explain_queue(args.queue)
        counted = shown if args.task is None else next(
            (task for task in shown["tasks"] if task["task"] == args.task), {"queued": 0, "scheduled": 0})
        say(f"{counted['queued'] + counted['scheduled']} jobs wait there and would be cancelled; say --yes to do it")
        return USAGE
    purged = client.purge(args.queue, task=args.task)
    output.one({"purged": purged}, text=f"{purged} jobs cancelled")
    return DONE


def do_explain(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`explain`: print each closed gate and what opens it."""
    if args.id is not None:
        shown = client.explain(args.id)
        lines = [f"job {shown['job']} ({shown['task']} in {shown['queue']}) is {shown['state']}", *_gate_lines(shown)]
        if shown["starts_at"] is not None:
            lines.append(f"  it should start at {tables.moment(shown['starts_at'])}")
    else:
        shown = client.explain_queue(args.queue)
        lines = [f"queue {shown['queue']}: {_numbers(shown)}", *_gate_lines(shown)]
        for task in shown["tasks"]:
            lines += [f"task {task['task']}: {_numbers(task)}", *_gate_lines(task)]
    output.one(shown, text="\n".join(tables.escape(line) for line in lines))
    return DONE


def _numbers(shown: dict) -> str:
    rate = "" if shown["rate"] is None else f", {shown['rate']:.3g} done a second"
    return (f"{shown['queued']} queued, {shown['scheduled']} scheduled, {shown['running']} running{rate}; workers: {shown['workers']}, "
            f"of them waiting for work: {shown['asking']}")


def _gate_lines(shown: dict) -> list[str]:
    lines = []
    for gate in shown["gates"]:
        at = "" if gate["at"] is None else f" (at {tables.moment(gate['at'])})"
        lines.append(f"  {gate['text']}" + (f"; opens with: {gate['opens']}{at}" if gate["opens"] else ""))
    return lines


def _target_of(shown: dict) -> str:
    return f"queue {shown['queue']}" if shown["queue"] is not None else f"task {shown['task']}"


def held(pause: dict | None) -> str:
    """Return a pause in words, for a cell or the end of a sentence; empty: none."""
    if pause is None:
        return ""
    until = "" if pause["until"] is None else f" until {tables.short_moment(pause['until'], Clock().now())}"
    return f" by {pause['by']}{until}" + (f": {pause['reason']}" if pause["reason"] else "")


def _moment_reader(name: str) -> Callable[[dict], object]:
    return lambda item: tables.short_moment(item.get(name), Clock().now())


def person() -> str:
    """Return who sits here, as `ann@host`."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"[:128]
    except (OSError, KeyError):
        return socket.gethostname()[:128]


def span(text: str) -> float:
    """Return the seconds of `90`, `90s`, `10m`, `2h` or `1d`."""
    found = _SPAN.fullmatch(text)
    if found is None or not 1 <= float(found[1]) * _SECONDS[found[2]] <= 366 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 90s, 10m, 2h or 1d (1 s to 366 d)")
    return float(found[1]) * _SECONDS[found[2]]
