"""Checkpoints told to a human: a line for each partition, or one manifest in words with each of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fleet_cli import show
from fleet_cli.checkpoints import bucket
from fleet_model import manifest
from fleet_worker import checkpoint_reading

Json = dict[str, Any]
HEADS = (
    "partition", "epoch", "worker", "state", "checkpoint", "age", "twins", "files", "size", "deltas", "trouble"
)  # fmt: skip
WORDS = {
    manifest.Kind.BASE: "every twin",
    manifest.Kind.DELTA: "twins that changed",
    manifest.Kind.OUTBOX: "effects that wait for Kinesis",
    manifest.Kind.DEAD_LETTERS: "the newest dead letters",
}


def state(of: manifest.Manifest) -> str:
    """ended: its shard was read to its end. released: drained, the next claim is free. owned: by its worker."""
    if of.ended:
        return "ended"
    return "released" if of.final else "owned"


def deltas(checkpoint: manifest.Checkpoint) -> int:
    layers = checkpoint_reading.layers_of(checkpoint.parts)
    return sum(files[0].kind is manifest.Kind.DELTA for files in layers)


def document(entry: bucket.Partition, now_ms: int) -> Json:
    """One partition as JSON."""
    of, checkpoint = entry.manifest, entry.checkpoint
    if of is None:
        return {"shard_id": entry.shard_id, "trouble": entry.trouble}
    return {
        "shard_id": entry.shard_id,
        "trouble": None,
        "stream": of.identity.stream,
        "hash_key_range": {
            "start": str(of.identity.hash_key_range.start),
            "end": str(of.identity.hash_key_range.end),
        },
        "parents": list(of.parents),
        "epoch": of.epoch,
        "worker": of.worker,
        "nonce": of.nonce,
        "revision": of.revision,
        "final": of.final,
        "ended": of.ended,
        "checkpoint": None if checkpoint is None else _checkpoint_document(checkpoint, now_ms),
    }


def _checkpoint_document(checkpoint: manifest.Checkpoint, now_ms: int) -> Json:
    return {
        "number": checkpoint.number,
        "time_ms": checkpoint.time_ms,
        "age_ms": now_ms - checkpoint.time_ms,
        "twins": checkpoint.twins,
        "files": len(checkpoint.parts),
        "bytes": sum(part.size for part in checkpoint.parts),
        "deltas": deltas(checkpoint),
        "clock_ms": checkpoint.clock_ms,
        "commit_number": checkpoint.commit_number,
        "position": {
            "sequence_number": checkpoint.position.sequence_number,
            "subsequence_number": checkpoint.position.subsequence_number,
        },
    }


def table(found: Sequence[bucket.Partition], now_ms: int) -> None:
    rows = [_row(entry, now_ms) for entry in found]
    width = len(HEADS) if any(row[-1] for row in rows) else len(HEADS) - 1
    show.table(HEADS[:width], [row[:width] for row in rows])
    click.echo()
    known = [entry.checkpoint for entry in found if entry.checkpoint is not None]
    size = sum(part.size for checkpoint in known for part in checkpoint.parts)
    told = [f"{len(found):,} partitions", f"{twins(found):,} twins", show.size(size)]
    owned_ms = [
        entry.manifest.checkpoint.time_ms
        for entry in found
        if entry.manifest is not None and entry.manifest.checkpoint is not None and not entry.manifest.final
    ]
    if owned_ms:
        told.append(f"the oldest checkpoint of an owned one {show.age(now_ms - min(owned_ms))} ago")
    click.echo(", ".join(told))


def twins(found: Sequence[bucket.Partition]) -> int:
    """Of the fleet: those that a closed partition's children have aren't counted twice. About, while a split or merge is under way."""
    total = 0.0
    for entry, key_range in bucket.standing(found):
        assert entry.manifest is not None
        assert entry.checkpoint is not None
        total += entry.checkpoint.twins * (key_range.size / entry.manifest.identity.hash_key_range.size)
    return round(total)


def tell_holes(found: Sequence[bucket.Partition]) -> None:
    """On standard error."""
    for what in holes(found):
        click.echo(click.style("Note: ", fg="yellow", bold=True) + what, err=True)


def holes(found: Sequence[bucket.Partition]) -> list[str]:
    return [
        f"no manifest speaks for {bucket.share(hole):.3g} % of the devices (hash keys {hole.start} to {hole.end}): their partition was "
        "never claimed, or its manifest is lost"
        for hole in bucket.holes(found)
    ]


def _row(entry: bucket.Partition, now_ms: int) -> tuple[str, ...]:
    of, checkpoint = entry.manifest, entry.checkpoint
    if of is None:
        return (entry.shard_id, *[show.DASH] * (len(HEADS) - 2), click.style(entry.trouble, fg="red"))
    owner = (entry.shard_id, str(of.epoch), of.worker or show.DASH, state(of))
    if checkpoint is None:
        return (*owner, "none yet", *[show.DASH] * (len(HEADS) - len(owner) - 2), "")
    return (
        *owner,
        f"{checkpoint.number:,}",
        show.age(now_ms - checkpoint.time_ms),
        f"{checkpoint.twins:,}",
        str(len(checkpoint.parts)),
        show.size(sum(part.size for part in checkpoint.parts)),
        str(deltas(checkpoint)),
        "",
    )


def words(of: manifest.Manifest, now_ms: int) -> None:
    """A manifest in words, and its files."""
    key_range, checkpoint = of.identity.hash_key_range, of.checkpoint
    click.echo(click.style(of.identity.shard_id, bold=True) + f"   of {of.identity.namespace}/{of.identity.fleet}")
    facts = [
        ("stream", of.identity.stream),
        (
            "hash keys",
            f"{_hex(key_range.start)} to {_hex(key_range.end)}, {bucket.share(key_range):.3g} % of the devices",
        ),
        ("parents", ", ".join(of.parents) or show.DASH),
        ("owner", _owner(of)),
        ("claim", f"epoch {of.epoch}, nonce {of.nonce or show.DASH}, manifest revision {of.revision:,}"),
    ]
    if checkpoint is None:
        show.facts([*facts, ("checkpoint", "none yet")])
        return
    position = checkpoint.position
    sub = f", record {position.subsequence_number} in it" if position.subsequence_number else ""
    facts += [
        (
            "checkpoint",
            f"number {checkpoint.number:,}, {show.moment(checkpoint.time_ms)} ({show.age(now_ms - checkpoint.time_ms)} ago), "
            f"commit {checkpoint.commit_number:,}",
        ),
        ("twins", f"{checkpoint.twins:,}"),
        ("position", (position.sequence_number or "nothing read yet") + sub),
        (
            "clock",
            f"{show.moment(checkpoint.clock_ms)}; the newest record arrived {show.moment(checkpoint.high_arrival_ms)}",
        ),
        ("next effect", f"number {checkpoint.outbox_next:,}"),
        ("kept", f"the files of {len(of.kept)} checkpoints before it"),
    ]
    show.facts(facts)
    click.echo()
    if not checkpoint.parts:
        click.echo("No files: there were no twins.")
        return
    rows = [
        (
            part.kind.value,
            f"{part.rows:,}",
            show.size(part.size),
            f"{part.since:,} → {part.through:,}" if part.kind is manifest.Kind.DELTA else f"{part.through:,}",
            str(len(part.groups)) if part.groups else show.DASH,
            part.name,
            WORDS[part.kind],
        )
        for part in checkpoint.parts
    ]
    show.table(("part", "rows", "size", "commits", "row groups", "file", "holds"), rows)


def _owner(of: manifest.Manifest) -> str:
    worker = of.worker or show.DASH
    match state(of):
        case "ended":
            return f"{worker} read the shard to its end; its twins go on in its children"
        case "released":
            return f"{worker} has released it; any worker may claim it"
        case _:
            return worker


def _hex(hash_key: int) -> str:
    return f"{hash_key:032x}"
