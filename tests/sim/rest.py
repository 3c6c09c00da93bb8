"""Is a fleet at rest: every partition where it should be, everything read, published and checkpointed?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleet_model import manifest, twin_partition
from fleet_proto import fleet_pb2
from fleet_worker import supervisor
from tests.sim import parts

if TYPE_CHECKING:
    from tests.sim.world import World


def unrest(world: World) -> str:
    """Why the fleet isn't at rest; "" when it is."""
    objects, manifests = world.control.state(), world.watch.manifests()
    by_name = {worker.name: worker for worker in world.workers.values()}
    if any(worker.running is not None and worker.ordinal >= world.wanted for worker in world.workers.values()):
        return "more workers than wanted"
    for shard in world.shards():
        shard_id, entry, stands = shard.shard_id, objects.get(shard.shard_id), manifests.get(shard.shard_id)
        if entry is None or stands is None:
            return f"{shard_id} has no object or manifest"
        if shard.closed:
            if entry.status.phase is not twin_partition.Phase.CLOSED:
                return f"{shard_id} is {entry.status.phase.value}, though its shard ended"
            continue
        status = entry.status
        if (status.phase, status.worker, status.epoch) != (
            twin_partition.Phase.RUNNING,
            entry.spec.worker,
            entry.spec.epoch,
        ):
            return f"{shard_id}: {entry.spec.worker} should run it at epoch {entry.spec.epoch}, {status}"
        worker = by_name.get(entry.spec.worker)
        if worker is None or worker.running is None or worker.running.supervisor is None:
            return f"{shard_id}: {entry.spec.worker} isn't running"
        why = _partition_unrest(world, shard_id, worker.running.supervisor, stands)
        if why:
            return f"{shard_id}: {why}"
    return ""


def _partition_unrest(world: World, shard_id: str, view: supervisor.Supervisor, stands: manifest.Manifest) -> str:
    piped = [entry for entry in view.partitions() if entry.identity.shard_id == shard_id]
    if not piped:
        return "has no pipeline"
    last = _last_record(world, shard_id)
    if last and piped[0].state.position.sequence_number != last:
        return f"stands at {piped[0].state.position}, its last record is {last}"
    if piped[0].outbox.effects:
        return f"{piped[0].outbox.effects} effects wait"
    if stands.checkpoint is None or (last and stands.checkpoint.position.sequence_number != last):
        return "its checkpoint isn't of now"
    if piped[0].state.clock_ms < (alert_ms := _last_alert_ms(world, shard_id)):
        return f"its clock stands at {piped[0].state.clock_ms}, a former owner's was at {alert_ms}"
    return ""


def _last_alert_ms(world: World, shard_id: str) -> int:
    """The time of the newest alert of a shard and its ancestors. A former owner that didn't know yet of its successor may have been
    ahead of it: what it said is judged when the successor has come that far."""
    parents = {shard.shard_id: shard.parents for shard in world.shards()}
    line = {shard_id}
    for child in reversed(parents):  # they are listed parents first
        line.update(parents[child] if child in line else ())
    alerts = (fleet_pb2.DeviceAlert.FromString(record.data) for record in world.kinesis.records_of(parts.ALERTS))
    return max((alert.timestamp for alert in alerts if alert.shard_id in line), default=0)


def _last_record(world: World, shard_id: str) -> str:
    records = world.kinesis.shard(parts.TELEMETRY, shard_id).records
    return str(records[-1].sequence_number) if records else ""


def picture(world: World) -> str:
    lines = [f"  {shard_id}: {entry.spec}\n    {entry.status}" for shard_id, entry in world.control.state().items()]
    for worker in world.workers.values():
        view = worker.running.supervisor if worker.running is not None else None
        told = [f"{view.name}: {view.elsewhere()} {view.not_ready_because()}"] if view is not None else []
        lines += [f"  {worker.name}: {worker.running and worker.running.process}, down {worker.down}", *told]
    return "\n".join(lines)
