"""Dead letters as effects: the envelope that goes to the fleet's dead-letter stream, and what an effect that Kinesis refuses
becomes. It decides nothing about which records are refused, and never makes a dead letter of a dead letter.
"""

from __future__ import annotations

import base64

import orjson

from fleet_model import partition
from fleet_worker.core import decode, effects, records


def envelope(
    identity: partition.PartitionIdentity, letter: records.DeadLetter, refused: effects.Effect | None = None
) -> effects.Effect:
    """The dead letter as JSON, see docs/reference/messages.md. refused: the effect that it is about; a letter about a record
    is known by the record's position, one about an effect by the effect's id."""
    sequence_number = letter.sequence_number if refused is None else refused.effect_id
    position = partition.Position(sequence_number, letter.subsequence_number)
    effect_id = effects.effect_id(identity, letter.device_id, "dead_letter", letter.reason, "firing", position, 0)
    document = {
        "dead_letter_id": effect_id,
        "reason": letter.reason.value,
        "detail": letter.detail,
        "device_id": letter.device_id,
        "fleet": f"{identity.namespace}/{identity.fleet}",
        "stream": identity.stream,
        "shard_id": identity.shard_id,
        "sequence_number": letter.sequence_number,
        "subsequence_number": letter.subsequence_number,
        "arrival_ms": letter.arrival_ms,
        "size_bytes": letter.size_bytes,
        "data_base64": base64.b64encode(letter.data).decode(),
    }
    return effects.Effect(
        effects.Target.DEAD_LETTER,
        effect_id,
        "dead_letter",
        letter.device_id or identity.shard_id,
        letter.arrival_ms,
        orjson.dumps(document),
    )


def of_refused(effect: effects.Effect, why: str) -> records.DeadLetter:
    """What is kept of an effect that Kinesis will never take."""
    assert effect.target is not effects.Target.DEAD_LETTER, "sending a refused dead letter on would never end"
    return records.DeadLetter(
        reason=records.Reason.REFUSED_BY_KINESIS,
        detail=f"{effect.target.value}: {why}",
        device_id=effect.partition_key,
        sequence_number="",
        subsequence_number=0,
        arrival_ms=effect.arrival_ms,
        data=effect.data[: decode.DEAD_LETTER_BYTES_MAX],
        size_bytes=len(effect.data),
    )
