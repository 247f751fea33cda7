"""Searching a space: sample, filter, compare, relax, rank; stopped and continued at will.

Candidate k of a campaign asks for what its allocation says
(:mod:`langevin_xtal.search.allocation`) and has random stream k, so that what it is does not
depend on when, where or beside which others it is sampled. Every stage is a function
of what earlier stages stored; of equal candidates the one with the lowest index stays. Therefore a
campaign that was killed and continued, or shared by several processes, ends with the same
candidates as one that ran through.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.prepare import load_crystals
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.screen.filters import DEFAULT_FILTERS, FilterOptions
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.phonons import DEFAULT_PHONONS, PhononOptions
from langevin_xtal.screen.potentials import DEFAULT, load_potential
from langevin_xtal.screen.relax import DEFAULT_OPTIONS, RelaxOptions
from langevin_xtal.screen.release import DEFAULT_RELEASE, ReleaseOptions
from langevin_xtal.search.allocation import (
    EXPLORE,
    SAMPLES,
    SAMPLES_PER_REQUEST,
    Allocation,
    Even,
    Likely,
    Way,
    check_share,
    why_even,
)
from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.rows import setting_of
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.stages import Plan, Progress, run_stages
from langevin_xtal.search.store import (
    LEASE_SECONDS,
    CampaignSummary,
    Store,
    is_store,
    plain_address,
    read_summary,
)
from langevin_xtal.version import __version__

if TYPE_CHECKING:
    import pandas

    from langevin_xtal.export.manifest import Manifest

RELEASE_WITHIN = 0.1
"""Of the hull [eV/atom]; losing its symmetry gains a crystal some hundredths."""
SECOND_COLUMNS = ("second_energy", "second_above_hull", "disagreement")
"""What :func:`~langevin_xtal.search.second_opinion.ask_second` brings."""
DFT_COLUMNS = ("dft_energy", "dft_e_above_hull", "dft_gap", "dft_magnetisation")
"""What :func:`~langevin_xtal.search.collect.collect` brings."""
TABLE = (
    "uid",
    "formula",
    "group",
    "found_group",
    "e_above_all",
    "e_above_hull",
    "energy",
    "atoms",
    "volume_per_atom",
    "known",
    "setting_rank",
    "setting_probability",
    *SECOND_COLUMNS,
    *DFT_COLUMNS,
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
    allocate
        ``"likely"``: candidates go to the settings that the model takes for likely; ``"even"``:
        they are spread evenly over groups and requests, as they are where a model cannot say what
        is likely (:attr:`remark` tells then).
    explore
        Share of the candidates that is spread evenly over the space while others go to likely
        settings; a fifth by default.
    subsystems
        Share of the others that goes to likely crystals of some of the elements, two or more.
    samples_per_request
        Candidates for each request of an even spread; 60 by default. As many in all go to likely
        settings.
    seed
        With the space, the model and the allocation it determines every candidate.
    max_samples
        Candidates in all, at most. By default, ``samples_per_request`` for every request, or 1000
        where that is not given and they go to likely settings. More may be asked for later.
    max_hours
        After so long no more work is begun, and what is there is ranked; running again goes on.
        Sampling takes at most half of it when relaxation is to follow.
    relax
        Whether to relax, and so to know energies; may be asked for later.
    relax_best
        Relax only so many candidates, those lowest above the hull of references and candidates as
        sampled (with the lowest energy where there is no hull); by default all. More may be asked
        for later.
    release_within
        Candidates up to so far above that hull [eV/atom] are relaxed on without symmetry, and
        those whose hull is not known.
    potential
        For relaxation, see :func:`~langevin_xtal.screen.potentials.load_potential`.
    relax_options, release_options, phonon_options, filters, sampling
        Details of the stages; potentials named there are not looked at.
    hull
        References for the energy above hull; by default those shipped for the potential.
    reference
        Known crystals, or the path of a packed dataset or of structures of any other kind;
        candidates equal to one are marked.
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
        model: CrystalModel | str = "small",
        *,
        allocate: Way = "likely",
        explore: float | None = None,
        subsystems: float | None = None,
        samples_per_request: int | None = None,
        seed: int = 0,
        max_samples: int | None = None,
        max_hours: float | None = None,
        relax: bool = False,
        relax_best: int | None = None,
        release_within: float = RELEASE_WITHIN,
        potential: str = DEFAULT,
        relax_options: RelaxOptions = DEFAULT_OPTIONS,
        release_options: ReleaseOptions = DEFAULT_RELEASE,
        filters: FilterOptions = DEFAULT_FILTERS,
        sampling: SampleOptions | None = None,
        hull: HullReferences | None = None,
        reference: PackedDataset | str | os.PathLike[str] | None = None,
        phonons: int = 0,
        phonon_options: PhononOptions = DEFAULT_PHONONS,
        workers: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> None:
        for name, value, least in (
            ("samples_per_request", samples_per_request, 1),
            ("max_samples", max_samples, 1),
            ("relax_best", relax_best, 1),
            ("workers", workers, 1),
            ("phonons", phonons, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; the least is {least}")
        if max_hours is not None and not (math.isfinite(max_hours) and max_hours > 0):
            raise InputError(f"max_hours is {max_hours}; give a time above 0")
        if not release_within >= 0:
            raise InputError(f"release_within is {release_within}; give 0 or more eV/atom")
        if relax_best is not None and not relax:
            raise InputError("relax_best says how many to relax: ask for relaxation too")
        if phonons and not relax:
            raise InputError("phonons need relaxed candidates: ask for relaxation too")
        self.store, self.lease = store, lease
        if isinstance(reference, (str, os.PathLike)):
            reference = load_crystals(reference)
        sampling = sampling or SampleOptions()
        model = load_model(model) if isinstance(model, str) else model
        self.remark = ""
        """What to know of the allocation, if it is not the one asked for."""
        allocation, total = self._allocation(
            space, model, seed, allocate, explore, subsystems, samples_per_request, max_samples,
            filters.max_atoms,
        )  # fmt: skip
        self.plan = Plan(
            space=space,
            allocation=allocation,
            total=total,
            seed=seed,
            model=model,
            sampling=sampling if workers is None else replace(sampling, workers=workers),
            filters=filters,
            reference=reference,
            relax=relax,
            relax_best=relax_best,
            release_within=release_within,
            relax_options=replace(relax_options, potential=potential),
            release_options=release_options,
            hull=hull,
            phonons=phonons,
            phonon_options=phonon_options,
            max_hours=max_hours,
            workers=workers or os.cpu_count() or 1,
            cache=cache,
        )
        if relax:
            self._check_potential()

    def __repr__(self) -> str:
        name = plain_address(self.store)
        return f"Campaign({name}, {self.plan.space}, {self.plan.total} candidates)"

    def run(self, progress: Progress | None = None) -> CampaignSummary:
        """Do what is left to do; returns the state of the store.

        Parameters
        ----------
        progress
            Called with the title of a stage, how much of it is done, and how much there is.

        Raises
        ------
        RequestError
            When nothing fits what is searched.
        DataError
            When the store cannot be used or holds another campaign.
        LangevinXtalError
            When the disk is full; the store is intact.
        """
        if not is_store(self.store):
            self.plan.request(0)  # refuses what cannot be, before a store is made
        with Store(self.store, self._settings(), lease=self.lease) as store:
            run_stages(self.plan, store, progress)
            return store.summary()

    def entries(self, top: int | None = None) -> list[Entry]:
        """Candidates that are left, best first."""
        return read_entries(self.store, top=top)

    def best(self, count: int = 20) -> pandas.DataFrame:
        """A table of the best candidates, one line each, see :func:`ranked_table`."""
        return ranked_table(self.entries(count))

    def summary(self) -> CampaignSummary:
        """Counts by state, reasons of rejections, seconds by stage."""
        return read_summary(self.store)

    def export_vasp(self, out: str | os.PathLike[str], top: int = 20, **options: Any) -> Manifest:
        """VASP inputs of the best candidates; options as for
        :func:`~langevin_xtal.export.vasp.export_vasp`."""
        from langevin_xtal.export.vasp import export_vasp  # pymatgen's input sets are heavy

        return export_vasp(self.entries(top), out, **options)

    # -- inside

    def _allocation(
        self,
        space: SearchSpace,
        model: CrystalModel,
        seed: int,
        allocate: str,
        explore: float | None,
        subsystems: float | None,
        samples_per_request: int | None,
        max_samples: int | None,
        max_atoms: int | None,
    ) -> tuple[Allocation, int]:
        """How candidates are spread, and how many there are."""
        if allocate not in ("likely", "even"):
            raise InputError(f"allocate is {allocate!r}; give likely or even")
        for name, share in (("explore", explore), ("subsystems", subsystems)):
            if share is not None:
                check_share(name, share)
                if allocate == "even":
                    raise InputError(
                        f"{name} is a share of candidates that go to likely settings; leave it "
                        "out of an even spread"
                    )
        why = why_even(space, model) if allocate == "likely" else ""
        if allocate == "even" or why:
            self.remark = f"{why}: candidates are spread evenly" if why else ""
            total = len(space) * (samples_per_request or SAMPLES_PER_REQUEST)
            return Even(space, seed), min(total, max_samples or total)
        likely = Likely(
            space,
            model,
            seed,
            explore=EXPLORE if explore is None else explore,
            subsystems=subsystems or 0.0,
            max_atoms=max_atoms,
        )
        total = SAMPLES if samples_per_request is None else len(space) * samples_per_request
        return likely, max_samples or total

    def _settings(self) -> dict[str, Any]:
        """What the store must agree with."""
        plan, relax = self.plan, None
        if plan.relax:
            version = load_potential(plan.relax_options.potential).version
            relax = (
                f"{version}; {plan.relax_options!r}; {plan.release_options!r} within "
                f"{plan.release_within!r} eV/atom"
            )
        return {
            "version": __version__,
            **plan.space.describe(),
            **plan.allocation.describe(),
            "seed": plan.seed,
            "model": plan.model.name,
            "weights": plan.model.hash,
            "model_settings": plan.model.settings_hash,
            **{
                option.name: _setting(getattr(plan.sampling, option.name))
                for option in fields(plan.sampling)
                if option.name not in ("batch_size", "workers")  # they change no candidate
            },
            "filters": repr(plan.filters),
            "relax": relax,
            "reference": None if plan.reference is None else plan.reference.content_hash[:16],
        }

    def _check_potential(self) -> None:
        potential = load_potential(self.plan.relax_options.potential)
        if self.plan.hull is not None:
            self.plan.hull.check(potential)
        strange = [
            s for s in self.plan.space.elements if atomic_number(s) not in potential.elements
        ]
        if strange:
            raise InputError(
                f"the potential {potential.name} does not know {', '.join(strange)}: search "
                "without relaxation, or give another potential"
            )


def _setting(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) else repr(value)


def ranked_table(entries: Sequence[Entry]) -> pandas.DataFrame:
    """Entries in their order as a table, ranked from 1.

    Columns: uid, formula, group (asked for), found_group, e_above_all (above the hull of
    references and candidates), e_above_hull (of references alone) and energy [eV/atom], atoms (of
    the conventional cell), volume_per_atom [Å³], known (reference it equals), setting_rank (from
    0) and setting_probability (where the model chose the setting), second_energy,
    second_above_hull and disagreement [eV/atom] (of a second potential), dft_energy and
    dft_e_above_hull [eV/atom], dft_gap [eV] and dft_magnetisation [μB/atom] (where a calculation
    was collected), flags.
    """
    import pandas

    lines = []
    for entry in entries:
        lattice, _, numbers = entry.cell
        setting = setting_of(entry.provenance)
        lines.append(
            {
                "uid": entry.uid,
                "formula": entry.formula,
                "group": entry.space_group,
                "found_group": entry.found_group,
                "e_above_all": entry.properties.get("e_above_all"),
                "e_above_hull": entry.e_above_hull,
                "energy": entry.energy,
                "atoms": len(numbers),
                "volume_per_atom": abs(float(np.linalg.det(lattice))) / len(numbers),
                "known": str(entry.properties.get("known", "")),
                "setting_rank": setting[0],
                "setting_probability": setting[1],
                **{name: entry.properties.get(name) for name in (*SECOND_COLUMNS, *DFT_COLUMNS)},
                "flags": "; ".join(flags(entry)),
            }
        )
    index = pandas.RangeIndex(1, len(lines) + 1, name="rank")
    return pandas.DataFrame(lines, columns=list(TABLE), index=index)


def flags(entry: Entry) -> list[str]:
    """What to know of a candidate before it is trusted, in short phrases."""
    found = []
    if entry.found_group not in (None, entry.space_group) and not entry.properties.get("note"):
        found.append(f"group {entry.found_group}")
    if entry.properties.get("potentials_disagree"):
        found.append("potentials disagree")
    for name in ("note", "warning", "hull_reason", "phonons"):
        if entry.properties.get(name):
            found.append(str(entry.properties[name]))
    return found
