"""The questions that the API answers, each as a JSON-able dict. HTTP is `app`'s business, walking through twins `walk`'s.

A list ends before a hash range that nobody serves here, and a page with nothing before it is refused with the owner's name, unless the
caller said `partial`; then it names what is missing. So no answer is ever silently empty.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fleet_model import hashing, rules
from fleet_worker.api import directory, filters, parameters, problems, walk
from fleet_worker.core import records, views

Json = dict[str, Any]

LISTS_AT_ONCE = 4
LISTS_WAITING_MAX = 32
VIEWS_AT_ONCE = 24
"""Twins made into JSON without letting the loop run: a millisecond or two."""
DEAD_LETTER_DATA_BYTES = 4096
"""Of a dead letter's data as much is shown; the store keeps more."""


class Gate:
    """Lets a few lists be made at once, a bounded number wait, and refuses the rest."""

    def __init__(self, at_once: int = LISTS_AT_ONCE, waiting_max: int = LISTS_WAITING_MAX) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._places = at_once + waiting_max
        self._taken = 0

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Raises problems.ProblemError when too many wait already."""
        if self._taken >= self._places:
            raise problems.too_many_questions()
        self._taken += 1
        try:
            async with self._free:
                yield
        finally:
            self._taken -= 1


async def twin(worker: directory.WorkerView, device_id: str) -> Json:
    """One twin. Raises a 404 problem only when its partition runs here and has none, else a 503 one."""
    hash_key = hashing.hash_key(device_id)
    partition = directory.serving_partition(worker, hash_key)
    stretch = None if partition is None else await walk.one(partition, device_id)
    # The partition may have left while the store was read; then nobody here may say that there is no such twin.
    if partition is None or (stretch is None and partition.phase != directory.SERVING_PHASE):
        owner = directory.owners(worker, hashing.HashKeyRange(hash_key, hash_key))[0]
        raise problems.not_served(owner, f"the twin of device {device_id!r}")
    if stretch is None:
        raise problems.unknown_device(device_id, partition)
    return views.twin_views(stretch.found, stretch.standpoint)[0]


async def twins(worker: directory.WorkerView, wanted: filters.Wanted, paging: parameters.Paging) -> Json:
    """A page of twins, the same objects as `twin` gives."""
    check_profile(worker, wanted.profile)
    page = await walk.page(worker, wanted, paging.after, paging.limit, across_holes=paging.partial)
    refuse_holes(page, paging)
    shown: list[Json] = []
    for stretch in page.stretches:
        for first in range(0, len(stretch.found), VIEWS_AT_ONCE):
            shown += views.twin_views(stretch.found.part(first, first + VIEWS_AT_ONCE), stretch.standpoint)
            await asyncio.sleep(0)
    return {"twins": shown, **_rest(page, paging)}


async def alerts(worker: directory.WorkerView, flags: int, paging: parameters.Paging) -> Json:
    """Open alerts of at most `limit` devices. flags: the open flags meant."""
    wanted = filters.Wanted(any_of=(flags,))
    page = await walk.page(worker, wanted, paging.after, paging.limit, across_holes=paging.partial)
    refuse_holes(page, paging)
    shown: list[Json] = []
    for stretch in page.stretches:
        found = stretch.found
        for at, device_id in enumerate(found.device_ids):
            row = found.rows[at]
            opened = views.alert_views(device_id, row, found.extras[at], int(found.profiles[at]), stretch.standpoint)
            seen = {"device_id": device_id, "last_seen_ms": int(row["last_arrival_ms"]) or None}
            shown += [{**seen, **entry} for entry in opened if flags & parameters.ALERT_FLAGS[entry["trigger"]]]
            if at % VIEWS_AT_ONCE == VIEWS_AT_ONCE - 1:
                await asyncio.sleep(0)
    return {"alerts": shown, **_rest(page, paging)}


async def dead_letters(worker: directory.WorkerView, limit: int, reason: str | None, partial: bool) -> Json:
    """The newest kept dead letters of the partitions here, newest first. The reason is looked for among the newest
    LIMIT_MAX of each partition."""
    holes = walk.holes(worker)
    if holes and not partial:
        raise problems.not_served(holes[0].owners[0], "the dead letters of the whole fleet")
    kept: list[tuple[str, records.DeadLetter]] = []
    for partition in directory.serving(worker):
        letters = await partition.dead_letters(limit if reason is None else parameters.LIMIT_MAX)
        kept += [(partition.identity.shard_id, letter) for letter in letters if reason in (None, letter.reason.value)]
        kept.sort(key=lambda entry: -entry[1].arrival_ms)
        del kept[limit:]
    answer: Json = {"dead_letters": [_dead_letter(shard_id, letter) for shard_id, letter in kept]}
    return {**answer, "missing": [_hole(hole) for hole in holes]} if partial else answer


async def status(worker: directory.WorkerView, wall_ms: int) -> Json:
    """What the worker is doing. Always answers."""
    partitions = sorted(worker.partitions(), key=lambda entry: (entry.identity.hash_key_range, entry.identity.shard_id))
    shown = [await _partition(entry) for entry in partitions]
    lags = [entry["lag_ms"] for entry in shown if entry["lag_ms"] is not None]
    return {
        "fleet": worker.fleet,
        "worker": worker.name,
        "time_ms": wall_ms,
        "rules": {"generation": worker.rules_generation, "last_error": worker.last_rule_error},
        "control_plane": {"trouble": worker.control_trouble or None},
        "can_take_partitions": worker.can_take_partitions,
        "load": {shard_id: round(rate, 3) for shard_id, rate in sorted(worker.load.items())},
        "ready": not unready(worker),
        "not_ready_because": unready(worker),
        "totals": {
            "partitions": len(shown),
            "running": sum(entry["phase"] == directory.SERVING_PHASE for entry in shown),
            "twins": sum(entry["twins"] for entry in shown),
            "lag_ms": max(lags, default=None),
            "outbox_effects": sum(entry["outbox"]["effects"] for entry in shown),
            "alerts_open": {
                trigger: sum(entry["alerts_open"][trigger] for entry in shown) for trigger in rules.TRIGGERS
            },
        },
        "partitions": shown,
        "elsewhere": [
            {
                "shard_id": entry.shard_id,
                "hash_key_range": _range(entry.hash_key_range),
                "worker": entry.worker or None,
                "epoch": entry.epoch,
                "phase": entry.phase,
            }
            for entry in worker.elsewhere()
        ],
    }


def unready(worker: directory.WorkerView) -> list[str]:
    """Why the worker isn't ready; empty when it is. A partition that ended is no reason: others have its range."""
    reasons = list(worker.not_ready_because())
    for entry in worker.partitions():
        if entry.phase not in (directory.SERVING_PHASE, *directory.ENDED_PHASES):
            because = f": {entry.message}" if entry.message else ""
            reasons.append(f"partition {entry.identity.shard_id} is {entry.phase}{because}")
    return reasons


def check_profile(worker: directory.WorkerView, name: str | None) -> None:
    """A profile that no partition knows is a mistake, not an empty list."""
    if name is None or name == views.DEFAULT_PROFILE:
        return
    running = directory.serving(worker)
    known = {profile.name for entry in running for profile in entry.engine.generation.profiles}
    if running and name not in known:
        names = ", ".join((views.DEFAULT_PROFILE, *sorted(known)))
        raise problems.bad_parameter("profile", f"no profile {name!r} in the rules in force", f"give one of {names}")


def refuse_holes(page: walk.Page, paging: parameters.Paging) -> None:
    """Whoever asks may go on at the owner with `cursor`, or behind the hole with `next`."""
    if page.holes and not paging.partial:
        hole = page.holes[0]
        problem = problems.not_served(hole.owners[0], "this part of the list")
        problem.body["remedy"] = (
            "ask the owner with this cursor, or ask again after Retry-After; or add partial=true for what is here, with `missing` "
            "naming the rest"
        )
        start, end = hole.key_range.start, hole.key_range.end
        problem.body["hash_key_range"] = _range(hole.key_range)
        # Never before what was shown: a partition that moved between two pages leaves its hole in the middle of its range.
        problem.body["cursor"] = parameters.cursor_text(max(paging.after, (start, "")))
        problem.body["next"] = None if end == hashing.HASH_KEY_MAX else parameters.cursor_text((end + 1, ""))
        raise problem


def _rest(page: walk.Page, paging: parameters.Paging) -> Json:
    rest: Json = {"next": None if page.after is None else parameters.cursor_text(page.after)}
    if paging.partial:
        rest["missing"] = [_hole(hole) for hole in page.holes]
    return rest


def _hole(hole: walk.Hole) -> Json:
    return {
        "hash_key_range": _range(hole.key_range),
        "owners": [
            {"shard_id": owner.shard_id, "worker": owner.worker or None, "epoch": owner.epoch, "phase": owner.phase}
            for owner in hole.owners
            if owner.phase
        ],
    }


def _range(key_range: hashing.HashKeyRange) -> Json:
    """Decimal strings, as Kinesis writes them: no JSON number holds 128 bits."""
    return {"start": str(key_range.start), "end": str(key_range.end)}


async def _partition(entry: directory.PartitionView) -> Json:
    twin_table, state, outbox = entry.engine.table, entry.state, entry.outbox
    counts = await walk.open_alerts(entry)
    return {
        "shard_id": entry.identity.shard_id,
        "hash_key_range": _range(entry.identity.hash_key_range),
        "phase": entry.phase,
        "message": entry.message or None,
        "epoch": entry.epoch,
        "clock_ms": state.clock_ms,
        "position": {
            "sequence_number": state.position.sequence_number,
            "subsequence_number": state.position.subsequence_number,
        },
        "lag_ms": entry.lag_ms,
        "twins": len(twin_table) + twin_table.stored_elsewhere,
        "twins_in_memory": len(twin_table),
        "alerts_open": dict(zip(rules.TRIGGERS, counts, strict=True)),
        "outbox": {"effects": outbox.effects, "oldest_ms": outbox.oldest_ms},
        "generation": entry.engine.generation.generation,
    }


def _dead_letter(shard_id: str, letter: records.DeadLetter) -> Json:
    return {
        "shard_id": shard_id,
        "reason": letter.reason.value,
        "detail": letter.detail,
        "device_id": letter.device_id or None,
        "sequence_number": letter.sequence_number,
        "subsequence_number": letter.subsequence_number,
        "arrival_ms": letter.arrival_ms,
        "size_bytes": letter.size_bytes,
        "data_base64": base64.b64encode(letter.data[:DEAD_LETTER_DATA_BYTES]).decode(),
    }
