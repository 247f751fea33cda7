"""Claims and writes of a store per second, by the number of rows.

    python scripts/bench_store.py --rows 10000 --rows 100000 --out docs/results/store_speed.json
    python scripts/bench_store.py --rows 10000 --address postgresql://me@host/bench --out FILE

Rows are candidates of eight atoms; no time is spent on sampling. Claims are those of the stage
"relax" over all rows, taken and settled 32 at a time by one process, at the start and where nine
tenths of the rows are done.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from langevin_xtal.search.store import Change, Row, Store
from langevin_xtal.version import __version__

AT_ONCE = 32
WRITTEN = 1000
"""Rows handed to the store at a time."""


def candidates(first: int, count: int) -> Iterator[Row]:
    """Rows as sampling makes them."""
    rng = np.random.default_rng(first)
    for index in range(first, first + count):
        yield Row(
            index=index,
            request="Na 1, Cl 1 in Fm-3m",
            group=225,
            sampled=(np.diag(rng.uniform(4, 6, 3)), rng.random((8, 3)), np.repeat([11, 17], 4)),
            facts={"found_group": 225, "min_distance": 2.5, "attempt": 0, "filtered": True},
            provenance={"seed": 0, "index": index},
        )


def claims(store: Store, units: range, most: int) -> float:
    """Claims and settlements of one row each, per second."""
    begin, done = time.perf_counter(), 0
    while done < most:
        claim = store.claim("relax", units, AT_ONCE)
        if not claim.units:
            break
        store.settle_each("relax", {k: Change({"energy": -3.0}) for k in claim.units})
        done += len(claim.units)
    return done / (time.perf_counter() - begin)


def measure(address: str, rows: int) -> dict[str, Any]:
    """Writes and claims at so many rows."""
    settings = {"version": __version__, "elements": "Cl Na"}
    with Store(address, settings) as store:
        begin = time.perf_counter()
        for first in range(0, rows, WRITTEN):
            some = min(WRITTEN, rows - first)
            store.claim("sample", range(rows), some)
            store.add(candidates(first, some))
        writes = rows / (time.perf_counter() - begin)
        units = range(rows)
        some = min(2000, rows // 4)
        early = claims(store, units, some)
        begin = time.perf_counter()
        claim = store.claim("relax", units, int(0.9 * rows) - some)
        seconds = time.perf_counter() - begin
        late = claims(store, units, min(2000, rows - some - len(claim.units)))
    return {
        "rows": rows,
        "writes_per_second": round(writes),
        "claims_per_second_first": round(early),
        "claims_per_second_last": round(late),
        "one_claim_of_the_rest_seconds": round(seconds, 3),
    }


@click.command(help=__doc__)
@click.option("--rows", type=click.IntRange(min=100), multiple=True, required=True)
@click.option("--address", help="An empty PostgreSQL database; by default an SQLite file.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(rows: tuple[int, ...], address: str | None, out: Path) -> None:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for count in rows:
            line = measure(address or f"{folder}/{count}.db", count)
            click.echo(line)
            lines.append(line)
    record = {
        "command": "python " + " ".join(a for a in sys.argv if "://" not in a),
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "database": "PostgreSQL" if address else "SQLite",
        "rows": lines,
    }
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
