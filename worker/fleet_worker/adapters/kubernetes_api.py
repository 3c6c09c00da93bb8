"""The API server, as far as a worker needs it: one object, a list, a watch, a conditional patch of a status. Plain REST over aiohttp.

It knows how requests are made, who is asking, and what an answer means; nothing of fleets or partitions. Nothing here waits without a limit: each
request has its time, and a watch that says nothing for longer than the API server lets pass between two bookmarks counts as broken.
Every refusal is a ControlPlaneUnavailableError, and those that a caller must tell apart have a class of their own. No token is ever logged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import orjson

from fleet_worker import errors, ports

Json: TypeAlias = Mapping[str, Any]

ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ACCOUNT_FOLDER_VARIABLE = "FLEET_TWIN_SERVICE_ACCOUNT_DIR"
"""Another folder with `token` and `ca.crt`, for a worker that runs outside of a pod."""

TOKEN_EVERY_S = 60.0
"""The kubelet replaces a token when a fifth of its hour is left; the file is read again this often, and when a token is refused."""
CONNECT_S_MAX = 5.0
REQUEST_S_MAX = 10.0
WATCH_S = (240, 300)
"""A watch is ended by the API server after a time in between, so that those of many workers don't end together."""
SILENT_S_MAX = 90.0
"""The API server sends a bookmark about each minute."""
KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A peer that is gone without a word is noticed after half a minute, well before SILENT_S_MAX."""
EVENT_BYTES_MAX = 16 * 2**20
"""Of one line of a watch. etcd takes objects of 1.5 MiB."""
LIST_BYTES_MAX = 256 * 2**20
CONNECTIONS_MAX = 16
RETRY_AFTER_S_MAX = 30.0
SAID_MAX = 400
"""Characters of the API server's own words that are passed on."""

PATCH_TYPE = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class RefusedError(errors.ControlPlaneUnavailableError):
    """The API server answered, and not with what was asked for. retry_after_s: how long it wants to be left alone."""

    def __init__(self, message: str, status: int, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class NotFoundError(RefusedError):
    """There is no such object (or no such kind of object)."""


class ExpiredError(RefusedError):
    """The resourceVersion is too old to watch from: list anew."""


class SilentError(errors.ControlPlaneUnavailableError):
    """A watch is open and tells nothing, not even a bookmark."""


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """url: of the API server, without a path. account_folder: where token and CA are."""

    url: str
    account_folder: Path

    @classmethod
    def in_cluster(cls, environment: Mapping[str, str]) -> Access:
        """What Kubernetes gives every pod. Raises FleetTwinError."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise errors.FleetTwinError(
                "KUBERNETES_SERVICE_HOST isn't set, so this is no pod: --kubernetes is for the operator's pods; give --fleet FILE instead"
            )
        folder = Path(environment.get(ACCOUNT_FOLDER_VARIABLE) or ACCOUNT_FOLDER)
        return cls(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", folder)


class KubernetesApi:
    """heard_at: when the API server last gave what it was asked for, or told of an event, by the monotonic clock; a refusal isn't that."""

    def __init__(self, access: Access, session: aiohttp.ClientSession, clock: ports.Clock) -> None:
        self.heard_at = clock.monotonic()
        self._access = access
        self._session = session
        self._clock = clock
        self._token = ""
        self._token_at = float("-inf")
        self._busy_until = float("-inf")
        self._trust: tuple[tuple[int, int], ssl.SSLContext] | None = None
        self._trust_at = float("-inf")

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, access: Access, clock: ports.Clock) -> AsyncIterator[KubernetesApi]:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=True) as session:
            yield cls(access, session, clock)

    async def get(self, path: str, query: Mapping[str, str] | None = None, accept: str = "application/json") -> Json:
        """Without a resourceVersion in the query: as it is now, not as some cache has it."""
        return await self._asked("GET", path, query or {}, {"Accept": accept}, None)

    async def patch(self, path: str, document: Json) -> Json:
        """A merge patch. With metadata.resourceVersion: only of that version. Raises PreconditionFailedError too."""
        headers = {"Accept": "application/json", "Content-Type": PATCH_TYPE}
        return await self._asked("PATCH", path, {}, headers, orjson.dumps(document))

    async def watch(self, path: str, query: Mapping[str, str], resource_version: str) -> AsyncGenerator[Json, None]:
        """Events after that version, bookmarks among them. Ends when the API server ends it, also right in the middle of an event; that
        one comes again after the version before it. Raises ExpiredError and SilentError too."""
        seconds = random.randint(*WATCH_S)
        asked = {**query, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version}
        timeout = aiohttp.ClientTimeout(
            total=seconds + SILENT_S_MAX, sock_connect=CONNECT_S_MAX, sock_read=SILENT_S_MAX
        )
        async with self._answered(
            "GET", path, {**asked, "timeoutSeconds": str(seconds)}, {"Accept": "application/json"}, None, timeout
        ) as answer:
            _keep_alive(answer)
            left = b""
            async for some in answer.content.iter_any():
                self.heard_at = self._clock.monotonic()
                *lines, left = (left + some).split(b"\n")
                if len(left) > EVENT_BYTES_MAX:
                    raise errors.ControlPlaneUnavailableError(
                        f"watching {path}: an event of over {EVENT_BYTES_MAX} bytes"
                    )
                for line in lines:
                    yield _event(path, line)

    # ── one request ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _asked(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes | None
    ) -> Json:
        wait_s = self._busy_until - self._clock.monotonic()
        if wait_s > 0:
            raise errors.ControlPlaneUnavailableError(f"the API server wants to be left alone for {wait_s:.1f} s more")
        timeout = aiohttp.ClientTimeout(total=REQUEST_S_MAX, sock_connect=CONNECT_S_MAX)
        async with self._answered(method, path, query, headers, body, timeout) as answer:
            document = _document(f"{method} {path}", await _whole(answer))
        self.heard_at = self._clock.monotonic()
        return document

    @contextlib.asynccontextmanager
    async def _answered(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        within: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer. Raises ours, whatever went wrong while it was asked for or read."""
        what = f"{method} {path}"
        try:
            for is_last in (False, True):
                credentials = {"Authorization": f"Bearer {self._current_token(anew=is_last)}"}
                async with self._session.request(
                    method,
                    self._access.url + path,
                    params=query,
                    headers={**headers, **credentials},
                    data=body,
                    timeout=within,
                    ssl=self._current_trust(anew=is_last),
                    allow_redirects=False,
                ) as answer:
                    if answer.status == 401 and not is_last:
                        continue  # it was replaced since we read it
                    if answer.status != 200:
                        raise self._refusal(what, answer, await _whole(answer, SAID_MAX * 16))
                    yield answer
                    return
        except aiohttp.SocketTimeoutError as error:
            raise SilentError(f"{what}: the API server at {self._access.url} says nothing any more") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._trust_at = float("-inf")  # perhaps the CA is another one by now
            raise errors.ControlPlaneUnavailableError(
                f"{what}: the API server at {self._access.url} gave no whole answer: {_said(error)}"
            ) from error

    def _refusal(self, what: str, answer: aiohttp.ClientResponse, body: bytes) -> errors.FleetTwinError:
        said = _words(body)
        message = f"{what}: the API server answered {answer.status}: {said}"
        match answer.status:
            case 404:
                return NotFoundError(message, 404)
            case 409:
                return errors.PreconditionFailedError(message)
            case 410:
                return ExpiredError(message, 410)
            case 401:
                return RefusedError(f"{message}; is the token in {self._access.account_folder} still the pod's?", 401)
            case 403:
                return RefusedError(f"{message}; the operator's Role and RoleBinding for workers allow it", 403)
        retry_after_s = _retry_after_s(answer)
        if retry_after_s:
            self._busy_until = self._clock.monotonic() + retry_after_s
        return RefusedError(message, answer.status, retry_after_s)

    # ── who asks, and whom ───────────────────────────────────────────────────────────────────────────────────────
    # Both files lie in memory and are small. They are read on the spot: the clock's few threads may all be in slow fsyncs, and a question
    # must not wait for those.

    def _current_token(self, *, anew: bool) -> str:
        now = self._clock.monotonic()
        if anew or not self._token or now - self._token_at >= TOKEN_EVERY_S:
            path = self._access.account_folder / "token"
            try:
                self._token = path.read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise errors.ControlPlaneUnavailableError(f"{path}: the pod's token can't be read: {error}") from error
            self._token_at = now
        return self._token

    def _current_trust(self, *, anew: bool) -> ssl.SSLContext | bool:
        """By the CA in the account's folder, as it was TOKEN_EVERY_S ago at most: clusters change theirs, too. After a failure it is looked at
        anew."""
        path = self._access.account_folder / "ca.crt"
        if not self._access.url.startswith("https:"):
            return True
        now = self._clock.monotonic()
        if self._trust is not None and not anew and now - self._trust_at < TOKEN_EVERY_S:
            return self._trust[1]
        try:
            told = os.stat(path)
            signature = (told.st_ino, told.st_mtime_ns)
            if self._trust is None or self._trust[0] != signature:
                self._trust = (signature, ssl.create_default_context(cafile=str(path)))
            self._trust_at = now
        except (OSError, ssl.SSLError) as error:
            raise errors.ControlPlaneUnavailableError(f"{path}: the cluster's CA can't be read: {error}") from error
        return self._trust[1]


def _keep_alive(answer: aiohttp.ClientResponse) -> None:
    connection = answer.connection
    transport = connection.transport if connection is not None else None
    found = transport.get_extra_info("socket") if transport is not None else None
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        found.setsockopt(socket.IPPROTO_TCP, option, value)


def _event(path: str, line: bytes) -> Json:
    event = _document(f"watching {path}", line)
    if not isinstance(event.get("type"), str) or not isinstance(event.get("object"), dict):
        raise errors.ControlPlaneUnavailableError(f"watching {path}: something that is no event came")
    if event["type"] == "ERROR":
        told = event["object"]
        message = f"watching {path}: {str(told.get('message') or told.get('reason') or 'no reason given')[:SAID_MAX]}"
        raise (
            ExpiredError(message, 410) if told.get("code") == 410 else RefusedError(message, int(told.get("code") or 0))
        )
    return event


async def _whole(answer: aiohttp.ClientResponse, bytes_max: int = LIST_BYTES_MAX) -> bytes:
    parts, size = [], 0
    async for some in answer.content.iter_any():
        parts.append(some)
        size += len(some)
        if size > bytes_max:
            if answer.status != 200:
                break
            raise errors.ControlPlaneUnavailableError(f"{answer.url.path}: an answer of over {bytes_max} bytes")
    return b"".join(parts)


def _document(what: str, text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise errors.ControlPlaneUnavailableError(f"{what}: what came is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise errors.ControlPlaneUnavailableError(f"{what}: what came is no JSON object")
    return document


def _words(body: bytes) -> str:
    """What a Status object says, or whatever else it is."""
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
        return str(orjson.loads(body).get("message") or "no reason given")[:SAID_MAX]
    return body.decode(errors="replace").strip()[:SAID_MAX] or "no reason given"


def _retry_after_s(answer: aiohttp.ClientResponse) -> float:
    """At most RETRY_AFTER_S_MAX, and a bit more than it says, as others wait for the same moment; 0 = it doesn't say."""
    text = answer.headers.get("Retry-After", "")
    if not text.isdigit():
        return 0.0
    return min(float(text), RETRY_AFTER_S_MAX) * random.uniform(1.0, 1.25)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
