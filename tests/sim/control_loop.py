"""The control loop, provisional."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from fleet_model import planner, spec, twin_partition
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
        workers = [
            planner.Worker(
                name, int(name[-1]), now_ms - beat.time_ms < SILENT_MS and beat.ready, int(name[-1]) >= self._wanted()
            )
            for name, beat in beats.items()
        ]
        live = {name for name, beat in beats.items() if now_ms - beat.time_ms < SILENT_MS}
        open_ones = [entry for entry in known.values() if entry.status.phase is not twin_partition.Phase.CLOSED]
        wished = planner.plan(
            [planner.Partition(entry.spec.shard_id, entry.spec.hash_key_range) for entry in open_ones],
            workers,
            {entry.spec.shard_id: entry.spec.worker if entry.spec.worker in live else "" for entry in open_ones},
        )
        for shard in shards:
            if shard.shard_id not in known:
                made = twin_partition.Spec(
                    self._fleet.name, "telemetry", shard.shard_id, shard.hash_key_range, shard.parents
                )
                name = twin_partition.object_name(self._fleet.name, shard.shard_id)
                await self._plane.create(twin_partition.TwinPartition(self._fleet.namespace, name, made))
        for entry in open_ones:
            wish = wished[entry.spec.shard_id]
            old, status = entry.spec, entry.status
            epoch = max(old.epoch, status.manifest_epoch) + 1
            named = dataclasses.replace(
                old, worker=wish, epoch=epoch, assigned_ms=now_ms, standby=(), standby_ms=0, first_epoch=old.first_epoch
            )
            if status.epoch == 0:
                named = dataclasses.replace(named, first_epoch=epoch)
            new = old
            if not wish:
                continue
            if old.worker not in live:
                new = dataclasses.replace(named, takeover=epoch)
            elif status.manifest_epoch >= old.epoch:
                new = dataclasses.replace(named, worker=old.worker, takeover=epoch)
            elif wish != old.worker and status.phase is twin_partition.Phase.RUNNING and status.epoch == old.epoch:
                warm = [standing.worker for standing in status.standby if standing.warm]
                if wish not in old.standby:
                    new = dataclasses.replace(old, standby=(wish,), standby_ms=now_ms)
                elif wish in warm:
                    new = named
            elif now_ms - old.assigned_ms > 60_000 and status.epoch != old.epoch:
                new = dataclasses.replace(named, takeover=epoch)
            if new != old:
                with contextlib.suppress(errors.PreconditionFailedError):
                    await self._plane.update_spec(old.shard_id, new, entry.resource_version)
