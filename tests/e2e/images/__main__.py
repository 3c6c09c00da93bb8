"""`python -m tests.e2e.images`: makes the images and prints each name with its archive."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from tests.e2e import images
from tests.e2e.images import making


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.images", description="Makes the images of the cluster tests."
    )
    parser.add_argument(
        "--cache", type=Path, default=images.cache_folder(), help="where they are kept (default: %(default)s)"
    )
    try:
        made = images.build_all(parser.parse_args().cache)
    except making.ImageFailedError as error:
        print(f"fleet-twin: {error}", file=sys.stderr)
        return 1
    for field in dataclasses.fields(made):
        image = getattr(made, field.name)
        print(f"{image.name}\t{image.archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
