"""The project's image, by the Dockerfile and from the build context that users build it with; from wheels instead of the network, by buildah.

Two more images share all of its layers: one for a rolling update, and one whose entry point fails.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from tests.e2e.images import archive, making, wheels
from tests.e2e.images import base as base_image

NAME = "localhost/fleet-twin:dev"
RELEASE_NAME = f"docker.io/library/fleet-twin:{metadata.version('fleet-twin')}"
"""As the chart and its examples say without a word about a registry."""
NEXT_NAME = "localhost/fleet-twin:dev-next"
BROKEN_NAME = "localhost/fleet-twin:dev-broken"
NEXT_VARIABLE = "FLEET_TWIN_IMAGE_OF_TEST"
"""Set to "next" in the next image's containers."""
MADE_BY = "3"
STEPS_KEPT_MAX = 300
"""Steps of earlier builds, each an image to buildah: some five gigabytes. All are forgotten then, and when there is another base."""
ACCEPT_ALL = json.dumps({"default": [{"type": "insecureAcceptAnything"}]})


@dataclasses.dataclass(frozen=True)
class Made:
    image: archive.Image
    next_image: archive.Image
    broken_image: archive.Image


def build(cache: Path, base: archive.Image) -> Made:
    """Raises making.ImageFailedError."""
    wheel_folder = wheels.fetch(cache, base_image.PYTHON)
    files = context_files()
    content = [word for path in files for word in (str(path.relative_to(making.PROJECT)), path)]
    key = making.key([MADE_BY, base.archive.parent.name, wheel_folder.name, *content])
    folder = making.once(cache, "project", key, lambda made: _fill(made, cache, base, wheel_folder))
    making.forget_others(cache, "project", folder)
    path = folder / "image.tar"
    return Made(archive.Image(NAME, path), archive.Image(NEXT_NAME, path), archive.Image(BROKEN_NAME, path))


def context_files() -> list[Path]:
    """What .dockerignore lets into the build context, and the Dockerfile; without the wheels, which have a key of their own."""
    lines = (making.PROJECT / ".dockerignore").read_text().splitlines()
    found = [making.PROJECT / "Dockerfile", making.PROJECT / ".dockerignore"]
    for name in [line.removeprefix("!") for line in lines if line.startswith("!")]:
        path = making.PROJECT / name
        if path.is_file():
            found.append(path)
        elif name != "wheels":
            found += [file for file in sorted(path.rglob("*")) if file.is_file() and "__pycache__" not in file.parts]
    return found


def _fill(folder: Path, cache: Path, base: archive.Image, wheel_folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as name:
        context, built = Path(name) / "context", Path(name) / "built.tar"
        for path in context_files():
            target = context / path.relative_to(making.PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        shutil.copytree(wheel_folder, context / "wheels", copy_function=os.link)
        Buildah(cache).build(context, base, built)
        layers = archive.extract_layers(built, NAME, Path(name))
        with archive.opened(built) as made:
            start = made.configs[NAME]["config"]
        labels = start.get("Labels") or {}
        following = start | {
            "Env": [*start["Env"], f"{NEXT_VARIABLE}=next"],
            "Labels": labels | {"fleettwin.io/test": "next"},
        }
        broken = start | {
            "Entrypoint": ["fleet-twin", "no-such-command"],
            "Labels": labels | {"fleettwin.io/test": "broken"},
        }
        contents = [(NAME, start), (RELEASE_NAME, start), (NEXT_NAME, following), (BROKEN_NAME, broken)]
        archive.write(folder / "image.tar", [archive.Content(tag, layers, config) for tag, config in contents])


class Buildah:
    """buildah with a storage of its own under the cache folder, where its layers stay for the next build."""

    def __init__(self, cache: Path) -> None:
        self._program = making.program("buildah")
        self._storage = cache / "buildah"
        self._storage.mkdir(parents=True, exist_ok=True)
        self._policy = self._storage / "policy.json"
        self._policy.write_text(ACCEPT_ALL)

    def _run(self, command: str, *arguments: str) -> str:
        driver = "overlay" if _overlays_work(self._storage) else "vfs"
        storage = [
            "--root",
            str(self._storage / driver),
            "--runroot",
            str(self._storage / "run"),
            "--storage-driver",
            driver,
        ]
        return making.run([self._program, *storage, command, *arguments])

    def build(self, context: Path, base: archive.Image, target: Path) -> None:
        """Writes an archive of the image NAME."""
        policy = f"--signature-policy={self._policy}"
        on = f"localhost/{base.archive.parent.name}:base"
        kept = self._run("images", "--all", "--format", "{{.Name}}:{{.Tag}}").split()
        if on not in kept or len(kept) > STEPS_KEPT_MAX:
            self._run("rmi", "--all", "--force")
            pulled = self._run("pull", "--quiet", policy, f"docker-archive:{base.archive}").split()[-1]
            self._run("tag", pulled, on)
        self._run(
            "bud",
            *("--isolation", "chroot", "--layers", "--quiet", "--pull-never", policy, "--format", "docker"),
            *("--build-arg", f"BASE_IMAGE={on}", "--build-arg", "VERSION=dev", "--tag", NAME, str(context)),
        )
        self._run("push", "--quiet", policy, NAME, f"docker-archive:{target}:{NAME}")


def _overlays_work(folder: Path) -> bool:
    """Not where this machine is itself a container on an overlay. Copies of whole layers do there, with time and space."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for part in ("lower", "upper", "work", "merged"):
            (Path(name) / part).mkdir()
        options = f"lowerdir={name}/lower,upperdir={name}/upper,workdir={name}/work"
        try:
            making.run([making.program("mount"), "-t", "overlay", "overlay", "-o", options, f"{name}/merged"])
        except making.ImageFailedError:
            return False
        making.run([making.program("umount"), f"{name}/merged"])
        return True
