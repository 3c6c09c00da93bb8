"""Looks at a control folder a few times a second, and tells what comes of it: who owns what, and moves as they end.

It only reads: the folder, and during a move the API of the partition's new owner, for the first record that it applies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

import aiohttp

from fleet_cli.control import moves
from fleet_model import twin_partition
from fleet_worker import control_plane, errors
from fleet_worker.adapters import control_files

LOOK_S = 0.05
ASK_S_MAX = 1.0
HEARTBEATS_EVERY_S = 0.5


class Watching:
    """What was seen last. trouble: why the folder can't be read just now, "" when it can."""

    def __init__(self, files: control_files.ControlFiles, on_move: Callable[[moves.Move], None]) -> None:
        self.partitions: Mapping[str, twin_partition.TwinPartition] = {}
        self.heartbeats: Mapping[str, control_plane.Heartbeat] = {}
        self.moves = moves.Moves()
        self.trouble = ""
        self._files = files
        self._look = control_files.Look(files)
        self._on_move = on_move
        self._version = b""
        self._heartbeats_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S_MAX)) as session:
            while True:
                await asyncio.to_thread(self._read)
                for move in self.moves.see(time.monotonic(), self.partitions):
                    self._on_move(move)
                await self._ask_for_first_records(session)
                await asyncio.sleep(LOOK_S)

    def _read(self) -> None:
        try:
            version = self._files.version()
            if version != self._version:
                self.partitions, self._version = self._look.partitions(), version
            if time.monotonic() - self._heartbeats_at >= HEARTBEATS_EVERY_S:
                self.heartbeats, self._heartbeats_at = self._files.heartbeats(), time.monotonic()
            self.trouble = ""
        except errors.ControlPlaneUnavailableError as error:
            self.trouble = str(error)

    async def _ask_for_first_records(self, session: aiohttp.ClientSession) -> None:
        awaiting = self.moves.awaiting()
        for worker in sorted(set(awaiting.values())):
            beat = self.heartbeats.get(worker)
            if beat is None:
                continue
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):  # it may be on its way out
                async with session.get(f"{beat.address}/v1/status") as answer:
                    told = await answer.json()
                for entry in told["partitions"]:
                    if awaiting.get(entry["shard_id"]) != worker:
                        continue
                    position = entry["position"]["sequence_number"]
                    move = self.moves.applied(entry["shard_id"], position, time.monotonic())
                    if move is not None:
                        self._on_move(move)
