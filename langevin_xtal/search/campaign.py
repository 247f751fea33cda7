"""Searching a space: sample, filter, compare, relax, rank; stopped and continued at will.

Candidate k of a campaign asks for what its allocation says
(:mod:`langevin_xtal.search.allocation`) and has random stream k, so that what it is does not
depend on when, where or beside which others it is sampled. Every stage is a function
of what earlier stages stored; of equal candidates the one with the lowest index stays. Therefore a
campaign that was killed and continued, or shared by several processes, ends with the same
candidates as one that ran through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin_xtal.config.screening import (
    DEFAULT_PROPERTIES,
    FilterOptions,
    PhononOptions,
    RelaxOptions,
    ReleaseOptions,
)
from langevin_xtal.config.search import SearchConfig
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.crystal.properties import PROPERTIES, windows_of
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.prepare import load_crystals
from langevin_xtal.errors import InputError
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.properties import PropertyModel, load_properties
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.screen.filters import DEFAULT_FILTERS
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.phonons import DEFAULT_PHONONS
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import DEFAULT_OPTIONS
from langevin_xtal.screen.release import DEFAULT_RELEASE
from langevin_xtal.search.allocation import (
    EXPLORE,
    SAMPLES,
    SAMPLES_PER_REQUEST,
    Allocation,
    Even,
    Likely,
    why_even,
)
from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.rows import FACTS, setting_of
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.stages import extra_stage, run_stages
from langevin_xtal.search.store import (
    LEASE_SECONDS,
    CampaignSummary,
    Store,
    is_store,
    plain_address,
    read_summary,
)
from langevin_xtal.search.work import Plan, Progress
from langevin_xtal.version import __version__

if TYPE_CHECKING:
    import pandas

    from langevin_xtal.export.manifest import Manifest

SECOND_COLUMNS = ("second_energy", "second_above_hull", "disagreement")
"""What :func:`~langevin_xtal.search.second_opinion.ask_second` brings."""
PREDICTED_COLUMNS = (
    *(f"predicted_{name}{more}" for name in PROPERTIES for more in ("", "_error")),
    "target_probability",
)
"""What a property model predicts, and what a target makes of it."""
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
    *PREDICTED_COLUMNS,
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
    relax_within
        A relaxation ends early where it is clear that it cannot come so near to the hull of the
        references [eV/atom], see :mod:`~langevin_xtal.screen.stopping`. Those that may be among
        the best 20 all the same are relaxed to the end.
    release_within
        Candidates up to so far above that hull [eV/atom] are relaxed on without symmetry, and
        those whose hull is not known.
    potential
        For relaxation, see :func:`~langevin_xtal.screen.potentials.load_potential`.
    relax_options, release_options, phonon_options, filters, sampling
        Details of the stages; potentials named there are not looked at.
    hull
        References for the energy above hull; by default those shipped for the potential.
    target
        Windows that properties are wanted in, such as ``"band_gap=1.1:1.7"``, one for each
        property. Candidates are relaxed and ranked in the order of their energy above hull and of
        the probability to lie there, see :func:`~langevin_xtal.search.entries.rank_key`. May be
        given later, not changed.
    properties
        Model that predicts properties of candidates, or its name, see
        :func:`~langevin_xtal.model.properties.load_properties`; None predicts none.
    reference
        Known crystals, or the path of a packed dataset or of structures of any other kind;
        candidates equal to one are marked.
    phonons
        How many of the best to compute phonons for.
    stages
        Further stages, each a function of a cell named as ``module:attribute``, see
        :func:`~langevin_xtal.search.stages.extra_stage`; what they give are further columns.
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
        For options out of range, elements the potential does not know, or a target that the
        property model does not predict.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        space: SearchSpace,
        model: CrystalModel | str = "small",
        *,
        relax_options: RelaxOptions = DEFAULT_OPTIONS,
        release_options: ReleaseOptions = DEFAULT_RELEASE,
        filters: FilterOptions = DEFAULT_FILTERS,
        sampling: SampleOptions | None = None,
        hull: HullReferences | None = None,
        target: str | Sequence[str] | None = None,
        properties: PropertyModel | str | None = DEFAULT_PROPERTIES,
        reference: PackedDataset | str | os.PathLike[str] | None = None,
        phonon_options: PhononOptions = DEFAULT_PHONONS,
        stages: Sequence[str] = (),
        workers: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        lease: float = LEASE_SECONDS,
        **searched: Any,
    ) -> None:
        config = SearchConfig(**searched)
        if workers is not None and workers < 1:
            raise InputError(f"workers is {workers}; it must be at least 1")
        windows = windows_of(target or ())
        if isinstance(properties, str):
            properties = load_properties(properties)
        if windows and properties is None:
            raise InputError("a target needs a model that predicts properties: name one")
        for window in windows:
            assert properties is not None
            properties.check(window.name)
        self.store, self.lease = store, lease
        if isinstance(reference, (str, os.PathLike)):
            reference = load_crystals(reference)
        sampling = sampling or SampleOptions()
        model = load_model(model) if isinstance(model, str) else model
        self.remark = ""
        """What to know of the allocation, if it is not the one asked for."""
        allocation, total = self._allocation(space, model, config, filters.max_atoms)
        self.plan = Plan(
            config=config,
            space=space,
            allocation=allocation,
            total=total,
            model=model,
            sampling=sampling if workers is None else replace(sampling, workers=workers),
            filters=filters,
            reference=reference,
            relax_options=replace(relax_options, potential=config.potential),
            release_options=release_options,
            hull=hull,
            phonon_options=phonon_options,
            properties=properties,
            windows=windows,
            extra=tuple(extra_stage(name) for name in stages),
            workers=workers or os.cpu_count() or 1,
            cache=cache,
        )
        if config.relax:
            self._check_potential()

    def __repr__(self) -> str:
        name = plain_address(self.store)
        return f"Campaign({name}, {self.plan.space}, {self.plan.total} candidates)"

    def run(
        self, progress: Progress | None = None, *, only_sample: bool = False
    ) -> CampaignSummary:
        """Do what is left to do; returns the state of the store.

        Parameters
        ----------
        progress
            Called with the title of a stage, how much of it is done, and how much there is.
        only_sample
            Leave all but sampling to another run, as on a computer without a GPU.

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
            run_stages(self.plan, store, progress, only_sample=only_sample)
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
        config: SearchConfig,
        max_atoms: int | None,
    ) -> tuple[Allocation, int]:
        """How candidates are spread, and how many there are."""
        why = why_even(space, model) if config.allocate == "likely" else ""
        if config.allocate == "even" or why:
            self.remark = f"{why}: candidates are spread evenly" if why else ""
            total = len(space) * (config.samples_per_request or SAMPLES_PER_REQUEST)
            return Even(space, config.seed), min(total, config.max_samples or total)
        likely = Likely(
            space,
            model,
            config.seed,
            explore=EXPLORE if config.explore is None else config.explore,
            subsystems=config.subsystems or 0.0,
            max_atoms=max_atoms,
        )
        each = config.samples_per_request
        total = SAMPLES if each is None else len(space) * each
        return likely, config.max_samples or total

    def _settings(self) -> dict[str, Any]:
        """What the store must agree with."""
        plan, relax = self.plan, None
        if plan.config.relax:
            version = load_potential(plan.relax_options.potential).version
            relax = (
                f"{version}; {plan.relax_options!r}; {plan.release_options!r} within "
                f"{plan.config.release_within!r} eV/atom"
            )
        return {
            "version": __version__,
            **plan.space.describe(),
            **plan.allocation.describe(),
            "seed": plan.config.seed,
            "model": plan.model.name,
            "weights": plan.model.hash,
            "model_settings": plan.model.settings_hash,
            **{
                name: _setting(value)
                for name, value in vars(plan.sampling).items()
                # the first two change no candidate; one chain is as before there could be more
                if name not in ("batch_size", "workers") and (name, value) != ("chains", 1)
            },
            "filters": repr(plan.filters),
            "relax": relax,
            "relax_within": plan.config.relax_within if relax else None,
            "properties": None if plan.properties is None else plan.properties.hash,
            "target": [str(window) for window in plan.windows] or None,
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
    0) and setting_probability (where the model chose the setting), predicted_e_form,
    predicted_e_hull [eV/atom] and predicted_band_gap [eV] with their errors, target_probability
    (to lie in the windows of the search's target), second_energy,
    second_above_hull and disagreement [eV/atom] (of a second potential), dft_energy and
    dft_e_above_hull [eV/atom], dft_gap [eV] and dft_magnetisation [μB/atom] (where a calculation
    was collected), what stages of the user's own gave, flags.
    """
    import pandas

    lines = []
    known = {*FACTS, "state"}
    more = dict.fromkeys(name for e in entries for name in e.properties if name not in known)
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
                **{
                    name: entry.properties.get(name)
                    for name in (*PREDICTED_COLUMNS, *SECOND_COLUMNS, *DFT_COLUMNS)
                },
                **{name: entry.properties.get(name) for name in more},
                "flags": "; ".join(flags(entry)),
            }
        )
    index = pandas.RangeIndex(1, len(lines) + 1, name="rank")
    return pandas.DataFrame(lines, columns=[*TABLE[:-1], *more, TABLE[-1]], index=index)


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
