"""Closing an environment that others use, and openings that fail half-way."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from fleet_model import partition, spec
from fleet_worker import errors
from fleet_worker.adapters import lmdb_environment, lmdb_store, marks
from tests.support import commits as build

IDENTITY = partition.PartitionIdentity("default", "fleet", "telemetry", "shardId-000000000000")
SETTINGS = spec.Storage(map_size_bytes=2**26)


def opened(folder: Path) -> lmdb_store.LmdbTwinStore:
    return lmdb_store.LmdbTwinStore.open(folder, IDENTITY, SETTINGS, "boot")


def test_closing_waits_for_a_query_that_is_reading(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(build.commit(["device-7"]))
    reading, go_on = threading.Event(), threading.Event()
    found: list[int] = []

    def query() -> None:
        with store.snapshot() as snapshot:
            reading.set()
            go_on.wait(10)
            found.append(snapshot.count())

    reader = threading.Thread(target=query)
    reader.start()
    assert reading.wait(10)
    closer = threading.Thread(target=store.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    go_on.set()
    closer.join(10)
    reader.join(10)
    assert found == [1]
    assert (tmp_path / marks.CLOSED).exists()


def test_a_query_that_comes_after_the_closing_is_refused_and_opens_nothing(tmp_path: Path) -> None:
    environment = lmdb_environment.Environment(tmp_path / "environment", SETTINGS)
    environment.close()
    with pytest.raises(errors.StoreBrokenError, match="closed"), environment.read():
        pass
    assert not environment.is_open
    environment.close()


def test_an_opening_without_a_file_descriptor_left_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = os.open

    def open_but_the_data(path: Path, flags: int, *more: int) -> int:
        if Path(path).name == "data.mdb":
            raise OSError(errno.EMFILE, "too many open files")
        return really_open(path, flags, *more)

    monkeypatch.setattr(os, "open", open_but_the_data)
    with pytest.raises(errors.StoreBrokenError, match="too many open files"):
        opened(tmp_path)
    monkeypatch.undo()
    opened(tmp_path).close()
