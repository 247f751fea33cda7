"""How the work of a campaign is shared: one process's part of it, beside others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import (
    FilterOptions,
    PhononOptions,
    RelaxOptions,
    ReleaseOptions,
)
from langevin_xtal.config.search import SearchConfig
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.properties import Window, windows_of
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.cache import Cache, SpareCache
from langevin_xtal.evaluation.duplicates import Known
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.properties import PropertyModel
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.search.allocation import Allocation
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import Change, Row, Store

R = TypeVar("R")

Progress = Callable[[str, int, int], None]
"""Called with the title of a stage, candidates (or pairs) done and in all."""
Show = Callable[[int], None]
"""Called with the number of candidates done of those handed out."""
Keep = Callable[[Mapping[int, Change]], None]
"""Called with what was found of candidates, by index; it is stored at once."""

POLL_SECONDS = 0.5
BROKEN, COMPLETED = ", symmetry broken", ", finished"
"""Added to the name of a stage that looks at another geometry than before."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of a search that looks at candidates one by one; any process may look at any.

    What is found of a candidate depends on the candidate alone.
    """

    name: str  #: in the store
    title: str  #: to be shown
    units: Callable[[Run], Sequence[int]]  #: the candidates, by index
    work: Callable[[Run, list[Row], Keep, Show], None]
    wanted: Callable[[Plan], bool] = lambda plan: True
    at_once: int = 64  #: candidates claimed at a time; of slow work for each worker
    slow: bool = False  #: begun only while there is time
    again: bool = False
    """Once more where a relaxation was finished or symmetry broke after a run that had no more
    time."""
    suffix: Callable[[Run], str] = lambda run: ""
    """Added to the name where a run looks at all candidates anew."""

    def run(self, run: Run) -> None:
        """Take part until every candidate has been looked at, or time is up."""
        name, units = self.name + self.suffix(run), self.units(run)
        if not self.again:
            self._each(run, name, units)
            return
        changed = {}
        for row in run.store.rows(units):
            if row.fact("symmetry_broke"):
                changed[row.index] = BROKEN
            elif row.fact("ended_early") is False:
                changed[row.index] = COMPLETED
        for suffix in ("", COMPLETED, BROKEN):
            self._each(run, name + suffix, [k for k in units if changed.get(k, "") == suffix])

    def _each(self, run: Run, name: str, units: Sequence[int]) -> None:
        most = self.at_once
        if self.slow:
            limited = run.plan.config.max_hours is not None
            most = most * run.plan.workers // (4 if limited else 1)
        while not (self.slow and run.is_late()):
            claim = run.store.claim(name, units, most)
            run.report(self.title, claim.done, len(units))
            if claim.units:
                done, start = claim.done, time.perf_counter()

                def keep(changes: Mapping[int, Change]) -> None:
                    nonlocal start
                    seconds, start = time.perf_counter() - start, time.perf_counter()
                    run.store.settle_each(name, changes, seconds)

                def show(more: int, done: int = done) -> None:
                    run.report(self.title, done + more, len(units))

                self.work(run, run.store.rows(claim.units), keep, show)
            elif claim.left == 0:
                return
            else:
                time.sleep(POLL_SECONDS)


@dataclass(frozen=True, kw_only=True)
class JointStage:
    """A step that looks at all candidates together: by one process, whenever there are others."""

    name: str
    look: Callable[[Run], tuple[int, Callable[[], Mapping[int, Change]]]]
    """Gives a number that grows whenever there are others, and what to do then."""
    wanted: Callable[[Plan], bool] = lambda plan: True

    def run(self, run: Run) -> None:
        """Do it, or wait for the process that does."""
        while True:
            unit, changes = self.look(run)
            units, waited = [unit], False
            while not (claim := run.store.claim(self.name, units, 1)).units and claim.left:
                time.sleep(POLL_SECONDS)
                waited = True
            if claim.units:
                start = time.perf_counter()
                run.store.settle_all(self.name, unit, changes(), time.perf_counter() - start)
            elif not waited:
                return


@dataclass(frozen=True)
class ExtraStage:
    """A step of the user's own: numbers or texts of a geometry, which become columns."""

    name: str  #: ``module:attribute``
    judge: Callable[[Cell], Mapping[str, Value]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What there is to do; see :class:`~langevin_xtal.search.campaign.Campaign`."""

    config: SearchConfig
    space: SearchSpace
    allocation: Allocation  #: what each candidate asks for
    total: int  #: candidates in all
    model: CrystalModel
    sampling: SampleOptions
    filters: FilterOptions
    reference: PackedDataset | None
    relax_options: RelaxOptions
    release_options: ReleaseOptions
    hull: HullReferences | None
    phonon_options: PhononOptions
    properties: PropertyModel | None  #: that predicts properties of candidates
    windows: tuple[Window, ...]  #: of the target
    extra: tuple[ExtraStage, ...]  #: stages of the user's own
    workers: int
    cache: str | os.PathLike[str] | None

    def request(self, index: int) -> Request:
        """What candidate ``index`` asks for."""
        return self.allocation.request(index)


@dataclass
class Run:
    """One process's share of a plan."""

    plan: Plan
    store: Store
    report: Progress

    def __post_init__(self) -> None:
        self._begin = time.monotonic()

    def is_late(self, share: float = 1.0) -> bool:
        """Whether more than this share of the time allowed has passed."""
        hours = self.plan.config.max_hours
        return hours is not None and time.monotonic() - self._begin > share * hours * 3600

    # -- which candidates

    def with_cells(self) -> list[int]:
        """Those that sampling ended in a crystal for."""
        return [row.index for row in self.store.rows() if row.sampled is not None]

    def left(self) -> list[int]:
        """Those neither rejected nor equal to another."""
        return [r.index for r in self.store.rows() if r.state not in ("rejected", "duplicate")]

    def relaxed(self) -> list[int]:
        """Of those left, the relaxed ones."""
        left = set(self.left())
        return [r.index for r in self.store.rows() if r.index in left and "energy" in r.facts]

    # -- what stages share

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Of the target, if not of this run then of an earlier one."""
        stored = self.store.settings.get("target")
        return self.plan.windows or (windows_of(stored) if stored else ())

    @cached_property
    def known(self) -> Known:
        """The reference, ready to be compared with."""
        assert self.plan.reference is not None
        return Known(self.plan.reference)

    @cached_property
    def cache(self) -> Cache:
        """Of comparisons."""
        return SpareCache(self.plan.cache)

    @cached_property
    def hull(self) -> tuple[HullReferences | None, str]:
        """References for the energy above hull, or why there are none."""
        plan = self.plan
        if plan.hull is not None:
            return plan.hull, ""
        potential = plan.relax_options.potential
        try:
            return HullReferences.shipped(potential), ""
        except InputError:
            return None, f"no hull references for {potential}"

    def limits(self, rows: Sequence[Row]) -> dict[str, float]:
        """Energies [eV/atom] that relaxations are to come below, by key of the cell.

        None for cells of which the hull is unknown.
        """
        hull, _ = self.hull
        if hull is None:
            return {}
        potential = load_potential(self.plan.relax_options.potential)
        within = self.plan.config.ended_beyond
        found = {}
        for cell in map(geometry, rows):
            zero = hull.energy_for(cell, 0.0, potential)  # what is added to each energy
            above = hull.energy_above_hull(cell[2], zero).e_above_hull
            if above is not None:
                found[cell_key(cell)] = within - above
        return found

    def above_all(self, rows: Sequence[Row], energy: Sequence[float]) -> NDArray[np.float64]:
        """(N,) energies above the hull of references and rows [eV/atom], NaN where unknown."""
        hull, _ = self.hull
        if hull is None:
            return np.full(len(rows), np.nan)
        potential = load_potential(self.plan.relax_options.potential)
        cells = [geometry(row) for row in rows]
        compared = [
            hull.energy_for(cell, value, potential)
            for cell, value in zip(cells, energy, strict=True)
        ]
        return hull.above_all([cell[2] for cell in cells], compared)


def keep_as_they_come(
    run: Run,
    rows: list[Row],
    batch: Callable[..., list[R]],
    change: Callable[[Row, R], Change],
    keep: Keep,
    show: Show,
) -> None:
    """Do slow work of many geometries, of which each result is stored as it comes.

    Parameters
    ----------
    batch
        Takes cells and ``cache``, ``workers`` and ``progress``, and puts each result in the cache.
    change
        What a result means for its candidate.
    """
    of = {row.index: row for row in rows}

    def deliver(results: Mapping[int, R]) -> None:
        keep({index: change(of[index], result) for index, result in results.items()})

    batch(
        [geometry(row) for row in rows],
        cache=_AsTheyCome(rows, batch, deliver),
        workers=run.plan.workers,
        progress=lambda done, planned: show(done),
    )


class _AsTheyCome(Generic[R]):
    """Takes results as a cache would, and hands each on at once, so that none is lost."""

    def __init__(
        self,
        rows: Sequence[Row],
        batch: Callable[..., list[R]],
        deliver: Callable[[Mapping[int, R]], None],
    ) -> None:
        self.batch, self.deliver = batch, deliver
        self.rows: dict[str, list[Row]] = {}
        for row in rows:
            self.rows.setdefault(cell_key(geometry(row)), []).append(row)
        self.values: dict[str, object] = {}

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, object]:
        """What was put."""
        return {key: self.values[key] for key in keys if key in self.values}

    def put(self, kind: str, values: Mapping[str, object]) -> None:
        """Take results by cell, and deliver them by candidate."""
        self.values |= values
        cells = [geometry(self.rows[key][0]) for key in values]
        results = self.batch(cells, cache=self, workers=1)  # computes nothing: all are here
        self.deliver(
            {
                row.index: result
                for key, result in zip(values, results, strict=True)
                for row in self.rows[key]
            }
        )


def geometry(row: Row) -> Cell:
    """The best geometry of a candidate that has one."""
    assert row.cell is not None, row.uid
    return row.cell
