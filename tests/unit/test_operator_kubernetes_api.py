"""What an answer of the API server means that isn't what its status says."""

from __future__ import annotations

import json
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

    def param_serialize(self, *_: Any, **__: Any) -> tuple[None, None, None]:
        return None, None, None

    def call_api(self, *_: Any, **__: Any) -> Answer:
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
