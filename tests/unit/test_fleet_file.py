"""The fleet's file: read as Kubernetes reads YAML, and watched."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import pytest

from fleet_model import parse, spec
from fleet_worker.adapters import clock, fleet_file
from tests.support import fleets

Outcome = spec.FleetSpec | parse.InvalidFleetError


def text_of(threshold: float) -> str:
    return json.dumps(fleets.with_field("spec.rules.temperature.threshold", threshold))


def wrong(text: str | bytes) -> str:
    with pytest.raises(parse.InvalidFleetError) as caught:
        fleet_file.parse_text(text.encode() if isinstance(text, str) else text, "fleet.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "fleet.yaml: is empty"),
        ("# nothing", "is empty"),
        ("a: 1\n\na: 2", '(line 3): "a" is given in line 1 already'),
        ("a: {b: 1, b: 2}", '"b" is given'),
        ("a: [", "no valid YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[" * 50_000, "nested too deeply"),
        ("{a: " * 50_000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("a: !!int ''", "no valid YAML"),
        ("a: !!bool maybe", "no valid YAML"),
        ("a: !!timestamp now", "no valid YAML"),
        ("a: !!python/object:os.system x", "no valid YAML"),
        ("a: " + "9" * 5000, "no valid YAML"),
        (b"a: \xff", "no valid YAML"),
        ("just text", 'must be a mapping of fields, not "just text"'),
        ("- 1", "must be a mapping of fields, not a list"),
        ("&a {b: *a}", "apiVersion: is missing"),
    ],
)
def test_what_is_no_fleet_is_told(text: str | bytes, told: str) -> None:
    assert told in wrong(text)


def test_a_time_stays_text_as_in_kubernetes() -> None:
    fleet = fleets.with_field("spec.streams.telemetry", {"name": "t", "startPosition": "AtTimestamp", "startTime": "T"})
    text = json.dumps(fleet).replace('"T"', "2026-01-31T08:00:00Z")
    parsed = fleet_file.parse_text(text.encode(), "fleet.yaml")
    assert parsed.streams.telemetry.start_time_ms == 1_769_846_400_000
    dated = json.dumps(fleets.with_field("spec.aws.region", "R")).replace('"R"', "2026-01-31")
    assert fleet_file.parse_text(dated.encode(), "fleet.yaml").aws.region == "2026-01-31"


def test_merge_keys_may_be_given_again() -> None:
    profiles = (
        "[{name: a, match: &m {firmware: '1'}, rules: {offline: &o {after: 1m, severity: info}}}, "
        "{name: b, match: {<<: *m, firmware: '2'}, rules: {offline: {<<: *o, after: 2m}}}]"
    )
    text = json.dumps(fleets.with_field("spec.profiles", "P")).replace('"P"', profiles)
    parsed = fleet_file.parse_text(text.encode(), "fleet.yaml")
    assert [profile.rules.offline.after_ms for profile in parsed.profiles] == [60_000, 120_000]
    assert [profile.match.firmware for profile in parsed.profiles] == ["1", "2"]
    assert {profile.rules.offline.severity for profile in parsed.profiles} == {"info"}


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text_of(50))
    assert fleet_file.load(path).rules.temperature.threshold == 50.0


def test_a_file_that_cannot_be_read_is_told_with_its_path(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    large = tmp_path / "large"
    large.write_bytes(b"#" * (fleet_file.FILE_SIZE_BYTES_MAX + 1))
    for path, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "no regular"),
        (pipe, "no regular"),
        (large, "larger"),
    ):
        with pytest.raises(parse.InvalidFleetError) as caught:
            fleet_file.load(path)
        assert str(path) in str(caught.value)
        assert why in str(caught.value)


@contextlib.asynccontextmanager
async def watched(path: Path) -> AsyncIterator[AsyncGenerator[Outcome, None]]:
    with clock.RealClock() as real_clock:
        file = fleet_file.FleetFile(path, real_clock)
        file.load()
        edits = file.edits()
        try:
            yield edits
        finally:
            await edits.aclose()


async def told(edits: AsyncGenerator[Outcome, None]) -> Outcome:
    return await asyncio.wait_for(anext(edits), 20)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _rename_over(path: Path, text: str) -> None:
    draft = path.with_name("draft")
    draft.write_text(text)
    draft.replace(path)


def _keep_a_copy_and_write_anew(path: Path, text: str) -> None:
    path.rename(path.with_name("fleet.yaml~"))
    path.write_text(text)


def _keep_the_times(path: Path, text: str) -> None:
    status = path.stat()
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("edit", [_write, _rename_over, _keep_a_copy_and_write_anew, _keep_the_times])
async def test_an_edit_is_told_however_the_editor_writes(tmp_path: Path, edit: Callable[[Path, str], None]) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text_of(50))
    async with watched(path) as edits:
        for threshold in (51, 52):  # the same size as before
            edit(path, text_of(threshold))
            outcome = await told(edits)
            assert isinstance(outcome, spec.FleetSpec)
            assert outcome.rules.temperature.threshold == threshold


async def test_the_folder_of_a_config_map_is_followed(tmp_path: Path) -> None:
    for version, threshold in (("one", 50), ("two", 51)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "fleet.yaml").write_text(text_of(threshold))
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "fleet.yaml").symlink_to("data/fleet.yaml")
    async with watched(tmp_path / "fleet.yaml") as edits:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(tmp_path / "data")
        outcome = await told(edits)
    assert isinstance(outcome, spec.FleetSpec)
    assert outcome.rules.temperature.threshold == 51


async def test_a_mistake_is_told_and_so_is_its_mending(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text_of(50))
    async with watched(path) as edits:
        path.write_text(text_of(50).replace("threshold", "treshold"))
        outcome = await told(edits)
        assert isinstance(outcome, parse.InvalidFleetError)
        assert outcome.mistakes[0].path == "spec.rules.temperature.treshold"
        path.unlink()
        outcome = await told(edits)
        assert isinstance(outcome, parse.InvalidFleetError)
        assert "No such file" in str(outcome)
        path.write_text(text_of(50))
        outcome = await told(edits)
        assert isinstance(outcome, spec.FleetSpec)


class SteppedClock(clock.RealClock):
    """Time that passes only in `sleep`, where a script of the test's happens to the file."""

    def __init__(self, script: list[Callable[[], object]]) -> None:
        super().__init__(1)
        self.passed = 0.0
        self._script = script

    async def sleep(self, seconds: float) -> None:
        self.passed += seconds
        if not self._script:
            raise EOFError("the script has ended")
        self._script.pop(0)()


async def outcomes(path: Path, script: list[Callable[[], object]]) -> tuple[list[Outcome], float]:
    """What was told until the script ended, and how much time had passed at the first."""
    stepped = SteppedClock(script)
    with stepped:
        file = fleet_file.FleetFile(path, stepped)
        file.load()
        heard: list[Outcome] = []
        first = 0.0
        with contextlib.suppress(EOFError):
            async for outcome in file.edits():
                first = first or stepped.passed
                heard.append(outcome)
        return heard, first


async def test_an_edit_is_told_within_half_a_second(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text_of(50))
    # Written right after a look, so that the whole poll passes before the next.
    heard, passed = await outcomes(path, [lambda: path.write_text(text_of(51)), *[lambda: None] * 5])
    assert len(heard) == 1
    assert passed < 0.4


async def test_half_a_file_is_never_taken_for_the_fleet(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("x: 1\n")
    path.write_text(text_of(50))
    whole = text_of(51)
    steps = [whole[:100], whole[:200], "", whole]
    script: list[Callable[[], object]] = [lambda step=step: path.write_text(step) for step in steps]  # type: ignore[misc]
    heard, _ = await outcomes(path, [*script, *[lambda: None] * 5])
    assert [outcome.rules.temperature.threshold for outcome in heard if isinstance(outcome, spec.FleetSpec)] == [51.0]
    assert len(heard) == 1


async def test_an_unchanged_file_and_an_edit_taken_back_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text_of(50))
    heard, _ = await outcomes(
        path,
        [
            lambda: os.utime(path),
            lambda: path.write_text(text_of(51)),
            lambda: path.write_text(text_of(50)),
            *[lambda: None] * 5,
        ],
    )
    assert heard == []


async def test_watching_really_takes_less_than_half_a_second(tmp_path: Path) -> None:
    """Best of five edits, since other work on the machine may delay any of them."""
    path = tmp_path / "fleet.yaml"
    path.write_text(text_of(50))
    waits = []
    async with watched(path) as edits:
        for threshold in range(51, 56):
            began = time.monotonic()
            path.write_text(text_of(threshold))
            await told(edits)
            waits.append(time.monotonic() - began)
    assert min(waits) < 0.5
