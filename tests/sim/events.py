"""How each kind of a schedule's events happens to a world: to its end, when it has mended what it broke."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from fleet_model import generations, rules
from fleet_proto import fleet_pb2
from fleet_worker.adapters import memory_disk, memory_store
from tests.sim import parts, processes
from tests.sim.schedule import Event, Kind

if TYPE_CHECKING:
    from tests.sim.world import World

Happens = Callable[["World", Event], Awaitable[bool]]
"""Makes an event happen, to its end. False: it fell on nothing."""
TAKEN_OVER_S = 60.0
"""Of a worker's death. It counts as silent after 20 s; the rest is for calls that go wrong by the weather, and for looks."""


async def _acknowledge(world: World, event: Event) -> bool:
    alerts = [fleet_pb2.DeviceAlert.FromString(record.data) for record in world.kinesis.records_of(parts.ALERTS)]
    known = [alert.alert_id for alert in alerts if alert.device_id == event.key]
    if not known:
        return False
    message = fleet_pb2.Telemetry(device_id=event.key)
    message.control.issued_ms = world.clock.wall_ms()
    message.control.acknowledge.alert_id = known[-1]
    world.kinesis.put(parts.TELEMETRY, event.key, message.SerializeToString())
    return True


async def _away(world: World, event: Event, leaves: memory_store.Survivor, *, lose_disk: bool = False) -> bool:
    worker = world.worker(event.who)
    if worker.running is None:
        return False
    had = _named_to(world, worker)
    worker.down += 1
    world.die(worker, leaves)
    if lose_disk:
        worker.disk.lose()
        worker.disk = memory_disk.MemoryDisk()
    await world.clock.sleep(min(event.seconds, TAKEN_OVER_S))
    if event.seconds > TAKEN_OVER_S:
        await _others_have_taken_over(world, worker, had, event.seconds - TAKEN_OVER_S)
    worker.down -= 1
    world.start(event.who)
    return True


async def _others_have_taken_over(world: World, dead: parts.Worker, had: set[str], rest_s: float) -> None:
    """What the dead worker had is named to others by now, if nothing else happened meanwhile and there is anybody to name; then the rest of
    its absence."""
    others = [worker for worker in world.workers.values() if worker.running is not None and worker is not dead]
    are_there = any(worker.ordinal < world.wanted for worker in others)
    left = had & _named_to(world, dead)
    if left and are_there and world.calm_s() >= TAKEN_OVER_S:
        world.problem(f"{dead.name} is dead for {TAKEN_OVER_S:g} s, and still named for {', '.join(sorted(left))}")
    await world.clock.sleep(rest_s)


def _named_to(world: World, worker: parts.Worker) -> set[str]:
    open_ones = {shard.shard_id for shard in world.open_shards()}
    return {
        shard_id
        for shard_id, entry in world.control.state().items()
        if shard_id in open_ones and entry.spec.worker == worker.name
    }


async def _stop_and_start(world: World, event: Event) -> bool:
    worker = world.worker(event.who)
    if worker.running is None:
        return False
    worker.down += 1
    await world.stop(worker, worker.running)
    await world.clock.sleep(event.seconds)
    worker.down -= 1
    world.start(event.who)
    return True


async def _pause(world: World, event: Event) -> bool:
    running = world.worker(event.who).running
    return running is not None and await _stands_still(world, running.process, event.seconds)


async def _stands_still(world: World, process: processes.Process, seconds: float) -> bool:
    if process.is_paused or process.is_dead:
        return False
    process.pause()
    await world.clock.sleep(seconds)
    if process.is_dead:
        return True
    world.watch.paused_for(process, seconds)
    process.go_on()
    return True


async def _live_on(world: World, event: Event) -> bool:
    """The old process keeps its disk and its network, but for the control plane, which has given its name to another."""
    worker = world.worker(event.who)
    ghost = worker.running
    if ghost is None:
        return False
    await _all_have_heard(world)
    if worker.running is not ghost:
        return False
    old_disk, worker.disk, worker.running = worker.disk, memory_disk.MemoryDisk(), None
    ghost.network = dataclasses.replace(worker.network)
    world.control.cut(str(ghost.process))
    world.ghosts.append(ghost)
    world.start(event.who)
    await world.clock.sleep(event.seconds)
    ghost.process.kill()
    old_disk.crash(memory_store.Survivor.NOTHING)
    return True


async def _cut(world: World, event: Event, target: str) -> bool:
    return await _cut_off(world, [world.worker(event.who)], target, event.seconds)


async def _cut_off(
    world: World, workers: list[parts.Worker], target: str, seconds: float, *, loop: bool = False
) -> bool:
    if target == "control":
        await _all_have_heard(world)
    networks = [worker.network for worker in workers] + ([world.loop_network] if loop else [])
    for network in networks:
        setattr(network, target, getattr(network, target) + 1)
    _apply_cuts(world)
    await world.clock.sleep(seconds)
    for network in networks:
        setattr(network, target, getattr(network, target) - 1)
    _apply_cuts(world)
    return True


def _apply_cuts(world: World) -> None:
    """The control plane knows its clients by name."""
    reached = [(str(worker.running.process), worker.network) for worker in world.workers.values() if worker.running]
    for client, network in [*reached, ("", world.loop_network)]:
        if network.control:
            world.control.cut(client)
        else:
            world.control.mend(client)


async def _all_cut(world: World, event: Event, target: str) -> bool:
    return await _cut_off(world, list(world.workers.values()), target, event.seconds, loop=True)


async def _loop_paused(world: World, event: Event) -> bool:
    return await _stands_still(world, world.loop_process, event.seconds)


async def _loop_killed(world: World, event: Event) -> bool:
    if world.loop_process.is_dead:
        return False
    world.loop_process.kill()
    await world.clock.sleep(event.seconds)
    world.start_loop()
    return True


async def _disk_full(world: World, event: Event) -> bool:
    disk = world.worker(event.who).disk
    if disk.is_full:
        return False
    disk.is_full = True
    await world.clock.sleep(event.seconds)
    disk.is_full = False
    return True


async def _disk_error(world: World, event: Event) -> bool:
    disk = world.worker(event.who).disk
    shard_ids = disk.shards()
    return bool(shard_ids) and disk.fail_next(shard_ids[event.who % len(shard_ids)])


async def _scale(world: World, event: Event) -> bool:
    if event.count == world.wanted:
        return False
    world.wanted = event.count
    for ordinal in range(world.wanted):
        world.start(ordinal)
    return True


async def _split(world: World, event: Event) -> bool:
    open_ones = world.open_shards()
    if len(open_ones) >= 6:
        return False
    world.kinesis.split_shard(parts.TELEMETRY, open_ones[event.who % len(open_ones)].shard_id)
    return True


async def _merge(world: World, event: Event) -> bool:
    open_ones = world.open_shards()
    if len(open_ones) < 2:
        return False
    place = event.who % (len(open_ones) - 1)
    world.kinesis.merge_shards(parts.TELEMETRY, open_ones[place].shard_id, open_ones[place + 1].shard_id)
    return True


async def _edit(world: World, event: Event) -> bool:
    """Only at a moment in which no worker is cut off from the control plane: see docs/simulator.md."""
    assert event.rule is not None
    while not _all_can_hear(world):
        await world.clock.sleep(0.5)
    rule = event.rule

    def stamped(kept: Sequence[rules.RulesGeneration], late_ms: int) -> rules.RulesGeneration:
        starts_ms = max(world.clock.wall_ms(), world.kinesis.now_ms()) + generations.AHEAD_MS + late_ms
        last = kept[-1]
        return dataclasses.replace(
            rule, generation=last.generation + 1, effective_ms=max(starts_ms, last.effective_ms + 1)
        )

    await world.control.append_generation(stamped, 0)
    return True


def _all_can_hear(world: World) -> bool:
    running = [worker.running for worker in world.workers.values() if worker.running is not None]
    is_cut = bool(world.loop_network.control) or any(one.network.control for one in running)
    return not is_cut and all(ghost.process.is_dead for ghost in world.ghosts)


async def _all_have_heard(world: World) -> None:
    """Of the newest rules, before anybody is cut off from the control plane: the other half of what `_edit` waits for."""
    while not all(
        world.control.has_heard(str(worker.running.process))
        for worker in world.workers.values()
        if worker.running is not None and worker.running.supervisor is not None
    ):
        await world.clock.sleep(0.5)


async def _storm(world: World, event: Event) -> bool:
    world.sky.storms += 1
    await world.clock.sleep(event.seconds)
    world.sky.storms -= 1
    return True


async def _effects_away(world: World, event: Event) -> bool:
    world.sky.effects_away += 1
    await world.clock.sleep(event.seconds)
    world.sky.effects_away -= 1
    return True


HAPPENS: dict[Kind, Happens] = {
    Kind.ACKNOWLEDGE: _acknowledge,
    Kind.KILL: functools.partial(_away, leaves=memory_store.Survivor.COMMITTED),
    Kind.MACHINE: functools.partial(_away, leaves=memory_store.Survivor.NOTHING),
    Kind.DISK_LOSS: functools.partial(_away, leaves=memory_store.Survivor.NOTHING, lose_disk=True),
    Kind.STOP: _stop_and_start,
    Kind.PAUSE: _pause,
    Kind.TWIN: _live_on,
    Kind.CUT_OBJECTS: functools.partial(_cut, target="objects"),
    Kind.CUT_CONTROL: functools.partial(_cut, target="control"),
    Kind.CUT_KINESIS: functools.partial(_cut, target="kinesis"),
    Kind.OBJECTS_AWAY: functools.partial(_all_cut, target="objects"),
    Kind.KINESIS_AWAY: functools.partial(_all_cut, target="kinesis"),
    Kind.EFFECTS_AWAY: _effects_away,
    Kind.CONTROL_AWAY: functools.partial(_all_cut, target="control"),
    Kind.LOOP_PAUSE: _loop_paused,
    Kind.LOOP_KILL: _loop_killed,
    Kind.DISK_FULL: _disk_full,
    Kind.DISK_ERROR: _disk_error,
    Kind.SCALE: _scale,
    Kind.SPLIT: _split,
    Kind.MERGE: _merge,
    Kind.EDIT: _edit,
    Kind.STORM: _storm,
}
