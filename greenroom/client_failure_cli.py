"""The commands for what failed: failures, and retry --group. Stands on client_cli.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from greenroom import tables
from greenroom.client import Client
from greenroom.client_cli import DONE, JOB_COLUMNS, JOB_FAILED, NOT_THERE, REFUSED, TIMED_OUT, Output, job_id, positive, reader, readable, say
from greenroom.client_failures import CANARY_S
from greenroom.client_filters import wire_filter
from greenroom.clock import Clock


def add_failures_command(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the command; `command` makes its parser."""
    failures = command("failures", do_failures, "list failed jobs by how they failed, or the jobs of one group")
    failures.add_argument("fingerprint", metavar="FINGERPRINT", nargs="?", help="list the jobs of this group")
    failures.add_argument("--filter", metavar="FILTER", help="only of jobs that fit, as in the command jobs: 'finished>-2h'")
    failures.add_argument("-q", "--queue", metavar="QUEUE", help="only in this queue")
    failures.add_argument("--task", metavar="TASK", help="only of this task")
    failures.add_argument("--before", metavar="ID", type=job_id, help="only jobs older than this one")
    failures.add_argument("-n", type=positive, default=50, metavar="COUNT", help="at most so many jobs of the group, default 50")


def do_failures(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`failures`: print the groups, or the jobs of one; how far was looked goes to stderr."""
    if args.fingerprint is not None:
        return _print_group(client, args, output)
    found = client.failures(args.filter, queue=args.queue, task=args.task, before=args.before)
    output.rows((group._asdict() for group in found.groups), _COLUMNS)
    if found.groups_total > len(found.groups):
        say(f"the largest {len(found.groups)} of {found.groups_total} groups")
    if found.next is not None:
        say(f"the newest {found.looked_at} failed jobs were looked at; for older ones say --before {found.next}")
    return DONE


def _print_group(client: Client, args: argparse.Namespace, output: Output) -> int:
    wanted = {"fingerprint": args.fingerprint, "state": "failed", **(wire_filter(args.filter) or {})}
    if args.before is not None:
        wanted["id_to"] = min(args.before - 1, wanted.get("id_to", args.before))
    jobs = client.jobs(wanted, queue=args.queue, task=args.task, limit=args.n, payload=True)
    first = next(jobs, None)
    if first is None:
        say(f"no failed job has the fingerprint {args.fingerprint}")
        return NOT_THERE

    def views() -> Iterator[dict]:
        yield readable(first)
        yield from map(readable, jobs)

    output.rows(views(), JOB_COLUMNS)
    return DONE


def retry_group(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`retry --group … --canary`: print what became of the one that was tried first, and of the others."""
    say("one is retried first, the others when it has completed")
    done = client.retry_group(args.group, timeout=args.timeout or CANARY_S)
    output.one(done._asdict(), text=tables.escape(done.message))
    if done.outcome == "retried":
        return REFUSED if done.refused else DONE
    return TIMED_OUT if done.outcome == "timeout" else JOB_FAILED


def _seen(name: str) -> Callable[[dict], object]:
    return lambda group: tables.short_moment(group[name], Clock().now())


def _workers(group: dict) -> str:
    hidden = group["workers_total"] - len(group["workers"][:2])
    return ", ".join(group["workers"][:2]) + (f" and {hidden} more" if hidden else "")


_COLUMNS: dict[str, Callable[[dict], object]] = {
    "fingerprint": reader("fingerprint"), "count": reader("count"), "first": _seen("first_at"), "last": _seen("last_at"),
    "workers": _workers, **{name: reader(name) for name in ("newest", "task", "error", "message", "place")},
}
