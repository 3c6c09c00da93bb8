"""The cluster by hand: `python -m tests.e2e.cluster up`, then `… kubectl get nodes`, and `… down`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.e2e.cluster import errors, keeping, needs, sweeping
from tests.support import server_process


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("up", "a cluster until `down`, with the project's images"), ("keep", argparse.SUPPRESS)):
        command = commands.add_parser(name, help=words)
        command.add_argument("--nodes", type=int, default=2)
        command.add_argument("images", nargs="*", type=Path, help="image archives instead of the project's own")
    commands.add_parser("down", help="ends what `up` began")
    commands.add_parser("check", help="whether this machine can have it; says what is missing")
    commands.add_parser("install", help="the Debian packages that it takes")
    commands.add_parser("kubectl", help="kubectl as its administrator", add_help=False)
    # kubectl's own words are not for this parser, its "--" least of all.
    is_kubectl = sys.argv[1:2] == ["kubectl"]
    told = parser.parse_args(sys.argv[1:2] if is_kubectl else None)
    try:
        run(told, sys.argv[2:] if is_kubectl else [])
    except (errors.NotHereError, errors.NodeFailedError, server_process.ServerFailedError) as failed:
        sys.exit(f"fleet-twin: {failed}")


def run(told: argparse.Namespace, rest: list[str]) -> None:
    if told.command == "up":
        needs.check()
        up = keeping.up(told.nodes, told.images or project_images())
        print(f"up, in the network namespace {up['namespace']}: python -m tests.e2e.cluster kubectl get nodes")
    elif told.command == "keep":
        keeping.keep(told.nodes, told.images)
    elif told.command == "down":
        keeping.down()
        for swept in sweeping.sweep():
            print(f"left behind by a cluster that was killed, and gone now: {swept}")
    elif told.command == "check":
        needs.check()
    elif told.command == "install":
        needs.install()
    else:
        keeping.kubectl(rest)


def project_images() -> list[Path]:
    """Imported late: it takes what only the project's images need."""
    from tests.e2e import images

    return images.build_all().archives()


if __name__ == "__main__":
    main()
