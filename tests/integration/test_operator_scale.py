"""Many fleets under one operator: settled in time, silent at rest, no larger after many edits.

The full size, and half an hour of edits: `python -m tests.e2e.operator_scale`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import operator_scale, scene
from tests.support import api_server, aws_env, go_toolchain, node

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

SETTLED_S_MAX = 120.0
"""A machine with nothing else to do takes half a minute, and is to take one at most; this one may be busy."""


async def test_fifty_fleets_settle_rest_and_are_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aws_env.apply(monkeypatch)
    asked = operator_scale.Asked(churn_s=60.0, edit_every_s=0.2)
    try:
        with api_server.running(operator_scale.CLUSTER) as server:
            server.apply_crds()
            told = await operator_scale.measured(asked, server, tmp_path)
    except (go_toolchain.NoGoError, node.NoNodeError) as missing:
        pytest.skip(f"the programs that this needs can't be had here: {missing}")
    with capsys.disabled():
        print(f"\n{told}, growth {told.growth:.1%}")
    assert not told.broken(SETTLED_S_MAX * scene.PATIENCE)
