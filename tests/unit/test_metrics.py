"""What /metrics shows: read by Prometheus' own parser, held against the documentation, the alert rules and the engine's counters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from greenroom import views
from greenroom.distributions import ROWS, SECONDS, Distribution
from greenroom.figures import Figures, figures
from greenroom.metrics import METRICS, exposition
from greenroom.records import SettleItem
from tests.core import Core, new_job, reserved, submitted

ROOT = Path(__file__).resolve().parents[2]
TABLE_ROW = re.compile(r"^\| `(greenroom_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", re.MULTILINE)
#: What a metric's unit must be called (promtool's lint).
BASE_UNITS_ONLY = re.compile(r"_(ms|milliseconds|microseconds|minutes|hours|kb|kilobytes|megabytes|mib|percent)(_|$)")


def shown_by(core: Core, **more: object) -> Figures:
    """Return figures as dispatch has them, over an engine in virtual time."""
    dispatch = SimpleNamespace(
        engine=core.engine, batches=core.batches, waits=core.batches.waits, now=lambda: core.now, started_at=core.now - 60.0,
        breathe=lambda: None, lag=Distribution(SECONDS), commit_time=Distribution(SECONDS), batch_rows=Distribution(ROWS),
        store_full=False, free_bytes=10**9, committing_s=0.0, subscriptions=(), outside=lambda: {
            "door": {"open": 3, "shaking": 1, "max": 100, "handshakes": 5, "protocol_errors": 2}, "rejected": {"plain_tcp": 4},
            "process": {"resident_bytes": 5 * 10**7, "cpu_s": 1.5, "open_files": 20, "max_files": 1000, "viewers": 1,
                        "log_lines_dropped": 0}})
    vars(dispatch).update(more)
    return figures(dispatch, None)


def parsed(shown: Figures) -> dict[str, Metric]:
    """Return the metrics that a scraper reads, by their name as it stands in the text."""
    families = text_string_to_metric_families(exposition(shown, lambda: None).decode())
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in families}


def value(shown: Figures, name: str, **labels: str) -> float:
    (found,) = [sample.value for sample in parsed(shown)[name].samples if sample.labels == labels and sample.name == name]
    return found


def documented() -> dict[str, tuple[str, set[str]]]:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    rows = TABLE_ROW.findall(text)
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}


def test_what_is_documented_is_exposed_and_what_is_exposed_is_documented() -> None:
    shown = shown_by(Core())
    shown.stats["damaged"] = {"total": 0, "jobs": []}

    exposed = parsed(shown)

    assert {name: family.type for name, family in exposed.items()} == {name: kind for name, (kind, _) in documented().items()}
    for name, (_, labels) in documented().items():
        samples = exposed[name].samples
        assert all(set(sample.labels) - {"le"} == labels for sample in samples), name
    assert {family.name: (family.kind, set(family.labels)) for family in METRICS} == documented()


def test_every_metric_has_a_sample_from_the_start_so_that_its_first_event_is_seen() -> None:
    core = Core()
    submitted(core, new_job())
    core.connect("c", role="client").limit("q", jobs=4)
    for distribution in ("lag", "commit_time", "batch_rows"):
        full = Distribution(SECONDS)
        full.add(0.1, core.now)
        shown = shown_by(core, **{distribution: full})
    shown.stats["damaged"] = {"total": 0, "jobs": []}

    without = {name for name, family in parsed(shown).items() if not family.samples}

    # Percentiles of a minute in which nothing was measured are not 0.
    assert without <= {"greenroom_hub_lag_last_minute_seconds", "greenroom_commit_last_minute_seconds", "greenroom_batch_last_minute_rows"}


def complaints(family: Metric, name: str) -> Iterator[str]:
    """Say what promtool's lint would."""
    if not re.fullmatch(r"greenroom_[a-z][a-z0-9_]*", name) or "__" in name:
        yield "a bad name"
    if not family.documentation.strip():
        yield "no help"
    if (family.type == "counter") != name.endswith("_total"):
        yield "counters, and only they, end in _total"
    if family.type != "histogram" and name.endswith(("_count", "_sum", "_bucket")):
        yield "a suffix of histograms"
    if BASE_UNITS_ONLY.search(name):
        yield "not a base unit"
    for sample in family.samples:
        if family.type != "histogram" and {"le", "quantile"} & set(sample.labels):
            yield "a label of histograms and summaries"
        if family.type in ("counter", "histogram") and sample.value < 0:
            yield "a negative count"


def test_names_units_and_help_are_as_prometheus_wants_them() -> None:
    assert {name: found for name, family in parsed(shown_by(Core())).items() if (found := list(complaints(family, name)))} == {}


@pytest.mark.parametrize("name, kind, doc", [
    ("greenroom_things", "counter", "x"), ("greenroom_things_total", "gauge", "x"), ("things", "gauge", "x"),
    ("greenroom_wait_ms", "gauge", "x"), ("greenroom_things", "gauge", " "), ("greenroom_things_count", "gauge", "x")])
def test_a_bad_metric_is_complained_about(name: str, kind: str, doc: str) -> None:
    family = Metric("greenroom_x", doc, kind)

    assert list(complaints(family, name))


def test_a_histogram_is_cumulative_and_ends_with_everything() -> None:
    times = Distribution((1.0, 2.0, 5.0))
    for second in (0.5, 1.0, 1.5, 4.0, 100.0):
        times.add(second, 0.0)

    family = parsed(shown_by(Core(), commit_time=times))["greenroom_commit_seconds"]

    buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert buckets == {"1.0": 2, "2.0": 3, "5.0": 4, "+Inf": 5}
    assert [sample.value for sample in family.samples if "le" not in sample.labels] == [5, 107.0]


def test_counters_tell_what_happened_to_settles_submits_and_jobs_that_came_back() -> None:
    core = Core()
    jobs = submitted(core, *[new_job() for _ in range(6)])
    worker = core.connect("w")
    reserved(worker, 6)
    held = dict(worker.held)
    worker.settle("ack", jobs[0])
    worker.settle("ack", jobs[0], fence=held[jobs[0]])
    worker.settle("nack", jobs[1])
    worker.settle("unbegun", jobs[2])
    worker.settle("crash", jobs[3])
    worker.settle("ack", jobs[4], fence=held[jobs[4]] - 1)
    worker.close()
    core.advance(1.0)
    other = core.connect("late")
    other.settle("ack", jobs[5], fence=held[jobs[5]])
    core.run()
    shown = shown_by(core)

    def total(name: str, **labels: str) -> float:
        return value(shown, f"greenroom_{name}_total", **labels)

    assert total("repeated_settles") == 1
    assert total("stale_settles") == 1
    assert total("late_settles") == 1
    assert total("grants") == 6
    assert [total("requeues", reason=reason) for reason in ("nack", "crash", "lost", "expired", "bye", "not_presented")] == [1, 1, 2, 0, 0, 0]
    assert [total("returns", reason=reason) for reason in ("unbegun", "never_arrived")] == [1, 0]
    assert total("jobs_finished", state="completed") == 2 and value(shown, "greenroom_jobs", state="queued") == 4
    assert sum(sample.value for sample in parsed(shown)["greenroom_requeues_total"].samples) == core.engine.requeues


def test_what_runs_tell_and_who_is_told_of_events_is_counted() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    worker = core.connect()
    reserved(worker)
    worker.report(job, 0.5, "half", "a line", "another")
    worker.report(job, None, None, "a third")
    worker.report(job, 0.5, None, "of nobody", fence=10**6)
    shown = shown_by(core, subscriptions=("somebody",))

    assert value(shown, "greenroom_job_log_lines_total") == 3 and value(shown, "greenroom_job_progress_reports_total") == 1
    assert value(shown, "greenroom_event_subscribers") == 1


def test_settles_of_jobs_that_only_the_store_knows_are_counted_too() -> None:
    core = Core()
    (job,) = submitted(core, new_job())
    worker = core.connect()
    reserved(worker)
    fence = worker.held[job]
    worker.settle("ack", job)
    core.run()

    for given, expected in ((fence, (1, 0)), (fence - 1, (1, 1)), (fence + 1, (1, 2))):
        core.engine.settle([SettleItem(job, given, "ack", b"", False, None)], core.now, core.store.load([job]))
        assert (core.engine.tally.repeated_settles, core.engine.tally.stale_settles) == expected


def test_window_hits_are_the_grants_that_did_not_wait_for_the_store() -> None:
    core = Core()
    submitted(core, *[new_job() for _ in range(40)])
    core.crash_and_restart()
    worker = core.connect()
    for _ in range(5):
        assert len(reserved(worker, 8)) == 8

    tally = core.engine.tally

    assert (tally.grants, tally.grants_after_refill, tally.refills, tally.refilled) == (40, 8, 1, 40)


def test_queues_beyond_fifty_are_one_series_and_none_is_lost() -> None:
    core = Core()
    submitted(core, *[new_job(f"t{number % 7}", queue=f"q{number}") for number in range(300) for _ in range(1 + number % 90)])
    shown = shown_by(core)

    samples = parsed(shown)["greenroom_queue_jobs"].samples

    assert len({sample.labels["queue"] for sample in samples}) == 51
    assert sum(sample.value for sample in samples) == core.engine.waiting
    assert min(sample.value for sample in samples if sample.labels["state"] == "queued") > 60
    assert sum(sample.value for sample in samples if sample.labels["queue"] == views.OTHER and sample.labels["state"] == "queued") > 0
    assert len({sample.labels["task"] for sample in parsed(shown)["greenroom_task_jobs"].samples}) == 7
    assert exposition(shown, lambda: None).count(b"\n") < 1200


def test_a_hostile_name_stays_a_label() -> None:
    shown = shown_by(Core())._replace(queues=[('a"} 1\ngreenroom_up 1\n\\', 1, 2, 3)])

    assert {sample.labels["queue"] for sample in parsed(shown)["greenroom_queue_jobs"].samples} == {'a"} 1\ngreenroom_up 1\n\\'}
    assert "greenroom_up" not in parsed(shown)


# -- the alert rules --------------------------------------------------------------------------------------------------------

RULES = (ROOT / "docs/examples/greenroom-alerts.yml").read_text("utf-8")
RULE = re.compile(r"      - alert: (Greenroom\w+)\n        expr: (.+)\n        for: (\d+[smh])\n        labels: \{severity: (page|ticket)\}\n"
                  r"        annotations: \{summary: \"([^\"]+)\"\}\n")


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression names, histograms by their own name."""
    histograms = {family.name for family in METRICS if family.kind == "histogram"}
    found = set(re.findall(r"greenroom_\w+", expression))
    return {next((name for name in histograms if re.fullmatch(f"{name}_(bucket|sum|count)", each)), each) for each in found}


def test_every_alert_rule_is_whole_and_names_metrics_and_labels_that_exist() -> None:
    rules = RULE.findall(RULES)
    labels = {family.name: {*family.labels, "le"} for family in METRICS}

    assert len(rules) == RULES.count("- alert:") and len({name for name, *_ in rules}) == len(rules)
    for name, expression, *_ in rules:
        assert names_in(expression) and names_in(expression) <= set(labels), name
        for metric, selected in re.findall(r"(greenroom_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selected)) <= labels[metric], name
        assert all(expression.count(left) == expression.count(right) for left, right in ("()", "[]", "{}")), name


def test_the_values_that_alert_rules_select_exist() -> None:
    shown = parsed(shown_by(Core()))
    for metric, label, values in re.findall(r'(greenroom_\w+)\{(\w+)=~?"([^"]+)"\}', RULES):
        assert set(values.split("|")) <= {sample.labels[label] for sample in shown[metric].samples}, metric


def test_the_handbook_has_a_line_for_every_alert() -> None:
    handbook = (ROOT / "docs/operations.md").read_text("utf-8").split("## At three in the morning")[1].split("\n## ")[0]

    assert set(re.findall(r"Greenroom[A-Z]\w+", handbook)) == {name for name, *_ in RULE.findall(RULES)}
