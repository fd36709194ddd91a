"""The worker's command line: its flags, their ranges, and the name of one that was given none. Must not know what a worker does."""

from __future__ import annotations

import argparse
import os
import socket

from greenroom.job import NAME_PATTERN
from greenroom.protocol import DEFAULT_LIMITS


def build_parser() -> argparse.ArgumentParser:
    """Return the worker's command line."""
    parser = argparse.ArgumentParser(
        prog="greenroom-worker", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run jobs for a Greenroom broker.",
        epilog="exit codes: 0 drained, 2 wrong use or settings, 3 could not connect, 4 TLS refused\n"
               "environment: GREENROOM_URL, GREENROOM_CA, GREENROOM_CERT, GREENROOM_KEY")
    parser.add_argument("--url", help="greenroom://host:port, default greenroom://localhost:65432")
    parser.add_argument("--ca", metavar="FILE", help="the broker's ca.crt, default certs/ca.crt")
    parser.add_argument("--cert", metavar="FILE", help="client certificate, if the broker requires one")
    parser.add_argument("--key", metavar="FILE", help="its private key")
    parser.add_argument("--tasks", action="append", default=[], metavar="MODULE",
                        help="module name or .py file whose tasks to offer; may be given several times")
    parser.add_argument("--no-builtins", action="store_true", help="do not offer the built-in tasks")
    parser.add_argument("--queues", metavar="A,B", help="take jobs only from these queues, default any")
    parser.add_argument("--concurrency", type=_count, default=4, metavar="N", help="jobs at the same time, default %(default)s")
    parser.add_argument("--name", help="shown to people, default HOST-PID")
    parser.add_argument("--pool", choices=["thread", "process"], default="thread",
                        help="where tasks run; process: for code that holds Python's interpreter lock; default %(default)s")
    parser.add_argument("--suspects", choices=["alone", "together"], default="alone",
                        help="how the thread pool runs jobs that crashed before: alone, so that a job that kills its worker takes no other "
                             "with it, or together with others; default %(default)s")
    parser.add_argument("--grace", type=_seconds, default=30.0, metavar="S",
                        help="seconds that running jobs have when the worker is stopped, default %(default)g")
    parser.add_argument("--connect-timeout", type=_seconds, metavar="S",
                        help="give up if the first connection takes longer, default never")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info",
                        help="default %(default)s; debug has lines for each job")
    return parser


def default_name() -> str:
    """Return a name out of the machine's and the process's."""
    host = "".join(char if NAME_PATTERN.fullmatch(char) else "-" for char in socket.gethostname().split(".")[0])[:100]
    return f"{host or 'worker'}-{os.getpid()}"


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 4 or not 1 <= int(text) <= DEFAULT_LIMITS.leases:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {DEFAULT_LIMITS.leases}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return value
