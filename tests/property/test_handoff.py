"""The hand-off in a world with bad luck: whatever happens, it ends well, and on the way it never does what it must not do.

What must not happen is asserted by the world at each step (`ownership_world.World.check`); what it has to come to, here. FLEET_TWIN_SEEDS
asks for more seeds than the usual ones.
"""

from __future__ import annotations

import os

import pytest

from fleet_model import control, planner
from fleet_model.twin_partition import Phase
from tests.property import ownership_world

SEEDS = int(os.environ.get("FLEET_TWIN_SEEDS", "24"))
CALM_TICKS_MAX = 3_000
QUIET_TICKS = 130
"""Longer than a partition that was taken over is left alone."""


def settings_of(seed: int) -> control.Settings:
    return control.Settings(
        replicas=1 + seed % 4,
        max_concurrent_moves=1 + seed % 3,
        drain_timeout_ms=20_000,
        standby_replicas=(0, 0, 1, 2)[seed % 4],
        checkpoint_interval_ms=5_000,
    )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_it_ends_well(seed: int) -> None:
    world = ownership_world.World(seed, 2 + seed % 7, settings_of(seed))
    draws = world.random
    if seed % 5 == 0:  # a recreated fleet finds manifests of its past
        for shard_id in list(world.shards)[::2]:
            is_final = draws.random() < 0.5
            world.manifests[shard_id] = ownership_world.Manifest(7, -1, "worker-77", is_final, has_checkpoint=True)
    for _ in range(draws.randint(60, 400)):
        if draws.random() < 0.06:
            world.disturb()
        world.tick()
    world.calm()
    settle(world)
    judge(world)


def settle(world: ownership_world.World) -> None:
    """Until nothing was written for a while."""
    quiet = 0
    for _ in range(CALM_TICKS_MAX):
        before = world.writes
        world.tick()
        quiet = quiet + 1 if world.writes == before and is_settled(world) else 0
        if quiet >= QUIET_TICKS:
            return
    raise AssertionError(f"it doesn't settle: {[str(condition) for condition in world.last.conditions]}")


def is_settled(world: ownership_world.World) -> bool:
    return (
        world.last.condition(control.Kind.READY).status
        and not world.last.condition(control.Kind.PROGRESSING).status
        and not world.last.condition(control.Kind.REBALANCING).status
    )


def judge(world: ownership_world.World) -> None:
    entries = world.objects
    open_ones = {shard_id: entry for shard_id, entry in entries.items() if entry.status.phase is not Phase.CLOSED}
    assert {shard_id for shard_id, shard in world.shards.items() if not shard.closed} == open_ones.keys()
    for shard_id, entry in open_ones.items():
        owner = world.processes[entry.spec.worker]
        assert owner.is_alive
        assert owner.ordinal < world.settings.replicas
        assert owner.held[shard_id].phase is Phase.RUNNING
        assert owner.held[shard_id].nonce == world.manifests[shard_id].nonce
        assert (entry.status.phase, entry.status.worker) == (Phase.RUNNING, owner.name)
        others = min(world.settings.standby_replicas, len(world.processes.keys() - {world.dead}) - 1)
        assert len(set(entry.spec.standby) - {owner.name}) == len(entry.spec.standby) == others
    assert set(world.processes) == {f"worker-{ordinal}" for ordinal in range(world.settings.replicas)}
    partitions = [
        planner.Partition(shard_id, entry.spec.hash_key_range, world.loads[shard_id])
        for shard_id, entry in open_ones.items()
    ]
    workers = [planner.Worker(each.name, each.ordinal) for each in world.processes.values() if each.is_alive]
    current = {shard_id: entry.spec.worker for shard_id, entry in open_ones.items()}
    assert planner.plan(partitions, workers, current) == current, "it isn't balanced"
    for condition in world.last.conditions:
        if condition.kind in (control.Kind.READY, control.Kind.CHECKPOINTS_HEALTHY):
            assert condition.status, condition
        else:
            assert not condition.status, condition
