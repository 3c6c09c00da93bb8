"""Every metric of a worker, named in one typed place.

The pipeline counts per batch, never per record: a partition's children are bound once (`Metrics.partition`) and a batch costs
one `inc` of each. Gauges that follow from a partition's state are set when somebody scrapes (`api/scrape.py`), not while
records flow. Labels are bounded: shard, trigger, reason, target, phase, kind of file, a call to Kinesis or the object store and its trouble; never a device. The registry is the worker's own, so
that several workers fit into one process and a test sees only its own numbers.

`python -m fleet_worker.metrics` prints the reference page, docs/reference/metrics.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import prometheus_client

from fleet_model import manifest, rules
from fleet_worker.adapters import kinesis_api, objects_api
from fleet_worker.core import effects, lifecycle, records

NAMESPACE = "fleet_twin"

PHASES = tuple(phase.value for phase in lifecycle.Phase)
EFFECT_TRIGGERS = (*rules.TRIGGERS, "misrouted", "dead_letter")

BATCH_BUCKETS = (1, 10, 30, 100, 300, 1_000, 2_000, 4_000, 7_000, 10_000)
DISK_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LATENCY_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.25, 1.5, 2, 3, 5, 7.5, 10)
"""Fine where the promises are (half of the alerts within 0.7 s, 99 of 100 within 1.5 s)."""
CHECKPOINT_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
STALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclasses.dataclass(frozen=True, slots=True)
class Definition:
    """What the reference page tells of a metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionMetrics:
    """One shard's children, bound once. Times go in as milliseconds by the setters; counters by `inc`."""

    records: prometheus_client.Counter
    intake_bytes: prometheus_client.Counter
    misrouted: prometheus_client.Counter
    late: prometheus_client.Counter
    skewed: prometheus_client.Counter
    disk_full_stops: prometheus_client.Counter
    twins: prometheus_client.Gauge
    twins_in_memory: prometheus_client.Gauge
    outbox_effects: prometheus_client.Gauge
    _lag: prometheus_client.Gauge
    _outbox_oldest: prometheus_client.Gauge
    _clock_age: prometheus_client.Gauge
    _open: tuple[prometheus_client.Gauge, ...]
    _phases: dict[str, prometheus_client.Gauge]

    def set_lag(self, behind_ms: int) -> None:
        self._lag.set(behind_ms / 1000)

    def set_outbox_oldest(self, age_ms: int) -> None:
        self._outbox_oldest.set(age_ms / 1000)

    def set_clock_age(self, age_ms: int) -> None:
        self._clock_age.set(age_ms / 1000)

    def set_open_alerts(self, by_rule: Sequence[int]) -> None:
        """by_rule: open alerts by rule number."""
        for gauge, count in zip(self._open, by_rule, strict=True):
            gauge.set(count)

    def set_phase(self, phase: str) -> None:
        """phase: one of PHASES."""
        if phase not in self._phases:
            raise ValueError(f"phase {phase!r}: not one of {', '.join(PHASES)}")
        for name, gauge in self._phases.items():
            gauge.set(name == phase)


@dataclasses.dataclass(frozen=True, slots=True)
class CheckpointMetrics:
    """One shard's checkpoints."""

    failures: prometheus_client.Counter
    _seconds: prometheus_client.Histogram
    _shard_id: str
    _time: prometheus_client.Gauge
    _bytes: dict[manifest.Kind, prometheus_client.Counter]
    _rows: dict[manifest.Kind, prometheus_client.Counter]

    def taken(self, time_ms: int, took_s: float, written: Sequence[manifest.Part]) -> None:
        """Counts a confirmed one. written: its new files."""
        self._seconds.observe(took_s)
        self._time.labels(self._shard_id).set(time_ms / 1000)  # not before: it would say 1970
        for part in written:
            self._bytes[part.kind].inc(part.size)
            self._rows[part.kind].inc(part.rows)


class Metrics:
    """All metrics of one worker, registered with its own registry."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.definitions: list[Definition] = []
        self._by_shard: list[prometheus_client.Counter | prometheus_client.Gauge] = []
        # Creation times would double the samples of every counter and say nothing that the process' start doesn't.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

        # Intake
        self.records = self._counter(
            "records", "User records applied, whatever became of them; a KPL record gives several.", ("shard",)
        )
        self.intake_bytes = self._counter("intake_bytes", "Bytes of GetRecords answers read.", ("shard",))
        self.batch_records = self._histogram(
            "batch_records",
            "User records in one applied batch. Large while catching up, small when caught up.",
            BATCH_BUCKETS,
        )
        self.lag = self._gauge(
            "lag_seconds",
            "How far reading is behind the shard's end (MillisBehindLatest of the last answer). Rising for minutes: the worker can't keep up, or can't read.",
            ("shard",),
        )
        self.misrouted = self._counter(
            "misrouted_records",
            "Records of devices outside the partition's hash range, put again under their device id.",
            ("shard",),
        )
        self.late = self._counter(
            "late_records",
            "Records with a device time not after the twin's last one: duplicates and stragglers, not applied.",
            ("shard",),
        )
        self.skewed = self._counter(
            "skewed_records",
            "Records with a device time over 5 min ahead of arrival; the arrival time stood in.",
            ("shard",),
        )
        self.dead_letters = self._counter(
            "dead_letters",
            "Records and effects that can't be processed, kept and told at /v1/dead-letters.",
            ("reason",),
        )

        self.kinesis_retries = self._counter(
            "kinesis_retries",
            "Calls to Kinesis that failed, as a whole or in part, and are tried again; throttled ones now and then are usual.",
            ("operation", "trouble"),
        )

        # Twins and alerts
        self.twins = self._gauge("twins", "Twins of the partition, in memory and in the store.", ("shard",))
        self.twins_in_memory = self._gauge(
            "twins_in_memory", "Twins in the partition's table; the rest come from the store when needed.", ("shard",)
        )
        self.alerts_open = self._gauge(
            "alerts_open",
            "Twins in memory whose alert is open. With trigger offline: the devices that are offline.",
            ("shard", "trigger"),
        )
        self.effects = self._counter(
            "effects", "Effects that Kinesis acknowledged, by stream and cause.", ("target", "trigger")
        )
        self.alert_latency = self._histogram(
            "alert_latency_seconds",
            "From the arrival of the causing record (offline: from the moment it was due) to the alert's acknowledgement by Kinesis.",
            LATENCY_BUCKETS,
            ("trigger",),
        )
        self.outbox_effects = self._gauge("outbox_effects", "Effects committed and not yet acknowledged.", ("shard",))
        self.outbox_oldest = self._gauge(
            "outbox_oldest_seconds",
            "Age of the oldest effect not yet acknowledged, 0 when there is none. Rising: an output stream refuses or throttles.",
            ("shard",),
        )

        # Disk
        self.commit = self._histogram(
            "commit_seconds", "Time of one commit: twins, outbox and position in one transaction.", DISK_BUCKETS
        )
        self.sync = self._histogram("sync_seconds", "Time of one fsync of an environment.", DISK_BUCKETS)
        self.disk_full_stops = self._counter(
            "disk_full_stops",
            "Times that intake stopped because a commit found no room. It goes on by itself when there is room.",
            ("shard",),
        )

        # Checkpoints
        self.checkpoint_time = self._gauge(
            "checkpoint_time_seconds",
            "When the snapshot of the newest confirmed checkpoint was taken, as Unix time; its age is time() minus this. Older than two intervals: checkpoints fail, and a lost disk costs more replay.",
            ("shard",),
        )
        self.checkpoint = self._histogram(
            "checkpoint_seconds",
            "Time of one checkpoint from its snapshot to its confirmation, rests included.",
            CHECKPOINT_BUCKETS,
        )
        self.checkpoint_bytes = self._counter(
            "checkpoint_bytes",
            "Bytes of the files of confirmed checkpoints, by kind of file.",
            ("shard", "kind"),
        )
        self.checkpoint_rows = self._counter(
            "checkpoint_rows",
            "Rows of the files of confirmed checkpoints: twins, effects or dead letters, by kind of file.",
            ("shard", "kind"),
        )
        self.checkpoint_failures = self._counter(
            "checkpoint_failures",
            "Checkpoints that could not be taken or confirmed; the next one is tried at the next interval.",
            ("shard",),
        )

        self.object_store_retries = self._counter(
            "object_store_retries",
            "Calls to the object store that failed and are tried again; now and then is usual. Rising: checkpoints and claims are slow, or soon fail.",
            ("operation", "trouble"),
        )

        # Partitions, rules, process
        self.partition_phase = self._gauge(
            "partition_phase", "1 for the phase that the partition is in, 0 for the others.", ("shard", "phase")
        )
        self.partition_clock_age = self._gauge(
            "partition_clock_age_seconds",
            "This machine's time minus the partition clock. A few seconds when caught up; while it grows no device goes offline.",
            ("shard",),
        )
        self.rules_generation = self._gauge(
            "rules_generation", "The newest rules generation that this worker judges by."
        )
        self.rules_reload_failures = self._counter(
            "rules_reload_failures",
            "Edits of the fleet that could not be read; the last good rules stay in force (see /v1/status).",
        )
        self.rules_unconfirmed = self._counter(
            "rules_unconfirmed",
            "Times that judging went on by the rules known last, because the control plane couldn't be asked for newer ones for 5 s.",
        )
        self.rules_late = self._gauge(
            "rules_late",
            "Rules generations that were published too late since the worker's start: records may have been judged by the one before (its log says which).",
        )
        self.control_plane_silent = self._gauge(
            "control_plane_silent_seconds",
            "How long the API server has said nothing to this worker, or has refused to tell it the rules, while it goes on with what it knows; 0 while all is well (see control_plane in /v1/status).",
        )
        self.status_refused = self._counter(
            "status_refused",
            "Statuses of partitions that the control plane didn't take: a right is missing, or its definitions are of another version (see control_plane in /v1/status). Tried again at growing intervals.",
        )
        self.loop_stall = self._histogram(
            "loop_stall_seconds",
            "How late the event loop woke from a short sleep. High: something blocks it.",
            STALL_BUCKETS,
        )

        for reason in records.Reason:
            self.dead_letters.labels(reason.value)
        for trigger in rules.TRIGGERS:
            self.alert_latency.labels(trigger)
            for target in (effects.Target.ALERTS, effects.Target.COMMANDS):
                self.effects.labels(target.value, trigger)
        prometheus_client.ProcessCollector(registry=self.registry)

    def partition(self, shard_id: str) -> PartitionMetrics:
        """The shard's children. Asking again gives the same counts."""
        return PartitionMetrics(
            records=self.records.labels(shard_id),
            intake_bytes=self.intake_bytes.labels(shard_id),
            misrouted=self.misrouted.labels(shard_id),
            late=self.late.labels(shard_id),
            skewed=self.skewed.labels(shard_id),
            disk_full_stops=self.disk_full_stops.labels(shard_id),
            twins=self.twins.labels(shard_id),
            twins_in_memory=self.twins_in_memory.labels(shard_id),
            outbox_effects=self.outbox_effects.labels(shard_id),
            _lag=self.lag.labels(shard_id),
            _outbox_oldest=self.outbox_oldest.labels(shard_id),
            _clock_age=self.partition_clock_age.labels(shard_id),
            _open=tuple(self.alerts_open.labels(shard_id, trigger) for trigger in rules.TRIGGERS),
            _phases={phase: self.partition_phase.labels(shard_id, phase) for phase in PHASES},
        )

    def hand_over_partition(self, shard_id: str) -> None:
        """Takes away what is true of a partition now, once another worker has it. What this worker did for it stays counted: sums over
        workers would fall otherwise."""
        for metric in self._by_shard:
            if isinstance(metric, prometheus_client.Gauge):
                metric.remove_by_labels({"shard": shard_id})

    def checkpoints(self, shard_id: str) -> CheckpointMetrics:
        """The shard's children for checkpoints. Asking again gives the same counts."""
        return CheckpointMetrics(
            failures=self.checkpoint_failures.labels(shard_id),
            _seconds=self.checkpoint,
            _shard_id=shard_id,
            _time=self.checkpoint_time,
            _bytes={kind: self.checkpoint_bytes.labels(shard_id, kind.value) for kind in manifest.Kind},
            _rows={kind: self.checkpoint_rows.labels(shard_id, kind.value) for kind in manifest.Kind},
        )

    def forget_partition(self, shard_id: str) -> None:
        """Takes all of a partition's series away once its shard is gone, so that shards gone by don't pile up."""
        for metric in self._by_shard:
            metric.remove_by_labels({"shard": shard_id})

    def published(self, effect: effects.Effect, latency_ms: int) -> None:
        """Counts one acknowledged effect. latency_ms: acknowledgement minus the effect's arrival_ms."""
        self.effects.labels(effect.target.value, effect.trigger).inc()
        if effect.target is effects.Target.ALERTS:
            self.alert_latency.labels(effect.trigger).observe(latency_ms / 1000)

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Counter:
        counter = prometheus_client.Counter(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)
        self._define(f"{name}_total", "counter", help_text, labels)
        if "shard" in labels:
            self._by_shard.append(counter)
        return counter

    def _gauge(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Gauge:
        gauge = prometheus_client.Gauge(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)
        self._define(name, "gauge", help_text, labels)
        if "shard" in labels:
            self._by_shard.append(gauge)
        return gauge

    def _histogram(
        self, name: str, help_text: str, buckets: Sequence[float], labels: tuple[str, ...] = ()
    ) -> prometheus_client.Histogram:
        self._define(name, "histogram", help_text, labels)
        return prometheus_client.Histogram(
            name, help_text, labels, namespace=NAMESPACE, registry=self.registry, buckets=buckets
        )

    def _define(self, name: str, kind: str, help_text: str, labels: tuple[str, ...]) -> None:
        self.definitions.append(Definition(f"{NAMESPACE}_{name}", kind, labels, help_text))


def reference_page() -> str:
    """docs/reference/metrics.md. A test compares the two."""
    lines = [
        "# Metrics",
        "",
        "What a worker tells at `/metrics`, in Prometheus' text format or OpenMetrics. This page is printed by",
        "`python -m fleet_worker.metrics`; write a change there, not here. Values of labels are bounded (shards of the worker,",
        "triggers, reasons, targets, phases, kinds of files, calls to Kinesis and the object store and their troubles); no metric carries a device. Beside these stand Prometheus' usual `process_…` metrics.",
        "",
        "| metric | type | labels | what it tells |",
        "| --- | --- | --- | --- |",
    ]
    for entry in Metrics().definitions:
        labels = ", ".join(f"`{label}`" for label in entry.labels) or "–"
        lines.append(f"| `{entry.name}` | {entry.kind} | {labels} | {entry.help} |")
    lines += [
        "",
        "Label values: `trigger` is "
        + ", ".join(f"`{trigger}`" for trigger in EFFECT_TRIGGERS)
        + " (alerts: the first three);",
        "`target` is "
        + ", ".join(f"`{target.value}`" for target in effects.Target)
        + "; `phase` is "
        + ", ".join(f"`{phase}`" for phase in PHASES)
        + ";",
        "`reason` is " + ", ".join(f"`{reason.value}`" for reason in records.Reason) + ";",
        "`operation` is the name of a call to Kinesis or the object store; `trouble` is "
        + ", ".join(f"`{trouble.value}`" for trouble in kinesis_api.Trouble)
        + " (Kinesis), "
        + ", ".join(f"`{trouble.value}`" for trouble in objects_api.TRIED_AGAIN)
        + " (the object store);",
        "`kind` is " + ", ".join(f"`{kind.value}`" for kind in manifest.Kind) + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_page(), end="")
