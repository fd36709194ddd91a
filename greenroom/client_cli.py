"""The client's command line: arguments in, calls on Client, text out, exit codes. Must not know the wire.

Data goes to stdout, talk to stderr. No user error ends in a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import datetime

from greenroom import tables
from greenroom.client import Client, decode_result
from greenroom.client_cli_schedules import Ways, add_schedule_commands
from greenroom.client_demo import run_demo
from greenroom.clock import Clock
from greenroom.errors import (ConfigError, ConnectError, GoneError, GreenroomError, JobFailedError, NotFoundError, TlsError,
                              WaitTimeoutError, from_wire)
from greenroom.job import OPTIONS, STATE_BY_LABEL, Extras
from greenroom.when_full import WAYS

DONE, JOB_FAILED, USAGE, NO_CONNECTION, TLS_REFUSED, NOT_THERE, TIMED_OUT, REFUSED = range(8)
INTERRUPTED = 130  # as shells do: 128 and the number of SIGINT

EXIT_CODES = """exit codes:
  0  done                       4  TLS refused: certificate, name, ALPN
  1  a job that was waited for  5  a job or schedule is not there
     failed or was cancelled    6  timed out
  2  wrong use or settings      7  refused: state of the job, limits, broker full
  3  cannot connect             130  interrupted

environment: GREENROOM_URL, GREENROOM_CA, GREENROOM_CERT, GREENROOM_KEY; NO_COLOR"""

STATE_STYLES = {"completed": "32", "running": "33", "failed": "31", "cancelled": "35", "queued": "36", "scheduled": "34",
                "busy": "33", "idle": "32", "lost": "31"}


class Output:
    """Where results go, in the form that was asked for or that fits."""

    def __init__(self, form: str | None) -> None:
        self._is_terminal = sys.stdout.isatty()
        self.form = form

    def rows(self, items: Iterable[dict], columns: dict[str, Callable[[dict], object]]) -> None:
        """Print a list of things: a table on a terminal, else one JSON object a line, as they come."""
        form = self.form or ("table" if self._is_terminal else "jsonl")
        if form == "jsonl":
            for item in items:
                self._write(tables.dump(item))
        elif form == "json":
            self._write(tables.dump(list(items), indent=2))
        else:
            width = shutil.get_terminal_size().columns if self._is_terminal else None
            cells = [[read(item) for read in columns.values()] for item in items]
            self._write(tables.render(list(columns), cells, width=width, styles=self._styles()))

    def lines(self, items: Iterable[dict], text: Callable[[dict], str]) -> None:
        """Print a list of things as they come: a text each on a terminal, else one JSON object a line."""
        form = self.form or ("table" if self._is_terminal else "jsonl")
        if form == "json":
            self._write(tables.dump(list(items), indent=2))
            return
        for item in items:
            self._write(tables.dump(item) if form == "jsonl" else tables.escape(text(item)))

    def one(self, item: dict, text: str | None = None) -> None:
        """Print a single thing: `text` (empty: nothing), or its fields, on a terminal, else JSON."""
        form = self.form or ("table" if self._is_terminal else "json")
        if form == "jsonl":
            self._write(tables.dump(item))
        elif form == "json":
            self._write(tables.dump(item, indent=2))
        elif text is not None:
            if text:
                self._write(text)
        else:
            self._write(tables.render(["field", "value"], [list(pair) for pair in _flat(item) if pair[1] is not None]))

    def _styles(self) -> dict[str, str] | None:
        return STATE_STYLES if self._is_terminal and not os.environ.get("NO_COLOR") else None

    def _write(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _flat(item: dict) -> Iterable[tuple[str, object]]:
    """Yield name and value of each field; the fields of a map get its name before theirs. Payload and result stay whole."""
    for key, value in item.items():
        if isinstance(value, dict) and key not in ("payload", "result"):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        elif (key.endswith("_at") or key == "now") and isinstance(value, (int, float)):
            yield key, tables.moment(value)
        else:
            yield key, value


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode must not end in a traceback
    try:
        args = build_parser().parse_args(arguments)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else USAGE
    try:
        with Client(args.url, ca=args.ca, cert=args.cert, key=args.key, name=args.name, timeout=args.timeout or 30.0) as client:
            return args.command(client, args, Output(args.output))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Without this the interpreter complains when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except GreenroomError as exc:
        say(exc.message)
        return exit_code(exc)


def say(sentence: str) -> None:
    """Print a line for the person, to stderr."""
    sys.stderr.write(f"greenroom: {tables.escape(sentence)}\n")


def exit_code(exc: GreenroomError) -> int:
    """Return the exit code that stands for an error."""
    for classes, code in (((ConfigError,), USAGE), ((TlsError,), TLS_REFUSED), ((ConnectError,), NO_CONNECTION),
                          ((WaitTimeoutError,), TIMED_OUT), ((NotFoundError, GoneError), NOT_THERE),
                          ((JobFailedError,), JOB_FAILED)):
        if isinstance(exc, classes):
            return code
    return USAGE if exc.code == "INVALID" else TIMED_OUT if exc.code == "UNKNOWN" else REFUSED


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError("say yes or no")
    return text == "yes"


#: How the text of a rare option is read, by its kind in the table of options.
_READ: dict[str, Callable[[str], object]] = {
    "int": int, "seconds": float, "word": str, "text": str, "bool": _yes_or_no, "list of texts": lambda text: text.split(",")}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each command's function is `args.command(client, args, output)`."""
    top = argparse.ArgumentParser(prog="greenroom", allow_abbrev=False, epilog=EXIT_CODES,
                                  formatter_class=argparse.RawDescriptionHelpFormatter,
                                  description="Submit jobs to a Greenroom broker and look at it.")
    _add_common(top, is_top=True)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[..., int], help_text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".",
                                     allow_abbrev=False)
        _add_common(parser, is_top=False)
        parser.set_defaults(command=function)
        return parser

    submit = command("submit", do_submit, "hand in a job")
    submit.add_argument("task", metavar="TASK")
    submit.add_argument("payload", metavar="JSON", nargs="?", help="a map of arguments, {\"n\": 10}; - reads it from stdin")
    _add_job_flags(submit)
    resubmit = command("resubmit", do_resubmit, "hand in a copy of a job, with what is said here instead; the job stays as it is")
    resubmit.add_argument("id", metavar="ID", type=job_id)
    resubmit.add_argument("--payload", metavar="JSON", help="another map of arguments; - reads it from stdin")
    _add_job_flags(resubmit)
    for name, function, help_text in (("get", do_get, "show jobs"), ("wait", do_wait, "wait for jobs to finish")):
        command(name, function, help_text).add_argument("ids", metavar="ID", nargs="+", type=job_id)
    add_bulk_flags(command("cancel", do_cancel, "cancel jobs"))
    add_bulk_flags(command("delete", do_delete, "delete finished jobs for good"))
    retry = command("retry", do_retry, "let jobs run again that failed, were cancelled or expired")
    add_bulk_flags(retry)
    retry.add_argument("--group", metavar="FINGERPRINT", help="all that failed alike, see the command failures; with --canary, --yes or --dry-run")
    retry.add_argument("--canary", action="store_true", help="with --group: the newest first, the others once it has completed")
    retry.add_argument("--failed", action="store_true", help="all that failed; with --queue and --task only those of them")
    for name in ("queue", "task"):
        retry.add_argument(f"--{name}", metavar="NAME")
    _add_looks(command)
    command("queues", do_queues, "list queues")
    # Not above: they stand on this module.
    from greenroom.client_control_cli import add_commands
    from greenroom.client_event_cli import add_events_command
    from greenroom.client_failure_cli import add_failures_command
    from greenroom.client_limit_cli import add_limit_commands
    add_commands(command)
    add_limit_commands(command)
    add_events_command(command)
    add_failures_command(command)
    command("workers", do_workers, "list workers")
    command("stats", do_stats, "show the broker's counts")
    backup = command("backup", do_backup, "copy the broker's store into a file, while it runs")
    backup.add_argument("file", metavar="FILE")
    backup.add_argument("--force", action="store_true", help="replace a file that is there")
    add_schedule_commands(command, Ways(payload, positive, readable))
    command("demo", do_demo, "show that an urgent job overtakes a waiting one")
    return top


def _add_looks(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that look at jobs: runs, logs, jobs."""
    command("runs", do_runs, "show the runs of a job that did not complete it").add_argument("id", metavar="ID", type=job_id)
    logs = command("logs", do_logs, "show what a job wrote to its log")
    logs.add_argument("id", metavar="ID", type=job_id)
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more until the job is finished")
    jobs = command("jobs", do_jobs, "list jobs, newest first")
    jobs.add_argument("filter", metavar="FILTER", nargs="?", help="as in 'state:failed task:mail.* error:TimeoutError finished>-2h \"no answer\"'")
    jobs.add_argument("--state", choices=list(STATE_BY_LABEL))
    for name in ("queue", "task", "worker"):
        jobs.add_argument(f"--{name}", metavar="NAME")
    jobs.add_argument("-n", type=positive, default=50, metavar="COUNT", help="at most so many, default 50")


def _add_common(parser: argparse.ArgumentParser, *, is_top: bool) -> None:
    # Allowed before and after the command; a command's parser must not overwrite what stood before it with a default.
    default = None if is_top else argparse.SUPPRESS
    group = parser.add_argument_group("connection and output")
    group.add_argument("--url", default=default, help="greenroom://host:port, default greenroom://localhost:65432")
    group.add_argument("--ca", default=default, metavar="FILE", help="the broker's ca.crt, default certs/ca.crt")
    group.add_argument("--cert", default=default, metavar="FILE", help="client certificate, if the broker requires one")
    group.add_argument("--key", default=default, metavar="FILE", help="its private key")
    group.add_argument("--name", default=default, help="how the broker's pages show this client")
    group.add_argument("--timeout", default=default, type=_seconds, metavar="S",
                       help="seconds to wait for the broker (default 30) and for jobs (default: no limit)")
    group.add_argument("-o", "--output", default=default, choices=["table", "json", "jsonl"],
                       help="default: table on a terminal, else json for one thing and jsonl for lists")


def _add_job_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a submit may say of its job."""
    parser.add_argument("-p", "--priority", type=int, metavar="N", help="1 (first) to 10 (last), default 5")
    parser.add_argument("-q", "--queue", metavar="QUEUE", help="default: default")
    parser.add_argument("--delay", type=float, metavar="S", help="not before so many seconds from now")
    parser.add_argument("--run-at", type=moment, metavar="T", help="not before: 2030-01-31T09:00 or Unix seconds")
    parser.add_argument("--wait", action="store_true", help="wait for the result and print it")
    parser.add_argument("--on-full", choices=WAYS, help="if the broker has no room: raise (exit code 7), wait, or drop the job; default raise")
    parser.add_argument("--full-timeout", type=_seconds, metavar="S", help="wait for room so long, default 300")
    rare = parser.add_argument_group("rare options")
    for option in (option for option in OPTIONS.values() if option.name in Extras._fields):
        flag = "run-timeout" if option.name == "timeout" else option.name.replace("_", "-")  # --timeout is how long we wait
        rare.add_argument(f"--{flag}", type=_READ[option.kind], dest=f"option_{option.name}", help=option.doc,
                          metavar=option.kind.split()[-1].upper())


def _submit_options(args: argparse.Namespace) -> dict[str, object]:
    """Return what was said of the job, and of how it is handed in."""
    said = {name: getattr(args, name) for name in ("queue", "priority", "delay", "run_at", "on_full", "full_timeout")}
    said.update((name, getattr(args, f"option_{name}")) for name in Extras._fields)
    return {"answer_timeout": args.timeout or 30.0, **{name: value for name, value in said.items() if value is not None}}


def do_submit(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`submit`: print the id, or with --wait the result."""
    handle = client.submit(args.task, payload(args.payload), **_submit_options(args))
    return _print_submitted(client, handle, args, output)


def do_resubmit(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`resubmit`: print the id of the copy, or with --wait the result."""
    changed = None if args.payload is None else payload(args.payload)
    handle = client.resubmit(args.id, changed, **_submit_options(args))
    return _print_submitted(client, handle, args, output)


def _print_submitted(client: Client, handle: Handle, args: argparse.Namespace, output: Output) -> int:
    if handle.is_dropped:
        say(f"the job was dropped: {handle.why.message}")
        output.one({"id": None, "dropped": True}, text="")
        return DONE
    if handle.is_duplicate:
        say(f"job {handle.id} has this unique key: no new one was made" + (", it has the new payload" if handle.is_replaced else ""))
    if not args.wait:
        output.one({"id": handle.id}, text=str(handle.id))
        return DONE
    say(f"job {handle.id} submitted, waiting for it")
    view = readable(next(client.wait([handle.id], args.timeout)))
    if "state" not in view:
        raise from_wire(view["error"])
    if view["state"] != "completed":
        output.one(view, text="")
        say(_end_of(view))
        return JOB_FAILED
    result = view["result"]
    output.one(view, text=tables.escape(result) if isinstance(result, str) else tables.dump(result))
    return DONE


def do_get(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`get`: print the jobs' views."""
    views = [readable(view) for view in client.get(args.ids, payload=True)]
    there = [view for view in views if "state" in view]
    for view in views:
        if "state" not in view:
            say(from_wire(view["error"]).message)
    if len(args.ids) == 1 and there:
        output.one(there[0])
    elif there:
        output.rows(there, JOB_COLUMNS)
    if len(there) == len(views):
        return DONE
    return max(exit_code(from_wire(view["error"])) for view in views if "state" not in view)


def do_wait(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`wait`: print the views of the jobs when they are finished."""
    ended: list[dict] = []
    code = DONE
    try:
        for view in client.wait(args.ids, args.timeout):
            ended.append(readable(view))
    except WaitTimeoutError as exc:
        say(exc.message)
        code = TIMED_OUT
    there = [view for view in ended if "state" in view]
    for view in ended:
        if "state" not in view:
            say(from_wire(view["error"]).message)
            code = code or exit_code(from_wire(view["error"]))
        elif view["state"] != "completed":
            say(_end_of(view))
    if len(args.ids) == 1 and there:
        output.one(there[0])
    elif there:
        output.rows(there, JOB_COLUMNS)
    return code or (JOB_FAILED if any(view["state"] != "completed" for view in there) else DONE)


def add_bulk_flags(parser: argparse.ArgumentParser) -> None:
    """Add how a command says which jobs it means: ids or a filter."""
    parser.add_argument("ids", metavar="ID", nargs="*", type=job_id)
    parser.add_argument("--filter", metavar="FILTER", help="instead of ids: all jobs that fit, as in the command jobs")
    parser.add_argument("--dry-run", action="store_true", help="with --filter: only count them")
    parser.add_argument("--yes", action="store_true", help="with --filter: really; without it only how many there are is told")


def check_target(args: argparse.Namespace, *, is_said: bool) -> None:
    """Raise ConfigError unless ids are given, or a filter (`is_said`: it, or what stands for it, is), not both."""
    if is_said == bool(args.ids) or (args.filter is None and (args.dry_run or args.yes)):
        raise ConfigError("give ids, or --filter with --yes or --dry-run")


def on_all(client: Client, args: argparse.Namespace, output: Output, action: str, changes: dict[str, object] | None = None) -> int:
    """Do something to all jobs that a filter lets through; how far it is goes to a terminal only. `changes`: of the action "change"."""
    def show(sums: dict) -> None:
        sys.stderr.write(f"\r\x1b[K{sums['done']} of {sums['matched']} done, down to job {sums['scanned_to']}" if args.yes and not args.dry_run
                         else f"\r\x1b[K{sums['matched']} found, down to job {sums['scanned_to']}")
        sys.stderr.flush()

    shows = sys.stderr.isatty()
    try:
        sums = client.bulk(action, args.filter, dry_run=args.dry_run or not args.yes, on_progress=show if shows else None, **(changes or {}))
    finally:
        if shows:
            sys.stderr.write("\r\x1b[K")
    if not (args.dry_run or args.yes):
        about = "" if sums["exact"] else "up to "
        say(f"{action} would meet {about}{sums['matched']} jobs; say --yes to do it")
        return USAGE
    if sums["why"] is not None:
        say(f"{sums['refused']} not possible, such as: {sums['why']}")
    output.one(sums)
    return REFUSED if sums["refused"] else DONE


def do_cancel(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`cancel`: print what became of each, or how many there were."""
    check_target(args, is_said=args.filter is not None)
    if args.filter is not None:
        return on_all(client, args, output, "cancel")
    return print_outcomes(args.ids, client.cancel(args.ids), output)


def do_delete(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`delete`: print what became of each, or how many there were."""
    check_target(args, is_said=args.filter is not None)
    if args.filter is not None:
        return on_all(client, args, output, "delete")
    return print_outcomes(args.ids, client.delete(args.ids), output)


def do_retry(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`retry`: print what became of each, of those given or of all that failed."""
    if (args.queue or args.task) and not args.failed or (args.failed and args.filter is not None):
        raise ConfigError("give ids, or --filter, or --failed with or without --queue and --task")
    if args.group is None and args.canary or (args.group is not None and (args.filter is not None or args.failed or args.ids)):
        raise ConfigError("give --group, with or without --canary, or ids, --filter or --failed")
    if args.group is not None:
        if args.canary and not args.dry_run:
            from greenroom.client_failure_cli import retry_group
            return retry_group(client, args, output)
        args.filter = {"state": "failed", "fingerprint": args.group}
    check_target(args, is_said=args.failed or args.filter is not None)
    if args.filter is not None:
        return on_all(client, args, output, "retry")
    ids = args.ids or [view["id"] for view in client.jobs(state="failed", queue=args.queue, task=args.task)]
    if not ids:
        say("there is none")
        return DONE
    return print_outcomes(ids, client.retry(ids), output)


def do_runs(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`runs`: print how the runs of a job ended."""
    output.rows(client.runs(args.id), {
        "attempt": lambda run: run["attempt"], "outcome": lambda run: run["outcome"], "worker": lambda run: run["worker"],
        "started": lambda run: tables.moment(run["started_at"]), "ran": _length,
        "error": lambda run: f"{run['error']['name']}: {run['error']['message']}" if run["error"] else ""})
    return DONE


def do_logs(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`logs`: print the lines of a job's log, with -f as they come."""
    output.lines(client.logs(args.id, follow=args.follow), lambda line: f"{tables.clock_time(line['at'])}  {line['text']}")
    return DONE


def _length(run: dict) -> str:
    return "" if run["started_at"] is None else f"{max(0.0, run['ended_at'] - run['started_at']):.1f} s"


def print_outcomes(ids: list[int], outcomes: list[str | GreenroomError], output: Output) -> int:
    """Print what became of each job; return the exit code."""
    code = DONE
    rows = []
    for job, outcome in zip(ids, outcomes):
        if isinstance(outcome, GreenroomError):
            say(outcome.message)  # names the job
            code = max(code, exit_code(outcome))
            outcome = outcome.code
        rows.append({"id": job, "outcome": outcome})
    output.rows(rows, {"id": lambda row: row["id"], "outcome": lambda row: row["outcome"]})
    return code


def do_jobs(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`jobs`: print what the filters let through."""
    found = client.jobs(args.filter, state=args.state, queue=args.queue, task=args.task, worker=args.worker, limit=args.n, payload=True)
    output.rows((readable(view) for view in found), JOB_COLUMNS)
    return DONE


def do_queues(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`queues`: print their counts."""
    from greenroom.client_control_cli import held
    from greenroom.client_limit_cli import fill
    names = ("name", "scheduled", "queued", "running", "completed", "failed", "cancelled", "expired", "requeued", "workers", "tasks")
    columns = {name: reader(name) for name in names}
    columns["limit"] = lambda queue: fill(queue.get("limit"))
    columns["paused"] = lambda queue: held(queue.get("paused")).strip()
    output.rows(client.queues(), columns)
    return DONE


def do_workers(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`workers`: print who is connected and busy."""
    columns = {name: reader(name) for name in ("name", "status", "running", "free", "done", "failed", "lost", "address")}
    columns["last seen"] = lambda worker: tables.short_moment(worker.get("last_seen_at"), Clock().now())
    columns["tasks"] = lambda worker: "any" if worker.get("tasks") is None else " ".join(worker["tasks"])
    output.rows(client.workers(), columns)
    return DONE


def do_stats(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`stats`: print the broker's counts."""
    output.one(client.stats())
    return DONE


def do_backup(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`backup`: receive a copy of the store; how far it is goes to a terminal only."""
    show = _show_progress if sys.stderr.isatty() else None
    try:
        made = client.backup(args.file, force=args.force, on_progress=show)
    finally:
        if show is not None:
            sys.stderr.write("\r\x1b[K")
    output.one(made._asdict(), text=f"{tables.escape(made.path)}: {made.bytes} bytes, SHA-256 {made.sha256}")
    return DONE


def _show_progress(word: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r\x1b[K{word}: {done / 2**20:.1f} of {total / 2**20:.1f} MiB")
    sys.stderr.flush()


def do_demo(client: Client, args: argparse.Namespace, output: Output) -> int:
    """`demo`: show the order of priorities on a busy worker."""
    return run_demo(client, lambda line: print(tables.escape(line), flush=True), timeout_s=args.timeout or 120.0)


def readable(view: dict) -> dict:
    """Return a view with payload and result decoded, where they are one msgpack value; else they stay bytes."""
    view = dict(view)
    if isinstance(view.get("result"), bytes):
        try:
            view["result"] = decode_result(view)
        except (ValueError, JobFailedError):
            pass
    if isinstance(view.get("payload"), bytes) and view.get("encoding") != "raw":
        try:
            view["payload"] = decode_result({"state": "completed", "result": view["payload"]})
        except ValueError:
            pass
    return view


def _end_of(view: dict) -> str:
    error = view.get("error") or {}
    return f"job {view['id']} ended {view['state']}" + (f": {error.get('name')}: {error.get('message')}" if error else "")


def _outcome_cell(view: dict) -> object:
    error = view.get("error")
    return f"{error.get('name')}: {error.get('message')}" if error else view.get("result")


def reader(name: str) -> Callable[[dict], object]:
    """Return what reads a column of this name."""
    return lambda item: item.get(name)


JOB_COLUMNS: dict[str, Callable[[dict], object]] = {
    **{name: reader(name) for name in ("id", "task", "queue", "priority", "state", "worker")},
    "submitted": lambda view: tables.short_moment(view.get("submitted_at"), Clock().now()),
    "result or error": _outcome_cell,
}


def payload(text: str | None) -> object:
    """Return a payload given as JSON, `-` reads it from stdin; None: none. Raises ConfigError."""
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read()
    try:
        return tables.from_json(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"the payload is not JSON ({exc}); write it as '{{\"n\": 10}}'") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"JSON has no {name}")


def job_id(text: str) -> int:
    """Return a job's number given as an argument."""
    if not text.isascii() or not text.isdigit() or len(text) > 16 or not 1 <= int(text) < 2**53:
        raise argparse.ArgumentTypeError(f"{text!r} is not a job id (a number from 1)")
    return int(text)


def positive(text: str) -> int:
    """Return a count given as an argument."""
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def moment(text: str) -> float:
    """Return a time given as an argument, in seconds since 1970."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()  # without a zone: local time
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a time like 2030-01-31T09:00 nor Unix seconds") from None
