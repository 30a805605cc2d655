"""The registry of metrics: complete, documented, bounded, and what dashboards and alerts build on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from towline.scheduler.server.stats import METRICS as SCHEDULER
from towline.telemetry import metrics
from towline.telemetry.metrics import FOREIGN, METRICS, Bounded, prometheus_name

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guide" / "telemetry.md").read_text()
OBSERVABILITY = ROOT / "deploy" / "observability"
_NAME = re.compile(r"\b(?:towline|gen_ai)_[a-z0-9_]+\b")
_SERIES = ("_bucket", "_count", "_sum")
_COMMON_LABELS = {"le", "kind", "service_name", "service_instance_id", "instance", "job"}


def known_series() -> set[str]:
    names = set(SCHEDULER)
    for name, about in METRICS.items():
        exported = prometheus_name(name)
        names |= {exported + suffix for suffix in _SERIES} if about.kind == "histogram" else {exported}
    return names | {prometheus_name(name) + suffix for name in FOREIGN for suffix in _SERIES}


def known_labels() -> set[str]:
    ours = {label for about in METRICS.values() for label in about.labels}
    return ours | _COMMON_LABELS | {label for about in FOREIGN.values() for label in about.labels}


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the dashboard and the alert rules, and where it is."""
    for panel in json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for group in yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_every_name_that_may_be_used_is_registered_and_the_other_way_round() -> None:
    typed = {
        name
        for alias in (metrics.CounterName, metrics.HistogramName, metrics.ObservedName)
        for name in get_args(alias)
    }
    assert typed == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_documented_as_it_is(name: str) -> None:
    about = METRICS[name]  # type: ignore[index]
    labels = ", ".join(about.labels)
    assert f"| `{name}` | {about.kind} | {about.unit} | {about.role} | {labels} | {about.meaning} |" in GUIDE


def test_histograms_have_buckets_that_rise_and_nothing_else_has() -> None:
    for name, about in METRICS.items():
        assert (about.buckets is not None) == (about.kind == "histogram"), name
        assert list(about.buckets or ()) == sorted(set(about.buckets or ())), name


def test_no_label_has_a_value_per_run() -> None:
    unbounded = {"run_id", "session_id", "instance_id", "approval_id", "event_id", "trace_id", "error"}
    assert not unbounded & known_labels()


def test_a_label_that_others_choose_is_bounded() -> None:
    label = Bounded(limit=2)
    assert [label(value) for value in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda value: value[:40])
def test_dashboard_and_alerts_build_on_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    names = set(_NAME.findall(expression)) - known_labels()
    assert names, where
    assert names <= known_series(), where
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    matched = re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!=|!~|=)", expression)
    labels = {label.strip() for group in grouped for label in group.split(",")} | set(matched)
    assert labels <= known_labels(), where


def test_the_alerts_asked_for_are_there() -> None:
    names = {where for where, _ in expressions()}
    assert names >= {
        "TowlineConsumerLag",
        "TowlineApprovalOverdue",
        "TowlineOutcomeFailures",
        "TowlineDeadLetters",
        "TowlineOrchestrationsStuck",
    }


def test_every_alert_says_what_to_do_and_has_a_test() -> None:
    rules = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"][0]["rules"]
    tests: Any = yaml.safe_load((OBSERVABILITY / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    for rule in rules:
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["action"], rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["alert"] in fired


def test_a_misspelt_metric_would_be_found() -> None:
    assert "towline_consumer_lagg" not in known_series()
    assert _NAME.findall("sum by (group) (towline_consumer_lagg) > 1") == ["towline_consumer_lagg"]
