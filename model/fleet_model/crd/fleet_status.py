"""The status of a DeviceFleet, which the operator writes and people read; and its columns in `kubectl get`."""

from __future__ import annotations

from fleet_model import sections
from fleet_model import twin_partition_document as documents
from fleet_model.crd import schema

CONDITIONS_MAX = 16
PARTITIONS_MAX = 100_000
"""Kinesis has fewer shards in a stream; a count above it would be a mistake."""

_TYPE = sections.form(r"[A-Za-z][A-Za-z0-9]*", "", 64)
_MESSAGE = sections.form(r".*", "", 32_768)
_UID = sections.form(r"[!-~]+", "", 128)
_PACKED = sections.form(r"[A-Za-z0-9+/]*={0,2}", "", 262_144)
"""Base64. etcd takes objects of 1.5 MiB."""
_SELECTOR = sections.form(r".*", "", 1_024)


def status() -> schema.Schema:
    count = documents.NUMBER_MAX
    fields = {
        "observedGeneration": schema.integer("The generation of the spec that this status is of.", 0, count),
        "replicas": schema.integer("Workers that there are.", 0, PARTITIONS_MAX),
        "readyReplicas": schema.integer("Workers that are ready.", 0, PARTITIONS_MAX),
        "selector": schema.text("The workers' label selector, for the scale subresource.", _SELECTOR),
        "partitions": schema.mapping(
            "How the partitions are.",
            {
                "total": schema.integer("Partitions that there are.", 0, PARTITIONS_MAX),
                "running": schema.integer("Those that run.", 0, PARTITIONS_MAX),
                "moving": schema.integer("Those that change their owner.", 0, PARTITIONS_MAX),
                "failed": schema.integer("Those that failed; their own messages say why.", 0, PARTITIONS_MAX),
            },
        ),
        "twins": schema.integer("About how many twins there are.", 0, count),
        "rules": schema.mapping(
            "Which rules are in force.",
            {
                "generation": schema.integer("The newest generation of the rules.", 0, count),
                "effectiveMs": schema.integer("The arrival time from which it judges, in ms since 1970.", 0, count),
                "appliedWorkers": schema.integer("Workers that judge by it.", 0, PARTITIONS_MAX),
                "generations": schema.text(
                    "All generations that a replay may need, packed. Workers read their rules here.", _PACKED
                ),
            },
        ),
        "lastCheckpoint": _time(
            "Of the partitions' newest checkpoints the oldest one's time: so far back a lost disk would go."
        ),
        "restarting": schema.mapping(
            "The pod that is being made anew in a rolling update. Left out: none.",
            {
                "worker": schema.text("The worker.", documents.NAME),
                "podUID": schema.text("The pod that has to go.", _UID),
                "until": _time("So long the worker keeps its partitions while it is silent."),
            },
            ["worker", "podUID", "until"],
        ),
        "conditions": _conditions(),
    }
    return schema.mapping("How the fleet is. The operator writes it.", fields)


def _conditions() -> schema.Schema:
    fields = {
        "type": schema.text("Ready, Progressing, Rebalancing, CheckpointsHealthy, RulesApplied or Stalled.", _TYPE),
        "status": schema.choice("Whether it holds.", ("True", "False", "Unknown")),
        "observedGeneration": schema.integer(
            "The generation of the spec that this is said of.", 0, documents.NUMBER_MAX
        ),
        "lastTransitionTime": _time("When status last changed."),
        "reason": schema.text("Why, in one word of docs/reference/partitions.md.", _TYPE),
        "message": schema.text("Why, in a sentence.", _MESSAGE),
    }
    needed = ["type", "status", "lastTransitionTime", "reason", "message"]
    condition = schema.mapping("One condition.", fields, needed)
    keyed = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return schema.array("How the fleet is, one entry a question.", condition, CONDITIONS_MAX) | keyed


def _time(description: str) -> schema.Schema:
    return schema.time(description, documents.TIME.pattern.pattern, documents.TIME.longest)


def columns() -> list[schema.Schema]:
    ready = ".status.conditions[?(@.type=='Ready')]"
    return [
        schema.column("Ready", "string", f"{ready}.status", "Whether every partition runs."),
        schema.column("Reason", "string", f"{ready}.reason", "Why it is ready or not."),
        schema.column("Desired", "integer", ".spec.replicas", "Workers that are wanted."),
        schema.column("Workers", "integer", ".status.readyReplicas", "Workers that are ready."),
        schema.column("Partitions", "integer", ".status.partitions.total", "Partitions that there are."),
        schema.column("Running", "integer", ".status.partitions.running", "Partitions that run."),
        schema.column("Twins", "integer", ".status.twins", "About how many twins there are."),
        schema.column("Checkpoint", "date", ".status.lastCheckpoint", "How old the oldest newest checkpoint is."),
        schema.column("Age", "date", ".metadata.creationTimestamp", "How long the fleet exists."),
        schema.column("Stream", "string", ".spec.streams.telemetry.name", "The telemetry stream.", is_wide=True),
        schema.column("Rules", "integer", ".status.rules.generation", "The rules' generation.", is_wide=True),
        schema.column("Moving", "integer", ".status.partitions.moving", "Partitions that move.", is_wide=True),
        schema.column("Message", "string", f"{ready}.message", "Why it is ready or not.", is_wide=True),
    ]
