"""The targets as data: what is held against which result of which script. `report.py` reads it; nothing else is known here."""

from __future__ import annotations

from dataclasses import dataclass, field

from charts import number


@dataclass(frozen=True)
class Target:
    """One row of the table of targets."""

    what: str
    scripts: tuple[str, ...]  # none: all there are
    names: tuple[str, ...]  # of results, `*` for anything; the best of all that fit counts
    at_least: float
    aim: float
    unit: str
    params: dict[str, object] = field(default_factory=dict)  # that a result must have
    is_more_better: bool = False
    must_all_hold: bool = False  # then the worst that fits counts
    factor: float = 1.0  # from the result's unit to this one
    shows: tuple[str, ...] = ()  # params that the row names

    def text(self, value: float) -> str:
        """Return a figure with its unit."""
        return f"{number(value)}{'' if self.unit in ('×', '/s') else ' '}{self.unit}"

    def where(self, params: dict[str, object]) -> str:
        """Return what else the row says about a result."""
        return ", ".join(f"{key} {params[key]}" for key in self.shows if key in params)

    def verdict(self, value: float) -> str:
        """Return whether a figure meets the target, and its aim."""
        if self._reaches(value, self.aim):
            return "aim met"
        if self._reaches(value, self.at_least):
            return "met"
        share = value / self.at_least if self.is_more_better else self.at_least / value
        return f"**missed**: {share:.0%} of it" if self.is_more_better else f"**missed**: {value / self.at_least:.1f}× too much"

    def _reaches(self, value: float, goal: float) -> bool:
        return value >= goal if self.is_more_better else value <= goal


def _rate(what: str, script: str, name: str, at_least: float, aim: float, *, shows: tuple[str, ...] = (), **params: object) -> Target:
    return Target(what, (script,), (name,), at_least, aim, "/s", params, is_more_better=True, shows=shows)


def _most(what: str, script: str, name: str, at_least: float, aim: float, unit: str, *, factor: float = 1.0, **params: object) -> Target:
    return Target(what, (script,), (name,), at_least, aim, unit, params, factor=factor)


_WHERE = ("script", "result", "mode", "batch", "connections", "load", "held", "depth")

TARGETS: tuple[Target, ...] = (
    _rate("durable TLS jobs end to end, batch 100", "throughput", "jobs", 80_000, 150_000, mode="all", batch=100, shows=("connections",)),
    _rate("batch 10", "throughput", "jobs", 35_000, 60_000, mode="all", batch=10, shows=("connections",)),
    _rate("batch 1 with 64 connections", "throughput", "jobs", 8_000, 14_000, mode="all", batch=1, connections=64),
    _rate("a plain `worker.py`, no-op task, default settings, fed by `Client.submit_many`", "shipped", "jobs", 8_000, 20_000,
          task="noop", pool="thread"),
    _most("submit → result, idle, p50", "latency", "submit to result p50", 1.2, 0.8, "ms", load="idle", held=0),
    _most("submit → result, idle, p99", "latency", "submit to result p99", 4, 2, "ms", load="idle", held=0),
    _most("submit → result at 50 % load with 10,000 connections held, p99", "latency", "submit to result p99", 25, 10, "ms", load="50 %",
          held=10_000),
    _rate("10,000 TLS connections: connect", "connections", "connect", 1_100, 1_700, connections=10_000),
    _most("— broker memory each", "connections", "broker memory per connection", 32, 27, "KiB", connections=10_000),
    _most("— idle CPU with the default heartbeat", "connections", "idle CPU", 30, 12, "% of a core", connections=10_000),
    _most("reconnect storm of 10,000: all back, none lost", "connections", "storm, all back after", 30, 12, "s", connections=10_000),
    Target("10^7 waiting jobs: broker memory", ("depth",), ("broker memory, full", "broker memory, fill, peak"), 400, 250, "MB",
           {"depth": 10**7}, factor=1.048576, must_all_hold=True),
    Target("— slowdown against 10^3, submitting and draining", ("depth",), ("submit slowdown", "drain slowdown"), 1.5, 1.1, "×",
           {"depth": 10**7}, must_all_hold=True),
    Target("restart with 10^6 waiting until serving", ("depth",),
           ("start after kill -9 until first job", "start after SIGTERM until first job"), 3, 1, "s",
           {"depth": 10**6}, must_all_hold=True, factor=0.001),
    _most("5,000,000 finished jobs: slowest page of any search", "search", "slowest page", 200, 100, "ms", history=5_000_000),
    Target("hub lag while any of it runs, p99", (), ("hub lag*p99",), 20, 8, "ms", must_all_hold=True, shows=_WHERE),
    Target("hub lag while any of it runs, longest", (), ("hub lag*max",), 100, 50, "ms", must_all_hold=True, shows=_WHERE),
    Target("the next broker at equal durability: Greenroom does", ("peers",), ("peer ratio",), 1, 2, "×",
           {"group": "brokers", "fsync_before_answer": True}, is_more_better=True, must_all_hold=True, shows=("peer",)),
    Target("the next Python queue at equal durability: Greenroom does", ("peers",), ("peer ratio",), 1, 10, "×",
           {"group": "frameworks", "fsync_before_answer": True}, is_more_better=True, must_all_hold=True, shows=("peer",)),
)
