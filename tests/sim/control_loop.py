"""The control loop, provisional."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from fleet_model import spec, twin_partition
from fleet_worker import errors, ports
from tests.sim import surroundings

EVERY_S = 2.0
SILENT_MS = 20_000


class ControlLoop:
    def __init__(
        self,
        plane: surroundings.Control,
        stream: ports.Stream,
        clock: ports.Clock,
        fleet: spec.FleetSpec,
        wanted: Callable[[], int],
    ) -> None:
        self._plane, self._stream, self._clock, self._fleet, self._wanted = plane, stream, clock, fleet, wanted

    async def run(self) -> None:
        while True:
            with contextlib.suppress(errors.FleetTwinError):
                await self._step()
            await self._clock.sleep(EVERY_S)

    async def _step(self) -> None:
        shards = await self._stream.list_shards()
        known = await self._plane.partitions()
        beats = await self._plane.heartbeats()
        now_ms = self._clock.wall_ms()
        live = [
            f"worker-{number}"
            for number in range(self._wanted())
            if f"worker-{number}" in beats and now_ms - beats[f"worker-{number}"].time_ms < SILENT_MS
        ]
        if not live:
            return
        for place, shard in enumerate(shards):
            entry = known.get(shard.shard_id)
            if entry is None:
                made = twin_partition.Spec(
                    self._fleet.name,
                    "telemetry",
                    shard.shard_id,
                    shard.hash_key_range,
                    shard.parents,
                    live[place % len(live)],
                    1,
                    assigned_ms=now_ms,
                )
                name = twin_partition.object_name(self._fleet.name, shard.shard_id)
                await self._plane.create(twin_partition.TwinPartition(self._fleet.namespace, name, made))
                continue
            refused = entry.status.manifest_epoch >= entry.spec.epoch
            if (entry.spec.worker not in live and entry.status.phase is not twin_partition.Phase.CLOSED) or refused:
                epoch = max(entry.spec.epoch, entry.status.manifest_epoch) + 1
                if entry.status.epoch == 0:
                    changed = dataclasses.replace(
                        entry.spec, worker=live[place % len(live)], epoch=epoch, takeover=epoch, first_epoch=epoch
                    )
                else:
                    changed = dataclasses.replace(
                        entry.spec, worker=live[place % len(live)], epoch=epoch, takeover=epoch
                    )
                await self._plane.update_spec(shard.shard_id, changed, entry.resource_version)
