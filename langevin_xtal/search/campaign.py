"""Searching a space: sample, filter, compare, relax, rank; stopped and continued at will.

Candidate k of a campaign asks for request ``schedule[k % N]`` of its space
(:meth:`~langevin_xtal.search.space.SearchSpace.schedule`) and has random stream k, so that what it
is does not depend on when, where or beside which others it is sampled. Every stage is a function
of what earlier stages stored; of equal candidates the one with the lowest index stays. Therefore a
campaign that was killed and continued, or shared by several processes, ends with the same
candidates as one that ran through.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.model.checkpoint import ScoreModel, load_model
from langevin_xtal.sampling.postprocess import Rejection
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.screen.filters import DEFAULT_FILTERS, FilterOptions, reject_reason
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import DEFAULT, load_potential
from langevin_xtal.screen.relax import (
    DEFAULT_OPTIONS,
    DEFAULT_RELEASE,
    RelaxOptions,
    ReleaseOptions,
    TwoRelaxations,
    relax_twice,
)
from langevin_xtal.search.duplicates import Known, group_duplicates
from langevin_xtal.search.entries import entry_of, rank_key, read_entries
from langevin_xtal.search.entry import Entry
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import (
    LEASE_SECONDS,
    Change,
    Row,
    Store,
    Summary,
    read_summary,
)
from langevin_xtal.version import __version__

if TYPE_CHECKING:
    import pandas

Progress = Callable[[str, int, int], None]
"""Called with the title of a stage, candidates done and candidates in all."""

POLL_SECONDS = 0.5
SAMPLING_SHARE = 0.5
"""Of the time allowed, when relaxation is to follow."""
AT_ONCE = {"filter": 200, "known": 64, "rank": 200}
"""Candidates claimed at a time; of relaxations so many for each worker:"""
RELAX_AT_ONCE = 32
SYMPREC = 0.01
TABLE = (
    "uid",
    "formula",
    "group",
    "found_group",
    "e_above_hull",
    "energy",
    "atoms",
    "volume_per_atom",
    "known",
    "flags",
)


class Campaign:
    """A search of a space, kept in a store.

    Parameters
    ----------
    store
        Path of an SQLite file, made when missing, or ``postgresql://…`` (a database of its own).
        What it holds of this campaign is not done again.
    space
        What to ask for.
    model
        Name or model.
    samples_per_request
        Candidates for each request.
    seed
        With the space and the model it determines every candidate.
    max_samples
        Candidates in all, at most; spread evenly over groups and requests. More may be asked for
        later.
    max_hours
        After so long no more work is begun, and what is there is ranked; running again goes on.
        Sampling takes at most half of it when relaxation is to follow.
    relax
        Whether to relax, and so to know energies; may be asked for later.
    potential
        For relaxation, see :func:`~langevin_xtal.screen.potentials.load_potential`.
    relax_options, release_options, filters, sampling
        Details of the stages; the potential of ``relax_options`` is not looked at.
    hull
        References for the energy above hull; by default those shipped for the potential.
    reference
        Known crystals, or the path of a packed dataset; candidates equal to one are marked.
    phonons
        How many of the best to compute phonons for.
    workers
        Processes, or threads for sampling; one per CPU by default.
    cache
        Folder for comparisons of structures, so that an interrupted one goes on; in memory by
        default.
    lease
        Seconds without a sign of life after which another process's work is taken over.

    Raises
    ------
    InputError
        For options out of range, or elements the potential does not know.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        space: SearchSpace,
        model: ScoreModel | str = "small",
        *,
        samples_per_request: int = 60,
        seed: int = 0,
        max_samples: int | None = None,
        max_hours: float | None = None,
        relax: bool = False,
        potential: str = DEFAULT,
        relax_options: RelaxOptions = DEFAULT_OPTIONS,
        release_options: ReleaseOptions = DEFAULT_RELEASE,
        filters: FilterOptions = DEFAULT_FILTERS,
        sampling: SampleOptions | None = None,
        hull: HullReferences | None = None,
        reference: PackedDataset | str | os.PathLike[str] | None = None,
        phonons: int = 0,
        workers: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> None:
        for name, value, least in (
            ("samples_per_request", samples_per_request, 1),
            ("max_samples", max_samples, 1),
            ("workers", workers, 1),
            ("phonons", phonons, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; the least is {least}")
        if max_hours is not None and not (math.isfinite(max_hours) and max_hours > 0):
            raise InputError(f"max_hours is {max_hours}; give a time above 0")
        if phonons and not relax:
            raise InputError("phonons need relaxed candidates: ask for relaxation too")
        self.store, self.space, self.seed = store, space, seed
        self.model = load_model(model) if isinstance(model, str) else model
        self.total = len(space) * samples_per_request
        if max_samples is not None:
            self.total = min(self.total, max_samples)
        self.max_hours = max_hours
        self.relax, self.phonons = relax, phonons
        self.relax_options = replace(relax_options, potential=potential)
        self.release_options, self.filters, self.hull = release_options, filters, hull
        self.sampling = sampling or SampleOptions()
        if workers is not None:
            self.sampling = replace(self.sampling, workers=workers)
        self.workers = workers or os.cpu_count() or 1
        self.cache, self.lease = cache, lease
        self.reference = (
            PackedDataset.load(Path(reference))
            if isinstance(reference, (str, os.PathLike))
            else reference
        )
        if relax:
            self._check_potential()

    def run(self, progress: Progress | None = None) -> Summary:
        """Do what is left to do; returns the state of the store.

        Raises
        ------
        DataError
            When the store cannot be used or holds another campaign.
        LangevinXtalError
            When the disk is full; the store is intact.
        """
        with Store(self.store, self._settings(), lease=self.lease) as store:
            _Run(self, store, progress or (lambda title, done, planned: None)).all_stages()
            return store.summary()

    def request(self, index: int) -> Request:
        """What candidate ``index`` asks for."""
        return self.space[int(self._schedule[index % len(self.space)])]

    def entries(self, top: int | None = None) -> list[Entry]:
        """Candidates that are left, best first."""
        return read_entries(self.store, top=top)

    def best(self, count: int = 20) -> pandas.DataFrame:
        """A table of the best candidates, one line each, see :func:`ranked_table`."""
        return ranked_table(self.entries(count))

    def summary(self) -> Summary:
        """Counts by state, reasons of rejections, seconds by stage."""
        return read_summary(self.store)

    # -- inside

    @cached_property
    def _schedule(self) -> Any:
        return self.space.schedule(self.seed)

    def _settings(self) -> dict[str, Any]:
        """What the store must agree with; those that are None may be filled in later."""
        relax = None
        if self.relax:
            version = load_potential(self.relax_options.potential).version
            relax = f"{version}; {self.relax_options!r}; {self.release_options!r}"
        return {
            "version": __version__,
            **self.space.describe(),
            "seed": self.seed,
            "model": self.model.name,
            "weights": self.model.hash,
            **{
                option.name: _setting(getattr(self.sampling, option.name))
                for option in fields(self.sampling)
                if option.name not in ("batch_size", "workers")  # they change no candidate
            },
            "filters": repr(self.filters),
            "relax": relax,
            "reference": None if self.reference is None else self.reference.content_hash[:16],
        }

    def _check_potential(self) -> None:
        potential = load_potential(self.relax_options.potential)
        strange = [s for s in self.space.elements if atomic_number(s) not in potential.elements]
        if strange:
            raise InputError(
                f"the potential {potential.name} does not know {', '.join(strange)}: search "
                "without relaxation, or give another potential"
            )


def _setting(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) else repr(value)


def ranked_table(entries: Sequence[Entry]) -> pandas.DataFrame:
    """Entries in their order as a table, ranked from 1.

    Columns: uid, formula, group (asked for), found_group, e_above_hull and energy [eV/atom],
    atoms (of the conventional cell), volume_per_atom [Å³], known (reference it equals), flags.
    """
    import pandas

    lines = []
    for entry in entries:
        lattice, _, numbers = entry.cell
        lines.append(
            {
                "uid": entry.uid,
                "formula": entry.formula,
                "group": entry.space_group,
                "found_group": entry.found_group,
                "e_above_hull": entry.e_above_hull,
                "energy": entry.energy,
                "atoms": len(numbers),
                "volume_per_atom": abs(float(np.linalg.det(lattice))) / len(numbers),
                "known": str(entry.properties.get("known", "")),
                "flags": "; ".join(flags(entry)),
            }
        )
    index = pandas.RangeIndex(1, len(lines) + 1, name="rank")
    return pandas.DataFrame(lines, columns=list(TABLE), index=index)


def flags(entry: Entry) -> list[str]:
    """What to know of a candidate before it is trusted, in short phrases."""
    found = []
    if entry.found_group is not None and entry.found_group != entry.space_group:
        found.append(f"group {entry.found_group}")
    for name in ("note", "hull_reason", "phonons"):
        if entry.properties.get(name):
            found.append(str(entry.properties[name]))
    return found


# -- the stages


@dataclass
class _Run:
    """One process's share of a campaign."""

    campaign: Campaign
    store: Store
    report: Progress

    def __post_init__(self) -> None:
        self.begin = time.monotonic()

    def all_stages(self) -> None:
        """From the first to the last; each waits for what other processes still do."""
        campaign = self.campaign
        self._sample()
        self._each("filter", "filtering", self._with_cells(), self._filter)
        self._compare("duplicates", "comparing", "duplicate_of")
        if campaign.reference is not None:
            self._each("known", "looking up", self._left(), self._look_up)
        if not campaign.relax:
            return
        self._each("relax", "relaxing", self._left(), self._relax)
        self._compare("merge", "comparing relaxed", "same_as")
        if campaign.reference is not None:
            unknown = [row.index for row in self._rows(self._left()) if not row.facts["known"]]
            self._each("known relaxed", "looking up relaxed", unknown, self._look_up)
        self._each("rank", "ranking", self._relaxed(), self._rank)
        if campaign.phonons:
            self._each("phonons", "phonons", self._best(campaign.phonons), self._phonons)

    # -- which candidates

    def _rows(self, indices: Iterable[int] | None = None) -> list[Row]:
        rows = self.store.rows()
        if indices is None:
            return rows
        wanted = set(indices)
        return [row for row in rows if row.index in wanted]

    def _with_cells(self) -> list[int]:
        return [row.index for row in self._rows() if row.sampled is not None]

    def _left(self) -> list[int]:
        return [r.index for r in self._rows() if r.state not in ("rejected", "duplicate")]

    def _relaxed(self) -> list[int]:
        left = set(self._left())
        return [r.index for r in self._rows() if r.index in left and "energy" in r.facts]

    def _best(self, count: int) -> list[int]:
        rows = self._rows(self._relaxed())
        return [row.index for row in sorted(rows, key=lambda r: rank_key(entry_of(r)))[:count]]

    # -- how work is shared

    def _late(self, share: float = 1.0) -> bool:
        hours = self.campaign.max_hours
        return hours is not None and time.monotonic() - self.begin > share * hours * 3600

    def _each(
        self,
        stage: str,
        title: str,
        units: Sequence[int],
        work: Callable[[str, list[Row], Callable[[int], None]], None],
        *,
        most: int | None = None,
    ) -> None:
        """``work`` of every candidate, once over all processes."""
        most = most or AT_ONCE.get(stage.split()[0], RELAX_AT_ONCE * self.campaign.workers)
        while not self._late():
            claim = self.store.claim(stage, units, most)
            self.report(title, claim.done, len(units))
            if claim.units:
                done = claim.done
                work(
                    stage,
                    self._rows(claim.units),
                    lambda more, done=done: self.report(title, done + more, len(units)),  # type: ignore[misc]
                )
            elif claim.left == 0:
                return
            else:
                time.sleep(POLL_SECONDS)

    def _compare(self, stage: str, title: str, fact: str) -> None:
        """Mark candidates equal to an earlier one, in one go."""
        while not self._late(2.0):
            rows = self._to_compare(stage)
            claim = self.store.claim(stage, [len(rows)], 1)
            self.report(title, 0, len(rows))
            if claim.units:
                start = time.perf_counter()
                cells = [row.cell for row in rows if row.cell is not None]
                first = group_duplicates(
                    cells,
                    cache=self._cache,
                    workers=self.campaign.workers,
                    progress=lambda done, planned: self.report(title, done, planned),
                )
                changes = {}
                for k, row in enumerate(rows):
                    same = -1 if first[k] == k else rows[first[k]].index
                    if row.facts.get(fact) != same:
                        changes[row.index] = Change({fact: same})
                self.store.settle_all(stage, len(rows), changes, time.perf_counter() - start)
            elif claim.left == 0:
                self.report(title, len(rows), len(rows))
                return
            else:
                time.sleep(POLL_SECONDS)

    def _to_compare(self, stage: str) -> list[Row]:
        rows = [row for row in self._rows() if not row.facts.get("reason")]
        if stage == "duplicates":
            return [row for row in rows if row.facts.get("filtered")]
        unique = [row for row in rows if row.facts.get("duplicate_of", -1) == -1]
        return [row for row in unique if "energy" in row.facts]

    # -- sampling

    def _sample(self) -> None:
        campaign, options = self.campaign, self.campaign.sampling
        units = range(campaign.total)
        most = options.batch_size * (options.workers or os.cpu_count() or 1)
        share = SAMPLING_SHARE if campaign.relax else 1.0
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
        campaign = self.campaign
        shown = before

        def show(done: int, planned: int) -> None:
            nonlocal shown
            # levels of batches stand for candidates; retries add levels, so never count down
            shown = max(shown, before + len(indices) * done // max(planned, 1))
            self.report("sampling", shown, campaign.total)

        start = time.perf_counter()
        last = campaign.sampling.attempts - 1
        for outcome in sample_batches(
            [campaign.request(k) for k in indices],
            campaign.model,
            campaign.seed,
            indices=indices,
            options=campaign.sampling,
            progress=show,
        ):
            rows = [_sampled(candidate) for candidate in outcome.candidates]
            rows += [self._given_up(r) for r in outcome.rejections if r.attempt == last]
            seconds, start = time.perf_counter() - start, time.perf_counter()
            self.store.add(rows, seconds)

    def _given_up(self, rejection: Rejection) -> Row:
        campaign = self.campaign
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
                "model": campaign.model.name,
                "weights": campaign.model.hash,
                "version": __version__,
                "sampler": repr(campaign.sampling.sampler),
                "index": rejection.index,
                "seed": campaign.seed,
            },
        )

    # -- the other stages

    def _filter(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        start = time.perf_counter()
        changes = {}
        for k, row in enumerate(rows):
            reason = reject_reason(_geometry(row), self.campaign.filters)
            changes[row.index] = Change({"reason": reason} if reason else {"filtered": True})
            show(k + 1)
        self.store.settle_each(stage, changes, time.perf_counter() - start)

    def _look_up(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        start = time.perf_counter()
        found = self._known.match(
            [_geometry(row) for row in rows],
            cache=self._cache,
            workers=self.campaign.workers,
        )
        changes = {
            row.index: Change({"known": name}) for row, name in zip(rows, found, strict=True)
        }
        self.store.settle_each(stage, changes, time.perf_counter() - start)
        show(len(rows))

    @cached_property
    def _known(self) -> Known:
        assert self.campaign.reference is not None
        return Known(self.campaign.reference)

    @cached_property
    def _cache(self) -> Cache:
        return Cache(self.campaign.cache)

    def _relax(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        campaign = self.campaign
        version = load_potential(campaign.relax_options.potential).version
        as_they_come = _AsTheyCome(campaign, rows)
        start = time.perf_counter()

        def keep(results: Mapping[int, TwoRelaxations]) -> None:
            nonlocal start
            changes = {index: _relaxed_change(r, version) for index, r in results.items()}
            seconds, start = time.perf_counter() - start, time.perf_counter()
            self.store.settle_each(stage, changes, seconds)

        as_they_come.deliver = keep
        relax_twice(
            [_geometry(row) for row in rows],
            campaign.relax_options,
            release=campaign.release_options,
            cache=as_they_come,
            workers=campaign.workers,
            progress=lambda done, planned: show(done),
        )

    def _rank(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        start = time.perf_counter()
        hull, missing = self._hull()
        changes = {}
        for k, row in enumerate(rows):
            facts: dict[str, Any] = {"ranked": True, "hull_reason": missing or None}
            if hull is not None:
                energy = float(row.facts["energy"])
                result = hull.energy_above_hull(_geometry(row)[2], energy)
                facts["e_above_hull"] = result.e_above_hull
                facts["hull_reason"] = result.missing or None
                facts["hull_phases"] = " + ".join(
                    f"{share:.3g} {name}" for name, share in result.phases.items()
                )
            changes[row.index] = Change(facts)
            show(k + 1)
        self.store.settle_each(stage, changes, time.perf_counter() - start)

    def _hull(self) -> tuple[HullReferences | None, str]:
        campaign = self.campaign
        if campaign.hull is not None:
            return campaign.hull, ""
        try:
            return HullReferences.shipped(campaign.relax_options.potential), ""
        except InputError as error:
            return None, str(error).partition(":")[0]

    def _phonons(self, stage: str, rows: list[Row], show: Callable[[int], None]) -> None:
        raise NotImplementedError


class _AsTheyCome:
    """Takes relaxations as a cache would, and hands each on at once, so that none is lost."""

    def __init__(self, campaign: Campaign, rows: Sequence[Row]) -> None:
        self.campaign = campaign
        self.rows: dict[str, list[Row]] = {}
        for row in rows:
            self.rows.setdefault(cell_key(_geometry(row)), []).append(row)
        self.values: dict[str, Any] = {}
        self.deliver: Callable[[Mapping[int, TwoRelaxations]], None] = lambda results: None

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, Any]:
        """What was put."""
        return {key: self.values[key] for key in keys if key in self.values}

    def put(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take results by cell, and deliver them by candidate."""
        self.values |= values
        campaign = self.campaign
        results = relax_twice(  # nothing is computed: all of them are here
            [_geometry(self.rows[key][0]) for key in values],
            campaign.relax_options,
            release=campaign.release_options,
            cache=self,
            workers=1,
        )
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


def _relaxed_change(result: TwoRelaxations, version: str) -> Change:
    if result.kept.reason:
        return Change({"reason": f"relaxation failed: {result.kept.reason}"})
    best, groups = result.best, result.groups_released if result.broke else result.groups_kept
    released = not result.released.reason
    return Change(
        {
            "energy": best.energy,
            "energy_sampled": result.kept.start_energy,
            "energy_kept": result.kept.energy,
            "energy_released": result.released.energy if released else None,
            "found_group": groups[SYMPREC],
            "found_kept": result.groups_kept[SYMPREC],
            "found_released": result.groups_released[SYMPREC] if released else None,
            "symmetry_broke": result.broke,
            "note": result.note,
            "converged": best.converged,
            "steps": result.kept.steps + result.released.steps,
            "potential": version,
        },
        kept=result.kept.cell,
        released=result.released.cell if released else None,
    )
