"""The control folder when things go wrong: removed, torn, locked by others, changed by many processes."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_model import rules, twin_partition
from fleet_worker import control_plane, errors
from fleet_worker.adapters import clock, control_files, control_folder, durable
from tests.contract import test_control as suite

PROJECT = Path(__file__).parents[2]
PARTITION = suite.wanted()


@pytest.fixture
def real() -> Iterator[clock.RealClock]:
    with clock.RealClock() as made:
        yield made


@pytest.fixture
async def folder(tmp_path: Path, real: clock.RealClock) -> control_folder.ControlFolder:
    made = control_folder.ControlFolder(tmp_path / "control", real)
    await made.prepare()
    return made


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + suite.ARRIVES_S
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)  # a poll with a deadline


def writer(path: Path, rounds: int, name: str) -> subprocess.Popen[bytes]:
    arguments = ["tests.support.status_writer", str(path), suite.SHARD, str(rounds), name]
    return subprocess.Popen([sys.executable, "-m", *arguments], cwd=PROJECT)


async def test_a_folder_that_is_not_prepared_is_out_of_reach_not_empty(tmp_path: Path, real: clock.RealClock) -> None:
    folder = control_folder.ControlFolder(tmp_path / "control", real)
    owner = folder.ownership("worker-0")
    following = asyncio.ensure_future(anext(owner.assignments()))
    await until(lambda: owner.trouble != "")
    assert not following.done()
    assert "no control folder" in owner.trouble
    for refused in (folder.heartbeat(suite.beat("worker-0")), folder.partitions(), folder.heartbeats(), folder.start()):
        with pytest.raises(errors.ControlPlaneUnavailableError, match="no control folder"):
            await refused
    with pytest.raises(errors.ControlPlaneUnavailableError):
        await owner.report(suite.SHARD, lambda status: status)
    assert not (tmp_path / "control").exists(), "a worker doesn't make it"
    await folder.prepare()
    async with asyncio.timeout(suite.ARRIVES_S):
        assert await following == {}
    assert owner.trouble == ""


async def test_a_folder_that_goes_is_silence_and_told_once(
    folder: control_folder.ControlFolder, caplog: pytest.LogCaptureFixture
) -> None:
    stored = await folder.create(PARTITION)
    owner = folder.ownership("worker-0")
    states = owner.assignments()
    await suite.upcoming(states)
    following = asyncio.ensure_future(anext(states))
    away = folder.path.with_name("away")
    folder.path.rename(away)
    await until(lambda: owner.trouble != "")
    with pytest.raises(errors.ControlPlaneUnavailableError):
        await owner.report(suite.SHARD, lambda status: dataclasses.replace(status, twins=5))
    await asyncio.sleep(0)
    done, _ = await asyncio.wait((following,), timeout=0.5)
    assert not done
    away.rename(folder.path)
    await folder.update_spec(suite.SHARD, dataclasses.replace(suite.SPEC, epoch=1), stored.resource_version)
    async with asyncio.timeout(suite.ARRIVES_S):
        assert (await following)[suite.SHARD].spec.epoch == 1
    assert len([entry for entry in caplog.records if "out of reach" in entry.message]) == 1


async def test_a_file_that_is_torn_is_silence_that_names_it(folder: control_folder.ControlFolder) -> None:
    await folder.create(PARTITION)
    path = folder.path / "partitions" / f"{suite.SHARD}.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(errors.ControlPlaneUnavailableError, match=f"{suite.SHARD}.json: can't be read"):
        await folder.partitions()
    path.unlink()
    assert await folder.partitions() == {}
    assert await folder.create(PARTITION)


async def test_a_change_that_was_never_announced_is_found(
    folder: control_folder.ControlFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote it died just then; the next version is above the one that it used."""
    monkeypatch.setattr(control_folder, "ANEW_EVERY_S", 0.1)
    stored = await folder.create(PARTITION)
    states = folder.ownership("worker-0").assignments()
    await suite.upcoming(states)
    version = (folder.path / "version").read_bytes()
    unannounced = await folder.update_spec(
        suite.SHARD, dataclasses.replace(suite.SPEC, epoch=1), stored.resource_version
    )
    (folder.path / "version").write_bytes(version)
    assert await suite.upcoming(states, lambda state: state[suite.SHARD].spec.epoch == 1) == {suite.SHARD: unannounced}
    later = await folder.update_spec(suite.SHARD, suite.SPEC, unannounced.resource_version)
    assert int(later.resource_version) > int(unannounced.resource_version)


async def test_a_torn_version_goes_on_above_what_is_known(folder: control_folder.ControlFolder) -> None:
    stored = await folder.create(PARTITION)
    (folder.path / "version").write_bytes(b"")
    later = await folder.update_spec(suite.SHARD, dataclasses.replace(suite.SPEC, epoch=1), stored.resource_version)
    assert int(later.resource_version) > int(stored.resource_version)


async def test_a_torn_heartbeat_is_that_of_a_silent_worker(folder: control_folder.ControlFolder) -> None:
    await folder.heartbeat(suite.beat("worker-0"))
    await folder.heartbeat(suite.beat("worker-1"))
    for text in ("", "{", "[]", '{"name": "worker-0"}', json.dumps({"name": "worker-0", "load": 3})):
        (folder.path / "workers" / "worker-0.json").write_text(text)
        assert set(await folder.heartbeats()) == {"worker-1"}


async def test_a_lock_that_is_never_given_back_is_told(
    folder: control_folder.ControlFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_folder, "LOCK_S_MAX", 0.1)
    await folder.create(PARTITION)
    descriptor = os.open(folder.path / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    owner = folder.ownership("worker-0")
    with pytest.raises(errors.ControlPlaneUnavailableError, match="lock"):
        await owner.report(suite.SHARD, lambda status: dataclasses.replace(status, twins=5))
    await folder.heartbeat(suite.beat("worker-0"))  # needs no lock
    assert set(await folder.partitions()) == {suite.SHARD}
    os.close(descriptor)
    assert (await owner.report(suite.SHARD, lambda status: dataclasses.replace(status, twins=5))).twins == 5


async def test_a_removed_folder_is_not_made_anew_by_a_write(folder: control_folder.ControlFolder) -> None:
    stored = await folder.create(PARTITION)
    shutil.rmtree(folder.path)
    with pytest.raises(errors.ControlPlaneUnavailableError):
        await folder.update_spec(suite.SHARD, suite.SPEC, stored.resource_version)
    with pytest.raises(errors.ControlPlaneUnavailableError):
        await folder.create(PARTITION)
    assert not folder.path.exists()


async def test_a_generation_that_takes_long_to_be_kept_is_stamped_anew(
    folder: control_folder.ControlFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers judge up to a little before they looked + the time that an edit takes effect ahead: it must be there by then."""
    slow_s = iter([0.25, 0.3, 0.0])
    real_draft = durable.draft

    def draft(path: Path, data: bytes) -> Path:
        time.sleep(next(slow_s))  # a disk that is slow for a while
        return real_draft(path, data)

    monkeypatch.setattr(durable, "draft", draft)
    late: list[int] = []
    made_at: list[float] = []

    def make(kept: tuple[rules.RulesGeneration, ...], late_ms: int) -> rules.RulesGeneration:
        late.append(late_ms)
        made_at.append(time.monotonic())
        return suite.generation(1)

    assert await folder.append_generation(make, 0) == (suite.generation(1),)
    assert late[0] == 0
    assert late[1] >= 500
    assert len(late) == 2, "the second time it was allowed for"
    assert time.monotonic() - made_at[-1] >= 0.3


async def test_a_disk_that_gets_ever_slower_is_told(
    folder: control_folder.ControlFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter(float(10**number) for number in range(100))
    files = control_files.ControlFiles(folder.path)
    with pytest.raises(errors.ControlPlaneUnavailableError, match="ever longer"):
        files.append_generation(suite.made(1), 0, lambda: next(now_s))
    assert await folder.generations() == ()


@pytest.mark.processes
async def test_processes_at_once_lose_no_write_and_read_no_half_file(folder: control_folder.ControlFolder) -> None:
    await folder.create(PARTITION)
    names = ["worker-0", "worker-1", "worker-2"]
    rounds = 40
    writers = [writer(folder.path, rounds, name) for name in names]
    seen: list[int] = []
    async for state in folder.ownership("").assignments():
        standby = state[suite.SHARD].status.standby
        seen.append(sum(entry.checkpoint_number for entry in standby))
        if seen[-1] == rounds * len(names):
            break
        assert any(process.poll() is None for process in writers) or all(process.poll() == 0 for process in writers)
    assert seen == sorted(seen)
    assert [process.wait(suite.ARRIVES_S) for process in writers] == [0] * len(names)
    status = (await folder.partitions())[suite.SHARD].status
    assert {entry.worker: entry.checkpoint_number for entry in status.standby} == dict.fromkeys(names, rounds)
    assert not list(folder.path.rglob("*.new"))


@pytest.mark.parametrize("name", ["worker-0", "a", "W_1.x"])
def test_names_that_can_name_a_worker(name: str) -> None:
    assert control_files.is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "a" * 129, "ä", "a\n"])
def test_names_that_can_not(name: str) -> None:
    assert not control_files.is_name(name)


def test_a_status_that_never_settles_is_given_up(real: clock.RealClock) -> None:
    class Restless:
        async def read(self, shard_id: str) -> twin_partition.TwinPartition:
            return PARTITION

        async def write_status(
            self, shard_id: str, status: twin_partition.Status, resource_version: str
        ) -> twin_partition.TwinPartition:
            raise errors.PreconditionFailedError("another one")

    with pytest.raises(errors.ControlPlaneUnavailableError, match="changed 20 times"):
        asyncio.run(control_plane.report(Restless(), suite.SHARD, lambda status: dataclasses.replace(status, twins=5)))
