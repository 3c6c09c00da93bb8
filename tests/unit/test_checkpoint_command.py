"""`fleet-twin checkpoint` over a bucket in memory: what it shows, what it finds wrong, what it writes and refuses to write."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
from click import testing

from fleet_cli import console, main
from fleet_cli.checkpoints import bucket, columns, exporting
from fleet_model import hashing, manifest, partition
from fleet_worker import checkpointing, metrics
from fleet_worker.adapters import clock, memory_objects, memory_store, objects_api
from tests.support import commits as build
from tests.support import fleet_in_bucket as made
from tests.support.fleet_in_bucket import FIRST, SECOND

Run = Callable[..., testing.Result]
LIVING = sorted(set(made.DEVICES) - {made.FORGOTTEN})


@dataclasses.dataclass
class World:
    memory: made.InMemory
    manifests: dict[str, manifest.Manifest]
    fleet_file: pathlib.Path

    def run(self, *arguments: str) -> testing.Result:
        return testing.CliRunner().invoke(
            main.main, ["checkpoint", *arguments, "--fleet", str(self.fleet_file)], prog_name="fleet-twin"
        )

    def key(self, shard_id: str, name: str) -> str:
        return f"fleet-twin/default/trucks/{shard_id}/{name}"

    def part(self, shard_id: str, kind: manifest.Kind, at: int = 0) -> manifest.Part:
        checkpoint = self.manifests[shard_id].checkpoint
        assert checkpoint is not None
        return [part for part in checkpoint.parts if part.kind is kind][at]

    def tamper(self, shard_id: str, name: str, change: Callable[[bytes], bytes]) -> None:
        key = self.key(shard_id, name)
        self.memory.bucket.tamper(key, change(self.memory.bucket.contents()[key]))

    def rewrite(self, shard_id: str, **changed: Any) -> None:
        """The checkpoint in the manifest, with other fields."""
        of = self.manifests[shard_id]
        assert of.checkpoint is not None
        checkpoint = dataclasses.replace(of.checkpoint, **changed)
        wanted = dataclasses.replace(of, checkpoint=checkpoint)
        self.tamper(shard_id, "manifest.json", lambda _: manifest.encode(wanted))


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with clock.RealClock() as real:
        memory = made.InMemory(real)
        monkeypatch.setattr(bucket, "open_fleet", memory.open_fleet)
        fleet = made.settings(made.fleet_of())
        manifests = asyncio.run(made.fill(memory.objects(fleet), fleet, real))
        yield World(memory, manifests, made.write_fleet_file(tmp_path, made.fleet_of()))


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def rows(result: testing.Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# ── ls and show ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_ls_has_a_line_for_each_partition(world: World) -> None:
    result = world.run("ls")
    assert result.exit_code == 0, result.output
    first = next(line for line in result.stdout.splitlines() if line.startswith(FIRST))
    of = world.manifests[FIRST].checkpoint
    assert of is not None
    assert first.split()[1:5] == ["1", "worker-0", "owned", "3"]
    assert f"{of.twins}" in first.split()
    assert "360 twins" in result.stdout
    assert result.stderr == ""


def test_ls_as_json(world: World) -> None:
    told = json.loads(world.run("ls", "--json").stdout)
    assert [entry["shard_id"] for entry in told] == [FIRST, SECOND]
    checkpoint = told[0]["checkpoint"]
    assert checkpoint["number"] == 3
    assert (checkpoint["deltas"], checkpoint["files"]) == (2, 5)
    assert checkpoint["age_ms"] >= 0
    assert sum(entry["checkpoint"]["twins"] for entry in told) == len(made.DEVICES)


def test_ls_goes_on_past_a_manifest_of_a_later_version(world: World) -> None:
    world.tamper(SECOND, "manifest.json", lambda data: data.replace(b'"format": 1', b'"format": 2'))
    result = world.run("ls")
    assert result.exit_code == console.EXIT_FAILED
    assert FIRST in result.stdout
    assert "format 2; this version reads 1" in result.stdout
    assert "50 % of the devices" in result.stderr
    assert "run a version of Fleet Twin that knows it" in world.run("show", SECOND).stderr


def test_show_tells_a_manifest_in_words(world: World) -> None:
    result = world.run("show", FIRST)
    assert result.exit_code == 0, result.output
    for words in ("of default/trucks", "50 % of the devices", "epoch 1", "number 3", "commit 3", "effects that wait"):
        assert words in result.stdout
    for part in world.manifests[FIRST].checkpoint.parts:  # type: ignore[union-attr]
        assert part.name in result.stdout
    assert manifest.parse(world.run("show", FIRST, "--json").stdout_bytes) == world.manifests[FIRST]


def test_a_partition_that_is_not_there_is_told_with_those_that_are(world: World) -> None:
    result = world.run("show", "shardId-9")
    assert result.exit_code == console.EXIT_NOT_FOUND
    assert "has no partition shardId-9" in result.stderr
    assert FIRST in result.stderr


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fleet_without_a_bucket_is_told_so(world: World) -> None:
    world.fleet_file.write_text(world.fleet_file.read_text().replace("bucket: checkpoints", "interval: 60s"))
    result = world.run("ls")
    assert result.exit_code == console.EXIT_USAGE
    assert "spec.checkpoint.bucket" in result.stderr


def test_another_name_or_prefix_is_told_with_the_fleets_that_are_there(world: World) -> None:
    text = world.fleet_file.read_text()
    world.fleet_file.write_text(text.replace("name: trucks", "name: lorries"))
    result = world.run("ls")
    assert result.exit_code == console.EXIT_NOT_FOUND
    assert "There are no checkpoints at s3://checkpoints/fleet-twin/default/lorries/" in result.stderr
    assert "That prefix has default/trucks" in result.stderr


@pytest.mark.parametrize("command", ["ls", "verify", "export"])
def test_refused_access_is_told_with_what_is_needed(world: World, command: str) -> None:
    refused = objects_api.Failure(objects_api.Trouble.REFUSED, "AccessDenied", "no")
    world.memory.plan = lambda call: memory_objects.Fault(failure=refused)
    result = world.run(command)
    assert result.exit_code == console.EXIT_FAILED
    assert "AccessDenied" in result.stderr
    assert "s3:ListBucket and s3:GetObject" in result.stderr
    assert result.stdout == ""


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────────


def damage(world: World, *shards: str) -> list[dict[str, Any]]:
    result = world.run("verify", "--json", *shards)
    told = json.loads(result.stdout)
    assert (result.exit_code == console.EXIT_FAILED) == bool(told["damage"]) == (not told["ok"]), result.output
    return list(told["damage"])


def test_verify_finds_all_well(world: World) -> None:
    result = world.run("verify")
    assert result.exit_code == 0, result.output
    assert "All is well: 2 partitions, 360 twins, 8 files" in result.stdout
    assert damage(world) == []


@pytest.mark.parametrize("kind", list(manifest.Kind))
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_verify_finds_a_flipped_bit_anywhere(world: World, kind: manifest.Kind, where: str) -> None:
    part = world.part(FIRST, kind)
    world.tamper(FIRST, part.name, flip({"first": 0, "middle": part.size // 2, "last": part.size - 1}[where]))
    found = damage(world)
    assert [(each["shard_id"], each["file"]) for each in found] == [(FIRST, part.name)]
    assert "checksum" in found[0]["what"]
    assert damage(world, SECOND) == []


@pytest.mark.parametrize("kind", list(manifest.Kind))
def test_verify_finds_a_file_that_is_gone_or_cut(world: World, kind: manifest.Kind) -> None:
    part = world.part(FIRST, kind)
    world.tamper(FIRST, part.name, lambda data: data[:-1])
    assert [each["file"] for each in damage(world)] == [part.name]
    world.memory.bucket.delete(world.key(FIRST, part.name))
    found = damage(world)
    assert [each["file"] for each in found] == [part.name]
    assert "is gone" in found[0]["what"]


def test_verify_tells_everything_that_is_wrong(world: World) -> None:
    base, outbox = world.part(FIRST, manifest.Kind.BASE), world.part(FIRST, manifest.Kind.OUTBOX)
    other = world.part(SECOND, manifest.Kind.DELTA)
    world.tamper(FIRST, base.name, flip(100))
    world.memory.bucket.delete(world.key(FIRST, outbox.name))
    world.tamper(SECOND, other.name, flip(other.size - 3))
    assert {each["file"] for each in damage(world)} == {base.name, outbox.name, other.name}
    result = world.run("verify")
    assert "3 things are wrong" in result.stdout
    assert "docs/runbooks/checkpoint-broken.md" in result.stderr


def test_verify_finds_a_manifest_that_lies(world: World) -> None:
    of = world.manifests[FIRST].checkpoint
    assert of is not None
    base, first, second, *others = of.parts
    lies: list[tuple[dict[str, Any], str]] = [
        ({"parts": (first, second, *others)}, "its base is missing"),
        ({"parts": (base, second, first, *others)}, "doesn't connect"),
        ({"commit_number": 2}, "go on to commit 3"),
        ({"twins": of.twins + 1}, f"have {of.twins:,} twins, its manifest says {of.twins + 1:,}"),
        ({"twins": of.twins - 2}, f"its manifest says {of.twins - 2:,}"),
        ({"outbox_next": 3}, "has effect 3"),
        ({"parts": (dataclasses.replace(base, rows=1), first, second, *others)}, "row groups have"),
        ({"parts": (base, dataclasses.replace(first, through=1), second, *others)}, "doesn't connect"),
        ({"parts": (base, first, dataclasses.replace(second, since=3, through=4), *others)}, "that it isn't for"),
    ]
    for changed, said in lies:
        world.rewrite(FIRST, **changed)
        found = [each["what"] for each in damage(world)]
        assert any(said in what for what in found), (said, found)
    world.rewrite(FIRST)
    assert damage(world) == []


def test_verify_counts_by_whole_ids_before_it_calls_it_damage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ids may have one MD5; the quick count takes them for one device."""
    from fleet_cli.checkpoints import verifying

    look = verifying._look

    def collided(*given: Any) -> tuple[bytes, verifying._Seen]:
        last_key, seen = look(*given)
        return last_key, dataclasses.replace(seen, counted=seen.counted - 1)

    monkeypatch.setattr(verifying, "_look", collided)
    assert damage(world) == []


def test_verify_misses_a_manifest_that_is_gone(world: World) -> None:
    world.memory.bucket.delete(world.key(SECOND, "manifest.json"))
    found = damage(world)
    assert len(found) == 1
    assert "no manifest speaks for 50 % of the devices" in found[0]["what"]
    assert damage(world, FIRST) == []


def test_verify_goes_on_with_the_checkpoint_that_replaced_the_one_it_read(world: World) -> None:
    """An owner at work: the files of the checkpoint that was listed are cleared away before they are read."""
    part = world.part(FIRST, manifest.Kind.OUTBOX)
    newer = dataclasses.replace(
        world.manifests[FIRST].checkpoint,  # type: ignore[type-var]
        number=4,
        parts=tuple(each for each in world.manifests[FIRST].checkpoint.parts if each != part),  # type: ignore[union-attr]
    )
    world.memory.bucket.delete(world.key(FIRST, part.name))
    told = dataclasses.replace(world.manifests[FIRST], checkpoint=newer, revision=99)
    reads = 0

    def replaced_after_the_first_read(call: memory_objects.Call) -> memory_objects.Fault:
        nonlocal reads
        if call.key == world.key(FIRST, "manifest.json"):
            reads += 1
            if reads == 2:
                world.memory.bucket.tamper(call.key, manifest.encode(told))
        return memory_objects.NO_FAULT

    world.memory.plan = replaced_after_the_first_read
    assert damage(world) == []
    assert reads == 2


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_export_has_each_twin_once_as_base_and_deltas_have_it_together(world: World) -> None:
    found = rows(world.run("export"))
    by_id = {row["device_id"]: row for row in found}
    assert len(found) == len(by_id)
    assert sorted(by_id) == LIVING
    for name in LIVING:
        assert by_id[name]["temperature_c"] == made.temperature_of(name)
        assert by_id[name]["shard_id"] == (FIRST if hashing.hash_key(name) in made.RANGES[FIRST] else SECOND)
    keys = [hashing.digest(row["device_id"]) for row in found]
    assert keys == sorted(keys), "in the order of hash keys"


def test_an_export_reads_well(world: World) -> None:
    found = {row["device_id"]: row for row in rows(world.run("export"))}
    hot = found[made.HOT]
    assert tuple(hot) == tuple(columns.COLUMNS)
    assert hot["last_arrival"] == "2023-11-14T22:13:20.000Z"
    assert hot["last_timestamp"] == "2023-11-14T22:13:19.750Z"
    assert (hot["location"], hot["firmware"], hot["battery_pct"]) == ("51.34,12.37", "1.4.2", 64.5)
    assert hot["temperature_alert"] is True
    assert hot["temperature_alert_id"] == f"{0xAB:016x}{0xCD:016x}"
    assert (hot["temperature_override"], hot["temperature_alert_repeats"]) == (75.5, 2)
    assert hot["temperature_alert_last_fired"] == "2023-11-14T22:13:20.000Z"
    assert (hot["battery_override"], hot["battery_alert_id"], hot["offline_override_ms"]) == (None, None, None)
    assert hot["sequence_number"] == "17"
    assert hot["cpu_load_mean"] == 0.25
    assert hot["temperature_c_maximum"] == 51.8, "in its fewest digits"
    assert found[made.ODD]["firmware"] == "1.4.2", "a message that isn't of the usual layout is read, too"
    assert found[made.ODD]["temperature_c"] == made.temperature_of(made.ODD)
    assert found[made.SILENT]["offline"] is True


def test_csv_and_parquet_have_the_same_as_json_lines(world: World, tmp_path: pathlib.Path) -> None:
    told = rows(world.run("export"))
    for form in ("csv", "parquet", "jsonl"):
        path = tmp_path / f"twins.{form}"
        result = world.run("export", "--out", str(path))
        assert result.exit_code == 0, result.output
        assert f"359 twins to {path}" in result.stderr
    assert [json.loads(line) for line in (tmp_path / "twins.jsonl").read_text().splitlines()] == told
    with (tmp_path / "twins.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["device_id"] for row in listed] == [row["device_id"] for row in told]
    assert listed[0]["last_arrival"] == told[0]["last_arrival"]
    assert float(listed[0]["temperature_c"]) == told[0]["temperature_c"]
    table = pq.read_table(tmp_path / "twins.parquet")
    assert table.column_names == list(columns.COLUMNS)
    assert table["temperature_c"].to_pylist() == [row["temperature_c"] for row in told]
    assert str(table.schema.field("last_arrival").type) == "timestamp[ms, tz=UTC]"
    assert not any(str(field.type).startswith("uint") for field in table.schema), "Athena and Spark don't like these"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fleet.yaml", "twins.csv", "twins.jsonl", "twins.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["--device-prefix", "truck-"], {name for name in LIVING if name.startswith("truck-")}),
        (["--open-alerts"], {made.HOT, made.SILENT}),
        (["--open-alerts", "--device-prefix", "truck-"], {made.SILENT}),
        (["--device", "sensor-11", "--device", "truck-8"], {"sensor-11", "truck-8"}),
        ([word for at in range(100) for word in ("--device", f"sensor-{at}")], {f"sensor-{at}" for at in range(100)} - {made.FORGOTTEN}),
        (["--shard", SECOND], {name for name in LIVING if hashing.hash_key(name) in made.RANGES[SECOND]}),
        (["--device-prefix", "nobody"], set()),
    ],
)  # fmt: skip
def test_filters(world: World, filters: list[str], wanted: set[str]) -> None:
    result = world.run("export", "--columns", "temperature_c,device_id", *filters)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["device_id"] for row in found} == wanted
    assert all(list(row) == ["temperature_c", "device_id"] for row in found)


def test_a_single_twin_is_looked_up_in_one_row_group_of_each_layer(world: World) -> None:
    asked: list[str] = []

    def watched(call: memory_objects.Call) -> memory_objects.Fault:
        asked.append(call.key)
        return memory_objects.NO_FAULT

    world.memory.plan = watched
    shard_id = FIRST if hashing.hash_key("truck-8") in made.RANGES[FIRST] else SECOND
    assert [row["device_id"] for row in rows(world.run("export", "--device", "truck-8"))] == ["truck-8"]
    assert not any(key.endswith(".parquet") and shard_id not in key for key in asked)


def test_devices_without_a_twin_are_told(world: World) -> None:
    result = world.run("export", "--device", "nobody", "--device", "truck-8", "--columns", "offline")
    assert result.exit_code == console.EXIT_NOT_FOUND
    assert result.stdout == '{"offline":false}\n'
    assert "1 of the 2 devices have no such twin: nobody" in result.stderr


def test_a_folder_gets_a_file_for_each_partition(world: World, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "twins"
    result = world.run("export", "--out", f"{folder}/")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == [f"{FIRST}.parquet", f"{SECOND}.parquet"]
    assert pq.read_table(folder).num_rows == len(LIVING)
    again = world.run("export", "--out", str(folder))
    assert again.exit_code == console.EXIT_USAGE
    assert "isn't an empty folder" in again.stderr


@pytest.mark.parametrize("out", ["twins.parquet", "twins.csv", "twins.jsonl", "twins/"])
def test_what_fails_leaves_nothing_behind(world: World, tmp_path: pathlib.Path, out: str) -> None:
    part = world.part(SECOND, manifest.Kind.BASE)
    world.tamper(SECOND, part.name, flip(part.size // 2))
    result = world.run("export", "--out", f"{tmp_path}/{out}")
    assert result.exit_code == console.EXIT_FAILED
    assert "checksum" in result.stderr
    assert "fleet-twin checkpoint verify" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.yaml"]


def test_half_of_parquet_on_standard_output_does_not_look_whole(world: World) -> None:
    part = world.part(SECOND, manifest.Kind.BASE)
    world.tamper(SECOND, part.name, flip(part.size // 2))
    result = world.run("export", "--format", "parquet")
    assert result.exit_code == console.EXIT_FAILED
    assert not result.stdout_bytes.endswith(b"PAR1") or len(result.stdout_bytes) == 4
    world.tamper(SECOND, part.name, flip(part.size // 2))
    whole = world.run("export", "--format", "parquet")
    assert pq.read_table(io.BytesIO(whole.stdout_bytes)).num_rows == len(LIVING)


def test_a_file_is_replaced_only_when_told_and_only_by_a_whole_one(world: World, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "twins.csv"
    path.write_text("mine")
    refused = world.run("export", "--out", str(path))
    assert refused.exit_code == console.EXIT_USAGE
    assert "--force" in refused.stderr
    name = world.part(FIRST, manifest.Kind.BASE).name
    world.tamper(FIRST, name, flip(50))
    assert world.run("export", "--out", str(path), "--force").exit_code == console.EXIT_FAILED
    assert path.read_text() == "mine"
    world.tamper(FIRST, name, flip(50))
    assert world.run("export", "--out", str(path), "--force").exit_code == 0
    assert len(path.read_text().splitlines()) == len(LIVING) + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--columns", "device_id,temprature"), "temprature is no column; there are device_id"),
        (("--out", "twins.xlsx"), "say which with --format"),
        (("--out", "nowhere/twins.csv"), "There is no folder nowhere"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(world: World, arguments: tuple[str, ...], said: str) -> None:
    result = world.run("export", *arguments)
    assert result.exit_code == console.EXIT_USAGE
    assert said in " ".join(result.stderr.split())


def test_a_manifest_that_cannot_be_read_ends_an_export(world: World) -> None:
    world.tamper(SECOND, "manifest.json", lambda data: data.replace(b'"format": 1', b'"format": 2'))
    result = world.run("export")
    assert result.exit_code == console.EXIT_FAILED
    assert "Nothing was exported" in result.stderr
    assert result.stdout == ""
    assert world.run("export", "--shard", FIRST).exit_code == 0


def test_an_empty_fleet_is_an_empty_file_with_the_columns(world: World, tmp_path: pathlib.Path) -> None:
    for shard_id in (FIRST, SECOND):
        world.rewrite(shard_id, parts=(), twins=0)
    path = tmp_path / "none.parquet"
    assert world.run("export", "--out", str(path)).exit_code == 0
    assert pq.read_table(path).column_names == list(columns.COLUMNS)
    assert pq.read_table(path).num_rows == 0
    listed = list(csv.reader(io.StringIO(world.run("export", "--format", "csv").stdout)))
    assert listed == [list(columns.COLUMNS)]


def test_a_million_twins_are_not_read_ahead() -> None:
    def piece(count: int) -> exporting.Piece:
        part = manifest.Part(manifest.Kind.BASE, "x", count, 1, "", 0, 1)
        checkpoint = dataclasses.replace(EMPTY, twins=count, parts=(part,))
        of = manifest.Manifest(
            made.identity_of(made.settings(made.fleet_of()), "s", hashing.HashKeyRange()), (), 1, "", "", checkpoint=checkpoint
        )  # fmt: skip
        return exporting.Piece(bucket.Partition("s", of), hashing.HashKeyRange(), (hashing.HashKeyRange(),))

    assert piece(10).rows_ahead == 10
    assert piece(10_000_000).rows_ahead == 100_000
    small, large = piece(10), piece(10_000_000)
    assert exporting._has_room([], large)
    assert exporting._has_room([large] * 3, large)
    assert not exporting._has_room([large] * 4, large)
    assert exporting._has_room([small] * 7, small)
    assert not exporting._has_room([small] * 8, small)


EMPTY = manifest.Checkpoint(1, 1, 0, partition.Position(), 0, 0, 1, 1, ())


# ── splits and merges ────────────────────────────────────────────────────────────────────────────────────────────


async def split(world: World, *, with_both: bool) -> None:
    """Closes the second partition; its children have a half of its range each, and one or both of them a checkpoint."""
    fleet = made.settings(made.fleet_of())
    objects = world.memory.objects(fleet)
    closed = dataclasses.replace(world.manifests[SECOND], final=True, ended=True)
    world.tamper(SECOND, "manifest.json", lambda _: manifest.encode(closed))
    parent = made.RANGES[SECOND]
    middle = parent.start + parent.size // 2
    ranges = [hashing.HashKeyRange(parent.start, middle - 1), hashing.HashKeyRange(middle, parent.end)]
    for number, key_range in enumerate(ranges, start=2):
        identity = made.identity_of(fleet, f"shardId-00000000000{number}", key_range)
        mine = await made.claim(objects, identity, world.memory.clock, (SECOND,))
        if number == 3 and not with_both:
            continue
        store = memory_store.MemoryTwinStore(identity)
        ours = [name for name in made.DEVICES if hashing.hash_key(name) in key_range]
        store.commit(build.commit(made.rows_of(ours, 9, warmer_by=70), number=9))
        await checkpointing.Checkpointer(objects, store, mine, world.memory.clock, metrics.Metrics()).take()


@pytest.mark.parametrize("with_both", [False, True])
def test_after_a_split_each_twin_is_exported_from_whoever_has_it_newest(world: World, with_both: bool) -> None:
    asyncio.run(split(world, with_both=with_both))
    found = rows(world.run("export", "--columns", "device_id,shard_id,commit"))
    assert sorted(row["device_id"] for row in found) == LIVING
    owners = {row["shard_id"] for row in found}
    assert owners == {FIRST, "shardId-000000000002", "shardId-000000000003" if with_both else SECOND}
    listing = world.run("ls")
    assert "ended" in listing.stdout
    assert "none yet" in listing.stdout or with_both
    assert f"{len(made.DEVICES):,} twins" in listing.stdout or not with_both
    result = world.run("verify")
    assert result.exit_code == 0, result.output
    assert with_both or "Without a checkpoint yet: shardId-000000000003" in result.stdout


def test_what_is_left_of_a_range() -> None:
    whole = hashing.HashKeyRange(10, 99)
    parts = [hashing.HashKeyRange(0, 19), hashing.HashKeyRange(30, 39), hashing.HashKeyRange(35, 60)]
    left = bucket.without(whole, parts)
    assert left == [hashing.HashKeyRange(20, 29), hashing.HashKeyRange(61, 99)]
    assert bucket.without(whole, []) == [whole]
    assert bucket.without(whole, [hashing.HashKeyRange()]) == []


def test_a_checkpoint_replaced_under_an_export_says_export_again(world: World) -> None:
    part = world.part(FIRST, manifest.Kind.BASE)
    told = dataclasses.replace(
        world.manifests[FIRST],
        checkpoint=dataclasses.replace(world.manifests[FIRST].checkpoint, number=4),  # type: ignore[type-var]
    )

    def replaced(call: memory_objects.Call) -> memory_objects.Fault:
        if call.key.endswith(part.name):
            world.memory.bucket.delete(call.key)
            world.memory.bucket.tamper(world.key(FIRST, "manifest.json"), manifest.encode(told))
        return memory_objects.NO_FAULT

    world.memory.plan = replaced
    result = world.run("export")
    assert result.exit_code == console.EXIT_FAILED
    assert "export again" in result.stderr
