"""Whether a tenure publishes, when neither the bucket nor the control plane says that the partition is still its own."""

from __future__ import annotations

import asyncio
import types
from typing import Any, cast

from fleet_model import hashing, twin_partition
from fleet_worker import claimed, custody, errors
from tests.support import virtual_time


class Custody:
    """As much of one as publishing asks for; the bucket is away."""

    manifest = types.SimpleNamespace(final=False)
    is_proved = False

    def may_publish(self, now_s: float) -> bool:
        return self.is_proved

    async def verify(self) -> None:
        raise errors.ObjectStoreUnavailableError("the bucket is away")

    def seen_in_control_plane(self, status: twin_partition.Status, asked_at_s: float) -> bool:
        self.is_proved = True
        return True


def test_effects_wait_while_the_partition_has_no_object_and_the_bucket_is_away() -> None:
    asked = 0

    async def ask() -> twin_partition.Status:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise errors.PartitionGoneError("its object is gone")
        return twin_partition.Status()

    async def main() -> None:
        around = cast(Any, types.SimpleNamespace(clock=virtual_time.VirtualClock()))
        identity = types.SimpleNamespace(shard_id="shard-0", hash_key_range=hashing.HashKeyRange())
        place = cast(Any, types.SimpleNamespace(identity=identity))
        outlook = claimed.Outlook("worker-0", lambda shard_id: None, ask, lambda: None, lambda: False)
        tenure = claimed.ClaimedTenure(around, cast(Any, None), place, cast(Any, None), outlook)
        tenure._custody = cast(custody.Custody, Custody())
        async with asyncio.timeout(60.0):
            await tenure.may_publish()
        assert asked == 3

    virtual_time.run(main())
