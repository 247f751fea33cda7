"""What engines carry: overhead of a piece, pieces per second, a thousand workers that sleep.

    python scripts/bench_engines.py --out docs/results/engine_speed.json

* overhead: pieces that do nothing, one at a time and 16 at a time, with two workers; the start of
  the workers is not counted;
* scaling: pieces of 50 ms of computing with one worker and with two;
* simulated: so many Dask workers (all threads of this process, as is the scheduler) whose pieces
  sleep; the share of the pieces per second that such workers could do at best; what each worker
  does for itself beside its pieces (profile, clock, monitor) is off, since on a cluster it is
  done by the worker's own computer;
* writers: so many threads with a store of their own each, which claim eight units and settle them
  at once, as workers do whose pieces cost nothing.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from langevin_xtal.cluster import ClusterConfig, DaskEngine, dask_engine
from langevin_xtal.parallel import parallel_map, use_engine
from langevin_xtal.search.store import Change, Row, Store
from langevin_xtal.version import __version__

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.postgres import running_server

PIECES, TRIES = 128, 2
WORK_SECONDS = 0.05
UNITS, ROWS = 8, 512
ONLY_PIECES = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1h",
    "distributed.admin.system-monitor.interval": "1h",
}
"""Of Dask, for workers that all share one process."""


def nothing(number: int) -> int:
    """A piece that costs nothing."""
    return number


def work(number: int) -> int:
    """A piece of :data:`WORK_SECONDS` of computing."""
    end = time.thread_time() + WORK_SECONDS
    while time.thread_time() < end:
        number = (number * 69069 + 1) % 2**32
    return number


def sleep(seconds: float, number: int) -> int:
    """A piece on another computer."""
    time.sleep(seconds)
    return number


@contextmanager
def engine_of(kind: str, workers: int) -> Iterator[int]:
    """The engine in use; the number for ``workers=``."""
    if kind != "dask":
        yield 1 if kind == "this process" else workers
        return
    with dask_engine(cluster=ClusterConfig(scheduler="local", jobs=workers)) as made:
        made.wait(120)
        while made.workers() < workers:
            time.sleep(0.2)
        with use_engine(made):
            yield workers


def per_second(function: Any, pieces: int, workers: int, chunk: int) -> float:
    """Pieces per second after the first ones, which wait for the workers to start."""
    results = parallel_map(function, range(pieces + 4 * workers), workers=workers, chunk=chunk)
    with closing(results):  # type: ignore[type-var]
        for _ in range(4 * workers):
            next(results)
        begin = time.perf_counter()
        done = sum(1 for _ in results)
        return done / (time.perf_counter() - begin)


def overheads() -> list[dict[str, Any]]:
    """Milliseconds of a piece that does nothing."""
    lines = []
    for kind in ("this process", "local", "dask"):
        with engine_of(kind, 2) as workers:
            for chunk in (1, 16):
                rate = max(per_second(nothing, PIECES, workers, chunk) for _ in range(TRIES))
                lines.append({"engine": kind, "at_once": chunk, "ms": round(1000 / rate, 3)})
                click.echo(lines[-1])
    return lines


def scaling() -> list[dict[str, Any]]:
    """Pieces of computing per second with one worker and two."""
    lines = []
    for kind in ("local", "dask"):
        rates = {}
        for count in (1, 2):
            with engine_of(kind, count) as workers:
                rates[count] = max(per_second(work, 24, workers, 1) for _ in range(TRIES))
        lines.append({"engine": kind, "one": round(rates[1], 1), "two": round(rates[2], 1)})
        click.echo(lines[-1])
    return lines


def simulated(count: int, lengths: tuple[float, ...]) -> dict[str, Any]:
    """Sleeping pieces with so many workers."""
    import dask
    import distributed

    begin = time.perf_counter()
    lines = []
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(ONLY_PIECES))
        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=count, threads_per_worker=1, processes=False, dashboard_address=None,
                silence_logs=50, memory_limit=0,
            )
        )  # fmt: skip
        client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
        engine = DaskEngine(client)
        while engine.workers() < count:
            time.sleep(0.5)
        started = time.perf_counter() - begin
        click.echo(f"{count} workers after {started:.0f} s")
        for seconds in lengths:
            pieces = list(range(count * 2))
            begin, cpu = time.perf_counter(), time.process_time()
            done = sum(1 for _ in engine.as_done(partial(sleep, seconds), pieces))
            spent, cpu = time.perf_counter() - begin, time.process_time() - cpu
            lines.append(
                {
                    "seconds": seconds,
                    "per_second": round(done / spent, 1),
                    "at_best": round(count / seconds, 1),
                    "share": round(done / spent * seconds / count, 2),
                    "cpu_ms": round(1000 * cpu / done, 1),
                }
            )
            click.echo(lines[-1])
    return {"workers": count, "start_seconds": round(started, 1), "pieces": lines}


def writers(address: str, count: int, seconds: float = 10.0) -> dict[str, Any]:
    """Units claimed and settled per second by so many writers; each once."""
    settings = {"version": __version__, "elements": "Cl Na"}
    cell = (np.eye(3) * 5, np.zeros((1, 3)), np.array([11]))
    with Store(address, settings) as store:
        units = store.claim("sample", range(ROWS), ROWS).units
        store.add([Row(k, "Na:1 in P1 (1)", 1, cell) for k in units])
    done: list[tuple[str, int]] = []
    waits = []
    until = time.perf_counter() + seconds

    def one() -> None:
        turn = 0  # all rows again and again, each turn as a stage of its own
        with Store(address, settings) as mine:
            while time.perf_counter() < until:
                stage, begin = f"{count} writers, turn {turn}", time.perf_counter()
                units = mine.claim(stage, range(ROWS), UNITS).units
                waits.append(time.perf_counter() - begin)
                turn += not units
                mine.settle_each(stage, {k: Change({"min_distance": 2.0}) for k in units})
                done.extend((stage, k) for k in units)

    threads = [threading.Thread(target=one) for _ in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    if len(set(done)) != len(done):
        raise SystemExit("a unit was claimed twice")
    return {
        "writers": count,
        "units_per_second": round(len(done) / spent, 1),
        "claim_ms": round(1000 * float(np.median(waits))),
        "longest_claim_ms": round(1000 * max(waits)),
    }


def of_stores(counts: tuple[int, ...]) -> dict[str, Any]:
    """Many writers, on either database."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(running_server())
        places = {"SQLite": f"{folder}/store.db"}
        if server is not None:
            places["PostgreSQL"] = server.database("writers")
        for name, address in places.items():
            found[name] = []
            for count in counts:
                found[name].append(writers(address, count))
                click.echo(f"{name} {found[name][-1]}")
    return found


@click.command(help=__doc__)
@click.option("--workers", type=int, multiple=True, default=(100, 1000), show_default=True)
@click.option("--seconds", type=float, multiple=True, default=(60.0, 10.0, 1.0))
@click.option("--writers", "counts", type=int, multiple=True, default=(1, 8, 64))
@click.option("--note", default="", help="On the machine, such as: shared with other work.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    workers: tuple[int, ...],
    seconds: tuple[float, ...],
    counts: tuple[int, ...],
    note: str,
    out: Path,
) -> None:
    record = {
        "command": "python " + " ".join(sys.argv),
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        + (f", {note}" if note else ""),
    }
    for name, measure in (
        ("simulated", lambda: [simulated(count, seconds) for count in workers]),
        ("overhead", overheads),
        ("writers", lambda: of_stores(counts)),
        ("scaling", scaling),
    ):
        record[name] = measure()
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
