"""What the chart does to fleets that run: a namespaced install, an upgrade with other CRDs, an end that leaves everything alone.

Each test leaves the operator of the session as it found it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e import images, operators, providers, scene
from tests.e2e.steps import given, then, when

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FIELD = "describedBy"


@pytest.fixture
def operator(stage: scene.Stage) -> Iterator[operators.OperatorPod]:
    """Installed anew when the test is over, whatever it did to it."""
    found = stage.operator
    assert isinstance(found, operators.OperatorPod)
    yield found
    found.install()


async def test_a_role_is_enough(a_scene: scene.Scene, operator: operators.OperatorPod) -> None:
    """An operator for one namespace has no right beyond it, and its fleets do the same as others."""
    await given.a_namespace_and_streams(a_scene, shards=2)
    watched = {"allNamespaces": False, "namespaces": [a_scene.namespace]}
    await asyncio.to_thread(operator.install, watch=watched)
    account = f"system:serviceaccount:{operators.LEASE_NAMESPACE}:fleet-twin-operator"
    for kind in ("clusterroles", "clusterrolebindings"):
        told = await a_scene.stage.kubectl(
            "get", kind, f"--selector=app.kubernetes.io/instance={operators.RELEASE}", "-o=name"
        )
        assert told == "", f"a namespaced install has {told}"
    elsewhere = await a_scene.stage.kubectl(
        "auth", "can-i", "list", "pods", f"--as={account}", "--namespace=default", check=False
    )
    assert elsewhere.startswith("no"), elsewhere
    a_scene.document = a_scene.fleet_document(1)
    await when.the_fleet_is_applied_again(a_scene)
    await then.the_fleet_has_settled(a_scene, 1)
    await when.the_fleet_is_scaled_to(a_scene, 2)
    await then.the_fleet_has_settled(a_scene, 2)


async def test_an_upgrade_with_other_definitions_keeps_fleets_running(
    a_scene: scene.Scene, operator: operators.OperatorPod, tmp_path: Path
) -> None:
    await given.a_fleet(a_scene, workers=1, shards=2)
    before = await then.restarts(a_scene)
    chart = await asyncio.to_thread(a_later_chart, tmp_path)
    await asyncio.to_thread(operator.install, chart)
    explained = await a_scene.kubectl("explain", f"devicefleet.spec.{FIELD}")
    assert "Of a later version" in explained
    await when.the_fleet_is_scaled_to(a_scene, 2)
    await then.the_fleet_has_settled(a_scene, 2)
    after = await then.restarts(a_scene)
    assert {name: after[name] for name in before} == before, "the upgrade restarted workers"


async def test_uninstalling_leaves_fleets_alone(a_scene: scene.Scene, operator: operators.OperatorPod) -> None:
    await given.a_fleet(a_scene, workers=1, shards=2)
    before = await then.restarts(a_scene)
    told = await asyncio.to_thread(operator.uninstall)
    assert "kept" in told, f"helm doesn't say that anything is kept: {told}"
    await then.no_worker_was_restarted(a_scene, before)
    for kind, count in (("devicefleets", 1), ("twinpartitions", 2), ("statefulsets", 1), ("persistentvolumeclaims", 1)):
        assert len(await a_scene.stage.objects(kind, a_scene.namespace)) == count, f"{kind} went with the chart"
    await asyncio.to_thread(operator.install)
    await when.the_fleet_is_scaled_to(a_scene, 2)
    await then.the_fleet_has_settled(a_scene, 2)


async def test_the_try_out_works_as_it_is(
    stage: scene.Stage, operator: operators.OperatorPod, project_images: images.Images
) -> None:
    """The example's own commands, but for its namespace, which is that of the session's operator here."""
    if providers.Ability.IMAGES not in stage.cluster.can:
        pytest.skip(
            f"the cluster {stage.cluster.name} takes no images from here, and this one's name is the chart's default"
        )
    await stage.cluster.load_image(project_images.moto.archive)
    values = yaml.safe_load((operators.CHART / "examples" / "try-out-values.yaml").read_text())
    await asyncio.to_thread(operator.install, **values)
    documents = try_out_in(operators.LEASE_NAMESPACE)
    fleet = ("devicefleet/try-out", f"--namespace={operators.LEASE_NAMESPACE}")
    await stage.kubectl("apply", "--filename=-", stdin=documents)
    try:
        await stage.kubectl("wait", *fleet, "--for=condition=Ready", "--timeout=180s", seconds_max=190.0)
        told = await asyncio.to_thread(operator.helm, "test", operators.RELEASE, "--logs", "--timeout=120s")
        stage.report.append(f"helm test: {told}")
        assert "Succeeded" in told, told
        assert "cool_down" in told, told
        await stage.kubectl("scale", *fleet, "--replicas=3")
        await stage.kubectl(
            "wait", *fleet, "--for=jsonpath={.status.readyReplicas}=3", "--timeout=120s", seconds_max=130.0
        )
    finally:
        await stage.kubectl("delete", *fleet, "--timeout=120s", seconds_max=130.0)
        await stage.kubectl("delete", "--filename=-", "--ignore-not-found", "--wait=false", stdin=documents)


def try_out_in(namespace: str) -> str:
    text = (operators.CHART / "examples" / "try-out.yaml").read_text()
    moved = text.replace("namespace: fleet-twin\n", f"namespace: {namespace}\n")
    moved = moved.replace("namespace: fleet-twin}", f"namespace: {namespace}}}")
    return moved.replace("emulator.fleet-twin.svc", f"emulator.{namespace}.svc")


def a_later_chart(folder: Path) -> Path:
    """Ours with another version and one more field in DeviceFleet's spec."""
    chart = Path(shutil.copytree(operators.CHART, folder / "chart"))
    settings = yaml.safe_load((chart / "Chart.yaml").read_text())
    settings["version"] = "99.0.0"
    (chart / "Chart.yaml").write_text(yaml.safe_dump(settings))
    (file,) = (chart / "files" / "crds").glob("*devicefleets.yaml")
    definition = yaml.safe_load(file.read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    field = {"type": "string", "maxLength": 100, "description": "Of a later version."}
    schema["properties"]["spec"]["properties"][FIELD] = field
    file.write_text(yaml.safe_dump(definition, sort_keys=False))
    return chart
