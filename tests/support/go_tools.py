"""Programs that are Go modules (Helm, promtool, an S3 gateway), built once into the user's cache folder, by version; go checks their sums.

`python -m tests.support.go_tools helm-3` prints the program's path, and builds it first when it isn't there; without a name all of them. Nothing is
installed into the machine.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from tests.support import go_toolchain, node

BUILD_S_MAX = 1_800
"""Cold, on two busy cores; Helm takes about two minutes on two idle ones."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """package: what `go install` is given, without the version. version: without its v. program: the file's name."""

    package: str
    version: str
    program: str
    flags: tuple[str, ...] = ()


TOOLS = {
    "helm-3": Tool("helm.sh/helm/v3/cmd/helm", "3.22.0", "helm"),
    "helm-4": Tool("helm.sh/helm/v4/cmd/helm", "4.3.1", "helm"),
    "promtool": Tool("github.com/prometheus/prometheus/cmd/promtool", "0.316.0", "promtool"),
    "versitygw": Tool("github.com/versity/versitygw/cmd/versitygw", "1.8.0", "versitygw"),
}


def program(name: str) -> Path:
    """Raises go_toolchain.NoGoError where a test has to be skipped; anything else is a failure."""
    tool = TOOLS[name]

    def build(folder: Path) -> None:
        go = str(go_toolchain.find())
        done = subprocess.run(
            [go, "install", "-trimpath", "-ldflags=-s -w", *tool.flags, f"{tool.package}@v{tool.version}"],
            cwd=folder,
            env=os.environ | {"GOBIN": str(folder), "GOFLAGS": "-mod=mod"},
            capture_output=True,
            text=True,
            timeout=BUILD_S_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"go install failed with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")

    folder = node.once(node.cache_folder() / f"{tool.program}-{tool.version}", build)
    return folder / tool.program


if __name__ == "__main__":
    try:
        for wanted in sys.argv[1:] or TOOLS:
            print(program(wanted))
    except go_toolchain.NoGoError as missing:
        print(f"Tests of the chart, and those on a real object store, will be skipped: {missing}", file=sys.stderr)
