"""What an answer of the API server means that isn't what its status says."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest

from fleet_operator import errors, kinds
from fleet_operator.adapters import kubernetes_api

UNDECLARED = (
    "failed to create typed patch object (depot/trucks; apps/v1, Kind=StatefulSet): .spec.x: field not declared"
)


class Answer:
    def __init__(self, status: int, message: str) -> None:
        self.status, self._message = status, message

    def read(self) -> bytes:
        return json.dumps({"message": self._message}).encode()


class Connection:
    """Answers everything alike."""

    def __init__(self, status: int, message: str) -> None:
        self._answer = Answer(status, message)
        self.asked: list[tuple[str, float]] = []

    def param_serialize(self, method: str, url: str, **_: Any) -> tuple[str, str, None]:
        return method, url, None

    def call_api(self, method: str, url: str, *_: Any, _request_timeout: float, **__: Any) -> Answer:
        self.asked.append((url, _request_timeout))
        return self._answer


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (500, UNDECLARED, errors.RefusedError),
        (500, "etcdserver: no leader", errors.ApiUnavailableError),
        (503, UNDECLARED, errors.ApiUnavailableError),
        (403, "exceeded quota", errors.RefusedError),
    ],
)
def test_an_apply_that_isnt_taken(status: int, message: str, expected: type[errors.OperatorError]) -> None:
    api = kubernetes_api.KubernetesApi(Connection(status, message))  # type: ignore[arg-type]
    with pytest.raises(expected):
        api.apply(kinds.STATEFUL_SET, "depot", {"metadata": {"name": "trucks"}})


def test_every_request_ends_at_the_server_before_nobody_waits_for_it_any_more() -> None:
    connection = Connection(200, "")
    api = kubernetes_api.KubernetesApi(connection)  # type: ignore[arg-type]
    named: dict[str, Any] = {"metadata": {"name": "trucks"}}
    api.get(kinds.FLEET, "depot", "trucks")
    api.list(kinds.POD, None)
    api.create(kinds.PARTITION, "depot", named)
    api.apply(kinds.STATEFUL_SET, "depot", named)
    api.merge(kinds.PARTITION, "depot", "trucks", {})
    api.replace(kinds.FLEET, "depot", named)
    api.replace(kinds.FLEET, "depot", named, "status", 0.7)
    api.delete(kinds.POD, "depot", "trucks", {})
    assert len(connection.asked) == 8
    for url, client_s in connection.asked:
        (told,) = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["timeout"]
        assert int(told.removesuffix("ms")) / 1000 == pytest.approx(client_s - kubernetes_api.SERVER_MARGIN_S)
    assert "timeout=700ms" in connection.asked[6][0]


def test_of_listed_pods_only_what_is_read_is_kept() -> None:
    big = {"metadata": {"name": "trucks-0", "uid": "u"}, "spec": {"containers": [{"name": "worker"}], "nodeName": "n"}}

    class Listing(Answer):
        def read(self) -> bytes:
            return json.dumps({"items": [big], "metadata": {"resourceVersion": "7"}}).encode()

    connection = Connection(200, "")
    connection._answer = Listing(200, "")
    (found,) = kubernetes_api.KubernetesApi(connection).list(kinds.POD, None).objects  # type: ignore[arg-type]
    assert found["spec"] == {"nodeName": "n"}
