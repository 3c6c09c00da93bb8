"""A checkpoint as the first version of the format wrote it, kept as files: every later version restores it to the same twins.

When the format changes, these stay and a folder for the new version comes beside them: `python -m tests.unit.test_checkpoint_golden FOLDER`
writes one with the code as it is.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from fleet_model import manifest
from fleet_proto import fleet_pb2
from fleet_worker import custody, restoring
from fleet_worker.adapters import memory_store
from fleet_worker.core import commits, twins
from tests.support import checkpoints, virtual_time
from tests.support import commits as build

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path.name for path in GOLDEN.glob("checkpoint-*"))


def some_twins() -> commits.TwinRows:
    """Usual and unusual telemetry, none, details, odd floats."""
    names = ["truck-1", "truck-2", "zähler-3", "m"]
    message = fleet_pb2.Telemetry(
        device_id="truck-1", timestamp=1_750_000_000_000, temperature_c=20.25, battery_pct=63.391, cpu_load=0.5,
        location="52.5,13.4", firmware="1.4.2",
    )  # fmt: skip
    said: dict[str, bytes | None] = {"truck-1": message.SerializeToString(), "truck-2": None, "m": b"\xff other bytes"}
    rows = build.twin_rows(names, telemetry=said, extras={"m": build.extra(61.5)})
    rows.rows["last"] = (20.25, 63.391, 0.5)
    rows.rows["sequence"] = (4_959_033_827_149_025_660, 8_559_692_538_361_571_095, 7)
    rows.rows["mean"] = np.array([0x7FC00001, 0x80000000, 0x3F800000], dtype=np.uint32).view(np.float32)
    rows.rows["flags"] |= np.uint16(twins.Flag.OPEN_OFFLINE)
    rows.rows["spare"] = (1, 2)
    return rows


def filled() -> memory_store.MemoryTwinStore:
    store = memory_store.MemoryTwinStore(checkpoints.IDENTITY)
    store.commit(build.commit(some_twins(), outbox=([build.outbox_entry(1)], []), dead_letters=[build.dead_letter(1)]))
    return store


def changed(store: memory_store.MemoryTwinStore) -> None:
    store.commit(build.commit(build.twin_rows(["truck-2"], commit_number=2), number=2))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_checkpoint_of_an_earlier_version_is_restored(folder: str) -> None:
    async def body() -> None:
        world = checkpoints.World()
        for path in (GOLDEN / folder).iterdir():
            world.bucket.tamper(f"{checkpoints.SHARD_ID}/{path.name}", path.read_bytes())
        found = await custody.Manifests(world.objects()).read(checkpoints.SHARD_ID)
        assert found is not None
        assert {part.kind for part in found[0].checkpoint.parts} == set(manifest.Kind)  # type: ignore[union-attr]
        copy, wanted = world.store(), filled()
        changed(wanted)
        await restoring.restore(world.objects(), found[0], copy, world.clock)
        assert checkpoints.held(copy) == checkpoints.held(wanted)

    virtual_time.run(body())


def test_there_is_one_to_judge_by() -> None:
    assert "checkpoint-1" in FOLDERS


def write(folder: pathlib.Path) -> None:
    async def body() -> dict[str, bytes]:
        world = checkpoints.World()
        store = filled()
        owner = await world.owner(store)
        await owner.checkpointer.take()
        changed(store)
        await owner.checkpointer.take()
        return world.bucket.contents()

    folder.mkdir(parents=True)
    for key, data in virtual_time.run(body()).items():
        (folder / key.rpartition("/")[2]).write_bytes(data)


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
