"""The stages of a campaign: what one process does of it, beside others."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.cache import Cache, SpareCache
from langevin_xtal.evaluation.duplicates import Known, group_duplicates
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.sampling.postprocess import Rejection
from langevin_xtal.sampling.sample import SampleOptions, choice_facts, sample_batches
from langevin_xtal.screen.filters import FilterOptions, reject_reason
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.phonons import PhononOptions, PhononResult, phonon_checks
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import Relaxation, RelaxOptions, relax_folded
from langevin_xtal.screen.release import (
    GROUP_SYMPRECS,
    ReleaseOptions,
    found_groups,
    judge,
    relax_released,
)
from langevin_xtal.search.allocation import Allocation
from langevin_xtal.search.entries import entry_of, rank_key
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import FINISHED, FINISHED_RELAXED, Change, Row, Store
from langevin_xtal.version import __version__

Progress = Callable[[str, int, int], None]
"""Called with the title of a stage, candidates (or pairs) done and in all."""

Work = Callable[[str, list[Row], Callable[[int], None]], None]
"""Does a stage, by its name, of some candidates, and is to say how many are done."""

POLL_SECONDS = 0.5
SAMPLING_SHARE = 0.5
"""Of the time allowed, when relaxation is to follow."""
AT_ONCE = {"filter": 200, "known": 64, "known relaxed": 64, "rank": 200}
"""Candidates claimed at a time."""
EACH_AT_ONCE = {"screen": 128, "relax": 32, "release": 16, "phonons": 4}
"""The same, for each worker; with a limit of time a quarter, of samples too."""
BROKEN = ", symmetry broken"
"""Added to the name of a stage that looks at another geometry than before."""
SWELLING = 0.25
"""Relative change of volume in relaxation that is worth a warning."""
SYMPREC, LOOSE = GROUP_SYMPRECS
"""Tolerances at which groups are detected [Å]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What there is to do; see :class:`~langevin_xtal.search.campaign.Campaign`."""

    space: SearchSpace
    allocation: Allocation  #: what each candidate asks for
    total: int  #: candidates in all
    seed: int
    model: CrystalModel
    sampling: SampleOptions
    filters: FilterOptions
    reference: PackedDataset | None
    relax: bool
    relax_best: int | None  #: relax no more than these, by their energy as sampled
    release_within: float  #: of the hull [eV/atom]; those above are not released
    relax_options: RelaxOptions
    release_options: ReleaseOptions
    hull: HullReferences | None
    phonons: int
    phonon_options: PhononOptions
    max_hours: float | None
    workers: int
    cache: str | os.PathLike[str] | None

    def request(self, index: int) -> Request:
        """What candidate ``index`` asks for."""
        return self.allocation.request(index)


def run_stages(plan: Plan, store: Store, progress: Progress | None = None) -> None:
    """Do what is left to do, from the first stage to the last."""
    _StageRun(plan, store, progress or (lambda title, done, planned: None)).all_stages()


@dataclass
class _StageRun:
    """One process's share of a plan."""

    plan: Plan
    store: Store
    report: Progress

    def __post_init__(self) -> None:
        self.begin = time.monotonic()

    def all_stages(self) -> None:
        """From the first to the last; each waits for what other processes still do."""
        self._work()
        if not self._late():
            plan = self.plan
            stage = FINISHED_RELAXED if plan.relax else FINISHED
            self._at_once(stage, lambda: (plan.total, dict))

    def _work(self) -> None:
        plan = self.plan
        self._sample()
        self._each("filter", "filtering", self._with_cells(), self._filter)
        self._compare("duplicates", "comparing", "duplicate_of")
        if plan.reference is not None:
            self._each("known", "looking up", self._left(), self._look_up)
        if not plan.relax:
            return
        if plan.relax_best is not None:
            self._each("screen", "energies", self._left(), self._screen)
        self._each("relax", "relaxing", self._to_relax(), self._relax)
        self._compare("merge", "comparing relaxed", "same_as")
        self._each("release", "releasing", self._to_release(), self._release)
        self._compare("merge released", "comparing released", "same_released")
        if plan.reference is not None:
            rows = self.store.rows(self._relaxed())
            unknown = [row.index for row in rows if not row.facts.get("known")]
            self._again("known relaxed", "looking up relaxed", unknown, self._look_up)
        self._again("rank", "ranking", self._relaxed(), self._rank)
        self._rank_together()
        if plan.phonons:
            self._again("phonons", "phonons", self._best(plan.phonons), self._phonons)

    # -- which candidates

    def _with_cells(self) -> list[int]:
        return [row.index for row in self.store.rows() if row.sampled is not None]

    def _left(self) -> list[int]:
        return [r.index for r in self.store.rows() if r.state not in ("rejected", "duplicate")]

    def _relaxed(self) -> list[int]:
        left = set(self._left())
        return [r.index for r in self.store.rows() if r.index in left and "energy" in r.facts]

    def _best(self, count: int) -> list[int]:
        rows = self.store.rows(self._relaxed())
        return [row.index for row in sorted(rows, key=lambda r: rank_key(entry_of(r)))[:count]]

    def _to_relax(self) -> list[int]:
        """What is left; or of it the lowest above the hull of all, as sampled."""
        count = self.plan.relax_best
        if count is None:
            return self._left()
        rows = [
            r for r in self.store.rows(self._left()) if r.facts.get("energy_sampled") is not None
        ]
        energy = [float(row.facts["energy_sampled"]) for row in rows]
        # without a hull, the lowest energies
        key = np.nan_to_num(self._above_all(rows, energy), nan=math.inf)
        return [rows[k].index for k in np.lexsort((np.array(energy), key))[:count]]

    def _to_release(self) -> list[int]:
        """Those different with symmetry kept, and near the hull of all, or without a hull."""
        rows = [
            row
            for row in self.store.rows()
            if row.facts.get("same_as") == -1 and not row.facts.get("reason")
        ]
        above = self._above_all(rows, [float(row.facts["energy_kept"]) for row in rows])
        far = above > self.plan.release_within  # not where it is NaN
        return [row.index for row, out in zip(rows, far, strict=True) if not out]

    def _above_all(self, rows: Sequence[Row], energy: Sequence[float]) -> NDArray[np.float64]:
        """(N,) energies above the hull of references and rows [eV/atom], NaN where unknown."""
        hull, _ = self._hull
        if hull is None:
            return np.full(len(rows), np.nan)
        potential = load_potential(self.plan.relax_options.potential)
        cells = [_geometry(row) for row in rows]
        compared = [
            hull.energy_for(cell, value, potential)
            for cell, value in zip(cells, energy, strict=True)
        ]
        return hull.above_all([cell[2] for cell in cells], compared)

    # -- how work is shared

    def _late(self, share: float = 1.0) -> bool:
        hours = self.plan.max_hours
        return hours is not None and time.monotonic() - self.begin > share * hours * 3600

    def _each(
        self,
        stage: str,
        title: str,
        units: Sequence[int],
        work: Work,
    ) -> None:
        """``work`` of every candidate, by one of all processes; slow work only in time."""
        kind = stage.removesuffix(BROKEN)
        slow, most = kind in EACH_AT_ONCE, AT_ONCE.get(kind, 1)
        if slow:
            limited = self.plan.max_hours is not None
            most = EACH_AT_ONCE[kind] * self.plan.workers // (4 if limited else 1)
        while not (slow and self._late()):
            claim = self.store.claim(stage, units, most)
            self.report(title, claim.done, len(units))
            if claim.units:
                done = claim.done
                work(
                    stage,
                    self.store.rows(claim.units),
                    lambda more, done=done: self.report(title, done + more, len(units)),  # type: ignore[misc]
                )
            elif claim.left == 0:
                return
            else:
                time.sleep(POLL_SECONDS)

    def _again(
        self,
        stage: str,
        title: str,
        units: Sequence[int],
        work: Work,
    ) -> None:
        """As :meth:`_each`; once more where symmetry broke after a run that had no more time."""
        rows = self.store.rows(units)
        broken = {row.index for row in rows if row.facts.get("symmetry_broke")}
        self._each(stage, title, [k for k in units if k not in broken], work)
        self._each(stage + BROKEN, title, [k for k in units if k in broken], work)

    def _at_once(
        self, stage: str, look: Callable[[], tuple[int, Callable[[], dict[int, Change]]]]
    ) -> None:
        """A stage of all candidates in one go, by one process, whenever there are others.

        ``look`` tells a number that grows whenever there are others, and what to do then.
        """
        while True:
            unit, changes = look()
            units, waited = [unit], False
            while not (claim := self.store.claim(stage, units, 1)).units and claim.left:
                time.sleep(POLL_SECONDS)
                waited = True
            if claim.units:
                start = time.perf_counter()
                self.store.settle_all(stage, unit, changes(), time.perf_counter() - start)
            elif not waited:
                return

    def _compare(self, stage: str, title: str, fact: str) -> None:
        """Mark candidates equal to an earlier one."""

        def look() -> tuple[int, Callable[[], dict[int, Change]]]:
            rows, cells, unit = self._to_compare(stage)
            return unit, lambda: self._equal(rows, cells, title, fact)

        self._at_once(stage, look)

    def _equal(
        self, rows: Sequence[Row], cells: Sequence[Cell], title: str, fact: str
    ) -> dict[int, Change]:
        first = group_duplicates(
            cells,
            cache=self._cache,
            workers=self.plan.workers,
            progress=lambda done, planned: self.report(title, done, planned),
        )
        changes = {}
        for k, row in enumerate(rows):
            same = -1 if first[k] == k else rows[first[k]].index
            if row.facts.get(fact) != same:
                changes[row.index] = Change({fact: same})
        return changes

    def _to_compare(self, stage: str) -> tuple[list[Row], list[Cell], int]:
        """Candidates and cells to compare, and a number that grows whenever there are others.

        Relaxed candidates are compared as they were with their symmetry kept, so that who is
        released does not depend on who was released before.
        """
        rows = self.store.rows()
        passed = [row for row in rows if row.facts.get("filtered")]
        if stage == "duplicates":
            return passed, [_geometry(row) for row in passed], len(passed)
        tried = [row for row in passed if "energy" in row.facts or row.facts.get("reason")]
        unique = [row for row in tried if row.facts.get("duplicate_of", -1) == -1]
        relaxed = [row for row in unique if not row.facts.get("reason")]
        if stage == "merge":
            return relaxed, [row.kept or _geometry(row) for row in relaxed], len(passed + tried)
        apart = [row for row in relaxed if row.facts.get("same_as") == -1]
        released = sum("note" in row.facts for row in apart)
        return apart, [_geometry(row) for row in apart], len(passed + tried) + released

    # -- sampling

    def _sample(self) -> None:
        plan, options = self.plan, self.plan.sampling
        units = range(plan.total)
        most = options.batch_size * (options.workers or os.cpu_count() or 1)
        if plan.max_hours is not None:
            most = math.ceil(most / 4)
        share = SAMPLING_SHARE if plan.relax else 1.0
        while not self._late(share):
            claim = self.store.claim("sample", units, most)
            self.report("sampling", claim.done, len(units))
            if claim.units:
                self._sample_some(claim.units, claim.done)
            elif claim.left == 0:
                return
            else:
                time.sleep(POLL_SECONDS)

    def _sample_some(self, indices: list[int], before: int) -> None:
        plan = self.plan
        shown = before

        def show(done: int, planned: int) -> None:
            nonlocal shown
            # levels of batches stand for candidates; retries add levels, so never count down
            shown = max(shown, before + len(indices) * done // max(planned, 1))
            self.report("sampling", shown, plan.total)

        start = time.perf_counter()
        last = plan.sampling.attempts - 1
        for outcome in sample_batches(
            [plan.request(k) for k in indices],
            plan.model,
            plan.seed,
            indices=indices,
            options=plan.sampling,
            progress=show,
        ):
            rows = [_sampled(candidate) for candidate in outcome.candidates]
            rows += [self._given_up(r) for r in outcome.rejections if r.attempt == last]
            seconds, start = time.perf_counter() - start, time.perf_counter()
            self.store.add(rows, seconds)

    def _given_up(self, rejection: Rejection) -> Row:
        plan = self.plan
        return Row(
            index=rejection.index,
            request=str(rejection.request),
            group=rejection.request.space_group.number,
            sampled=None,
            facts={
                "attempt": rejection.attempt,
                "reason": f"no candidate after {rejection.attempt + 1} attempts; the last: "
                + rejection.reason,
            },
            provenance={
                "model": plan.model.name,
                "weights": plan.model.hash,
                "version": __version__,
                "sampler": repr(plan.sampling.sampler),
                "index": rejection.index,
                "seed": plan.seed,
                **choice_facts(rejection.request),
            },
        )

    # -- the other stages

    def _filter(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        start = time.perf_counter()
        changes = {}
        for k, row in enumerate(rows):
            reason = reject_reason(_geometry(row), self.plan.filters)
            changes[row.index] = Change({"reason": reason} if reason else {"filtered": True})
            show(k + 1)
        self.store.settle_each(stage, changes, time.perf_counter() - start)

    def _look_up(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        start = time.perf_counter()
        found = self._known.match(
            [_geometry(row) for row in rows],
            cache=self._cache,
            workers=self.plan.workers,
        )
        changes = {
            row.index: Change({"known": name}) for row, name in zip(rows, found, strict=True)
        }
        self.store.settle_each(stage, changes, time.perf_counter() - start)
        show(len(rows))

    @cached_property
    def _known(self) -> Known:
        assert self.plan.reference is not None
        return Known(self.plan.reference)

    @cached_property
    def _cache(self) -> Cache:
        return SpareCache(self.plan.cache)

    def _screen(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        still = replace(self.plan.relax_options, steps=0)
        relax = partial(relax_folded, options=still)
        self._keep(stage, rows, relax, lambda row, result: _screened_change(result), show)

    def _relax(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        version = load_potential(self.plan.relax_options.potential).version
        relax = partial(relax_folded, options=replace(self.plan.relax_options, keep_symmetry=True))
        self._keep(
            stage, rows, relax, lambda row, result: _relaxed_change(row, result, version), show
        )

    def _release(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        plan = self.plan
        release = partial(relax_released, options=plan.relax_options, release=plan.release_options)
        tolerance = plan.release_options.tolerance
        self._keep(
            stage,
            rows,
            release,
            lambda row, result: _released_change(row, result, tolerance),
            show,
        )

    def _phonons(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        options = replace(self.plan.phonon_options, potential=self.plan.relax_options.potential)
        check = partial(phonon_checks, options=options)
        self._keep(stage, rows, check, lambda row, result: _phonon_change(result), show)

    def _keep(
        self,
        stage: str,
        rows: list[Row],
        batch: Callable[..., list[Any]],
        change: Callable[[Row, Any], Change],
        show: Callable[[int], None],
    ) -> None:
        """Store results of a slow batch as they come."""
        start = time.perf_counter()
        of = {row.index: row for row in rows}

        def deliver(results: Mapping[int, Any]) -> None:
            nonlocal start
            seconds, start = time.perf_counter() - start, time.perf_counter()
            changes = {index: change(of[index], result) for index, result in results.items()}
            self.store.settle_each(stage, changes, seconds)

        batch(
            [_geometry(row) for row in rows],
            cache=_AsTheyCome(rows, batch, deliver),
            workers=self.plan.workers,
            progress=lambda done, planned: show(done),
        )

    def _rank(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        start = time.perf_counter()
        hull, missing = self._hull
        options = self.plan.relax_options
        changes = {}
        for k, row in enumerate(rows):
            facts: dict[str, Any] = {"ranked": True, "hull_reason": missing or None}
            if hull is not None:
                cell, potential = _geometry(row), load_potential(options.potential)
                energy = hull.energy_for(cell, float(row.facts["energy"]), potential)
                result = hull.energy_above_hull(cell[2], energy)
                facts["e_above_hull"] = result.e_above_hull
                facts["hull_reason"] = result.missing or None
                facts["hull_phases"] = " + ".join(
                    f"{share:.3g} {name}" for name, share in result.phases.items()
                )
            changes[row.index] = Change(facts)
            show(k + 1)
        self.store.settle_each(stage, changes, time.perf_counter() - start)

    def _rank_together(self) -> None:
        """Energies above the hull of references and candidates."""

        def look() -> tuple[int, Callable[[], dict[int, Change]]]:
            rows = [row for row in self.store.rows(self._relaxed()) if row.facts.get("ranked")]
            unit = len(rows) + sum("note" in row.facts for row in rows)
            return unit, lambda: self._together(rows)

        self._at_once("rank together", look)

    def _together(self, rows: Sequence[Row]) -> dict[int, Change]:
        above = self._above_all(rows, [float(row.facts["energy"]) for row in rows])
        return {
            row.index: Change({"e_above_all": None if math.isnan(value) else value})
            for row, value in zip(rows, above.tolist(), strict=True)
        }

    @cached_property
    def _hull(self) -> tuple[HullReferences | None, str]:
        plan = self.plan
        if plan.hull is not None:
            return plan.hull, ""
        potential = plan.relax_options.potential
        try:
            return HullReferences.shipped(potential), ""
        except InputError:
            return None, f"no hull references for {potential}"


class _AsTheyCome:
    """Takes results as a cache would, and hands each on at once, so that none is lost."""

    def __init__(
        self,
        rows: Sequence[Row],
        batch: Callable[..., list[Any]],
        deliver: Callable[[Mapping[int, Any]], None],
    ) -> None:
        self.batch, self.deliver = batch, deliver
        self.rows: dict[str, list[Row]] = {}
        for row in rows:
            self.rows.setdefault(cell_key(_geometry(row)), []).append(row)
        self.values: dict[str, Any] = {}

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, Any]:
        """What was put."""
        return {key: self.values[key] for key in keys if key in self.values}

    def put(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take results by cell, and deliver them by candidate."""
        self.values |= values
        cells = [_geometry(self.rows[key][0]) for key in values]
        results = self.batch(cells, cache=self, workers=1)  # computes nothing: all are here
        self.deliver(
            {
                row.index: result
                for key, result in zip(values, results, strict=True)
                for row in self.rows[key]
            }
        )


def _geometry(row: Row) -> Cell:
    assert row.cell is not None, row.uid
    return row.cell


def _sampled(candidate: Candidate) -> Row:
    numbers = candidate.numbers[candidate.atom_site]
    return Row(
        index=candidate.index,
        request=str(candidate.request),
        group=candidate.space_group.number,
        sampled=(candidate.lattice, candidate.atom_frac, numbers),
        facts={
            "found_group": candidate.detected[SYMPREC],
            "min_distance": candidate.min_distance,
            "attempt": candidate.attempt,
        },
        provenance={k: v for k, v in candidate.provenance.items() if k != "request"},
    )


def _screened_change(result: Relaxation) -> Change:
    if result.reason:
        return Change({"reason": f"energy failed: {result.reason}"})
    return Change({"energy_sampled": result.energy})


def _relaxed_change(row: Row, result: Relaxation, version: str) -> Change:
    if result.reason:
        return Change({"reason": f"relaxation failed: {result.reason}"})
    groups = found_groups(result.cell)
    return Change(
        {
            "energy": result.energy,
            "energy_sampled": result.start_energy,
            "energy_kept": result.energy,
            "found_group": groups[SYMPREC],
            "found_group_0.1": groups[LOOSE],
            "found_kept": groups[SYMPREC],
            "converged": result.converged,
            "converged_kept": result.converged,
            "steps": result.steps,
            "potential": version,
            "warning": swelling(row.sampled, result.cell),
        },
        kept=result.cell,
    )


def _released_change(row: Row, released: Relaxation, tolerance: float) -> Change:
    assert row.kept is not None, row.uid
    kept = Relaxation(
        cell=row.kept,
        energy=float(row.facts["energy_kept"]),
        start_energy=float(row.facts["energy_sampled"]),
        steps=int(row.facts["steps"]),
        converged=bool(row.facts["converged_kept"]),
        max_force=math.nan,
        max_stress=math.nan,
    )
    both = judge(kept, released, {}, tolerance)
    groups = both.groups_released if both.broke else both.groups_kept
    return Change(
        {
            "energy": both.best.energy,
            "energy_released": None if released.reason else released.energy,
            "found_group": groups[SYMPREC],
            "found_group_0.1": groups[LOOSE],
            "found_released": both.groups_released[SYMPREC] or None,
            "symmetry_broke": both.broke,
            "note": both.note,
            "warning": swelling(row.sampled, both.best.cell),
            "converged": both.best.converged,
            "steps_released": released.steps,
        },
        released=None if released.reason else released.cell,
    )


def swelling(sampled: Cell | None, relaxed: Cell) -> str:
    """What relaxation did to the volume, if it is more than :data:`SWELLING`; else empty.

    Layers that drift apart, for want of dispersion forces in the potential, look like this.
    """
    if sampled is None:
        return ""
    change = abs(np.linalg.det(relaxed[0])) / abs(np.linalg.det(sampled[0])) - 1.0
    return f"volume {100 * change:+.0f} % in relaxation" if abs(change) > SWELLING else ""


def _phonon_change(result: PhononResult) -> Change:
    facts: dict[str, Value | None] = {"phonons": result.note}
    if not result.reason:
        facts |= {"imaginary": result.imaginary, "phonon_minimum": result.minimum}
    return Change(facts)
