"""Effects: alerts, commands, records put again, dead letters on their way to Kinesis; and their ids."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib

from fleet_model import hashing, partition


class Target(enum.StrEnum):
    """The stream an effect goes to."""

    ALERTS = "alerts"
    COMMANDS = "commands"
    TELEMETRY = "telemetry"  # a misrouted record, put again under its device id
    DEAD_LETTER = "dead_letter"


@dataclasses.dataclass(frozen=True, slots=True)
class Effect:
    """One record to publish. effect_id: 32 hex digits, the same at every replay. trigger: the metric label ("temp_spike",
    "battery_drop", "offline", "misrouted", "dead_letter"). partition_key: the device id. arrival_ms: of the causing
    record (offline: last arrival + limit): the alert latency counts from it. data: the message, encoded."""

    target: Target
    effect_id: str
    trigger: str
    partition_key: str
    arrival_ms: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An effect with its number in the partition's outbox; numbers rise in the order of causes and never repeat."""

    number: int
    effect: Effect


def effect_id(
    identity: partition.PartitionIdentity,
    device_id: str,
    kind: str,
    trigger: str,
    state: str,
    position: partition.Position,
    repeat: int,
) -> str:
    """The id of an alert or a command: BLAKE2b-128 over the named parts, each preceded by its length.

    kind: "alert" or "command". state: "firing" or "resolved". position: of the causing record; for offline, of the last
    record heard. repeat: how often the alert had fired before in this open episode. The shard is not part of it:
    sequence numbers are unique in a stream.
    """
    sequence = position.sequence_number.encode()
    device = device_id.encode()
    repeats = b"%d" % repeat
    index = b"%d" % position.subsequence_number
    packed = b"".join(
        (
            _packed(identity.namespace, identity.fleet, identity.stream),
            *(len(device).to_bytes(2, "big"), device),
            _packed(kind, trigger, state),
            *(len(sequence).to_bytes(2, "big"), sequence),
            *(len(index).to_bytes(2, "big"), index),
            *(len(repeats).to_bytes(2, "big"), repeats),
        )
    )
    return hashlib.blake2b(packed, digest_size=16).hexdigest()


@functools.lru_cache(maxsize=1_024)
def _packed(*parts: str) -> bytes:
    """Each part after its length. Remembered: a partition's effects share most of their parts, and come by the thousand."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(2, "big") + part for part in encoded)


def goes_to_child(effect: Effect, parent: hashing.HashKeyRange, child: hashing.HashKeyRange) -> bool:
    """Which of a closed partition's children publishes what its outbox still holds: the one whose range has the effect's key.
    One whose key isn't the parent's own (a record put again, a dead letter without a device) goes to the child that has
    the parent's first key: each goes to one child, and none is lost."""
    key = hashing.hash_key(effect.partition_key)
    return (key if key in parent else parent.start) in child
