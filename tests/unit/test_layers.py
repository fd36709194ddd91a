"""The layers as data: who may import whom, and which module alone knows which library."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Level -> modules, without `greenroom.`; `x.*` is x and all in it. A module imports from its own level and those below.
LEVELS: list[list[str]] = [
    ["errors", "clock", "needs", "own_process", "patching"],
    ["job", "records", "number_blocks", "lanes", "scheduled", "lease_watch", "look_ahead", "suspects", "retries", "expiry", "unique", "distributions", "tally",
     "pauses", "queue_limits", "paces", "schedule_limits", "recurrence", "job_log", "events", "failures", "filters", "filter_text", "keeping"],
    ["groups", "sessions", "effects", "leases", "deadlines", "controls", "duplicates", "engine", "gates", "views", "waits", "submit_options", "when_full", "default_client", "task_outcomes",
     "task_functions", "context", "run_reports", "tasks", "schedules"],
    ["stores.*", "logs", "tables"],
    ["protocol"],
    ["config", "tls", "tls_pipe", "endpoint", "batches", "pool_child", "pools", "replies", "link", "stream", "accepts", "backups", "subscriptions"],
    ["desk", "dispatch", "schedule_runs", "checkup", "client", "client_cli", "client_cli_schedules", "client_backup", "client_demo", "client_events", "client_event_cli",
     "client_failures", "client_failure_cli", "client_filters", "client_jobs", "client_logs", "client_schedules", "client_submits", "client_waits", "client_controls", "client_control_cli", "client_limit_cli",
     "report_sender", "worker_options"],
    ["figures", "metrics", "verb_parts", "key_holders", "matching", "control_verbs", "bulk_verbs", "failure_verbs", "log_verbs", "event_verbs", "verbs", "schedule_verbs", "conversation", "session", "listener", "webui.*"],
    ["worker", "broker", "demo", "testing", "testing_failures", "testing_steering", "testing_unique", "testing_bulk", "testing_limits", "testing_queue_limits", "testing_broker", "testing_clock", "pytest_plugin"],
    ["run"],
]

#: Library -> the modules that may import it.
ONLY_IN = {
    "gevent": {"dispatch", "session", "stream", "accepts", "listener", "webui.server", "webui.live", "webui.job_events", "broker", "patching", "pools", "testing_clock"},
    "bottle": {"webui.*"},
    "msgpack": {"protocol"},
    "apsw": {"stores.sqlite*"},
    "prometheus_client": {"metrics"},
    "pytest": {"pytest_plugin"},
    "cronsim": {"recurrence"},
}

#: Modules that may import a library only where it is needed, inside a function.
LATE = {("pools", "gevent"), ("testing_clock", "gevent")}

#: (module, module above it) that may be imported where it is needed, inside a function: see the comment there.
LATE_UPWARD = {("default_client", "client")}

#: In a checkout these lie where Python would find them by their bare names too, and so would a user's own files.
IN_THE_ROOT = {"client", "protocol", "worker", "broker", "webui"}


class Import(NamedTuple):
    """One imported module."""

    name: str
    line: int
    for_types: bool  # under `if TYPE_CHECKING`
    in_function: bool


def module_files() -> dict[str, Path]:
    """Return every module of the package by its name without `greenroom.`."""
    files = [*(ROOT / "greenroom").rglob("*.py"), *(ROOT / "webui").rglob("*.py")]
    files += [ROOT / f"{name}.py" for name in ("protocol", "client", "worker", "broker")]
    found: dict[str, Path] = {}
    for path in files:
        if path.exists():
            folder = ROOT / "greenroom" if path.is_relative_to(ROOT / "greenroom") else ROOT
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name:
                found[name] = path
    return found


def fits(name: str, pattern: str) -> bool:
    """Tell whether a module is meant: `a`, `a.*` (a and all in it) or `a*`."""
    if pattern.endswith(".*"):
        return name == pattern[:-2] or name.startswith(pattern[:-1])
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def level_of(name: str) -> int | None:
    """Return the level of a module, or None if the table does not have it."""
    return next((level for level, names in enumerate(LEVELS) if any(fits(name, pattern) for pattern in names)), None)


def imports_of(tree: ast.Module) -> list[Import]:
    """Return all imports of a module, wherever they stand."""
    found: list[Import] = []

    def visit(node: ast.AST, for_types: bool, in_function: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, for_types, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"{base}.{alias.name}" for alias in node.names] if base in ("greenroom", "greenroom.webui") else [base]
            found.extend(Import(name, node.lineno, for_types, in_function) for name in names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                visit(child, True, in_function)
            for child in node.orelse:
                visit(child, for_types, in_function)
        else:
            inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, for_types, inside)

    visit(tree, False, False)
    return found


def complaints(name: str, source: str) -> list[str]:
    """Return what a module does that the layers forbid."""
    tree = ast.parse(source)
    found: list[str] = []
    for imported in imports_of(tree):
        where, top = f"{name}, line {imported.line}", imported.name.split(".")[0]
        if imported.name.startswith("."):
            found.append(f"{where}: a relative import")
        if top in IN_THE_ROOT:
            found.append(f"{where}: imports {imported.name}, it must be greenroom.{imported.name}")
        if top == "greenroom" and not imported.for_types:
            other = imported.name.partition(".")[2]
            if not (imported.in_function and (name, other) in LATE_UPWARD):
                found.extend(f"{where}: {problem}" for problem in _upward(name, other))
        if top in ONLY_IN and not any(fits(name, pattern) for pattern in ONLY_IN[top]):
            found.append(f"{where}: imports {top}")
        if (name, top) in LATE and not imported.in_function:
            found.append(f"{where}: imports {top} for all")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{name}, line {node.lineno}: a bare except")
        if name != "clock" and _is_wall_clock(node):
            found.append(f"{name}, line {node.lineno}: reads the wall clock")
    return found


def _upward(name: str, imported: str) -> list[str]:
    # `from greenroom import __version__` names no module.
    level, other = level_of(name), level_of(imported)
    if other is None or level is None:
        return [] if imported in ("", "__version__") else [f"imports {imported}, which has no level"]
    return [f"imports {imported}, of level {other}, from level {level}"] if other > level else []


def _is_wall_clock(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        return any(alias.name in ("time", "time_ns") for alias in node.names)
    return (isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns") and isinstance(node.value, ast.Name)
            and node.value.id == "time")


MODULES = module_files()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_has_a_level_and_keeps_to_it(name: str) -> None:
    assert level_of(name) is not None, f"{MODULES[name]} has no place in LEVELS: decide on which level it belongs"
    assert complaints(name, MODULES[name].read_text("utf-8")) == []


def test_the_table_in_the_architecture_is_this_one() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE)
    written = {int(level): {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", names)} for level, names in rows}
    assert len(written) == len(LEVELS)
    for level, names in enumerate(LEVELS):
        # "`client` and its parts" stands for all of them.
        assert written[level] == {name.removesuffix(".*") for name in names if not name.startswith("client_")}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {name: {imported.name.partition(".")[2] for imported in imports_of(ast.parse(path.read_text("utf-8")))
                    if imported.name.startswith("greenroom.") and not imported.for_types and not imported.in_function}
             for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name in graph and name not in done:
            for other in sorted(graph[name]):
                walk(other, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])


@pytest.mark.parametrize("name, source", [
    ("lanes", "from greenroom.engine import Engine"),
    ("engine", "import greenroom.dispatch"),
    ("lanes", "from greenroom import engine"),
    ("job", "def late():\n    from greenroom.protocol import VERSION"),
    ("engine", "from greenroom.nowhere import x"),
    ("client", "import protocol"),
    ("worker", "from client import Client"),
    ("engine", "from .job import Job"),
    ("client", "import gevent"),
    ("default_client", "from greenroom.client import Client"),
    ("tasks", "def late():\n    from greenroom.client import Client"),
    ("batches", "from gevent.event import Event"),
    ("pools", "import gevent.pool"),
    ("engine", "import bottle"),
    ("webui.api", "import msgpack"),
    ("stores.memory", "import apsw"),
    ("figures", "from prometheus_client.core import Metric"),
    ("engine", "import time\nnow = time.time()"),
    ("engine", "from time import time"),
    ("engine", "try:\n    pass\nexcept:\n    pass"),
])
def test_a_planted_breach_is_found(name: str, source: str) -> None:
    assert len(complaints(name, source)) == 1


@pytest.mark.parametrize("name, source", [
    ("lanes", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from greenroom.engine import Engine"),
    ("pools", "def greenlets():\n    import gevent.pool"),
    ("clock", "import time\nnow = time.time()"),
    ("engine", "import time\nnow = time.monotonic()"),
    ("default_client", "def late():\n    from greenroom.client import Client"),
    ("stores.sqlite_reader", "import apsw"),
    ("webui.server", "import gevent\nfrom bottle import Bottle\nfrom greenroom.webui import api"),
    ("engine", "from greenroom import __version__\nfrom greenroom.leases import LeaseRules"),
])
def test_what_is_allowed_is_not_complained_about(name: str, source: str) -> None:
    assert complaints(name, source) == []


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest takes two of one name for the same module, and refuses a run that has both."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))

    assert sorted(set(names)) == names
