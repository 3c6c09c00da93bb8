"""What the LMDB store keeps when the process, the disk or the machine fails under it."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import pytest

from fleet_model import hashing, partition, spec
from fleet_worker import errors
from fleet_worker.adapters import durable, lmdb_environment, lmdb_store, marks
from fleet_worker.core import commits, twins
from tests.support import commit_until_killed, orphans
from tests.support import commits as build

IDENTITY = commit_until_killed.IDENTITY
STORAGE = spec.Storage(map_size_bytes=2**30)
PAGE = 4096
LINE_TIMEOUT_S = 60


def opened(folder: Path, boot_id: str = "boot", storage: spec.Storage = STORAGE) -> lmdb_store.LmdbTwinStore:
    return lmdb_store.LmdbTwinStore.open(folder, IDENTITY, storage, boot_id)


def names(count: int) -> list[str]:
    return [f"device-{number}" for number in range(count)]


def abandon(store: lmdb_store.LmdbTwinStore) -> None:
    """What the death of the process does to it: closed without a sync and without a mark."""
    store._environment.close()


def commit_numbers(store: lmdb_store.LmdbTwinStore) -> set[int]:
    return {number for rows in store.scan() for number in rows.rows["commit"].tolist()}


# ── the disk is full ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small disk isn't permitted here: {mounted.stderr.strip()}")
    yield folder
    # Lazily: a test that failed may have left its store open, and its disk is to go all the same.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Takes all room that is left, and returns the file that holds it."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (2**16, 512):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast


@pytest.mark.parametrize("sync", list(spec.Sync))
def test_a_full_disk_changes_nothing_and_it_goes_on_when_there_is_room(small_disk: Path, sync: spec.Sync) -> None:
    store = opened(small_disk / "partition", storage=spec.Storage(map_size_bytes=2**30, sync=sync))
    store.commit(build.commit(names(3_000), number=1, outbox=([build.outbox_entry(1)], [])))
    ballast = fill(small_disk)
    larger = build.commit(names(9_000), number=2, outbox=([build.outbox_entry(2)], [1]))
    for _ in range(3):
        with pytest.raises(errors.DiskFullError, match="no room on the disk"):
            store.commit(larger)
        assert store.state == build.state(1)
        assert store.count() == 3_000
        assert commit_numbers(store) == {1}
        assert store.outbox() == [build.outbox_entry(1)]
        store.sync()
    ballast.unlink()
    store.commit(larger)
    assert store.state == build.state(2)
    assert store.count() == 9_000
    assert commit_numbers(store) == {2}
    store.close()
    reopened = opened(small_disk / "partition", "another boot")
    assert reopened.discarded is None
    assert reopened.count() == 9_000
    reopened.close()


def test_it_fills_up_little_by_little_and_every_refusal_changes_nothing(small_disk: Path) -> None:
    """Commits of many sizes meet the end of the disk at many places in LMDB's writes."""
    store = opened(small_disk / "partition")
    moments = random.Random(3)
    number = refused = 0
    count = 0
    fill(small_disk)
    while refused < 12:
        ballast = small_disk / "ballast"
        os.truncate(ballast, max(0, ballast.stat().st_size - PAGE * moments.randint(0, 24)))
        commit = build.commit(names(count + moments.randint(1, 200)), number=number + 1)
        try:
            store.commit(commit)
            number, count = number + 1, len(commit.twins.device_ids)
        except errors.DiskFullError:
            refused += 1
        assert store.state == (build.state(number) if number else commits.PartitionState())
        assert store.count() == count
        assert commit_numbers(store) <= {number}
    assert number > 5
    store.close()


def test_a_restart_on_a_full_disk_opens_what_is_there(small_disk: Path) -> None:
    store = opened(small_disk / "partition")
    store.commit(build.commit(names(1_000)))
    abandon(store)
    fill(small_disk)
    reopened = opened(small_disk / "partition")
    assert reopened.count() == 1_000
    abandon(reopened)


@pytest.mark.parametrize("there", ["nothing", "an environment without its lock file"])
def test_opening_on_a_full_disk_is_an_error_and_not_a_signal(small_disk: Path, there: str) -> None:
    """LMDB writes its lock file through a map: without blocks of its own that would be SIGBUS."""
    folder = small_disk / "partition"
    if there != "nothing":
        abandon(opened(folder))
        (folder / "environment" / "lock.mdb").unlink()
    ballast = fill(small_disk)
    opening = (
        "from pathlib import Path; from tests.integration import test_lmdb_faults as faults; "
        f"faults.opened(Path({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", opening], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "DiskFullError" in done.stderr
    for _ in range(2):
        with pytest.raises(errors.DiskFullError):
            opened(folder)
    ballast.unlink()
    store = opened(folder)
    assert store.discarded is None
    store.commit(build.commit(["a"]))
    store.close()


def test_a_new_environment_that_finds_no_room_is_tried_again(small_disk: Path) -> None:
    """The disk ends at every place of an opening, one page further each time."""
    folder = small_disk / "partition"
    ballast = fill(small_disk)
    refused = 0
    while True:
        try:
            store = opened(folder)
            break
        except errors.DiskFullError:
            refused += 1
            os.truncate(ballast, ballast.stat().st_size - PAGE)
    assert refused > 4
    ballast.unlink()
    store.commit(build.commit(["a"]))
    assert store.count() == 1
    store.close()


def test_a_full_map_names_the_setting_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    store = opened(tmp_path, storage=spec.Storage(map_size_bytes=2**20))
    store.commit(build.commit(names(500), number=1))
    with pytest.raises(errors.DiskFullError, match=r"storage\.mapSize"):
        store.commit(build.commit(names(5_000), number=2))
    assert store.state == build.state(1)
    assert commit_numbers(store) == {1}
    store.commit(build.commit(names(400), number=2))
    store.close()
    store = opened(tmp_path)
    store.commit(build.commit(names(5_000), number=3))
    assert commit_numbers(store) == {3}
    store.close()


@pytest.mark.parametrize(
    ("code", "room", "expected"),
    [
        (errno.ENOSPC, None, errors.DiskFullError),
        (errno.EDQUOT, None, errors.DiskFullError),
        (errno.EIO, errno.ENOSPC, errors.DiskFullError),  # A write that was cut short by the end of the disk.
        (errno.EIO, errno.EDQUOT, errors.DiskFullError),
        (errno.EIO, errno.EIO, errors.StoreBrokenError),
        (errno.EIO, None, errors.StoreBrokenError),
        (errno.EINVAL, errno.ENOSPC, errors.StoreBrokenError),
    ],
)
def test_an_error_of_the_disk_is_told_from_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, room: int | None, expected: type[Exception]
) -> None:
    """room: what trying to take some more room gives."""

    def reserve(*_: int) -> None:
        if room is not None:
            raise OSError(room, os.strerror(room))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    error = lmdb.Error(f"mdb_txn_commit: {os.strerror(code)}")
    error.code = code  # type: ignore[misc]
    assert type(lmdb_environment.our_error(error, tmp_path, "committing")) is expected
    assert list(tmp_path.iterdir()) == []


# ── the process dies ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_killed_in_the_middle_of_a_commit_the_last_one_is_whole(tmp_path: Path) -> None:
    interrupted = 0
    for seed in range(6):
        folder = tmp_path / str(seed)
        run = [sys.executable, "-m", "tests.support.commit_until_killed", str(folder), str(seed)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=LINE_TIMEOUT_S)
        assert done.returncode == -9, done.stderr
        begun, ended = (
            max(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(word))
            for word in ("begin", "end")
        )
        store = opened(folder)
        number = store.state.commit_number
        assert ended <= number <= begun, f"seed {seed}"
        interrupted += begun > ended
        assert store.discarded is None
        assert commit_numbers(store) == {number}
        assert store.count() == len(commit_until_killed.DEVICE_IDS)
        assert [entry.number for entry in store.outbox()] == [number - 1, number]
        store.commit(build.commit(names(10), number=number + 1))
        store.close()
    assert interrupted >= 2, "no run died inside a commit: the moments are badly chosen"


def test_a_dead_readers_slot_is_freed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a"]))
    reading = (
        "import lmdb, sys, signal\n"
        f"environment = lmdb.open({str(tmp_path / 'environment')!r}, readonly=True, max_dbs=5)\n"
        "transaction = environment.begin(db=None)\n"
        "print('reading', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", reading], stdout=subprocess.PIPE, text=True) as reader:
        orphans.prevent(reader.pid)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        assert store.check_readers() == 0
        reader.kill()
    assert store.check_readers() == 1
    assert store.check_readers() == 0
    store.close()


def test_killed_while_it_was_created_it_begins_anew(tmp_path: Path) -> None:
    opened(tmp_path).close()
    os.truncate(tmp_path / "environment" / "data.mdb", 0)
    store = opened(tmp_path)
    assert store.discarded is not None
    assert "never completely created" in store.discarded
    store.commit(build.commit(["a"]))
    store.close()


# ── the machine dies ─────────────────────────────────────────────────────────────────────────────────────────────────


def crashed_copy(folder: Path, into: Path, on_disk: bytes, seed: int) -> int:
    """Copies a running partition as a crash of the machine may leave it: each page that was written since the last sync
    is there or isn't. Returns how many aren't."""
    shutil.copytree(folder, into)
    data = into / "environment" / "data.mdb"
    written = bytearray(data.read_bytes())
    chance = random.Random(seed)
    lost = 0
    for start in range(0, len(written), PAGE):
        before = on_disk[start : start + PAGE].ljust(PAGE, b"\0")
        if written[start : start + PAGE] != before and chance.random() < 0.5:
            written[start : start + PAGE] = before
            lost += 1
    data.write_bytes(written)
    return lost


def test_after_a_crash_of_the_machine_no_unsynced_copy_is_used(tmp_path: Path) -> None:
    running = tmp_path / "running"
    store = opened(running, "first boot")
    store.commit(build.commit(names(2_000), number=1))
    store.sync()
    on_disk = (running / "environment" / "data.mdb").read_bytes()
    for number in range(2, 6):
        store.commit(build.commit(names(2_000), number=number))
    for seed in range(8):
        crashed = tmp_path / f"crashed-{seed}"
        assert crashed_copy(running, crashed, on_disk, seed) > 10
        reopened = opened(crashed, "second boot")
        assert reopened.discarded is not None
        assert "not closed cleanly" in reopened.discarded
        assert (reopened.state, reopened.count()) == (commits.PartitionState(), 0)
        assert (crashed / "discarded" / "data.mdb").exists()
        # What is begun in its place is as good as any other.
        reopened.commit(build.commit(["a"], number=1))
        reopened.close()
        again = opened(crashed, "third boot")
        assert (again.discarded, again.count()) == (None, 1)
        abandon(again)
        assert opened(crashed, "fourth boot").discarded is not None  # At most one is kept aside.
    abandon(store)


def test_without_a_crash_of_the_machine_the_copy_is_used(tmp_path: Path) -> None:
    store = opened(tmp_path, "first boot")
    store.commit(build.commit(names(100), number=1))
    abandon(store)
    store = opened(tmp_path, "first boot")
    assert (store.discarded, store.state) == (None, build.state(1))
    store.close()
    store = opened(tmp_path, "second boot")
    assert (store.discarded, store.state) == (None, build.state(1))
    abandon(store)
    store = opened(tmp_path, "first boot")
    assert store.discarded is not None
    store.close()


def test_the_mark_of_a_clean_close_is_gone_before_the_first_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path, "first boot").close()
    seen: list[tuple[bool, str]] = []
    create = lmdb_environment.Environment

    def watched(path: Path, storage: spec.Storage) -> lmdb_environment.Environment:
        seen.append(((tmp_path / marks.CLOSED).exists(), (tmp_path / marks.OPENED).read_text()))
        return create(path, storage)

    monkeypatch.setattr(lmdb_environment, "Environment", watched)
    store = opened(tmp_path, "second boot")
    assert seen == [(False, '{"boot_id": "second boot", "sync": "Interval"}')]
    store.close()
    assert (tmp_path / marks.CLOSED).exists()


def test_with_a_sync_per_commit_the_copy_outlives_the_machine(tmp_path: Path) -> None:
    storage = spec.Storage(map_size_bytes=2**30, sync=spec.Sync.COMMIT)
    store = opened(tmp_path, "first boot", storage)
    store.commit(build.commit(names(100), number=1))
    abandon(store)
    store = opened(tmp_path, "second boot")  # From here on without: this copy is trusted no longer.
    assert (store.discarded, store.state) == (None, build.state(1))
    store.commit(build.commit(names(100), number=2))
    abandon(store)
    assert opened(tmp_path, "third boot", storage).discarded is not None


# ── a failed fsync ───────────────────────────────────────────────────────────────────────────────────────────────────


def failing(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_failed_fsync_ends_the_environment_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a"], number=1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        with pytest.raises(errors.StoreBrokenError, match="fsync failed"):
            store.sync()
    for refused in (lambda: store.commit(build.commit(["b"], number=2)), store.sync, store.count):
        with pytest.raises(errors.StoreBrokenError, match="not usable any more"):
            refused()
    store.close()
    assert not (tmp_path / marks.CLOSED).exists()
    reopened = opened(tmp_path)
    assert reopened.discarded is not None
    assert "fsync failed" in reopened.discarded
    assert reopened.count() == 0
    reopened.close()
    assert opened(tmp_path, "another boot").discarded is None


def test_a_failed_fsync_at_closing_leaves_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a"], number=1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        with pytest.raises(errors.StoreBrokenError):
            store.close()
    reopened = opened(tmp_path)
    assert reopened.discarded is not None
    reopened.close()


def test_a_disk_that_can_not_even_take_the_mark_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a"], number=1))

    def refuse(path: Path, data: bytes) -> None:
        raise errors.DataFolderError(f"{path}: {len(data)} bytes can't be written")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        patched.setattr(durable, "replace", refuse)
        with pytest.raises(errors.StoreBrokenError, match="fsync failed"):
            store.sync()
    store.close()
    reopened = opened(tmp_path)
    assert reopened.discarded is not None
    reopened.close()


# ── what isn't this partition's ──────────────────────────────────────────────────────────────────────────────────────


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb"}


def test_another_row_version_is_refused_by_both_numbers_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a"]))
    store.close()
    before = folder_contents(tmp_path)
    monkeypatch.setattr(twins, "ROW_VERSION", 41)
    with pytest.raises(errors.StoreBrokenError, match=r"row version 1\b.*version 41"):
        opened(tmp_path, "another boot")
    assert folder_contents(tmp_path) == before


def test_another_partitions_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a"]))
    store.close()
    before = folder_contents(tmp_path)
    other = partition.PartitionIdentity("default", "other-fleet", "telemetry", IDENTITY.shard_id)
    with pytest.raises(errors.StoreBrokenError, match="other-fleet"):
        lmdb_store.LmdbTwinStore.open(tmp_path, other, STORAGE, "boot")
    assert folder_contents(tmp_path) == before


def test_bytes_that_no_worker_wrote_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["a", "b"]))
    with store._environment.write(1) as transaction:
        transaction.put(hashing.digest("a") + b"a", b"short", db=store._environment.twins)
    with pytest.raises(errors.StoreBrokenError, match="less than"):
        list(store.scan())
    store.close()


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_twin_takes_at_most_400_bytes_and_the_file_two_versions_of_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    device_ids = [f"device-{number:06d}" for number in range(20_000)]
    random.Random(1).shuffle(device_ids)
    rest = b"\x10" + bytes(6) + b"".join(bytes([tag << 3 | 1]) + bytes(8) for tag in (3, 4, 5))
    rest += b"\x32\x0f52.5200,13.4050" + b"\x3a\x052.1.0"
    telemetry: dict[str, bytes | None] = {name: build.raw_telemetry(name, rest) for name in device_ids}
    number = 0

    def commit(some: Sequence[str]) -> None:
        nonlocal number
        number += 1
        store.commit(build.commit(build.twin_rows(some, telemetry=telemetry, commit_number=number), number=number))

    for first in range(0, len(device_ids), 2_500):
        commit(device_ids[first : first + 2_500])
    for _ in range(5):
        commit(device_ids)
    used_bytes, file_bytes = store.figures()
    assert used_bytes / len(device_ids) <= 400
    assert file_bytes <= 2.2 * used_bytes
    store.close()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environments of the process may keep 2 MiB of changed pages."""
    monkeypatch.setattr(lmdb_environment, "RETAINED", lmdb_environment.Retained(2 * 2**20))


@pytest.mark.usefixtures("little_memory")
def test_a_large_commits_memory_is_given_back_but_never_under_a_reader(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(names(30_000), number=1))
    assert not store._environment.is_open
    with store.snapshot() as snapshot:
        chunks = snapshot.scan()
        first = next(chunks)
        store.commit(build.commit(names(30_000), number=2))
        assert store._environment.is_open
        rows = [first, *chunks]
        assert sum(len(part.device_ids) for part in rows) == 30_000
        assert {number for part in rows for number in part.rows["commit"].tolist()} == {1}
    store.commit(build.commit(["device-1"], number=3))
    assert not store._environment.is_open
    assert store.count() == 30_000
    store.close()


@pytest.mark.usefixtures("little_memory")
def test_the_environments_of_a_process_keep_so_much_together(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "first"), opened(tmp_path / "second")
    for number in (1, 2):
        first.commit(build.commit(names(5_000), number=number))
        second.commit(build.commit(names(5_000), number=number))
        assert (first._environment.is_open, second._environment.is_open) == (True, False)
    first.close()
    second.commit(build.commit(names(5_000), number=3))
    assert second._environment.is_open
    second.close()


@pytest.mark.usefixtures("little_memory")
def test_reads_beside_large_commits_see_one_commit_each(tmp_path: Path) -> None:
    """The environment is closed and opened again in between."""
    store = opened(tmp_path)
    store.commit(build.commit(names(8_000), number=1))
    done = threading.Event()

    def read() -> int:
        reads = 0
        while not done.is_set():
            rows = store.fetch(["device-1", "device-5000", "device-7999"])
            assert len(rows.device_ids) == 3
            assert len(set(rows.rows["commit"].tolist())) == 1
            reads += 1
        return reads

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            for number in range(2, 8):
                store.commit(build.commit(names(30_000), number=number))
        finally:
            done.set()
        assert all(reader.result() > 0 for reader in readers)
    store.close()


# ── copying a range ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interrupted_copy_is_done_again_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = opened(tmp_path / "parent")
    device_ids = names(45_000)
    parent.commit(build.commit(device_ids, number=1, index=([(1, "device-1")], [])))
    child = opened(tmp_path / "child")
    with monkeypatch.context() as patched:
        patched.setattr(lmdb_store.LmdbTwinStore, "commit", failing)
        with pytest.raises(OSError, match="Input/output"):
            lmdb_store.copy_range(child, [parent], hashing.HashKeyRange(), build.state(2))
    assert (child.count(), child.state) == (45_000, commits.PartitionState())
    abandon(child)
    parent.commit(build.commit(number=3, deleted=["device-5"]))
    child = opened(tmp_path / "child")
    lmdb_store.copy_range(child, [parent], hashing.HashKeyRange(), build.state(2))
    assert (child.count(), child.state) == (44_999, build.state(2))
    assert child.index_before(2, 10) == [(1, "device-1")]
    assert child.telemetry(["device-7"]) == {"device-7": b"telemetry of device-7"}
    child.close()
    parent.close()
