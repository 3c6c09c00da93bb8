"""docs/reference/api.md shows answers as they are: each question on the page is asked again and compared.

After a change of an answer: `python -m tests.integration.test_api_page` writes them anew; read what changed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import test_utils
from yarl import URL

from fleet_proto import fleet_pb2
from fleet_worker import metrics
from fleet_worker.api import app, directory, parameters
from fleet_worker.core import records
from tests.support import partitions
from tests.support.partitions import START_MS, Reading

Answer = TypeVar("Answer")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
EXAMPLE = re.compile(r"```http\nGET (\S+) → (\d+)\n```\n```json\n(.*?)```", re.DOTALL)
NOW_MS = START_MS + 402_500


class Standstill:
    """ports.Clock at one moment."""

    def wall_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def in_thread(self, function: Callable[[], Answer]) -> Answer:
        return function()


def scene() -> partitions.SeenWorker:
    """A truck that is too warm, with a threshold of its own for battery; a sensor that fell silent; a broken record."""
    seen = partitions.SeenPartition()
    threshold = fleet_pb2.UpdateThreshold(rule=fleet_pb2.BATTERY, threshold=12.5)
    seen.feed(
        Reading("sensor/9", START_MS, 8.5, 35.0, 0.125, "0.9"),
        partitions.control("truck-17", START_MS + 1_000, update_threshold=threshold),
        *(
            Reading("truck-17", START_MS + 100_000 * k, temperature, 71.5 - 0.1 * k, 0.125, "2.1.0")
            for k, temperature in enumerate((52.0, 61.5, 63.25, 64.0), start=1)
        ),
    )
    seen.advance(START_MS + 402_000)
    seen.outbox = directory.Outbox(1, START_MS + 400_000)
    seen.letters = [
        records.DeadLetter(
            records.Reason.UNDECODABLE,
            "neither protobuf nor JSON",
            "",
            seen.state.position.sequence_number,
            0,
            START_MS + 400_000,
            b"\xff\xff",
            2,
        )
    ]
    return partitions.SeenWorker([seen], load={seen.identity.shard_id: 12.5})


async def answers(asked: list[tuple[str, int]]) -> list[tuple[int, Any]]:
    """What the scene's worker says. A question whose answer is 503 is asked while the partition restores."""
    worker = scene()
    server = test_utils.TestServer(app.Api(worker, metrics.Metrics(), Standstill()).application())
    found = []
    async with test_utils.TestClient(server) as client:
        for path, status in asked:
            worker.mine[0].phase = "Restoring" if status == 503 else "Running"
            worker.mine[0].message = "reading a checkpoint" if status == 503 else ""
            response = await client.get(URL(path, encoded=True))
            found.append((response.status, await response.json(content_type=None)))
    return found


async def test_every_answer_on_the_page_is_real() -> None:
    shown = EXAMPLE.findall(PAGE.read_text())
    assert len(shown) == PAGE.read_text().count("```http") >= 9
    real = await answers([(path, int(status)) for path, status, _ in shown])
    for (path, status, text), answer in zip(shown, real, strict=True):
        assert (int(status), json.loads(text)) == answer, f"GET {path}: python -m tests.integration.test_api_page"


def test_every_route_and_parameter_is_on_the_page() -> None:
    page = PAGE.read_text()
    for route in re.findall(r"^/\S*", app.INDEX, re.MULTILINE):
        assert f"| `{route}` |" in page
    (row,) = re.findall(r"^\| `/v1/twins` .*", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(parameters.TWINS)
    for problem in re.findall(r'"([a-z-]+)",\n', Path(app.__file__).with_name("problems.py").read_text()):
        assert f"| `{problem}` |" in page


def test_the_example_of_a_cursor_can_be_read() -> None:
    (text,) = re.findall(r'"next": "([\w-]+)"', PAGE.read_text())
    assert parameters.cursor("cursor", text)[1] == "sensor/9"


def write() -> None:
    page = PAGE.read_text()
    real = asyncio.run(answers([(path, int(status)) for path, status, _ in EXAMPLE.findall(page)]))
    given = iter(real)

    def fill(match: re.Match[str]) -> str:
        status, answer = next(given)
        return f"```http\nGET {match[1]} → {status}\n```\n```json\n{_laid_out(answer)}\n```"

    PAGE.write_text(EXAMPLE.sub(fill, page))


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with what fits into a line on one line."""
    line = json.dumps(value, ensure_ascii=False)
    fits = len(line) + len(indent) <= 110 and (indent or not isinstance(value, dict))
    if fits or not isinstance(value, dict | list):
        return line
    deeper = indent + "  "
    if isinstance(value, list):
        return "[\n" + ",\n".join(deeper + _laid_out(entry, deeper) for entry in value) + f"\n{indent}]"
    members = [f"{deeper}{json.dumps(key)}: {_laid_out(entry, deeper)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"


if __name__ == "__main__":
    write()
