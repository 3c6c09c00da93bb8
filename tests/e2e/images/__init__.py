"""The images that pods are made from in the tests, made on this machine without a container registry.

base: Debian and its Python. pause: what holds a pod's namespaces. project: Fleet Twin by its own Dockerfile, on that base, and two near copies of
it. emulators, moto: Kinesis and S3 as pods. Each is kept in the cache folder by a key of everything that it is made of, so that the second
time takes no time. Nothing here starts a container or speaks to a cluster.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.e2e.images import base, emulators, moto, pause, project
from tests.e2e.images.archive import Image
from tests.support import node

__all__ = ["Image", "Images", "build_all", "cache_folder"]


@dataclasses.dataclass(frozen=True)
class Images:
    """next_project: the project's image but for a label and a variable, for a rolling update. broken_project: its entry point fails at once.

    The three share one archive; importing it brings all three, and the project's image by the name that the chart gives it.
    """

    base: Image
    pause: Image
    project: Image
    next_project: Image
    broken_project: Image
    emulators: Image
    moto: Image

    def archives(self) -> list[Path]:
        """Everything that a node has to import, each archive once. The base is in the others as their first layer."""
        return sorted({image.archive for image in (self.pause, self.project, self.emulators, self.moto)})

    def of_fleets(self) -> list[Path]:
        """What a node has to import for the operator and workers alone: half of it."""
        return [self.pause.archive, self.project.archive]


def cache_folder() -> Path:
    return node.cache_folder() / "images"


def build_all(cache: Path | None = None) -> Images:
    """Makes what isn't there yet, with progress on stderr. Needs root and what tests/e2e/packages.sh installs.

    Raises making.ImageFailedError with the end of what the failing tool said.
    """
    folder = cache or cache_folder()
    on = base.build(folder)
    made = project.build(folder, on)
    return Images(
        base=on,
        pause=pause.build(folder),
        project=made.image,
        next_project=made.next_image,
        broken_project=made.broken_image,
        emulators=emulators.build(folder, on),
        moto=moto.build(folder, on),
    )
