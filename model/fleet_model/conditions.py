"""The conditions of a fleet, as far as its partitions and workers tell: one sentence each, and a reason from `control.Reason`.

Sentences name what a person would look for next. It decides nothing, and remembers nothing: since when a condition holds is the
caller's to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fleet_model import hashing, situation, twin_partition
from fleet_model.control import Condition, Kind, Reason
from fleet_model.situation import Situation, Stage
from fleet_model.twin_partition import Phase, TwinPartition

NAMED_MAX = 3
"""Partitions or workers that a sentence names; the rest is counted."""


def conditions(look: Situation, entries: Sequence[TwinPartition]) -> tuple[Condition, ...]:
    """One of each kind. entries: the partitions with the specs that they are to have, in range order."""
    return (
        _ready(look, entries),
        _progressing(look, entries),
        _rebalancing(look, entries),
        _checkpoints_healthy(look, entries),
        _stalled(look, entries),
    )


def _ready(look: Situation, entries: Sequence[TwinPartition]) -> Condition:
    """Partitions behind a parent that isn't closed needn't run."""
    behind = situation.unfinished_ancestors(entries)
    needed = [entry for entry in _open(entries) if entry.spec.shard_id not in behind]
    missing = [entry for entry in needed if not look.its_owner_runs_it(entry)]
    if not entries:
        return Condition(Kind.READY, False, Reason.NO_PARTITIONS, "the fleet has no partitions yet")
    if missing:
        told = _named(_state(entry) for entry in missing)
        message = f"{len(needed) - len(missing)} of {len(needed)} partitions run; not yet: {told}"
        return Condition(Kind.READY, False, Reason.NOT_RUNNING, message)
    return Condition(Kind.READY, True, Reason.ALL_RUNNING, f"all {len(needed)} partitions run")


def _progressing(look: Situation, entries: Sequence[TwinPartition]) -> Condition:
    unowned = [entry for entry in entries if situation.stage(entry) is Stage.UNOWNED]
    starting = [
        entry
        for entry in _open(entries)
        if entry.spec.worker and not look.its_owner_runs_it(entry) and entry.status.phase is not Phase.FAILED
    ]
    if unowned:
        message = f"{_count(unowned)} wait for a worker: {_named(entry.spec.shard_id for entry in unowned)}"
        return Condition(Kind.PROGRESSING, True, Reason.ASSIGNING, message)
    if starting:
        message = f"{_count(starting)} are on their way: {_named(_state(entry) for entry in starting)}"
        return Condition(Kind.PROGRESSING, True, Reason.STARTING, message)
    return Condition(Kind.PROGRESSING, False, Reason.SETTLED, "no partition starts or waits for an owner")


def _rebalancing(look: Situation, entries: Sequence[TwinPartition]) -> Condition:
    moving = [entry for entry in entries if look.is_moving(entry) or look.is_warming(entry)]
    if moving:
        message = f"{_count(moving)} move: {_named(_move(entry) for entry in moving)}"
        return Condition(Kind.REBALANCING, True, Reason.MOVING, message)
    leaving = sorted({entry.spec.worker for entry in _open(entries) if look.is_leaving(entry.spec.worker)})
    if leaving:
        message = f"{_named(leaving)} must be empty before leaving, and nothing of it can move just now"
        return Condition(Kind.REBALANCING, True, Reason.EMPTYING, message)
    if any(look.is_stuck(entry) for entry in entries):
        return Condition(Kind.REBALANCING, True, Reason.WAITING, "moves wait for copies that don't become warm")
    return Condition(Kind.REBALANCING, False, Reason.BALANCED, "no partition moves")


def _checkpoints_healthy(look: Situation, entries: Sequence[TwinPartition]) -> Condition:
    """A partition that was claimed lately may still be without one."""
    kind = Kind.CHECKPOINTS_HEALTHY
    if not look.settings.has_checkpoints:
        message = "spec.checkpoint.bucket isn't set: twins are on the workers' disks only, and no partition can move"
        return Condition(kind, False, Reason.NO_CHECKPOINTS, message)
    running = [entry for entry in _open(entries) if entry.status.phase is Phase.RUNNING]
    stale = [entry for entry in running if entry.status.checkpoint_stale]
    if stale:
        message = (
            f"the last checkpoint is older than two intervals in {_count(stale)}: {_named(_state(e) for e in stale)}"
        )
        return Condition(kind, False, Reason.CHECKPOINTS_STALE, message)
    patience_ms = 2 * look.settings.checkpoint_interval_ms + situation.MOVE_MARGIN_MS
    missing = [
        entry
        for entry in running
        if entry.status.checkpoint is None and look.now_ms - entry.spec.assigned_ms > patience_ms
    ]
    if missing:
        message = f"{_count(missing)} have no checkpoint yet: {_named(_state(entry) for entry in missing)}"
        return Condition(kind, False, Reason.CHECKPOINTS_MISSING, message)
    return Condition(kind, True, Reason.CHECKPOINTS_FRESH, "every running partition's last checkpoint is fresh")


# ── what needs somebody ──────────────────────────────────────────────────────────────────────────────────────────────


def _stalled(look: Situation, entries: Sequence[TwinPartition]) -> Condition:
    """The gravest trouble gives the reason; the message tells all of them."""
    troubles = [
        *_silence(look),
        *_broken_ranges(look, entries),
        *_stream(look, entries),
        *_failures(entries),
        *_immovable(look, entries),
    ]
    if not troubles:
        return Condition(Kind.STALLED, False, Reason.NOT_STALLED, "nothing needs anybody")
    return Condition(Kind.STALLED, True, troubles[0][0], "; ".join(message for _, message in troubles))


_Troubles = Iterable[tuple[Reason, str]]


def _silence(look: Situation) -> _Troubles:
    if look.too_many_are_silent:
        yield (
            Reason.TOO_MANY_SILENT,
            f"{_named(look.silent)} are silent, more than a third of the workers: the trouble may be on the side of the control plane, so "
            "nothing is taken over or moved until some answer; if they are dead indeed, start them or others under their names",
        )
    if not look.able:
        yield Reason.NO_WORKER, "no worker is ready to own partitions"


def _broken_ranges(look: Situation, entries: Sequence[TwinPartition]) -> _Troubles:
    told = broken_ranges(entries)
    if told:
        yield Reason.RANGES_BROKEN, f"the partitions don't cover the hash space once: {_named(told)}"


def broken_ranges(entries: Sequence[TwinPartition]) -> list[str]:
    """Holes and overlaps of the partitions that aren't Closed and have no ancestor that isn't Closed. Nothing for a fleet
    without partitions."""
    behind = situation.unfinished_ancestors(entries)
    ranges = [
        (entry.spec.hash_key_range, entry.spec.shard_id)
        for entry in _open(entries)
        if entry.spec.shard_id not in behind
    ]
    told = []
    reached, reached_by = 0, ""
    for key_range, shard_id in sorted(ranges):
        if key_range.start > reached:
            told.append(f"nobody has {reached} to {key_range.start - 1}")
        if key_range.start < reached:
            told.append(f"{reached_by} and {shard_id} overlap")
        if key_range.end + 1 > reached:
            reached, reached_by = key_range.end + 1, shard_id
    if entries and reached <= hashing.HASH_KEY_MAX:
        told.append(f"nobody has {reached} to {hashing.HASH_KEY_MAX}")
    return told


def _stream(look: Situation, entries: Sequence[TwinPartition]) -> _Troubles:
    if look.observed.shards is None:
        why = f": {look.observed.shards_why}" if look.observed.shards_why else ""
        yield Reason.STREAM_NOT_LISTED, f"the shards of {look.observed.stream} can't be listed; those known go on{why}"
        return
    missing = [entry.spec.shard_id for entry in _open(entries) if entry.spec.shard_id not in look.listed]
    if missing:
        yield (
            Reason.SHARDS_MISSING,
            f"{look.observed.stream} no longer lists {_named(missing)}, which weren't read to their end: their records are gone",
        )


def _failures(entries: Sequence[TwinPartition]) -> _Troubles:
    failed = [entry for entry in _open(entries) if entry.status.phase is Phase.FAILED]
    if failed:
        yield Reason.FAILED, f"{_count(failed)} failed: {_named(_state(entry) for entry in failed)}"
    refused = [
        entry
        for entry in _open(entries)
        if entry.status.phase is not Phase.FAILED
        and entry.status.manifest_epoch
        and situation.stage(entry) is Stage.FIRST
    ]
    if refused:
        yield Reason.CLAIM_REFUSED, f"the claim of {_named(_state(entry) for entry in refused)} was refused"


def _immovable(look: Situation, entries: Sequence[TwinPartition]) -> _Troubles:
    stuck = [entry for entry in entries if look.is_stuck(entry)]
    if stuck:
        told = _named(f"{entry.spec.shard_id} at {entry.spec.receiver}" for entry in stuck)
        yield Reason.MOVES_STUCK, f"copies don't become warm: {told}"
    overdue = [entry for entry in entries if situation.stage(entry) is Stage.CHANGING and look.is_overdue(entry)]
    if overdue:
        told = _named(_move(entry) for entry in overdue)
        yield Reason.MOVES_STUCK, f"changes of owner don't come to an end: {told}"
    if not look.settings.has_checkpoints:
        bound = sorted(
            {
                entry.spec.worker
                for entry in _open(entries)
                if entry.spec.worker and (look.is_lost(entry.spec.worker) or look.is_leaving(entry.spec.worker))
            }
        )
        if bound:
            yield (
                Reason.CANNOT_MOVE,
                f"{_named(bound)} own partitions that can't move without checkpoints; set spec.checkpoint.bucket or bring the workers back",
            )


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open(entries: Iterable[TwinPartition]) -> list[TwinPartition]:
    return [entry for entry in entries if situation.stage(entry) is not Stage.CLOSED]


def _count(entries: Sequence[twin_partition.TwinPartition]) -> str:
    return "1 partition" if len(entries) == 1 else f"{len(entries)} partitions"


def _named(names: Iterable[str]) -> str:
    known = list(names)
    rest = len(known) - NAMED_MAX
    return ", ".join(known[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def _state(entry: TwinPartition) -> str:
    owner = entry.spec.worker or "nobody"
    message = f": {entry.status.message}" if entry.status.message else ""
    return f"{entry.spec.shard_id} ({entry.status.phase.value} at {owner}{message})"


def _move(entry: TwinPartition) -> str:
    """Where it stands on its way."""
    spec, status = entry.spec, entry.status
    if spec.receiver:
        return f"{spec.shard_id} {spec.worker} → {spec.receiver} (warming up)"
    if situation.stage(entry) is Stage.CHANGING:
        return f"{spec.shard_id} {status.worker} → {spec.worker} ({status.phase.value} there, then to be claimed)"
    return f"{spec.shard_id} → {spec.worker} ({status.phase.value})"
