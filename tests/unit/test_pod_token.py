"""What a pod may trust on its disk after an end that wasn't clean: what this very pod wrote under this very boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_model import spec
from fleet_worker import errors
from fleet_worker.adapters import marks, pod_token

BOOT = "5e0f6b1c-0000-4000-8000-000000000001"


def started(memory: Path, boot: str = BOOT) -> str:
    """A container's start: what it trusts its disk by."""
    memory.mkdir(exist_ok=True)
    return pod_token.boot_id(boot, pod_token.read_or_make(memory))


def test_a_container_restarted_in_its_pod_uses_what_it_left(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    marks.leave_opened(disk, started(tmp_path / "pod"), spec.Sync.INTERVAL)
    assert marks.reason_against(disk, started(tmp_path / "pod")) is None


def test_another_pod_on_the_same_node_doesn_t(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    marks.leave_opened(disk, started(tmp_path / "pod"), spec.Sync.INTERVAL)
    assert "not closed cleanly" in (marks.reason_against(disk, started(tmp_path / "other")) or "")
    assert marks.reason_against(disk, started(tmp_path / "pod", boot="another boot")) is not None
    marks.leave_closed(disk)
    assert marks.reason_against(disk, started(tmp_path / "other")) is None


@pytest.mark.parametrize("torn", ["", "0123", "not a token at all, and far too long for one"])
def test_what_is_no_token_is_replaced_and_then_nothing_is_trusted(tmp_path: Path, torn: str) -> None:
    before = started(tmp_path)
    (tmp_path / pod_token.FILE).write_text(torn)
    after = started(tmp_path)
    assert after not in (before, f"{BOOT}/{torn}")
    assert started(tmp_path) == after


def test_a_folder_that_isn_t_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.DataFolderError, match="medium Memory"):
        pod_token.read_or_make(tmp_path / "missing")


def test_outside_of_pods_the_boot_alone_counts() -> None:
    assert pod_token.boot_id(BOOT, "") == BOOT
