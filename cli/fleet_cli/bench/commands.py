"""`fleet-twin bench engine` and `fleet-twin bench worker`: what is asked for, where it happens, and how it is shown.

Everything is made in one folder on a real disk and removed at the end; the processes that a benchmark starts end with it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from fleet_cli import console

if TYPE_CHECKING:
    from fleet_cli.bench import tape as tapes


_devices = click.option(
    "--devices", type=click.IntRange(1, 10_000_000), default=100_000, show_default=True, metavar="N", help="Twins."
)
_data = click.option(
    "--data",
    type=click.Path(path_type=pathlib.Path, file_okay=False),
    metavar="DIR",
    help="Where tapes and twins go; on the disk that you mean to measure.  [default: the user's cache folder]",
)
_cpu = click.option("--cpu", type=click.IntRange(0), metavar="C", help="Run the measured process on this core only.")
_json = click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of the table.")


@click.group(name="bench", epilog=console.EXIT_CODES)
def command() -> None:
    """Measure the engine and the worker on this machine.

    Each figure stands beside the bound that it is judged by, measured in the same run; docs/benchmarks.md explains them.
    Close other programs first: the numbers are about this machine while it has nothing else to do.

    \b
    Examples:
      fleet-twin bench engine --devices 1000000 --records 5000000
      fleet-twin bench worker --behind
      fleet-twin bench worker --rate 10000 --shards 10 --duration 300
    """


@command.command(name="engine")
@_devices
@click.option("--records", type=click.IntRange(1_000, 100_000_000), default=2_000_000, show_default=True, metavar="R")
@click.option("--partitions", type=click.IntRange(1, 64), default=1, show_default=True, metavar="P")
@click.option("--batch", type=click.IntRange(1, 10_000), default=10_000, show_default=True, help="Records an answer.")
@click.option("--twins-in-memory-max", type=click.IntRange(0), default=0, metavar="M", help="Bound of the tables.")
@click.option("--repeat", type=click.IntRange(1, 10), default=2, show_default=True, help="The best of so many counts.")
@_cpu
@_data
@_json
def engine_command(
    devices: int,
    records: int,
    partitions: int,
    batch: int,
    twins_in_memory_max: int,
    repeat: int,
    cpu: int | None,
    data: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Decode, rules and durable commits in one process, no network.

    The bound is decoding the same records into columns with protobuf's own parser, nothing else. Beside it stands the same with
    the engine's own decoder, which is quicker than that.
    """
    from fleet_cli.bench import engine, show

    asked = {"devices": devices, "records": records, "partitions": partitions, "batch": batch, "cpu": cpu}
    asked["twins_in_memory_max"] = twins_in_memory_max
    with console.told_plainly(), _folder(data) as folder, _progress() as tell:
        _make_tapes(folder, devices, devices + records, partitions, 10.0, tell)
        options = engine.Options(folder / "tapes", folder / "data", batch, cpu, twins_in_memory_max)
        result = engine.measure(options, repeat, tell)
    if as_json:
        show.as_json("engine", asked, result)
        return
    steps = " · ".join(f"{step} {us:.2f}" for step, us in result["cpu_us_a_record_by_step"].items())
    show.as_table(
        f"Engine: {result['records']:,} records of {result['twins']:,} twins",
        {
            "records/s": show.number(result["records_per_s"]),
            "records/s of CPU time": show.number(result["records_per_cpu_s"]),
            "bound: protobuf decoding only": f"{show.number(result['bound_records_per_s'])} and "
            f"{show.number(result['bound_records_per_cpu_s'])}",
            "ratio to the bound": f"{result['ratio_by_wall']:.2f} and {result['ratio']:.2f}",
            "our own decoder alone": f"{show.number(result['own_decoder_records_per_cpu_s'])} of CPU time; "
            f"ratio {result['ratio_to_own_decoder']:.2f}",
            "CPU a record": f"{result['cpu_us_a_record']:.2f} µs: {steps}",
            "disk a twin": f"{result['disk_bytes_a_twin']:.0f} bytes of live pages, {result['file_bytes_a_twin']:.0f} of file",
            "anonymous memory": show.megabytes(result["anonymous_bytes"]),
            "commits": show.number(result["commits"]),
            "effects": show.number(result["effects"]),
            "twins back from disk in": show.number(result["restore_s"], "s", 2),
        },
    )


@command.command(name="worker")
@_devices
@click.option("--behind", is_flag=True, help="A backlog lies there: as quick as the worker takes it.  [default]")
@click.option("--rate", type=click.IntRange(1, 100_000), metavar="R", help="Records/s arrive, as from a real fleet.")
@click.option("--shards", type=click.IntRange(1, 256), metavar="S", help="[default: 20 behind, 10 with --rate]")
@click.option("--records", type=click.IntRange(10_000, 50_000_000), default=3_000_000, show_default=True, metavar="R")
@click.option("--duration", type=click.FloatRange(5, 3600), default=60.0, show_default=True, metavar="SECONDS")
@_cpu
@_data
@_json
def worker_command(
    devices: int,
    behind: bool,
    rate: int | None,
    shards: int | None,
    records: int,
    duration: float,
    cpu: int | None,
    data: pathlib.Path | None,
    as_json: bool,
) -> None:
    """The whole worker over HTTP, against a Kinesis endpoint that replays answers made beforehand.

    \b
    --behind   records/s of one core, with --records in the backlog after each device's first
    --rate R   for --duration seconds: share of a core, disk writes, alert latency, memory, restart
    """
    from fleet_cli.bench import replay, show

    if behind and rate is not None:
        raise click.UsageError("--behind and --rate are two benchmarks: ask for one of them.")
    shards = shards or (10 if rate else 20)
    if cpu is None:
        cpu = _last_cpu()
    asked: dict[str, Any] = {"devices": devices, "shards": shards, "cpu": cpu, "rate": rate}
    asked |= {"duration_s": duration} if rate else {"records": records}
    with console.told_plainly(), _folder(data) as folder, _progress() as tell:
        interval_s = devices / rate if rate else 10.0
        paced_s = duration + replay.SETTLE_S + replay.CAUGHT_UP_S_MAX / 10
        count = devices + (int(rate * paced_s) if rate else records)
        found = _make_tapes(folder, devices, count, shards, interval_s, tell)
        with replay.running(replay.Options(folder, cpu), tell) as bench:
            result = replay.paced(bench, found, interval_s, duration) if rate else replay.behind(bench, found)
    if as_json:
        show.as_json("worker", asked, result)
        return
    core = "any core" if cpu is None else f"core {cpu}"
    rows = {"records/s": show.number(result["records_per_s"])}
    if not rate:
        rows |= {
            "records/s of CPU time": show.number(result["records_per_cpu_s"]),
            "CPU a record": show.number(result["cpu_us_a_record"], "µs", 2),
            "applied in the end": f"{result['applied']:,} of {result['sent']:,}",
        }
    rows["share of a core"] = f"{result['cpu_share']:.3f}"
    if rate:
        waited = f"{show.number(result['alert_latency_p50_ms'], 'ms')} and {show.number(result['alert_latency_p99_ms'], 'ms')}"
        rows |= {
            "alert latency p50, p99": f"{waited}, of {result['alerts']:,} alerts",
            f"writes on {result['disk'] or 'the disk (none here)'}": show.number(
                result.get("disk_writes_per_s"), "a second, by everything on the machine"
            ),
            "written": show.number(result.get("disk_bytes_per_s", 0.0) / 1e6, "MB/s", 2),
            "stopped in": show.number(result["stop_s"], "s", 2),
            "restart: exec until every shard is read": show.number(result["restart_s"], "s", 2),
        }
    rows["anonymous memory"] = show.megabytes(result["anonymous_bytes"])
    title = f"at {rate:,} records/s" if rate else "catching up"
    show.as_table(f"Worker {title}: {devices:,} twins, {shards} shards, {core}", rows)


@command.command(name="checkpoint")
@_devices
@click.option("--records", type=click.IntRange(100_000, 50_000_000), default=4_000_000, show_default=True, metavar="R")
@_cpu
@_data
@_json
def checkpoint_command(devices: int, records: int, cpu: int | None, data: pathlib.Path | None, as_json: bool) -> None:
    """One partition's checkpoint: CPU, bytes, restore, and what --records beside it notice of it.

    The bounds are those of docs/benchmarks.md: for a million twins 4 s of CPU and 80 MB, 300,000 twins/s back into LMDB, a delta of at
    most 1.5 times what the changed twins take in LMDB, and 80 % of the records/s while one is taken.
    """
    from fleet_cli.bench import checkpoint, show

    if cpu is None:
        cpu = _last_cpu()
    asked = {"devices": devices, "records": records, "cpu": cpu}
    with console.told_plainly(), _folder(data) as folder, _progress() as tell:
        _make_tapes(folder, devices, checkpoint.records_needed(devices, records), 1, 10.0, tell)
        result = checkpoint.measure(checkpoint.Options(folder / "tapes", folder / "data", cpu), tell)
    if as_json:
        show.as_json("checkpoint", asked, result)
        return
    show.as_table(
        f"Checkpoint: {result['twins']:,} twins",
        {
            "CPU of a base": f"{result['base_cpu_s']:.2f} s; a million twins {result['base_cpu_s_a_million']:.2f} s",
            "bytes of a base": f"{show.megabytes(result['base_bytes'])}; a million twins "
            f"{show.megabytes(result['base_bytes_a_million'])}",
            "memory it took": show.megabytes(result["base_memory_bytes"]),
            "restored into LMDB": f"{show.number(result['restored_twins_per_s'])} twins/s; a second of CPU time "
            f"{show.number(result['restored_twins_per_cpu_s'])}",
            "a delta": f"{result['delta_rows']:,} twins, {show.megabytes(result['delta_bytes'])}: "
            f"{result['delta_ratio']:.2f} of their bytes in LMDB",
            "CPU of that delta": show.number(result["delta_cpu_s"], "s", 2),
            "records/s alone, and beside": f"{show.number(result['records_per_s_alone'])} and "
            f"{show.number(result['records_per_s_beside'])}: {result['kept']:.0%} kept",
            "a base beside them took": show.number(result["beside_take_s"], "s", 1),
            "growth of the file meanwhile": show.megabytes(result["beside_file_growth_bytes"]),
        },
    )


@command.command(name="move")
@_devices
@click.option(
    "--rate", type=click.IntRange(100, 100_000), default=10_000, show_default=True, metavar="R", help="Records/s."
)
@click.option("--shards", type=click.IntRange(2, 256), default=10, show_default=True, metavar="S")
@click.option(
    "--moves", type=click.IntRange(2, 1_000), default=40, show_default=True, metavar="M", help="Planned ones."
)
@click.option("--at-once", type=click.IntRange(1, 16), default=2, show_default=True, help="Moves at a time.")
@click.option("--interval", type=click.IntRange(5, 300), default=60, show_default=True, help="Of checkpoints, in s.")
@_data
@_json
def move_command(
    devices: int,
    rate: int,
    shards: int,
    moves: int,
    at_once: int,
    interval: int,
    data: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Partitions that change hands between two workers while records come: moves, takeovers, restarts.

    Some minutes: a planned move waits until its receiver has a warm copy. The figures are explained in docs/benchmarks.md.
    """
    import asyncio

    from fleet_cli.bench import move, pair, show

    asked = {"devices": devices, "rate": rate, "shards": shards, "at_once": at_once, "interval_s": interval}
    interval_s = devices / rate
    with console.told_plainly(), _folder(data) as folder, _progress() as tell:
        seconds = move.seconds_needed(moves, at_once, interval)
        found = _make_tapes(folder, devices, devices + int(rate * seconds), shards, interval_s, tell)
        options = pair.Options(folder, moves, at_once, interval)
        results = asyncio.run(move.measure(options, found, interval_s, tell))
    for phase, result in results:
        if as_json:
            show.as_json(f"move {phase}", asked, result)
        else:
            rows = {
                name.replace("_", " "): show.number(value, digits=3 if "lost" in name else 0)
                for name, value in result.items()
            }
            show.as_table(f"{phase}: {devices:,} twins, {shards} shards, {rate:,} records/s", rows)


def _make_tapes(
    folder: pathlib.Path, devices: int, records: int, partitions: int, interval_s: float, tell: Callable[[str], None]
) -> list[tapes.Tape]:
    from fleet_cli.bench import tape as tapes

    # In the past, and within the stream's retention, so that no sample is ahead of its arrival.
    start_ms = int((time.time() - records / devices * interval_s - 60.0) * 1000)
    plan = tapes.Plan(devices, records, partitions, start_ms, interval_s)
    return tapes.make(plan, folder / "tapes", lambda done: tell(f"making the input: {done:,} of {records:,} records"))


def _last_cpu() -> int | None:
    """A core of its own for the worker, where there is more than one."""
    from fleet_cli.bench import kernel

    allowed = kernel.allowed_cpus()
    return allowed[-1] if len(allowed) > 1 else None


@contextlib.contextmanager
def _folder(data: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """A folder of this run's own, gone at the end."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    parent = data or cache / "fleet-twin"
    parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on standard error: in place on a terminal, each kind of thing once elsewhere."""
    said: set[str] = set()
    if not os.isatty(2):

        def plainly(text: str) -> None:
            kind = text.partition(":")[0]
            if kind not in said:
                said.add(kind)
                click.echo(text, err=True)

        yield plainly
        return
    from rich import console as rich_console

    with rich_console.Console(stderr=True).status("") as shown:
        yield shown.update
