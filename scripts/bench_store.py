"""Claims and writes of a store per second, by the number of rows.

    python scripts/bench_store.py --rows 10000 --rows 1000000 --out docs/results/store_speed.json
    python scripts/bench_store.py --rows 10000 --postgres --out FILE

Rows are candidates of eight atoms; no time is spent on sampling. The first 1,000 rows are written
as a search writes them, the others are copies of these made by the database. Then, by one process:

* writes: 400 more samples, claimed and stored 100 at a time;
* claims: of 32 units of a later stage, given as the range of all rows or as a list of them, at the
  start and where nine tenths are done, with 64,000 units (at most a tenth of the rows) held by
  another living process, as many workers would;
* settlements: results of 32 candidates stored, each one a changed row;
* reports: the counts by state, and the best 20 candidates.

Of each, the fastest of several: other work on the computer makes all others longer.

With ``--before FILE`` the numbers that this script found with an earlier version go beside.
``--postgres`` starts a server of its own in a temporary folder (Debian's package ``postgresql``).
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.store import Change, Row, Store, read_progress
from langevin_xtal.version import __version__

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.postgres import running_server

AT_ONCE = 32
WRITTEN, WRITES = 100, 4
"""Rows handed to the store at a time, and how often."""
SEED_ROWS = 1000
"""Rows written one by one before the database copies them."""
JSON_INDEXES = {"idxkeys": "key_value_pairs", "idxcalc": "calculator_parameters"}
"""ASE's, in PostgreSQL."""
HELD = 64_000
"""Units in the hands of another process."""
CLAIMS, SETTLED = 20, 5
"""Claims and settlements that are timed."""


def candidates(first: int, count: int) -> Iterator[Row]:
    """Rows as sampling makes them."""
    rng = np.random.default_rng(first)
    for index in range(first, first + count):
        yield Row(
            index=index,
            request="Na 1, Cl 1 in Fm-3m",
            group=225,
            sampled=(np.diag(rng.uniform(4, 6, 3)), rng.random((8, 3)), np.repeat([11, 17], 4)),
            facts={
                "found_group": 225,
                "min_distance": 2.5,
                "attempt": 0,
                "filtered": True,
                "e_above_hull": float(rng.random()),
                "e_above_all": float(rng.random()),
            },
            provenance={"seed": 0, "index": index},
        )


def write(store: Store, first: int, count: int, total: int) -> float:
    """Samples claimed and stored, per second."""
    rates, done = [], 0
    while done < count:
        begin = time.perf_counter()
        units = store.claim("sample", range(total), WRITTEN).units
        done += store.add(list(candidates(first + done, len(units))))
        rates.append(len(units) / (time.perf_counter() - begin))
    return max(rates)


def multiply(store: Store, rows: int) -> None:
    """Copies of the rows there are, until there are so many; made by the database."""
    with store._transaction() as cursor:

        def columns(table: str) -> list[str]:
            if store._is_postgres:
                cursor.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = ? AND "
                    "table_schema = current_schema() ORDER BY ordinal_position",
                    (table,),
                )
                return [name for (name,) in cursor.fetchall()]
            cursor.execute(f"PRAGMA table_info({table})")
            return [line[1] for line in cursor.fetchall()]

        tables = ("systems", "species", "keys", "text_key_values", "number_key_values")
        if store._is_postgres:  # its indexes of JSON take minutes to grow with each row
            for name in JSON_INDEXES:
                cursor.execute(f"DROP INDEX {name}")
        there = SEED_ROWS
        while there < rows:
            some = min(there, rows - there)
            for table in tables:
                names = columns(table)
                shown = {"id": f"id + {there}", "unique_id": f"unique_id || '.{there}'"}
                if table == "number_key_values":
                    shown["value"] = f"value + {there} * 1e-9"  # no two energies are the same
                values = ", ".join(shown.get(name, name) for name in names)
                cursor.execute(
                    f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} "
                    f"WHERE id <= {some}"
                )
            cursor.execute(
                f"INSERT INTO langevin_xtal_work SELECT stage, unit + {there}, owner, done, "
                f"entry + {there} FROM langevin_xtal_work WHERE stage = 'sample' AND unit < {some}"
            )
            there += some
        if store._is_postgres:
            cursor.execute(f"SELECT setval('systems_id_seq', {rows})")
            for name, column in JSON_INDEXES.items():
                cursor.execute(f"CREATE INDEX {name} ON systems USING GIN ({column})")
            cursor.execute("ANALYZE")


def mark(store: Store, stage: str, first: int, last: int, owner: str, done: int) -> None:
    """Lines of units that others have."""
    with store._transaction() as cursor:
        cursor.execute(
            f"INSERT INTO langevin_xtal_work SELECT ?, unit, ?, {done}, NULL FROM "
            "langevin_xtal_work WHERE stage = 'sample' AND unit >= ? AND unit < ?",
            (stage, owner, first, last),
        )
        if store._is_postgres:  # as its autovacuum does within a minute
            cursor.execute("ANALYZE langevin_xtal_work")


def claims(store: Store, stage: str, units: Sequence[int]) -> dict[str, float]:
    """Milliseconds of one claim, the first and the fastest of the others, and settlements."""
    seconds, settling = [], []
    for k in range(CLAIMS):
        begin = time.perf_counter()
        claim = store.claim(stage, units, AT_ONCE)
        seconds.append(time.perf_counter() - begin)
        if k < SETTLED and claim.units:
            begin = time.perf_counter()
            store.settle_each(stage, {k: Change({"energy": -3.0}) for k in claim.units})
            settling.append((time.perf_counter() - begin) / len(claim.units))
    return {
        "first_claim_ms": round(1000 * seconds[0], 1),
        "claim_ms": round(1000 * min(seconds[1:]), 2),
        "units_claimed_per_second": round(AT_ONCE / min(seconds[1:])),
        "settled_per_second": round(1 / min(settling)),
    }


def timed(function: Callable[[], Any]) -> float:
    """Seconds, the fastest of three."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return round(min(seconds), 3)


def measure(address: str, rows: int) -> dict[str, Any]:
    """Writes and claims at so many rows."""
    settings = {"version": __version__, "elements": "Cl Na"}
    total = rows + WRITES * WRITTEN
    with Store(address, settings) as other, Store(address, settings) as store:
        found = {"rows": rows, "writes_per_second_empty": write(store, 0, SEED_ROWS, total)}
        multiply(store, rows)
        found["writes_per_second"] = write(store, rows, WRITES * WRITTEN, total)
        held = min(HELD, rows // 10)
        first = 9 * rows // 10 - held
        for kind, units in (("range", range(rows)), ("list", list(range(rows)))):
            mark(store, f"{kind} late", 0, first, "", 1)
            mark(store, f"{kind} late", first, first + held, other.owner, 0)
            for when in ("start", "late"):
                found[f"{kind}_{when}"] = claims(store, f"{kind} {when}", units)
    found["counts_seconds"] = timed(lambda: read_progress(address))
    found["best_seconds"] = timed(lambda: read_entries(address, top=20))
    if not address.startswith("postgresql"):
        found["bytes_per_row"] = round(os.path.getsize(address) / total)
    for name in ("writes_per_second_empty", "writes_per_second"):
        found[name] = round(found[name])
    return found


ASSUMED = {"sample_seconds": 1.0, "relax_seconds": 30.0, "relaxed_share": 0.1, "changes": 6}
"""Of a candidate on one core, and how often its row is changed; for the plan of a million."""


def million(databases: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What 10^6 candidates take, reckoned with the rates of the largest store measured."""
    count = 1_000_000
    hours = count / 3600
    cores = ASSUMED["sample_seconds"] + ASSUMED["relaxed_share"] * ASSUMED["relax_seconds"]
    plan: dict[str, Any] = {"assumed": ASSUMED, "core_hours": round(hours * cores)}
    for name, lines in databases.items():
        last = lines[-1]
        settled = min(last["range_start"]["settled_per_second"], last["writes_per_second"])
        changes = 1 + ASSUMED["relaxed_share"] * ASSUMED["changes"]
        write = hours / last["writes_per_second"] + changes * hours / settled
        plan[name] = {
            "from_rows": last["rows"],
            "hours_of_writing": round(write, 1),
            "cores_kept_busy": round(plan["core_hours"] / write),
        }
        if "bytes_per_row" in last:
            plan[name]["gigabytes"] = round(count * last["bytes_per_row"] / 1e9, 1)
    return plan


@click.command(help=__doc__)
@click.option("--rows", type=click.IntRange(min=SEED_ROWS), multiple=True, required=True)
@click.option("--postgres", is_flag=True, help="Also on PostgreSQL.")
@click.option("--before", type=click.Path(path_type=Path, exists=True), help="Of earlier code.")
@click.option("--note", default="", help="On the machine, such as: shared with other work.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(rows: tuple[int, ...], postgres: bool, before: Path | None, note: str, out: Path) -> None:
    databases: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        places: dict[str, Callable[[int], str]] = {"SQLite": lambda n: f"{folder}/{n}.db"}
        if postgres:
            server = stack.enter_context(running_server())
            if server is None:
                raise click.UsageError("no PostgreSQL server can be had here")
            places["PostgreSQL"] = lambda n: server.database(f"rows_{n}")
        for name, place in places.items():
            databases[name] = []
            for count in rows:
                line = measure(place(count), count)
                click.echo(f"{name} {json.dumps(line)}")
                databases[name].append(line)
                Path(f"{folder}/{count}.db").unlink(missing_ok=True)
    record = {
        "command": "python " + " ".join(sys.argv),
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        + (f", {note}" if note else ""),
        "databases": databases,
        "million": million(databases),
    }
    if before is not None:
        record["before"] = json.loads(before.read_text(encoding="utf-8"))["databases"]
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
