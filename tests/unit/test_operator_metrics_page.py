"""The page of the operator's metrics has each of them, by the name and type that Prometheus sees."""

from __future__ import annotations

import pathlib
import re

from prometheus_client import metrics as kinds

from fleet_operator import metrics

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "operator-metrics.md"


def test_every_metric_of_the_operator_is_on_its_page() -> None:
    own = [entry for entry in vars(metrics.Metrics()).values() if isinstance(entry, kinds.MetricWrapperBase)]
    assert len(own) > 10
    measured = {}
    for entry in own:
        described = next(iter(entry.describe()))
        name = described.name + ("_total" if described.type == "counter" else "")
        measured[name] = (described.type, tuple(entry._labelnames))
    told = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text(), flags=re.MULTILINE)
    }
    assert told == measured
