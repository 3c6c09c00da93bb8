"""The TwinPartition's definition: every field with its words, and the document's own forms and bounds.

Its rules keep what ownership stands on, whoever writes: epochs never fall, an owner changes only with a higher one, and a partition
stays the shard that it is.
"""

from __future__ import annotations

from fleet_model import hashing, twin_partition
from fleet_model import twin_partition_document as documents
from fleet_model.crd import schema

_UP_TO = "size(self.{0}) < size({1}) || (size(self.{0}) == size({1}) && self.{0} <= {1})"
"""Decimal texts without leading zeros, compared as the numbers that they are."""

RANGE_RULES = (
    schema.Rule(_UP_TO.format("start", "self.end"), "start must not be above end", ".start"),
    schema.Rule(
        _UP_TO.format("end", f"'{hashing.HASH_KEY_MAX}'"), "end must be at most 2 to the power of 128 less 1", ".end"
    ),
)
SPEC_RULES = (
    *(
        schema.Rule(
            f"self.{field} == oldSelf.{field}",
            f"{field} can't change: it says which partition this is",
            f".{field}",
            "FieldValueForbidden",
        )
        for field in ("fleet", "stream", "shardId", "hashKeyRange", "parents")
    ),
    schema.Rule("self.epoch >= oldSelf.epoch", "an epoch never falls", ".epoch", "FieldValueForbidden"),
    schema.Rule(
        "self.worker == oldSelf.worker || self.epoch > oldSelf.epoch",
        "the worker changes only with a higher epoch",
        ".worker",
        "FieldValueForbidden",
    ),
    schema.Rule("self.takeover <= self.epoch", "takeover must not be above the epoch", ".takeover"),
    schema.Rule("self.receiver == '' || self.receiver in self.standby", "the receiver is one of standby", ".receiver"),
)


def definition() -> schema.Schema:
    names = {
        "kind": documents.KIND,
        "listKind": "TwinPartitionList",
        "plural": "twinpartitions",
        "singular": "twinpartition",
        "shortNames": ["tpart"],
    }
    root = schema.root(
        "One Kinesis shard's twins: who owns them, and what the owner says. The control plane writes spec, the owner status.",
        _spec(),
        _status(),
    )
    version = {
        "additionalPrinterColumns": _columns(),
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
    }
    return schema.definition(names, version)


def _spec() -> schema.Schema:
    number = documents.NUMBER_MAX
    shard_id = schema.text("A shard's id.", documents.SHARD_ID)
    fields = {
        "fleet": schema.text("The fleet's name.", documents.NAME),
        "stream": schema.text("The telemetry stream.", documents.NAME),
        "shardId": schema.text("The Kinesis shard's id.", documents.SHARD_ID),
        "hashKeyRange": _range(),
        "parents": schema.array(
            "Shards whose twins it inherits, also those that the stream no longer lists.",
            shard_id,
            documents.PARENTS_MAX,
            [],
        ),
        "worker": schema.text('The owner; "": none yet.', documents.WORKER, ""),
        "epoch": schema.integer("Raised by 1 at each change of owner.", 0, number, 0),
        "takeover": schema.integer(
            "The epoch for which the owner may claim although the manifest is neither final nor its own; 0: none.",
            0,
            number,
            0,
        ),
        "standby": schema.array(
            "Workers that keep a warm copy.",
            schema.text("A worker's name.", documents.NAME),
            documents.STANDBY_MAX,
            [],
        ),
        "assignedTime": _time("When the epoch was raised."),
        "skipToTime": _time("The way out of a position that the stream no longer retains: go on from here."),
        "firstEpoch": schema.integer("The one claim that may find no manifest.", 1, number, 1),
        "receiver": schema.text(
            'The worker that it moves to as soon as its copy is warm; "": it isn\'t about to move.',
            documents.WORKER,
            "",
        ),
        "standbyTime": _time("When the receiver was named."),
    }
    needed = ["fleet", "stream", "shardId", "hashKeyRange"]
    return schema.ruled(schema.mapping("What the control plane wants.", fields, needed), *SPEC_RULES)


def _range() -> schema.Schema:
    fields = {
        "start": schema.text("The first hash key, as decimal text.", documents.HASH_KEY),
        "end": schema.text("The last hash key, as decimal text.", documents.HASH_KEY),
    }
    whole = schema.mapping("The hash keys of its devices, both ends included.", fields, ["start", "end"])
    return schema.ruled(whole, *RANGE_RULES)


def _status() -> schema.Schema:
    number = documents.NUMBER_MAX
    default = twin_partition.Status()
    standby = schema.mapping(
        "A standby's own entry.",
        {
            "worker": schema.text("The standby.", documents.NAME),
            "checkpointNumber": schema.integer("The checkpoint that its copy equals; 0: none yet.", 0, number, 0),
            "warm": schema.boolean("Whether that is the newest one.", False),
        },
        ["worker"],
    )
    fields = {
        "phase": schema.choice("Where it is in its life.", twin_partition.Phase, default.phase),
        "worker": schema.text("The worker whose claim stands.", documents.WORKER, default.worker),
        "epoch": schema.integer("The epoch of the claim that stands.", 0, number, default.epoch),
        "nonce": schema.text("The nonce of the claim that stands.", documents.NONCE, default.nonce),
        "twins": schema.integer("About how many.", 0, number, default.twins),
        "checkpoint": _checkpoint(),
        "checkpointStale": schema.boolean("The last checkpoint is older than two intervals.", default.checkpoint_stale),
        "manifestEpoch": schema.integer(
            "After a refused claim, the manifest's epoch; the control plane goes on above it.",
            0,
            number,
            default.manifest_epoch,
        ),
        "standby": schema.array("One entry a standby.", standby, documents.STANDBY_MAX, []),
        "message": schema.text("Why it isn't Running, or what troubles it.", documents.MESSAGE, default.message),
    }
    return schema.mapping("What the owner says.", fields, is_filled=True)


def _checkpoint() -> schema.Schema:
    fields = {
        "key": schema.text("The name of its newest file.", documents.KEY, ""),
        "epoch": schema.integer("The epoch that it was taken under.", 0, documents.NUMBER_MAX, 0),
        "time": _time("When it was taken."),
        "sequenceNumber": schema.text("The position in it.", documents.SEQUENCE_NUMBER, ""),
    }
    return schema.mapping("The newest confirmed checkpoint.", fields, ["time"])


def _time(description: str) -> schema.Schema:
    return schema.time(description, documents.TIME.pattern.pattern, documents.TIME.longest)


def _columns() -> list[schema.Schema]:
    return [
        schema.column("Shard", "string", ".spec.shardId", "The Kinesis shard."),
        schema.column("Worker", "string", ".spec.worker", "The owner."),
        schema.column("Phase", "string", ".status.phase", "Where it is in its life."),
        schema.column("Epoch", "integer", ".spec.epoch", "Changes of owner so far."),
        schema.column("Twins", "integer", ".status.twins", "About how many."),
        schema.column("Checkpoint", "date", ".status.checkpoint.time", "How old the newest checkpoint is."),
        schema.column("Age", "date", ".metadata.creationTimestamp", "How long the object exists."),
        schema.column("Fleet", "string", ".spec.fleet", "The fleet.", is_wide=True),
        schema.column("Receiver", "string", ".spec.receiver", "The worker that it moves to.", is_wide=True),
        schema.column("Message", "string", ".status.message", "What troubles it.", is_wide=True),
    ]
