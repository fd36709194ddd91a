"""The commands for limits of queues: limit, limits. Stands on client_cli.py."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from greenroom import tables
from greenroom.client import Client
from greenroom.client_cli import DONE, Output, reader
from greenroom.client_control_cli import person
from greenroom.clock import Clock
from greenroom.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKMGT]?)(?:i?B)?")
_UNITS = {"": 1, "k": 2**10, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def add_limit_commands(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes the parser of one."""
    limit = command("limit", do_limit, "let no more than so much wait in a queue; beyond it submits get FULL")
    limit.add_argument("queue", metavar="QUEUE")
    limit.add_argument("--jobs", type=int, metavar="N", help="so many scheduled and queued jobs")
    limit.add_argument("--bytes", type=size, metavar="SIZE", help="so many bytes of their payloads: 500000, 64M, 2G")
    limit.add_argument("--urgent", type=int, metavar="N", help="jobs of priority 1 to N may go beyond")
    limit.add_argument("--extra", type=int, metavar="PERCENT", help="… by so much, default 10")
    limit.add_argument("--reason", default="", metavar="TEXT", help="shown wherever the limit is")
    limit.add_argument("--off", action="store_true", help="end the limit")
    command("limits", do_limits, "list limits and how full their queues are")


def do_limit(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`limit`: print the limit, or whether there was one to end."""
    given = {"jobs": args.jobs, "bytes": args.bytes, "urgent": args.urgent, "extra": args.extra}
    if args.off:
        if any(value is not None for value in given.values()) or args.reason:
            raise ConfigError("--off stands alone")
        removed = client.unlimit(args.queue)
        output.one({"removed": removed}, text=f"queue {args.queue} has no limit any more" if removed else f"queue {args.queue} had no limit")
        return DONE
    if args.jobs is None and args.bytes is None:
        raise ConfigError("say --jobs, --bytes or both; or --off")
    made = client.limit(args.queue, **given, reason=args.reason, by=args.name or person())
    output.one(made, text=f"queue {made['queue']} is limited: {fill(made)}")
    return DONE


def do_limits(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`limits`: list them."""
    columns = {name: reader(name) for name in ("queue", "full", "refused", "urgent", "by", "reason")}
    columns["limit"] = fill
    columns["set_at"] = lambda limit: tables.short_moment(limit.get("set_at"), Clock().now())
    output.rows(client.limits(), columns)
    return DONE


def fill(limit: dict | None) -> str:
    """Return a limit and how full it is in words, for a cell or the end of a sentence; empty: there is none."""
    if limit is None:
        return ""
    parts = [f"{limit['waiting']} of {limit['jobs']} jobs"] if limit["jobs"] is not None else []
    if limit["bytes"] is not None:
        parts.append(f"{_told(limit['waiting_bytes'])} of {_told(limit['bytes'])}")
    return ", ".join(parts) + (", full" if limit["full"] else "")


def size(text: str) -> int:
    """Return the bytes of `500000`, `64M` or `2G` (1M is 2^20)."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 500000, 64M or 2G")
    return int(float(found[1]) * _UNITS[found[2]])


def _told(number: int) -> str:
    for unit in ("T", "G", "M", "k"):
        if number >= _UNITS[unit]:
            return f"{number / _UNITS[unit]:.3g} {unit}iB".replace("kiB", "KiB")
    return f"{number} bytes"
