"""The engine of one partition: columns in, a moved table and effects out.

    apply:   cut by rules generation → slots → rounds → settle offline → (core/hearing) heard → accepted → battery, temperature
    advance: offline scan at the partition clock

It performs nothing: effects are returned, rows wait dirty in the table for a commit. docs/reference/rules.md says what
happens to each record; the order of the code is the order of that page.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_model import hashing, partition, rules, spec
from fleet_worker.core import (
    commits,
    contexts,
    control,
    effects,
    emit,
    hearing,
    limits,
    offline,
    records,
    rounds,
    table,
    twins,
)

SCAN_CHUNK_ROWS = 65_536
SETTLE_ROWS = 512
"""Devices that are told offline before a scan looks whether it has told enough."""
FORGOTTEN = hearing.FORGOTTEN
Counts = contexts.Counts


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """identity: names the partition in effect ids. retention_ms: how long the stream keeps records, and so how long a
    forgotten device's stamp stays."""

    identity: partition.PartitionIdentity
    alert_format: spec.Format = spec.Format.PROTOBUF
    command_format: spec.Format = spec.Format.PROTOBUF
    retention_ms: int = 86_400_000


class TwinEngine:
    """generations: all that the stream's retained records may need, sorted by effective_ms, at least one."""

    def __init__(self, settings: Settings, generations: Sequence[rules.RulesGeneration]) -> None:
        self.settings = settings
        self._generations = tuple(generations)
        self._index = 0
        self._next_due_ms = 0  # no scan before this time can find anything
        self._least_override_ms = offline.NEVER_MS  # the shortest offline limit of a device's own, by the last scan
        self.table = table.TwinTable(track_firmware=needs_firmware(generations))
        self.table.stays = _stays(generations)
        emitter = emit.Emitter(settings.identity, settings.alert_format, settings.command_format)
        self.context = contexts.Context(self.table, limits.Limits(self._generations[0]), emitter)

    @property
    def counts(self) -> contexts.Counts:
        """What happened since fresh ones were set."""
        return self.context.counts

    @counts.setter
    def counts(self, fresh: contexts.Counts) -> None:
        self.context.counts = fresh

    @property
    def generation(self) -> rules.RulesGeneration:
        """The rules in force at the time the partition has reached."""
        return self.context.limits.generation

    # ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────

    def set_generations(self, generations: Sequence[rules.RulesGeneration]) -> None:
        """The whole list again, sorted; generations that are in force or past stay as they were."""
        self._generations = tuple(generations)
        self.table.stays = _stays(generations)
        in_force = self.generation.generation
        self._index = next((at for at, entry in enumerate(generations) if entry.generation == in_force), 0)

    def start_firmware(self, firmware: dict[str, str]) -> None:
        """Begins to track firmware: device id → that of its last accepted Telemetry, for every twin in the table."""
        self.table.firmware = [sys.intern(firmware.get(device_id, "")) for device_id in self.table.device_ids]

    def resume(self, clock_ms: int) -> None:
        """Takes the generation that the partition had reached, without a scan: before rows are loaded."""
        self._index = rules.generation_index(self._generations, clock_ms)
        self.context.limits = limits.Limits(self._generations[self._index])

    def load(self, loaded: commits.TwinRows, firmware: Sequence[str] | None = None) -> None:
        """Rows from the store. firmware: n strings, needed while generations match by it."""
        slots = self.table.load(loaded, firmware)
        self._assign_profiles(slots)
        self._next_due_ms = 0

    def _assign_profiles(self, slots: NDArray[np.int64]) -> None:
        generation = self.generation
        if not generation.profiles:
            self.table.profile[slots] = 0
            return
        firmware = self.table.firmware
        self.table.profile[slots] = [
            generation.profile_index(device_id, firmware[slot] if firmware is not None else "")
            for slot, device_id in zip(slots.tolist(), self.table.device_ids.at(slots), strict=True)
        ]

    @property
    def next_start_ms(self) -> int | None:
        """When the generation after the one in force starts; None when none is known."""
        following = self._index + 1
        return self._generations[following].effective_ms if following < len(self._generations) else None

    def start_next_generation(self) -> None:
        """The next one holds from here on. At its start a scan by the rules in force has found all that was due."""
        start_ms = self.next_start_ms
        assert start_ms is not None, "there is no next generation"
        matches = _matches(self.generation)
        self._index = rules.generation_index(self._generations, start_ms)
        self.context.limits = limits.Limits(self._generations[self._index])
        if _matches(self.generation) != matches:
            self._assign_profiles(self.table.live_slots())
        self._next_due_ms = 0

    def _pass_generations(self, time_ms: int, out: list[effects.Effect]) -> None:
        """At each generation that starts by time_ms: one scan by the old rules, then the new ones hold."""
        while (start_ms := self.next_start_ms) is not None and start_ms <= time_ms:
            out += self.scan(start_ms)
            self.start_next_generation()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self, clock_ms: int) -> list[effects.Effect]:
        """The partition clock has reached clock_ms: offline devices are found, forgotten ones' stamps purged."""
        out: list[effects.Effect] = []
        self._pass_generations(clock_ms, out)
        return out + self.scan(clock_ms)

    def scan(self, time_ms: int, effects_max: int = sys.maxsize) -> list[effects.Effect]:
        """What is due by time_ms, by the rules in force. When a whole fleet went silent that is much: with effects_max or more
        in the answer there may be more, and it is to be called again."""
        out: list[effects.Effect] = []
        if time_ms < self._next_due_ms:
            return out
        next_ms, used = offline.NEVER_MS, len(self.table.device_ids)
        self._least_override_ms = offline.NEVER_MS
        for first in range(0, used, SCAN_CHUNK_ROWS):
            due_ms = self._due_ms(slice(first, min(first + SCAN_CHUNK_ROWS, used)))
            is_due = due_ms <= time_ms
            next_ms = min(next_ms, int(due_ms.min(where=~is_due, initial=offline.NEVER_MS)))
            slots = np.flatnonzero(is_due) + first
            for at in range(0, len(slots), SETTLE_ROWS):
                if len(out) >= effects_max:
                    return out
                next_ms = time_ms  # a device that fires may be due again, and that isn't known yet
                some = slots[at : at + SETTLE_ROWS]
                self._settle(some, np.full(len(some), time_ms), out)
        self._next_due_ms = next_ms
        return out

    def _due_ms(self, part: slice) -> records.Int64s:
        """When each slot of a part of the table is due next: to be told offline, or to be purged."""
        due_ms = offline.due_ms(self.context, part)
        rows = self.table.rows[part]
        flags, arrival_ms = rows["flags"], rows["last_arrival_ms"]
        overridden = np.flatnonzero(flags & offline.OVERRIDE)
        if len(overridden):
            after_ms = self.context.limits.offline(self.table, overridden + part.start, flags[overridden])
            self._least_override_ms = min(self._least_override_ms, int(after_ms.min()))
        stamps = flags & (FORGOTTEN | twins.Flag.ANY_OVERRIDE) == FORGOTTEN
        if stamps.any():
            due_ms[stamps] = arrival_ms[stamps] + self.settings.retention_ms
        due_ms[self.table.mark[part] == table.FREE] = offline.NEVER_MS
        return due_ms

    def _settle(self, slots: NDArray[np.int64], time_ms: records.Int64s, out: list[effects.Effect]) -> None:
        rows = self.table.read(slots)
        changed = offline.fire_due(self.context, slots, rows, time_ms, out)
        if len(changed):
            self.table.write(slots[changed], rows.take(changed))
            self.table.touch(slots[changed])
        expired = rows["flags"] & (FORGOTTEN | twins.Flag.ANY_OVERRIDE) == FORGOTTEN
        if expired.any():
            expired &= time_ms - rows["last_arrival_ms"] >= self.settings.retention_ms
            for slot in slots[expired].tolist():
                self.table.delete(slot)

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────

    def offline_least_ms(self, time_ms: int) -> int:
        """No device without an override goes offline up to time_ms before it was silent for this long."""
        ahead = [entry for entry in self._generations[self._index + 1 :] if entry.effective_ms <= time_ms]
        coming = [limits.Limits(entry).offline_least_ms() for entry in ahead]
        return min([self.context.limits.offline_least_ms(), *coming])

    def missing(self, columns: records.Columns) -> list[str]:
        """Device ids that only the store may have; to be loaded before apply."""
        return self.table.only_stored(columns.device_ids)

    def apply(self, columns: records.Columns) -> list[effects.Effect]:
        """Judges the records in stream order; every stored twin among them is in the table."""
        out: list[effects.Effect] = []
        count, first = len(columns), 0
        if count:
            # Whoever speaks now is due this much later at the earliest; whoever is silent, when the last scan said.
            least_ms = min(self.context.limits.offline_least_ms(), self._least_override_ms)
            self._next_due_ms = min(self._next_due_ms, int(columns.arrival_ms[0]) + least_ms)
        while first < count:
            start_ms = self.next_start_ms
            end = count if start_ms is None else int(np.searchsorted(columns.arrival_ms, start_ms, side="left"))
            if end > first:
                self._judge(columns, first, end, out)
                first = end
            if first < count:
                self._pass_generations(int(columns.arrival_ms[first]), out)
        return out

    def _judge(self, columns: records.Columns, first: int, end: int, out: list[effects.Effect]) -> None:
        whole = first == 0 and end == len(columns)
        device_ids = columns.device_ids if whole else columns.device_ids[first:end]
        slots = self.table.lookup(device_ids)
        if slots.min() < 0:
            self._resolve_missing(columns, first, slots, out)
            known = np.flatnonzero(slots >= 0)
            slots = slots[known]
            at = known + first
        else:
            at = np.arange(first, end)
        slots_moved = False
        for members in rounds.split(slots):
            if slots_moved:
                self._find_and_round(columns, at[members], out)
            else:
                slots_moved = self._round(columns, at[members], slots[members], out)

    def _resolve_missing(
        self, columns: records.Columns, first: int, slots: NDArray[np.int64], out: list[effects.Effect]
    ) -> None:
        """Gives unknown devices a row, all of them together, and sends misrouted records back to the stream."""
        missing = np.flatnonzero((slots < 0) & (columns.kind[first : first + len(slots)] != records.Kind.UNREADABLE))
        new: dict[str, bytes] = {}
        owners: list[tuple[int, str]] = []
        for index, device_id in zip(missing.tolist(), columns.device_ids.take(missing + first), strict=True):
            if device_id not in new:
                digest = hashing.digest(device_id)
                if not self.settings.identity.hash_key_range.contains_digest(digest):
                    self._send_back(columns, index + first, out)
                    continue
                order = columns.controls.get(index + first)
                if order is not None and order.instruction not in control.MAKES_A_TWIN:
                    continue
                new[device_id] = digest
            owners.append((index, device_id))
        if not new:
            return
        added = self.table.add(list(new), list(new.values()))
        self._assign_profiles(added)
        self.counts.created += len(new)
        slot_of = dict(zip(new, added.tolist(), strict=True))
        for index, device_id in owners:
            slots[index] = slot_of[device_id]

    def _send_back(self, columns: records.Columns, at: int, out: list[effects.Effect]) -> None:
        """A misrouted record: once to the partition that owns its device, and no further."""
        self.counts.misrouted += 1
        if columns.kind[at] == records.Kind.HEARD:
            return
        if at in columns.origins:
            self.counts.second_hops.append(_second_hop(columns, at))
        else:
            out.append(self.context.emitter.put_again(columns, at))

    def _round(
        self, columns: records.Columns, at: records.Int64s, slots: NDArray[np.int64], out: list[effects.Effect]
    ) -> bool:
        """At most one record a device. True when rows went away, so that slots found earlier don't hold any more."""
        twin_table = self.table
        arrival_ms = columns.arrival_ms[at]
        rows = twin_table.read(slots)
        due = offline.fire_due(self.context, slots, rows, arrival_ms, out)
        if len(due):
            twin_table.write(slots[due], rows.take(due))
        twin_table.touch(slots)
        if not (rows["flags"] & FORGOTTEN == 0).all() and self._purge(columns, at, slots, rows, arrival_ms):
            self._find_and_round(columns, at, out)
            return True
        if not columns.all_telemetry:
            is_control = columns.kind[at] == records.Kind.CONTROL
            for index in np.flatnonzero(is_control).tolist():
                order = columns.controls[int(at[index])]
                control.apply(self.context, int(slots[index]), order, int(arrival_ms[index]))
                self._next_due_ms = 0  # it may have changed a limit
            if is_control.any():
                others = np.flatnonzero(~is_control)
                at, slots, rows = at[others], slots[others], rows.take(others)
        if len(at):
            hearing.hear(self.context, hearing.Part(columns, at, slots, rows), out)
        return False

    def _purge(
        self,
        columns: records.Columns,
        at: records.Int64s,
        slots: NDArray[np.int64],
        rows: NDArray[np.void],
        arrival_ms: records.Int64s,
    ) -> bool:
        """Removes stamps of forgotten devices that the stream can't hold records of any more."""
        expired = (rows["flags"] & (FORGOTTEN | twins.Flag.ANY_OVERRIDE) == FORGOTTEN) & (
            arrival_ms - rows["last_arrival_ms"] >= self.settings.retention_ms
        )
        for slot in slots[expired].tolist():
            self.table.delete(slot)
        return bool(expired.any())

    def _find_and_round(self, columns: records.Columns, at: records.Int64s, out: list[effects.Effect]) -> None:
        """A round after stamps were purged: their devices are new now, and slots may have changed hands."""
        slots = self.table.lookup([columns.device_ids[index] for index in at.tolist()])
        for index in np.flatnonzero(slots < 0).tolist():
            one = slots[index : index + 1]
            self._resolve_missing(columns, int(at[index]), one, out)
        known = slots >= 0
        if known.any():
            self._round(columns, at[known], slots[known], out)


def _second_hop(columns: records.Columns, at: int) -> records.DeadLetter:
    """It came back to a partition that doesn't own it: putting it again could go on for ever."""
    origin, payload = columns.origins[at], columns.payload[at]
    return records.DeadLetter(
        reason=records.Reason.SECOND_HOP,
        detail=f"put again from {origin.shard_id}, and misrouted here as well",
        device_id=columns.device_ids[at],
        sequence_number=records.sequence_string(columns.sequence[at]),
        subsequence_number=int(columns.subsequence[at]),
        arrival_ms=int(columns.arrival_ms[at]),
        data=payload,
        size_bytes=len(payload),
    )


def needs_firmware(generations: Sequence[rules.RulesGeneration]) -> bool:
    """Whether any of them can put a device into a profile by its firmware."""
    return any(generation.matches_firmware for generation in generations)


def _matches(generation: rules.RulesGeneration) -> list[rules.Match]:
    """What decides a device's profile index: only when it changes the profiles have to be determined anew."""
    return [profile.match for profile in generation.profiles]


def _stays(generations: Sequence[rules.RulesGeneration]) -> twins.Flag:
    """Rows with these flags stay in the table: the offline index can't say when they are due. Offline devices are among
    them where a generation repeats their alert."""
    every = [
        entry for known in generations for entry in (known.default, *(profile.rules for profile in known.profiles))
    ]
    repeats = any(entry.offline.repeat_interval_ms for entry in every)
    return twins.Flag.OVERRIDE_OFFLINE | twins.Flag.FORGOTTEN | (twins.Flag.OPEN_OFFLINE if repeats else 0)
