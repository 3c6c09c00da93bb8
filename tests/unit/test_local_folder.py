"""The data folder: one holder, a start settled once, generations that outlive any crash."""

import dataclasses
import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_model import partition, rules
from fleet_worker import errors
from fleet_worker.adapters import local_folder
from tests.support import orphans

START = partition.Start("telemetry", 1_000)
PROJECT = Path(__file__).parents[2]


def opened(root: Path) -> local_folder.LocalFolder:
    return local_folder.LocalFolder(root, "default", "trucks")


def generation(number: int, effective_ms: int) -> rules.RulesGeneration:
    return rules.RulesGeneration(number, effective_ms, rules.Rules(rules.TemperatureRule(threshold=float(number))))


def writer(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.generation_writer", str(root)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    orphans.prevent(process.pid)
    return process


def test_a_folder_has_one_holder_and_the_second_learns_who(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(errors.DataFolderInUseError) as caught:
        local_folder.LocalFolder(tmp_path, "default", "another-fleet")
    assert f"process {os.getpid()}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    with opened(tmp_path):
        pass


@pytest.mark.processes
def test_the_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    process = writer(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(errors.DataFolderInUseError, match=f"process {process.pid}"):
        opened(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    with opened(tmp_path) as folder:
        assert folder.start == START


def test_a_refused_folder_gives_its_lock_back(tmp_path: Path) -> None:
    (tmp_path / "default" / "trucks").mkdir(parents=True)
    (tmp_path / "default" / "trucks" / "start.json").write_text("{")
    for _ in range(2):
        with pytest.raises(errors.DataFolderError, match=r"start\.json: can't be read"):
            opened(tmp_path)


def test_a_closed_folder_takes_no_write(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.close()
    folder.close()
    with pytest.raises(AssertionError):
        folder.append_generation(generation(1, 0))
    with pytest.raises(AssertionError):
        folder.settle_start(START)


@pytest.mark.parametrize("start", [START, partition.Start("telemetry", None)])
def test_the_start_is_settled_once(tmp_path: Path, start: partition.Start) -> None:
    with opened(tmp_path) as folder:
        assert folder.start is None
        assert folder.settle_start(start) == start
        assert folder.settle_start(partition.Start("telemetry", 9_999)) == start
    with opened(tmp_path) as folder:
        assert folder.start == start
        assert folder.settle_start(partition.Start("other", 9_999)) == start


def test_generations_are_kept_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        assert not folder.generations
        folder.append_generation(generation(1, 0))
        folder.append_generation(generation(2, 50))
        assert folder.generations == (generation(1, 0), generation(2, 50))
    with opened(tmp_path) as folder:
        folder.append_generation(generation(3, 60))
        assert folder.generations == (generation(1, 0), generation(2, 50), generation(3, 60))


def test_a_generation_that_judges_no_retained_record_goes(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.append_generation(generation(1, 0))
        folder.append_generation(generation(2, 50), oldest_arrival_ms=49)
        folder.append_generation(generation(3, 60), oldest_arrival_ms=55)
    with opened(tmp_path) as folder:
        assert folder.generations == (generation(2, 50), generation(3, 60))


def test_generations_that_do_not_follow_are_a_bug(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        with pytest.raises(AssertionError):
            folder.append_generation(generation(1, 5))
        folder.append_generation(generation(1, 0))
        for wrong in (generation(1, 5), generation(3, 5), generation(2, 0)):
            with pytest.raises(AssertionError):
                folder.append_generation(wrong)
        assert folder.generations == (generation(1, 0),)


def test_too_many_edits_are_refused_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_folder, "GENERATIONS_MAX", 2)
    with opened(tmp_path) as folder:
        folder.append_generation(generation(1, 0))
        folder.append_generation(generation(2, 10))
        with pytest.raises(errors.TooManyGenerationsError, match="less often"):
            folder.append_generation(generation(3, 20))
        assert len(folder.generations) == 2
        folder.append_generation(generation(3, 20), oldest_arrival_ms=10)
    with opened(tmp_path) as folder:
        assert folder.generations == (generation(2, 10), generation(3, 20))


def test_each_partition_has_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        assert folder.partitions() == []
        path = folder.partition_folder("shardId-000000000001")
        assert path == tmp_path / "default" / "trucks" / "partitions" / "shardId-000000000001"
        assert path.is_dir()
        assert folder.partition_folder("shardId-000000000001") == path
        folder.partition_folder("shardId-000000000000")
        assert folder.partitions() == ["shardId-000000000000", "shardId-000000000001"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", ".hidden", "a\0", "a" * 129])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        local_folder.LocalFolder(tmp_path / "data", "default", name)
    with opened(tmp_path) as folder, pytest.raises(AssertionError):
        folder.partition_folder(name)


def _kept(root: Path) -> tuple[Path, dict[str, Any]]:
    with opened(root) as folder:
        folder.append_generation(generation(1, 0))
        folder.append_generation(generation(2, 10))
    path = root / "default" / "trucks" / "generations.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept | {"format": 2},
        lambda kept: kept | {"generations": []},
        lambda kept: kept | {"generations": None},
        lambda kept: kept | {"generations": [3]},
        lambda kept: kept | {"generations": kept["generations"][::-1]},
        lambda kept: kept | {"generations": kept["generations"] + kept["generations"][1:]},
        lambda kept: kept | {"generations": [kept["generations"][0] | {"default": {}}]},
        lambda kept: [],
        lambda kept: {},
    ],
)
def test_a_file_that_is_not_understood_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    path, kept = _kept(tmp_path)
    damaged = json.dumps(damage(kept))
    path.write_text(damaged)
    with pytest.raises(errors.DataFolderError, match=r"generations\.json: can't be read: .*move .* away"):
        opened(tmp_path)
    assert path.read_text() == damaged


@pytest.mark.parametrize("kept_bytes", [0, 1, 100, -1, -20])
def test_a_file_cut_off_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path, _ = _kept(tmp_path)
    path.write_bytes(path.read_bytes().rstrip()[:kept_bytes])
    with pytest.raises(errors.DataFolderError, match=r"generations\.json"):
        opened(tmp_path)


def test_a_draft_left_by_a_crash_is_nobodys_generation(tmp_path: Path) -> None:
    path, _ = _kept(tmp_path)
    path.with_name("generations.json.new").write_text('{"format": 1, "gener')
    with opened(tmp_path) as folder:
        folder.append_generation(generation(3, 20))
    with opened(tmp_path) as folder:
        assert [kept.generation for kept in folder.generations] == [1, 2, 3]


@dataclasses.dataclass
class FailingFsync:
    """Fails the call with the number, counted from 0."""

    fails: int
    error_number: int
    calls: int = 0

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls == self.fails + 1:
            raise OSError(self.error_number, os.strerror(self.error_number))


def test_a_full_disk_changes_nothing_and_is_overcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as folder:
        folder.append_generation(generation(1, 0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FailingFsync(0, errno.ENOSPC))
            with pytest.raises(errors.DiskFullError, match="nothing changed"):
                folder.append_generation(generation(2, 10))
        assert folder.generations == (generation(1, 0),)
        folder.append_generation(generation(2, 10))
    with opened(tmp_path) as folder:
        assert len(folder.generations) == 2


def test_a_write_in_doubt_takes_no_further_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may already hold the new generation: judging on by the old one would not be what a replay does."""
    with opened(tmp_path) as folder:
        folder.append_generation(generation(1, 0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FailingFsync(1, errno.EIO))
            with pytest.raises(errors.DataFolderError, match="unknown whether"):
                folder.append_generation(generation(2, 10))
        with pytest.raises(errors.DataFolderError, match="in doubt"):
            folder.append_generation(generation(2, 10))
    with opened(tmp_path) as folder:
        assert len(folder.generations) == 2


def test_the_new_contents_are_on_disk_before_they_have_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        steps.append(f"rename {source}")
        real_replace(source, target)

    with opened(tmp_path) as folder:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        folder.append_generation(generation(1, 0))
    draft = folder.path / "generations.json.new"
    assert steps == [f"sync {draft}", f"rename {draft}", f"sync {folder.path}"]


@pytest.mark.processes
def test_a_generation_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    chance = random.Random(7)
    seen = 0
    for _ in range(8):
        process = writer(tmp_path)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(chance.randrange(1, 40))]
        process.kill()
        rest = process.stdout.read()  # not communicate(): that misses what readline has buffered
        process.wait(timeout=30)
        process.stdout.close()
        # A line cut off by the kill tells nothing.
        said = ("".join(lines) + rest).rpartition("\n")[0].split("\n")
        promised = [int(line.split()[1]) for line in said if line.startswith("kept ")]
        with opened(tmp_path) as folder:
            numbers = [kept.generation for kept in folder.generations]
            assert all(kept.default.temperature.threshold == kept.generation for kept in folder.generations[1:])
        last = numbers[-1] if numbers else 0
        assert numbers == list(range(last - len(numbers) + 1, last + 1))
        # What was promised is there; at most the one being written may be there besides.
        assert last - (promised[-1] if promised else seen) in (0, 1)
        seen = last
    assert seen > 20
