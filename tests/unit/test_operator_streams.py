"""What the operator keeps of a stream's client when that can't be used."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from fleet_operator import errors
from fleet_operator.adapters import streams

NOBODY = streams.Place("telemetry", "eu-west-1", "http://127.0.0.1:1")


def test_credentials_that_come_later_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Those who give them may be away when the operator starts."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    async def body() -> None:
        async with streams.Streams() as looks:
            with pytest.raises(errors.StreamUnavailableError, match="locate credentials"):
                await looks.look(NOBODY)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            with pytest.raises(errors.StreamUnavailableError, match="connect to the endpoint"):
                await looks.look(NOBODY)

    asyncio.run(body())
