"""Given …: what is there before something happens."""

from __future__ import annotations

from tests.e2e import scene as scenes
from tests.e2e.steps import then

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Every namespace of every scenario: whatever the operator makes has to be admitted by it."""
OUTPUTS = ("alerts", "commands")


async def a_namespace_and_streams(scene: scenes.Scene, shards: int = 4) -> None:
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": scene.namespace, "labels": RESTRICTED},
    }
    await scene.kinesis.create(scene.telemetry, shards)
    await scene.kinesis.create(scene.alerts)
    await scene.kinesis.create(scene.commands)
    await scene.apply(namespace)
    await scene.apply(scene.secret())


async def a_fleet(scene: scenes.Scene, workers: int = 1, shards: int = 4, **sections: object) -> None:
    """With a namespace and streams of its own; runs when this returns. sections: of its spec."""
    await a_namespace_and_streams(scene, shards)
    scene.document = scene.fleet_document(workers, **sections)
    await scene.apply(scene.document)
    seconds = await then.the_fleet_has_settled(scene, workers)
    scene.tell(f"applied → all of {shards} partitions run: {seconds:.1f} s")


async def a_steady_load(scene: scenes.Scene) -> None:
    """Of RATE records/s from DEVICES devices, until it is judged or stopped."""
    if not scene.load.is_running:
        scene.load.start()
