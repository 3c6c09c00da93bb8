"""The `TwinPartition` object as a document in Kubernetes' shape (plain mappings, lists and values), and back.

One form for the API server and for the folder that stands in for it. It doesn't decide: whether an epoch may change is the
control plane's business and the API server's. A field that it doesn't know is passed over, unlike in a fleet's
document: people don't write these, and while versions of us run side by side the older must read what the newer wrote.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

from fleet_model import hashing, parse_rules, sections, twin_partition

API_VERSION = "fleettwin.io/v1alpha1"
KIND = "TwinPartition"

NUMBER_MAX = 2**53 - 1
"""Of epochs and counts: what every reader of JSON reads exactly."""

TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that a date-time can write."""

PARENTS_MAX = 2
STANDBY_MAX = 16
MESSAGE_MAX = 1_024
"""Characters of status.message that are kept."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)

_EXACT = sections.form(r".*", "", 253)
NAME = sections.form(r"[!-~]+", "a name of at most 253 printable characters without spaces", 253)
WORKER = sections.form(r"[!-~]*", 'a worker\'s name, or "" for none, at most 253 characters', 253)
SHARD_ID = sections.form(r"[A-Za-z0-9_.-]+", 'a shard\'s id such as "shardId-000000000000"', 128)
_RESOURCE_VERSION = sections.form(r"[!-~]*", "the text that the object was read with", 256)
_UID = sections.form(r"[!-~]*", "the text that the object was given when it was made", 256)
HASH_KEY = sections.form(r"0|[1-9][0-9]*", 'a hash key as decimal text, "0" to 2 to the power of 128 less 1', 39)
SEQUENCE_NUMBER = sections.form(r"(?:0|[1-9][0-9]*)?", 'a sequence number as decimal text, or ""', 56)
NONCE = sections.form(r"[!-~]*", "the text that a claim is known by", 64)
KEY = sections.form(r"[!-~]*", "the name of a checkpoint's file", 1_024)
MESSAGE = sections.form(r".*", "text of at most 32,768 characters", 32_768)
TIME = sections.form(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)",
    "a time such as 2026-01-31T08:00:00.000Z",
    40,
)


def document(partition: twin_partition.TwinPartition) -> dict[str, object]:
    """The object as Kubernetes has it. Every field is written, also an empty one, so that a merge of it leaves nothing old behind; null
    stands for a time or a checkpoint that there isn't. A message's characters above MESSAGE_MAX are cut."""
    metadata: dict[str, object] = {"name": partition.name, "namespace": partition.namespace}
    if partition.resource_version:
        metadata["resourceVersion"] = partition.resource_version
    if partition.uid:
        metadata["uid"] = partition.uid
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": spec_document(partition.spec),
        "status": status_document(partition.status),
    }


def spec_document(spec: twin_partition.Spec) -> dict[str, object]:
    """Hash keys are decimal text: JSON's numbers don't hold 128 bits."""
    return {
        "fleet": spec.fleet,
        "stream": spec.stream,
        "shardId": spec.shard_id,
        "hashKeyRange": {"start": str(spec.hash_key_range.start), "end": str(spec.hash_key_range.end)},
        "parents": list(spec.parents),
        "worker": spec.worker,
        "epoch": spec.epoch,
        "takeover": spec.takeover,
        "standby": list(spec.standby),
        "assignedTime": _time(spec.assigned_ms) if spec.assigned_ms else None,
        "skipToTime": _time(spec.skip_to_ms) if spec.skip_to_ms else None,
        "firstEpoch": spec.first_epoch,
        "receiver": spec.receiver,
        "standbyTime": _time(spec.standby_ms) if spec.standby_ms else None,
    }


def status_document(status: twin_partition.Status) -> dict[str, object]:
    checkpoint = status.checkpoint
    return {
        "phase": status.phase.value,
        "worker": status.worker,
        "epoch": status.epoch,
        "nonce": status.nonce,
        "twins": status.twins,
        "checkpoint": checkpoint
        and {
            "key": checkpoint.key,
            "epoch": checkpoint.epoch,
            "time": _time(checkpoint.time_ms),
            "sequenceNumber": checkpoint.sequence_number,
        },
        "checkpointStale": status.checkpoint_stale,
        "manifestEpoch": status.manifest_epoch,
        "standby": [
            {"worker": standby.worker, "checkpointNumber": standby.checkpoint_number, "warm": standby.warm}
            for standby in status.standby
        ],
        "message": _readable(status.message),
    }


def parse_document(value: Mapping[str, object]) -> twin_partition.TwinPartition:
    """The object of a document. Absent fields have the defaults of `twin_partition`. Raises InvalidFleetError with every mistake and
    the path of each field, and nothing else."""
    mistakes = sections.Mistakes()
    top = sections.Section(value, "", mistakes)
    mistakes.raise_any()
    for name, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if top.required_text(name, _EXACT) not in (expected, ""):
            top.mistake(name, f"must be {expected}, not {sections.shown(top.value(name))}")
    metadata = top.section("metadata")
    name = metadata.required_text("name", NAME)
    namespace = metadata.text("namespace", parse_rules.DNS_LABEL) or "default"
    resource_version = metadata.text("resourceVersion", _RESOURCE_VERSION) or ""
    uid = metadata.text("uid", _UID) or ""
    if top.value("spec") is None:
        top.mistake("spec", "is missing; it must hold at least fleet, stream, shardId and hashKeyRange")
        mistakes.raise_any()
    spec = _read_spec(top.section("spec"))
    status = _read_status(top.section("status"))
    mistakes.raise_any()
    return twin_partition.TwinPartition(namespace, name, spec, status, resource_version, uid)


def _read_spec(section: sections.Section) -> twin_partition.Spec:
    return twin_partition.Spec(
        fleet=section.required_text("fleet", NAME),
        stream=section.required_text("stream", NAME),
        shard_id=section.required_text("shardId", SHARD_ID),
        hash_key_range=_read_range(section),
        parents=_read_texts(section, "parents", SHARD_ID, PARENTS_MAX),
        worker=section.text("worker", WORKER) or "",
        epoch=section.integer("epoch", 0, 0, NUMBER_MAX),
        takeover=section.integer("takeover", 0, 0, NUMBER_MAX),
        standby=_read_texts(section, "standby", NAME, STANDBY_MAX),
        assigned_ms=_read_time(section, "assignedTime"),
        skip_to_ms=_read_time(section, "skipToTime"),
        first_epoch=section.integer("firstEpoch", 1, 1, NUMBER_MAX),
        receiver=section.text("receiver", WORKER) or "",
        standby_ms=_read_time(section, "standbyTime"),
    )


def _read_range(section: sections.Section) -> hashing.HashKeyRange:
    if section.value("hashKeyRange") is None:
        if section.is_readable:
            section.mistake("hashKeyRange", "is missing; it must hold start and end")
        return hashing.HashKeyRange()
    inside = section.section("hashKeyRange")
    start = inside.required_text("start", HASH_KEY)
    end = inside.required_text("end", HASH_KEY)
    if not start or not end:
        return hashing.HashKeyRange()
    try:
        return hashing.HashKeyRange(int(start), int(end))
    except ValueError as error:
        section.mistake("hashKeyRange", str(error))
        return hashing.HashKeyRange()


def _read_status(section: sections.Section) -> twin_partition.Status:
    standby = []
    for entry in section.sections("standby", STANDBY_MAX):
        standby.append(
            twin_partition.StandbyStatus(
                worker=entry.required_text("worker", NAME),
                checkpoint_number=entry.integer("checkpointNumber", 0, 0, NUMBER_MAX),
                warm=entry.boolean("warm", False),
            )
        )
    return twin_partition.Status(
        phase=section.choice("phase", twin_partition.Phase.PENDING, twin_partition.Phase),
        worker=section.text("worker", WORKER) or "",
        epoch=section.integer("epoch", 0, 0, NUMBER_MAX),
        nonce=section.text("nonce", NONCE) or "",
        twins=section.integer("twins", 0, 0, NUMBER_MAX),
        checkpoint=_read_checkpoint(section),
        checkpoint_stale=section.boolean("checkpointStale", False),
        manifest_epoch=section.integer("manifestEpoch", 0, 0, NUMBER_MAX),
        standby=tuple(standby),
        message=section.text("message", MESSAGE) or "",
    )


def _read_checkpoint(section: sections.Section) -> twin_partition.CheckpointStatus | None:
    if section.value("checkpoint") is None:
        return None
    inside = section.section("checkpoint")
    if inside.is_readable and inside.value("time") is None:
        inside.mistake("time", f"is missing; it must be {TIME.remedy}")
    return twin_partition.CheckpointStatus(
        key=inside.text("key", KEY) or "",
        epoch=inside.integer("epoch", 0, 0, NUMBER_MAX),
        time_ms=_read_time(inside, "time"),
        sequence_number=inside.text("sequenceNumber", SEQUENCE_NUMBER) or "",
    )


def _read_texts(section: sections.Section, name: str, required: sections.Form, items_max: int) -> tuple[str, ...]:
    value = section.value(name)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        section.mistake(name, f"must be a list, not {sections.shown(value)}")
        return ()
    if len(value) > items_max:
        section.mistake(name, f"has {len(value)} entries; at most {items_max} are allowed")
    entries = {f"{name}[{index}]": entry for index, entry in enumerate(value[:items_max])}
    inside = sections.Section(entries, section.path, section.mistakes)
    return tuple(inside.required_text(entry, required) for entry in entries)


def _time(time_ms: int) -> str:
    moment = _EPOCH + datetime.timedelta(milliseconds=min(max(time_ms, 0), TIME_MS_MAX))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read_time(section: sections.Section, name: str) -> int:
    """Milliseconds since 1970; 0 when it is absent or wrong."""
    text = section.text(name, TIME)
    if text is None:
        return 0
    try:
        moment = datetime.datetime.fromisoformat(text.upper())
        time_ms = (moment - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        time_ms = -1
    if time_ms < 0:
        section.mistake(name, f"must be {TIME.remedy}, since 1970, not {sections.shown(text)}")
        return 0
    return time_ms


def _readable(message: str) -> str:
    """Text that has a UTF-8 form and isn't longer than is kept."""
    short = message if len(message) <= MESSAGE_MAX else message[: MESSAGE_MAX - 1] + "…"
    return re.sub("[\ud800-\udfff]", "�", short)
