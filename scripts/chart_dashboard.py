"""The Grafana dashboard of a fleet, as data: rows of panels, each a title and expressions. It decides nothing about how they are laid out
beyond width and height.

Time series that have one line for each shard are summed or shown as the worst: a fleet may have hundreds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

Panel = dict[str, Any]

OF = 'namespace="$namespace",fleet="$fleet"'
"""The fleet that is looked at."""
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}
STATES = [
    {
        "type": "value",
        "options": {"1": {"text": "yes", "index": 0}, "0": {"text": "no", "index": 1}, "-1": {"text": "?", "index": 2}},
    }
]


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """lines: (legend, expression). unit: one of Grafana's. what: shown at the panel's corner."""

    title: str
    lines: Sequence[tuple[str, str]]
    unit: str = "short"
    what: str = ""
    kind: str = "timeseries"
    is_stacked: bool = False


def worst(metric: str) -> str:
    return f"max by (shard) (fleet_twin_{metric}{{{OF}}})"


def rate_of(metric: str, by: str = "", **labels: str) -> str:
    chosen = "".join(f',{name}="{value}"' for name, value in labels.items())
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate(fleet_twin_{metric}{{{OF}{chosen}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    grouped = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({share}, sum by ({grouped}) (rate(fleet_twin_{metric}_bucket{{{OF}}}[$__rate_interval])))"
    )


ROWS: dict[str, Sequence[Graph]] = {
    "Fleet": (
        Graph(
            "Conditions",
            [("{{condition}}", f"max by (condition) (fleet_twin_operator_fleet_condition{{{OF}}})")],
            what="Ready, CheckpointsHealthy and RulesApplied should say yes, Stalled no.",
            kind="stat",
        ),
        Graph("Twins", [("twins", f"sum (fleet_twin_twins{{{OF}}})")], kind="stat"),
        Graph(
            "Offline devices",
            [("offline", f'sum (fleet_twin_alerts_open{{{OF},trigger="offline"}})')],
            kind="stat",
        ),
        Graph("Open alerts", [("{{trigger}}", f"sum by (trigger) (fleet_twin_alerts_open{{{OF}}})")]),
    ),
    "Flow": (
        Graph("Records/s", [("{{pod}}", rate_of("records_total", "pod"))], "ops", is_stacked=True),
        Graph(
            "Effects/s",
            [("{{target}} {{trigger}}", rate_of("effects_total", "target, trigger"))],
            "ops",
            "What Kinesis has acknowledged.",
        ),
        Graph("Bytes read", [("read", rate_of("intake_bytes_total"))], "Bps"),
        Graph(
            "Records that went another way",
            [
                ("late", rate_of("late_records_total")),
                ("misrouted", rate_of("misrouted_records_total")),
                ("skewed", rate_of("skewed_records_total")),
                ("dead letters: {{reason}}", rate_of("dead_letters_total", "reason") + " > 0"),
            ],
            "ops",
        ),
    ),
    "Latency": (
        Graph(
            "From arrival to the acknowledged alert",
            [
                ("p50", quantile(0.5, "alert_latency_seconds")),
                ("p99", quantile(0.99, "alert_latency_seconds")),
            ],
            "s",
        ),
        Graph("Lag, worst partitions", [("{{shard}}", f"topk(10, {worst('lag_seconds')})")], "s"),
        Graph("Oldest effect that waits", [("{{shard}}", f"topk(10, {worst('outbox_oldest_seconds')})")], "s"),
        Graph(
            "Clock age, worst partitions",
            [("{{shard}}", f"topk(10, {worst('partition_clock_age_seconds')})")],
            "s",
            "While it grows no device goes offline.",
        ),
    ),
    "Partitions and moves": (
        Graph(
            "Partitions by phase",
            [("{{phase}}", f"sum by (phase) (fleet_twin_operator_partitions{{{OF}}})")],
            is_stacked=True,
        ),
        Graph("Partitions that move", [("moves", f"max (fleet_twin_operator_moves{{{OF}}})")]),
        Graph(
            "Running partitions by worker",
            [("{{pod}}", f'sum by (pod) (fleet_twin_partition_phase{{{OF},phase="Running"}})')],
            is_stacked=True,
        ),
        Graph(
            "Rules generation",
            [("{{pod}}", f"max by (pod) (fleet_twin_rules_generation{{{OF}}})")],
            what="All workers on one line: an edit is in force everywhere.",
        ),
    ),
    "Checkpoints and disk": (
        Graph(
            "Checkpoint age, worst partitions",
            [("{{shard}}", f"topk(10, min by (shard) (time() - fleet_twin_checkpoint_time_seconds{{{OF}}}))")],
            "s",
        ),
        Graph(
            "Checkpoints",
            [
                ("p50", quantile(0.5, "checkpoint_seconds")),
                ("p99", quantile(0.99, "checkpoint_seconds")),
            ],
            "s",
        ),
        Graph(
            "Checkpoint failures, stops for a full disk",
            [
                ("failures", f"sum (increase(fleet_twin_checkpoint_failures_total{{{OF}}}[$__rate_interval]))"),
                ("full disk", f"sum (increase(fleet_twin_disk_full_stops_total{{{OF}}}[$__rate_interval]))"),
            ],
        ),
        Graph(
            "Commit and fsync, p99",
            [("commit", quantile(0.99, "commit_seconds")), ("fsync", quantile(0.99, "sync_seconds"))],
            "s",
        ),
    ),
    "Workers": (
        Graph(
            "Cores",
            [("{{pod}}", f"sum by (pod) (rate(process_cpu_seconds_total{{{OF}}}[$__rate_interval]))")],
            what="A worker uses about one.",
        ),
        Graph("Memory", [("{{pod}}", f"max by (pod) (process_resident_memory_bytes{{{OF}}})")], "bytes"),
        Graph("Loop stalls, p99", [("{{pod}}", quantile(0.99, "loop_stall_seconds", "pod"))], "s"),
        Graph(
            "Kinesis calls tried again",
            [("{{operation}} {{trouble}}", rate_of("kinesis_retries_total", "operation, trouble"))],
            "ops",
        ),
    ),
    "Operator": (
        Graph(
            "Looks at fleets by outcome",
            [("{{outcome}}", "sum by (outcome) (rate(fleet_twin_operator_reconciles_total[$__rate_interval]))")],
            "ops",
        ),
        Graph(
            "Time of a look, p99",
            [
                (
                    "p99",
                    "histogram_quantile(0.99, sum by (le) (rate(fleet_twin_operator_reconcile_seconds_bucket[$__rate_interval])))",
                )
            ],
            "s",
        ),
        Graph(
            "Since the last look at this fleet",
            [("age", f"min (time() - fleet_twin_operator_last_reconcile_time_seconds{{{OF}}})")],
            "s",
        ),
        Graph(
            "API server",
            [
                ("operator's errors/s", "sum (rate(fleet_twin_operator_api_errors_total[$__rate_interval]))"),
                ("workers' silence", f"max (fleet_twin_control_plane_silent_seconds{{{OF}}})"),
            ],
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it, from version 10 on."""
    numbers = itertools.count(1)
    panels: list[Panel] = []
    top = 0
    for title, graphs in ROWS.items():
        panels.append(
            {
                "id": next(numbers),
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        width = WIDTH // len(graphs)
        for place, graph in enumerate(graphs):
            where = {"x": place * width, "y": top + 1, "w": width, "h": HEIGHT}
            panels.append({"id": next(numbers), "gridPos": where, **panel(graph)})
        top += HEIGHT + 1
    return {
        "uid": "fleet-twin",
        "title": "Fleet Twin",
        "tags": ["fleet-twin"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _choice("namespace", "Namespace", "fleet_twin_twins"),
                _choice("fleet", "Fleet", 'fleet_twin_twins{namespace="$namespace"}'),
            ]
        },
        "panels": panels,
    }


def panel(graph: Graph) -> Panel:
    is_line = graph.kind == "timeseries"
    custom: Panel = {"fillOpacity": 30 if graph.is_stacked else 5, "lineWidth": 1, "showPoints": "never"}
    custom["stacking"] = {"mode": "normal" if graph.is_stacked else "none"}
    defaults: Panel = {"unit": graph.unit, "min": 0} if is_line else {"unit": graph.unit}
    if is_line:
        defaults["custom"] = custom
    if graph.title == "Conditions":
        defaults["mappings"] = STATES
    told: Panel = {
        "type": graph.kind,
        "title": graph.title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (legend, expression) in enumerate(graph.lines)
        ],
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        if is_line
        else {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name", "colorMode": "none"},
    }
    if graph.what:
        told["description"] = graph.what
    return told


def _choice(name: str, label: str, metric: str) -> Panel:
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
    }
