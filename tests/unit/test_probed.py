"""A data folder remembers the very store that passed, and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fleet_model import spec
from fleet_worker.adapters import probed

AWS = spec.Aws(region="us-east-1", endpoint_url="http://127.0.0.1:1")
CHECKPOINT = spec.Checkpoint(bucket="twins", prefix="a")


def test_a_store_is_known_once_noted_and_until_forgotten(tmp_path: Path) -> None:
    known = probed.Probed(tmp_path, AWS, CHECKPOINT)
    assert not known.has_passed()
    known.note()
    assert probed.Probed(tmp_path, AWS, CHECKPOINT).has_passed()
    known.forget()
    known.forget()
    assert not known.has_passed()


@pytest.mark.parametrize(
    ("aws", "checkpoint"),
    [
        (dataclasses.replace(AWS, endpoint_url=None), CHECKPOINT),
        (dataclasses.replace(AWS, region="eu-central-1"), CHECKPOINT),
        (AWS, dataclasses.replace(CHECKPOINT, bucket="others")),
        (AWS, dataclasses.replace(CHECKPOINT, prefix="b")),
    ],
)
def test_another_store_has_to_pass_itself(tmp_path: Path, aws: spec.Aws, checkpoint: spec.Checkpoint) -> None:
    probed.Probed(tmp_path, AWS, CHECKPOINT).note()
    assert not probed.Probed(tmp_path, aws, checkpoint).has_passed()


def test_another_endpoint_by_the_environment_is_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    unset = dataclasses.replace(AWS, endpoint_url=None)
    probed.Probed(tmp_path, unset, CHECKPOINT).note()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    assert not probed.Probed(tmp_path, unset, CHECKPOINT).has_passed()


def test_a_note_that_cant_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / probed.FILE).mkdir()
    assert not probed.Probed(tmp_path, AWS, CHECKPOINT).has_passed()
