"""A fleet for a test with real processes: streams of its own on an emulator, a fleet file that can be edited, a data
folder; all of it gone at the end but the folder, which pytest keeps for whoever looks into a failure.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fleet_model import parse, partition, spec
from tests.support import aws_env, fleets, kinesis_endpoints, streams, worker_process

TELEMETRY, ALERTS, COMMANDS, DEAD_LETTERS = "telemetry", "alerts", "commands", "dead-letters"
Document = dict[str, Any]


@dataclasses.dataclass
class LiveFleet:
    """endpoint_url: where the worker finds Kinesis, which may be a proxy in front of `streams`' own."""

    folder: Path
    name: str
    endpoint_url: str
    streams: streams.Streams
    document: Document = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        return self.folder / "fleet.yaml"

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    @property
    def partitions_folder(self) -> Path:
        return self.data_folder / "default" / "trucks" / "partitions"

    @property
    def log_path(self) -> Path:
        return self.folder / "worker.log"

    def stream(self, kind: str) -> str:
        return f"{self.name}-{kind}"

    def spec(self) -> spec.FleetSpec:
        return parse.parse(self.document)

    def identity(self, shard: partition.Shard) -> partition.PartitionIdentity:
        fleet = self.spec()
        return partition.PartitionIdentity(
            fleet.namespace, fleet.name, self.stream(TELEMETRY), shard.shard_id, shard.hash_key_range
        )

    def edit(
        self, rules: Mapping[str, object], profiles: Sequence[Mapping[str, object]] = (), in_place: bool = False
    ) -> None:
        """Writes the fleet file with these rules. in_place: as an editor does that cuts the file off first."""
        document = copy.deepcopy(self.document)
        document["spec"] |= {"rules": dict(rules), "profiles": [dict(profile) for profile in profiles]}
        parse.parse(document)  # a test that writes nonsense by mistake should say so
        self.document = document
        text = yaml.safe_dump(document, allow_unicode=True)
        if in_place:
            self.path.write_text(text, encoding="utf-8")
            return
        draft = self.path.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.path)

    def worker(self) -> worker_process.WorkerProcess:
        return worker_process.WorkerProcess(self.path, self.data_folder, self.log_path)


@contextlib.asynccontextmanager
async def made(
    folder: Path, kinesis: streams.Streams, endpoint_url: str, shards: int = 1, **settings: object
) -> AsyncIterator[LiveFleet]:
    """settings: further sections of `spec`, such as storage."""
    name = kinesis_endpoints.unused_name()
    fleet = LiveFleet(folder, name, endpoint_url, kinesis)
    fleet.document = fleets.smallest()
    fleet.document["metadata"]["name"] = "trucks"
    fleet.document["spec"] = {
        "aws": {"region": aws_env.REGION, "endpointURL": endpoint_url},
        "streams": {
            "telemetry": {"name": fleet.stream(TELEMETRY), "startPosition": "TrimHorizon"},
            "alerts": {"name": fleet.stream(ALERTS)},
            "commands": {"name": fleet.stream(COMMANDS)},
            "deadLetter": {"name": fleet.stream(DEAD_LETTERS)},
        },
        **settings,
    }
    async with contextlib.AsyncExitStack() as stack:
        for kind in (TELEMETRY, ALERTS, COMMANDS, DEAD_LETTERS):
            await kinesis.create(fleet.stream(kind), shards if kind == TELEMETRY else 1)
            stack.push_async_callback(kinesis.delete, fleet.stream(kind))
        fleet.edit({})
        yield fleet
