"""The queries that docs/reference/checkpoints.md shows, run by DuckDB as they stand there, on checkpoints that the real checkpointer made."""

from __future__ import annotations

import asyncio
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from click import testing

from fleet_cli import main
from fleet_cli.checkpoints import bucket
from fleet_worker.adapters import clock
from tests.support import fleet_in_bucket as made

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md"
IN_THE_PAGE = "s3://my-bucket/fleet-twin/default/trucks"


def queries() -> list[str]:
    return re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def asked(query: str) -> list[dict[str, Any]]:
    """What its last statement answers."""
    with duckdb.connect() as connection:
        answer = connection.sql(query)
        assert answer is not None
        rows: list[dict[str, Any]] = answer.to_arrow_table().to_pylist()
        return rows


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The bucket's contents as files, and the fleet file beside them."""
    with clock.RealClock() as real:
        memory = made.InMemory(real)
        monkeypatch.setattr(bucket, "open_fleet", memory.open_fleet)
        fleet = made.settings(made.fleet_of())
        asyncio.run(made.fill(memory.objects(fleet), fleet, real))
        for key, data in memory.bucket.contents().items():
            path = tmp_path / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        made.write_fleet_file(tmp_path, made.fleet_of())
        yield tmp_path


def export(folder: pathlib.Path, *arguments: str) -> testing.Result:
    command = ["checkpoint", "export", "--fleet", str(folder / "fleet.yaml"), *arguments]
    result = testing.CliRunner().invoke(main.main, command, prog_name="fleet-twin")
    assert result.exit_code == 0, result.output
    return result


def test_the_page_has_both_queries() -> None:
    assert [IN_THE_PAGE in query for query in queries()] == [True, False]
    assert "'twins.parquet'" in queries()[1]


def test_a_checkpoint_is_asked_as_the_page_says(folder: pathlib.Path) -> None:
    found = asked(queries()[0].replace(IN_THE_PAGE, str(folder / "fleet-twin" / "default" / "trucks")))
    assert [row["device_id"] for row in found] == [made.HOT, made.SILENT]
    hot, silent = found
    assert hot["temperature_c"] == made.temperature_of(made.HOT), "the delta's row, not the base's"
    assert (hot["temperature_alert"], hot["offline"], hot["firmware"]) == (True, False, "1.4.2")
    assert silent["offline"] is True
    assert hot["last_arrival"].timestamp() * 1000 == made.ARRIVAL_MS


def test_without_its_last_condition_it_has_what_an_export_has(folder: pathlib.Path) -> None:
    query = queries()[0].replace(IN_THE_PAGE, str(folder / "fleet-twin" / "default" / "trucks"))
    every = asked(query.replace("AND (temperature_alert OR battery_alert OR offline)", ""))
    export(folder, "--out", str(folder / "twins.parquet"))
    names = ", ".join(name for name in every[0])
    exported = asked(f"SELECT {names} FROM '{folder / 'twins.parquet'}' ORDER BY device_id")
    assert len(every) == len(made.DEVICES) - 1
    assert [row for row in exported if row["device_id"] != made.ODD] == [
        row for row in every if row["device_id"] != made.ODD
    ]
    odd = next(row for row in exported if row["device_id"] == made.ODD)
    assert (odd["firmware"], odd["temperature_c"]) == ("1.4.2", made.temperature_of(made.ODD)), (
        "only an export reads it"
    )


def test_an_export_is_asked_as_the_page_says(folder: pathlib.Path) -> None:
    export(folder, "--out", str(folder / "twins.parquet"))
    found = asked(queries()[1].replace("twins.parquet", str(folder / "twins.parquet")))
    assert found == [{"firmware": "1.4.2", "devices": len(made.DEVICES) - 1, "silent": 1, "battery_pct": 64.5}]


def test_the_page_names_every_column_of_an_export() -> None:
    from fleet_cli.checkpoints import columns

    page = PAGE.read_text()
    table = page[page.index("| columns |") : page.index("`--list-columns`")]
    told = set(re.findall(r"`([a-z_<>]+)`", table))
    suffixes = {name for name in told if name.startswith("_")}
    expanded = set()
    for name in told - suffixes:
        for metric in ("temperature_c", "battery_pct", "cpu_load"):
            for rule in ("temperature", "battery", "offline"):
                expanded.add(name.replace("<metric>", metric).replace("<rule>", rule))
    for name in list(expanded):
        stem = next((end for end in ("_mean", "_alert_last_fired") if name.endswith(end)), None)
        if stem is not None:
            base = name.removesuffix("_mean").removesuffix("_last_fired")
            expanded |= {base + suffix for suffix in suffixes}
    assert set(columns.COLUMNS) - expanded == set()
    assert {name for name in told - suffixes if "<" not in name} - set(columns.COLUMNS) == set()
