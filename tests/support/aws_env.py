"""Environment of whatever talks to an emulator: dummy credentials, and nothing of the real ones around.

An emulator checks no signature, but a client won't send anything unsigned.
"""

from __future__ import annotations

import os

import pytest

REGION = "us-east-1"
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def environment(**more: str) -> dict[str, str]:
    """For a child process: ours, without any AWS_ variable but the dummy ones."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return ours | VARIABLES | more


def apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process, for one test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
