"""``langevin-xtal campaign``: searches of many chemical systems, from one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import Pace, duration, echo, lines
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.cluster import DaskEngine
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.report.systems import MapCell
    from langevin_xtal.search.systems import Outcome, Systems, SystemState

SHOWN = 20
SYSTEMS_TABLE, CANDIDATES_TABLE, MAP = "systems.csv", "candidates.csv", "systems.svg"

file = click.argument("file", type=options.LocalPath(exists=True, dir_okay=False))


@click.group()
def campaign() -> None:
    """Search many chemical systems, as a campaign file lists them.

    \b
    A campaign file (TOML), here for all ternaries of five elements:
      store = "stores"             # a folder, or postgresql://...
      elements = ["Li", "Na", "Si", "Ge", "P"]
      sizes = [3]
      samples = 200                # for each system
      relax = true
    """


@campaign.command()
@file
@click.option(
    "--workers",
    type=click.IntRange(1, options.MOST_WORKERS),
    help="Processes of this computer for each system; with dask a worker takes a system whole.  "
    "[default: one per CPU]",
    metavar="N",
)
@click.option(
    "--part",
    metavar="K/N",
    help="Begin at the K-th of N shares of the list (K from 0), as job arrays do.  [default: that "
    "of SLURM's job array, if there is one]",
)
@options.engine
def run(
    file: Path,
    workers: int | None,
    part: str | None,
    engine: str,
    scheduler: str | None,
    cluster: Path | None,
) -> None:
    """Search all systems of FILE; stop it at any time, and the same command goes on.

    Start it as often as there are computers, as tasks of a job array or with --engine dask: every
    process takes part, and nothing is computed twice.

    \b
    Examples:
      langevin-xtal campaign run campaign.toml
      langevin-xtal campaign run campaign.toml --engine dask --cluster slurm.toml
      sbatch --array=0-9 --wrap "langevin-xtal campaign run campaign.toml --workers 8"
    """
    from langevin_xtal.search.systems import load_systems

    systems = load_systems(file)
    systems.prepare(systems.names[0])  # a place that cannot be used is said at once
    share = _part(part)
    echo(f"{len(systems.names)} systems")
    failed = 0
    with options.chosen_engine(engine, scheduler, cluster) as workers_of:
        if workers_of is None:
            outcomes = _here(systems, share, workers)
        else:
            if workers is not None or part is not None:
                raise InputError("--workers and --part are for --engine local")
            outcomes = _there(systems, workers_of)
        with closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                failed += bool(outcome.problem)
                _say(systems, outcome)
    states = systems.states()
    finished = sum(state.finished for state in states)
    echo(f"{finished} of {len(states)} systems finished")
    if failed and not finished:
        raise LangevinXtalError("no system could be searched; the lines above say why")
    if finished < len(states):
        echo("the same command goes on with the others")


def _here(systems: Systems, share: tuple[int, int], workers: int | None) -> Iterator[Outcome]:
    from langevin_xtal.search.systems import search_system

    until = systems.deadline()
    for name in systems.order(*share):
        with options.stage_bars(name) as progress:
            outcome = search_system(systems, name, workers, progress, until=until)
        yield outcome


def _there(systems: Systems, engine: DaskEngine) -> Iterator[Outcome]:
    """By the workers of a scheduler, a system each; with a line from time to time."""
    from langevin_xtal.search.systems import search_system

    names = [state.name for state in systems.states() if not state.finished]
    search = partial(search_system, systems, workers=1, until=systems.deadline())
    pace = Pace()
    pace.update("systems", 0, len(names))

    def line() -> str:
        try:
            return f"{pace()}; {engine.workers()} workers"
        except LangevinXtalError as error:  # said again by whoever waits for results
            return str(error)

    with lines(line):
        results = engine.as_done(search, names, on_gpu=partial(search, only_sample=True))
        with closing(results):  # type: ignore[type-var]
            for done, (_, outcome) in enumerate(results, start=1):
                pace.update("systems", done, len(names))
                yield outcome


def _say(systems: Systems, outcome: Outcome) -> None:
    if outcome.passed_over:
        return
    if outcome.problem:
        echo(f"{outcome.name}: {outcome.problem}", err=True)
        return
    state = systems.state(outcome.name)
    echo(f"{outcome.name}: {_counts(state)} ({outcome.seconds:.0f} s)")


@campaign.command()
@file
def status(file: Path) -> None:
    """How far the systems of FILE are, at what rate, and what failed; writes nothing.

    \b
    Example:
      langevin-xtal campaign status campaign.toml
    """
    from langevin_xtal.search.systems import load_systems

    states = load_systems(file).states()
    for state in states:
        if state.problem:
            echo(f"{state.name}: {state.problem}")
        elif state.states and not state.finished:
            echo(f"{state.name}: {_counts(state)}")
    finished = [state for state in states if state.finished]
    begun = [state for state in states if state.states]
    seconds = sum(state.seconds for state in states)
    sampled, planned = sum(s.sampled for s in states), sum(s.planned for s in states)
    echo(
        f"{len(finished)} of {len(states)} systems finished, {len(begun) - len(finished)} begun; "
        f"{sampled} of {planned} candidates, {duration(seconds)} of computing"
    )
    if finished:
        each = sum(state.seconds for state in finished) / len(finished)
        echo(
            f"{duration(each)} of computing a system; about "
            f"{duration(each * (len(states) - len(finished)))} left for one worker"
        )


@campaign.command()
@file
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True,
    help="Candidates of each system.", metavar="N",
)  # fmt: skip
@options.output_folder("campaign-report")
@structures.force
def report(file: Path, top: int, out: Path, force: bool) -> None:
    """The systems of FILE beside each other, and the best candidates of all.

    Writes systems.csv, a line for each system, candidates.csv, the best of each system ranked
    together, by energy above the hull where they were relaxed, and systems.svg, a map of the
    systems with the lowest of each.

    \b
    Example:
      langevin-xtal campaign report campaign.toml --top 3 --out report/
    """
    from langevin_xtal.report.systems import draw_systems
    from langevin_xtal.search.campaign import ranked_table
    from langevin_xtal.search.entries import rank_key
    from langevin_xtal.search.systems import load_systems

    systems = load_systems(file)
    states = systems.states()
    best: dict[str, list[Entry]] = {
        state.name: systems.best(state.name, top) for state in states if _left(state)
    }
    if not any(state.states or state.problem for state in states):
        raise InputError(f"no system of {file} was begun: run langevin-xtal campaign run {file}")
    for name in (SYSTEMS_TABLE, CANDIDATES_TABLE, MAP):
        if (out / name).exists() and not force:
            raise InputError(f"{out / name} exists; give another folder, or --force to replace it")
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for state in states:
        first = next(iter(best.get(state.name, [])), None)
        rows.append(
            {
                "system": state.name,
                "finished": "yes" if state.finished else "no",
                "candidates": str(state.sampled),
                "left": str(_left(state)),
                "seconds": f"{state.seconds:.0f}",
                "best": first.formula if first else "",
                "group": _number(first.found_group) if first else "",
                "e_above_hull": _number(first.e_above_hull) if first else "",
                "problem": state.problem,
            }
        )
    structures.write_table(out / SYSTEMS_TABLE, rows)
    pairs = sorted(
        ((name, entry) for name, entries in best.items() for entry in entries),
        key=lambda pair: (rank_key(pair[1]), pair[0]),
    )
    table = ranked_table([entry for _, entry in pairs])
    lines = []
    for (name, _), (rank, line) in zip(pairs, table.iterrows(), strict=True):
        values = {key: _number(value) for key, value in line.items()}
        lines.append({"rank": str(rank), "system": name, **values})
    structures.write_table(out / CANDIDATES_TABLE, lines)
    shown = ("rank", "system", "formula", "group", "found_group", "e_above_hull", "known")
    structures.show_table(lines[:SHOWN], shown, out / CANDIDATES_TABLE)
    if not draw_systems([_cell(state, best.get(state.name, [])) for state in states], out / MAP):
        echo(f"{len(states)} systems are too many for a map", err=True)
    echo(f"{len(best)} of {len(states)} systems in {out}")


def _cell(state: SystemState, best: list[Entry]) -> MapCell:
    from langevin_xtal.report.systems import map_cell

    return map_cell(
        state.name,
        best,
        begun=bool(state.states),
        finished=state.finished,
        left=_left(state),
        problem=state.problem,
    )


def _part(text: str | None) -> tuple[int, int]:
    """Share of the list and number of shares, from ``K/N`` or SLURM's job array."""
    if text is None:
        task, count = (os.environ.get(f"SLURM_ARRAY_TASK_{n}", "") for n in ("ID", "COUNT"))
        first = os.environ.get("SLURM_ARRAY_TASK_MIN", "0")
        if not all(value.isdecimal() for value in (task, count, first)):
            return 0, 1
        return (int(task) - int(first)) % max(int(count), 1), int(count)
    share, slash, parts = text.partition("/")
    if not (slash and share.isdecimal() and parts.isdecimal() and int(share) < int(parts)):
        raise InputError(f"--part {text!r} should be like 0/4: the first of four shares")
    return int(share), int(parts)


def _left(state: SystemState) -> int:
    return state.sampled - sum(state.states.get(k, 0) for k in ("rejected", "duplicate"))


def _counts(state: SystemState) -> str:
    ranked = state.states.get("ranked", 0) + state.states.get("phonons", 0)
    text = f"{state.sampled} of {state.planned} candidates, {_left(state)} left"
    return f"{text}, {ranked} ranked" if ranked else text


def _number(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
