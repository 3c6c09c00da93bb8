"""What waits for a partition's next commit beside the table's rows: its state, effects, dead letters, index entries.

It numbers effects and wraps dead letters; it commits nothing, and lets go of nothing before it is told that the commit succeeded.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from fleet_model import partition
from fleet_worker import metrics
from fleet_worker.core import commits, contexts, dead_letters, effects, records

log = logging.getLogger(__name__)


class Pending:
    """state: as of the last record judged. index_added: of rows that found no room at a restart. records: judged since the
    last commit. applied: judged in all."""

    def __init__(
        self,
        identity: partition.PartitionIdentity,
        state: commits.PartitionState,
        measured: metrics.Metrics,
        *,
        sends_dead_letters: bool,
    ) -> None:
        """sends_dead_letters: the fleet has a stream for them."""
        self.state = state
        self.effects: list[effects.OutboxEntry] = []
        self.index_added: list[tuple[int, str]] = []
        self.records = 0
        self.applied = 0
        self._dead_letters: list[records.DeadLetter] = []
        self._identity = identity
        self._metrics = measured
        self._told = measured.partition(identity.shard_id)
        self._sends_dead_letters = sends_dead_letters

    @property
    def has_changes(self) -> bool:
        return bool(self.records or self.effects or self._dead_letters)

    def change(self, **changed: Any) -> None:
        """Fields of the state."""
        self.state = dataclasses.replace(self.state, **changed)

    def note(self, columns: records.Columns, counts: contexts.Counts, caused: Sequence[effects.Effect]) -> None:
        """What judging these records left behind."""
        self._told.records.inc(len(columns))
        self._metrics.batch_records.observe(len(columns))
        self._told.late.inc(counts.late)
        self._told.misrouted.inc(counts.misrouted)
        self._told.skewed.inc(columns.skewed)
        self.records += len(columns)
        self.applied += len(columns)
        self.change(position=columns.position or self.state.position, high_arrival_ms=columns.high_arrival_ms)
        self.add_effects(caused)
        for letter in (*columns.dead_letters, *counts.second_hops):
            self._bury(letter)

    def add_effects(self, caused: Sequence[effects.Effect]) -> None:
        number = self.state.outbox_next
        self.effects += [effects.OutboxEntry(number + index, effect) for index, effect in enumerate(caused)]
        self.change(outbox_next=number + len(caused))

    def bury_refused(self, refused: Sequence[tuple[effects.Effect, str]]) -> None:
        """Effects that Kinesis will never take, with why. A refused dead letter was kept when it came up: sending it on again
        would never end."""
        for effect, why in refused:
            if effect.target is effects.Target.DEAD_LETTER:
                log.error("partition %s: the dead-letter stream refuses a record: %s", self._identity.shard_id, why)
            else:
                self._bury(dead_letters.of_refused(effect, why), effect)

    def commit(self, rows: commits.Commit, outbox_removed: list[int]) -> commits.Commit:
        """The next commit, around the table's rows."""
        return dataclasses.replace(
            rows,
            state=dataclasses.replace(self.state, commit_number=self.state.commit_number + 1),
            outbox_added=self.effects,
            outbox_removed=outbox_removed,
            dead_letters=self._dead_letters,
            index_added=[*self.index_added, *rows.index_added],
        )

    def committed(self, commit: commits.Commit) -> None:
        """It is durable: from here on anew."""
        self.state = commit.state
        self.effects, self._dead_letters, self.index_added = [], [], []
        self.records = 0

    def _bury(self, letter: records.DeadLetter, refused: effects.Effect | None = None) -> None:
        """Keeps a dead letter, and sends it on where there is a stream for them. refused: the effect it is about."""
        self._metrics.dead_letters.labels(letter.reason.value).inc()
        self._dead_letters.append(letter)
        if self._sends_dead_letters:
            self.add_effects([dead_letters.envelope(self._identity, letter, refused)])
