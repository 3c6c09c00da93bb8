"""A worker's HTTP API, as far as the operator asks it. One request, bounded in time and size; no retries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

TIMEOUT_S = 2.0
BODY_MAX = 8 * 2**20
"""A status names each partition of the fleet: half a kilobyte each."""


class WorkerHttp:
    """Over a session that its caller closes. count: told "answered" or "silent" of each probe."""

    def __init__(self, session: aiohttp.ClientSession, count: Callable[[str], None]) -> None:
        self._session, self._count = session, count

    async def status(self, address: str) -> Mapping[str, Any] | None:
        """None: no answer, or none that can be read."""
        found = None
        try:
            async with self._session.get(
                f"{address}/v1/status", timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), allow_redirects=False
            ) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_chunked(2**16):
                    body += chunk
                    if len(body) > BODY_MAX:
                        break
                if answer.status == 200:
                    found = json.loads(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
            found = None  # it counts, and that is all there is to say of it
        told = found if isinstance(found, Mapping) else None
        self._count("answered" if told is not None else "silent")
        return told
