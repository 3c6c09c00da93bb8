"""Lists of a whole fleet from the command line: real APIs of several workers, each with its share, found by the control folder."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import test_utils
from click import testing

from fleet_cli import api, console, gathering, main
from fleet_model import hashing
from fleet_worker import control_plane, metrics
from fleet_worker.adapters import clock, control_files
from fleet_worker.api import app, directory
from tests.support import partitions
from tests.support.partitions import Reading

SHARDS = 6
DEVICES = 60
STEP = 2**128 // SHARDS


def key_range(number: int) -> hashing.HashKeyRange:
    end = hashing.HASH_KEY_MAX if number == SHARDS - 1 else (number + 1) * STEP - 1
    return hashing.HashKeyRange(number * STEP, end)


@dataclasses.dataclass
class Fleet:
    """Six partitions at three workers, not in the order of their keys."""

    control: pathlib.Path
    urls: dict[str, str]
    workers: dict[str, partitions.SeenWorker]
    servers: dict[str, test_utils.TestServer]
    owners: dict[int, str]

    async def run(self, *arguments: str) -> testing.Result:
        environment = {"FLEET_TWIN_CONTROL": str(self.control), "FLEET_TWIN_URL": self.urls["worker-0"]}
        runner = testing.CliRunner()
        return await asyncio.to_thread(runner.invoke, main.main, list(arguments), env=environment)

    async def listed(self, *arguments: str) -> list[str]:
        result = await self.run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return [entry["device_id"] for entry in json.loads(result.stdout)]

    def move(self, number: int, to: str) -> None:
        """To another worker, all at once; everybody knows."""
        seen = next(entry for worker in self.workers.values() for entry in worker.mine if _number(entry) == number)
        for name, worker in self.workers.items():
            worker.mine = [entry for entry in worker.mine if entry is not seen] + ([seen] if name == to else [])
        self.owners[number] = to
        self.tell()

    def tell(self, phase: str = "Running") -> None:
        for name, worker in self.workers.items():
            worker.others = [
                directory.Elsewhere(f"shard-{number}", key_range(number), owner, 3, phase)
                for number, owner in self.owners.items()
                if owner != name
            ]


def _number(seen: partitions.SeenPartition) -> int:
    return int(seen.identity.shard_id.removeprefix("shard-"))


@contextlib.asynccontextmanager
async def fleet(folder: pathlib.Path) -> AsyncIterator[Fleet]:
    owners = {number: f"worker-{number % 3}" for number in range(SHARDS)}
    files = control_files.ControlFiles(folder / "control")
    files.prepare()
    found = Fleet(files.path, {}, {}, {}, owners)
    async with contextlib.AsyncExitStack() as stack:
        real = stack.enter_context(clock.RealClock())
        for name in sorted(set(owners.values())):
            mine = [
                partitions.SeenPartition(f"shard-{number}", key_range(number))
                for number, owner in owners.items()
                if owner == name
            ]
            for seen in mine:
                for device in device_ids():
                    if hashing.hash_key(device) in seen.identity.hash_key_range:
                        seen.feed(*(partitions.hot(device) if device.endswith("7") else [Reading(device)]))
            found.workers[name] = worker = partitions.SeenWorker(mine, name)
            server = test_utils.TestServer(app.Api(worker, metrics.Metrics(), real).application())
            await stack.enter_async_context(server)
            found.servers[name], found.urls[name] = server, str(server.make_url(""))
            files.put_heartbeat(control_plane.Heartbeat(name, found.urls[name], True, time.time_ns() // 10**6, 1))
        found.tell()
        yield found


def device_ids() -> list[str]:
    every = [f"device-{number}" for number in range(DEVICES)]
    return sorted(every, key=lambda device: (hashing.hash_key(device), device))


@pytest.mark.parametrize("page", [1, 7, 1000])
async def test_twins_and_alerts_are_those_of_the_whole_fleet_in_key_order(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(gathering, "PAGE_MAX", page)
    async with fleet(tmp_path) as asked:
        assert await asked.listed("twin", "list", "--limit", "1000") == device_ids()
        assert await asked.listed("twin", "list", "--limit", "25") == device_ids()[:25]
        hot = [device for device in device_ids() if device.endswith("7")]
        assert await asked.listed("alerts") == hot
        assert await asked.listed("alerts", "--limit", "4") == hot[:4]
        assert await asked.listed("twin", "list", "--alert", "any", "--limit", "1000") == hot
        for name, url in asked.urls.items():
            assert await asked.listed("alerts", "--url", url) == hot, f"whoever is asked first, also {name}"


async def test_a_list_goes_on_while_partitions_move(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PAGE_MAX", 3)
    async with fleet(tmp_path) as asked:
        pages = 0
        shown: list[str] = []
        right = api.get

        def moving(url: str, path: str, parameters: api.Json) -> api.Json:
            nonlocal pages
            pages += 1
            # The very partition that the last page ended in, and now and then another one.
            read_last = hashing.hash_key(shown[-1]) // STEP if shown else 0
            if pages % 2:
                asked.move(read_last, f"worker-{(pages // 2) % 3}")
            else:
                asked.move(pages % SHARDS, f"worker-{(pages // 2) % 3}")
            answer = right(url, path, parameters)
            shown.extend(entry["device_id"] for entry in answer["twins"])
            return answer

        monkeypatch.setattr(api, "get", moving)
        monkeypatch.setattr(gathering, "HOPS_MAX", 100)
        result = await asked.run("twin", "list", "--limit", "1000", "--json", "--partial")
        shown = [entry["device_id"] for entry in json.loads(result.stdout)]
        assert pages > 20
        assert shown == [device for device in device_ids() if device in shown], "in order, each once"
        assert shown == device_ids() or "left out" in result.stderr


async def test_what_a_dead_worker_has_is_named_and_never_left_out_in_silence(tmp_path: pathlib.Path) -> None:
    async with fleet(tmp_path) as asked:
        await asked.servers["worker-1"].close()
        for command in (["twin", "list", "--limit", "1000"], ["alerts"]):
            result = await asked.run(*command)
            assert result.exit_code == console.EXIT_NOT_READY
            assert result.stdout == ""
            assert "partition shard-1 is Running at worker-1, epoch 3" in result.stderr
            assert f"no worker answers at {asked.urls['worker-1']}" in result.stderr
            assert "--partial" in result.stderr
        partial = await asked.run("twin", "list", "--limit", "1000", "--partial", "--json")
        assert partial.exit_code == 0
        left = [device for device in device_ids() if hashing.hash_key(device) // STEP not in (1, 4)]
        assert [entry["device_id"] for entry in json.loads(partial.stdout)] == left
        assert "2 of its hash ranges left out" in partial.stderr
        assert "partition shard-1 is" in partial.stderr
        assert "partition shard-4 is" in partial.stderr


async def test_a_partition_that_nobody_runs_is_named(tmp_path: pathlib.Path) -> None:
    async with fleet(tmp_path) as asked:
        restoring = asked.workers["worker-2"].mine[0]
        restoring.phase, restoring.message = "Restoring", "reading a checkpoint"
        result = await asked.run("alerts")
        assert result.exit_code == console.EXIT_NOT_READY
        assert "partition shard-2 is Restoring at worker-2, epoch 3" in result.stderr
        partial = await asked.run("alerts", "--partial")
        assert partial.exit_code == 0
        assert "1 of its hash ranges left out" in partial.stderr
        asked.owners.pop(2)
        restoring.phase = "Closed"
        asked.workers["worker-2"].mine.remove(restoring)
        asked.tell()
        result = await asked.run("alerts")
        assert result.exit_code == console.EXIT_NOT_READY
        assert f"with the hash keys {2 * STEP} to {3 * STEP - 1}" in result.stderr


async def test_where_addresses_are_not_known_the_owner_is_named(tmp_path: pathlib.Path) -> None:
    async with fleet(tmp_path) as asked:
        asked.control = tmp_path / "elsewhere"
        result = await asked.run("alerts")
        assert result.exit_code == console.EXIT_NOT_READY
        assert "at worker-1, epoch 3; its address isn't known here" in result.stderr
        mine = [device for device in device_ids() if asked.owners[hashing.hash_key(device) // STEP] == "worker-0"]
        partial = await asked.run("twin", "list", "--partial", "--limit", "1000", "--json")
        assert [entry["device_id"] for entry in json.loads(partial.stdout)] == mine
