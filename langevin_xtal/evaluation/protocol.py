"""The evaluation itself: sets of structures against a reference, by the field's protocols.

Constants and their sources stand in the modules that use them: :mod:`matching`,
:mod:`prediction`, :mod:`duplicates`, :mod:`coverage`, :mod:`frechet`, :mod:`distributions`,
:mod:`validity`. A structure that is missing (unreadable,
given up by the sampler) counts against every rate; distances between distributions can only be
taken over the structures that are there.

A set with several trials per target (see :mod:`structures`) is judged as a distribution by its
first trials; the others serve crystal structure prediction.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.config.evaluation import EvaluateOptions
from langevin_xtal.config.tolerances import SYMPRECS
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import reduced_formula
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.prepare import load_crystals
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation import distributions, duplicates, matching, prediction, validity
from langevin_xtal.evaluation.cache import Cache, SpareCache
from langevin_xtal.evaluation.coverage import coverage
from langevin_xtal.evaluation.features import Features, compute_features, scale_magpie
from langevin_xtal.evaluation.frechet import finite_rows, frechet_distance
from langevin_xtal.evaluation.report import Column, Report
from langevin_xtal.evaluation.structures import Missing, StructureSet, split_id
from langevin_xtal.evaluation.targets import ALL_GROUPS, Target, choose_targets
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.relax import Relaxation, relax

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, items done and items planned."""

ALWAYS = ("geometry", "symmetry", "lattice")
STABLE = 0.1
"""Energy above hull of a stable structure [eV/atom], as MatterGen."""


def evaluate(
    structures: StructureSet | Sequence[StructureSet] | Sequence[Candidate],
    reference: PackedDataset | str | os.PathLike[str],
    *,
    training: PackedDataset | str | os.PathLike[str] | None = None,
    targets: Sequence[Target] | None = None,
    evaluations: Mapping[str, int] | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge sets of structures against a reference.

    Parameters
    ----------
    structures
        One set, several (a column each), or candidates as :func:`langevin_xtal.sample` returns.
    reference
        Packed dataset of held-out crystals, its path, or that of structures of any other kind.
    training
        Packed dataset for novelty, or its path; without it novelty is not known.
    targets
        Crystals the structures are predictions of. By default all of the reference, where an
        identifier of the structures names one. A target without a prediction counts as a miss
        in every rate.
    evaluations
        Network evaluations per structure, by label, to be shown.
    progress
        Called with stage, items done and planned.

    Returns
    -------
    Report
        One column per set, and one per relaxed set.

    Raises
    ------
    InputError
        When a set or the reference is empty, or two sets have the same label.
    MissingPackageError
        When an optional package is needed and missing.
    """
    options = options or EvaluateOptions()
    if options.relax:
        HullReferences.shipped(options.relaxation.potential)  # refuses a potential without one now
    with SpareCache(options.cache) as cache:
        run = _Evaluation(options, cache, progress or (lambda stage, done, planned: None))
        sets = _as_sets(structures)
        data = _packed(reference)
        known = None
        if training is not None:
            trained = _packed(training)
            known, run.training_hash = _same_formulas(trained, sets), trained.content_hash
        sets = run.prepare(data, known, targets, sets)
        columns = [run.column(each, (evaluations or {}).get(each.label)) for each in sets]
        columns += [run.relaxed_column(each) for each in sets if each.label in options.relax]
    return Report(columns, run.settings(data), run.notes(), run.reference_values())


def _same_formulas(training: PackedDataset, sets: Sequence[StructureSet]) -> StructureSet:
    """Training crystals that a structure can be equal to: those of its composition."""
    wanted = set().union(*(s.formulas for s in sets))
    atoms = np.repeat(training.numbers, training.multiplicity)
    bounds = pairwise(np.concatenate([[0], np.cumsum(training.atom_counts)]))
    picked = [k for k, (a, b) in enumerate(bounds) if reduced_formula(atoms[a:b]) in wanted]
    return StructureSet.from_packed(training, "training", picked)


def reference_targets(
    data: PackedDataset, sets: Sequence[StructureSet], only: Collection[str] | None = None
) -> list[Target]:
    """All crystals of the reference where identifiers of the structures name any; else none.

    Parameters
    ----------
    only
        Identifiers of the crystals that are targets; by default all.

    Raises
    ------
    InputError
        For an identifier that the reference lacks.
    """
    if only is not None:
        lacking = sorted(set(only) - set(data.id.tolist()))
        if lacking:
            raise InputError(
                f"the reference has no crystal {lacking[0]!r}"
                + (f", nor {len(lacking) - 1} more of the targets" if len(lacking) > 1 else "")
            )
        return choose_targets(
            data.select(np.flatnonzero(np.isin(data.id, sorted(only)))), None, groups=ALL_GROUPS
        )
    named = {split_id(name)[0] for s in sets for name in [*s.ids, *(m.id for m in s.missing)]}
    if not named & set(data.id.tolist()):
        return []
    return choose_targets(data, None, groups=ALL_GROUPS)


def completed(
    structures: StructureSet, targets: Sequence[Target], known: Collection[str]
) -> StructureSet:
    """A set of predictions with those of targets it lacks as missing; other sets unchanged."""
    if not _trials(structures, known):
        return structures
    names = [*structures.ids, *(m.id for m in structures.missing)]
    there = {target for target, trial in map(split_id, names) if trial == 0}
    lacking = [t.id for t in targets if t.id not in there]
    more = tuple(Missing(f"{name}__0", "no prediction of this target") for name in lacking)
    return replace(structures, missing=(*structures.missing, *more)) if more else structures


def _as_sets(
    structures: StructureSet | Sequence[StructureSet] | Sequence[Candidate],
) -> list[StructureSet]:
    if isinstance(structures, StructureSet):
        structures = [structures]
    sets = [s for s in structures if isinstance(s, StructureSet)]
    if len(sets) < len(structures):
        candidates = [c for c in structures if isinstance(c, Candidate)]
        sets = [StructureSet.from_candidates(candidates, "candidates")]
    if not sets or not all(s.attempted for s in sets):
        label = next((s.label for s in sets if not s.attempted), "the list")
        raise InputError(f"{label} holds no structures; give at least one")
    labels = [s.label for s in sets]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise InputError(f"two sets are called {twice[0]!r}; give them different names")
    return sets


def _packed(source: PackedDataset | str | os.PathLike[str]) -> PackedDataset:
    data = source if isinstance(source, PackedDataset) else load_crystals(source)
    if not len(data):
        raise InputError("the reference holds no crystals")
    return data


class _Evaluation:
    """One evaluation: what all columns share, and how a column is made."""

    def __init__(self, options: EvaluateOptions, cache: Cache, progress: Progress) -> None:
        self.options, self.cache, self.progress = options, cache, progress
        self.used_hull: HullReferences | None = None
        self.training_hash: str | None = None

    # -- shared

    def prepare(
        self,
        data: PackedDataset,
        training: StructureSet | None,
        targets: Sequence[Target] | None,
        sets: Sequence[StructureSet],
    ) -> list[StructureSet]:
        """The reference, its features, and the targets; sets with what they lack of these."""
        self.training = training
        self.reference = StructureSet.from_packed(data, "reference")
        known = set(self.reference.ids)
        self.trials_of = {s.label: _trials(s, known) for s in sets}
        self.targets = reference_targets(data, sets) if targets is None else list(targets)
        self.reference_features = self.features(self.reference)
        ids = [t.id for t in self.targets]
        self.target_set = self.reference.select([self.reference.index_of[name] for name in ids])
        valid = self.valid(self.reference, self.reference_features)[2].tolist()
        self.target_valid = dict(zip(self.reference.ids, valid, strict=True))
        return [completed(each, self.targets, known) for each in sets]

    def features(self, structures: StructureSet) -> Features:
        """All features asked for."""
        names = (*ALWAYS, *self.options.features)
        return self._features(structures, names)

    def _features(self, structures: StructureSet, names: Sequence[str]) -> Features:
        return compute_features(
            structures,
            names,
            cache=self.cache,
            workers=self.options.workers,
            progress=self.stage(f"{structures.label}: features"),
        )

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A progress callback of one stage."""
        return lambda done, planned: self.progress(name, done, planned)

    def valid(
        self, structures: StructureSet, features: Features
    ) -> tuple[BoolArray, BoolArray, BoolArray]:
        """(B,) structure, composition, both; no fingerprint counts as invalid, as in CDVAE."""
        geometry = features.values["geometry"]
        shape = validity.structure_valid(geometry[:, 0], geometry[:, 2])
        composition, _ = validity.compositions_valid(structures.formulas)
        both = shape & composition
        if "crystalnn" in features.values:
            both = both & np.isfinite(features.values["crystalnn"]).all(axis=1)
        return shape, composition, both

    # -- a column

    def begin(
        self, structures: StructureSet, first: StructureSet, features: Features
    ) -> tuple[Column, BoolArray]:
        """A column with counts and validity of the first trials, and (B,) which are valid."""
        shape, composition, both = self.valid(first, features)
        column = Column(structures.label)
        column.summary = {
            "attempted": first.attempted,
            "missing": len(first.missing),
            "struct_valid": shape.sum() / first.attempted,
            "comp_valid": composition.sum() / first.attempted,
            "valid": both.sum() / first.attempted,
        }
        column.missing = [{"id": m.id, "reason": m.reason} for m in structures.missing]
        column.failures = features.failures
        column.structures = [
            {"id": name, "formula": formula, "group_asked": int(group) or None}
            for name, formula, group in zip(first.ids, first.formulas, first.group, strict=True)
        ]
        _record(column, struct_valid=shape, comp_valid=composition, valid=both)
        return column, both

    def column(self, structures: StructureSet, evaluations: int | None) -> Column:
        """Everything about one set."""
        known = set(self.reference.ids)
        first = _first_trials(structures, known)
        features = self.features(first)
        column, both = self.begin(structures, first, features)
        column.summary["evaluations"] = evaluations
        self.add_distributions(column, first, features)
        self.add_membership(column, first)
        self.add_metre(column, structures)
        if self.targets:
            self.add_prediction(
                column, structures, dict(zip(first.ids, both.tolist(), strict=True))
            )
        return column

    def add_distributions(
        self, column: Column, structures: StructureSet, features: Features
    ) -> None:
        """Coverage, Fréchet distances, distances between distributions, symmetry."""
        values, reference = features.values, self.reference_features.values
        summary, attempted = column.summary, structures.attempted
        for key, place in (("w_density", 3), ("w_elements", 5), ("w_min_distance", 0),
                           ("w_max_distance", 1)):  # fmt: skip
            summary[key] = distributions.wasserstein(
                values["geometry"][:, place], reference["geometry"][:, place]
            )
        apart = distributions.lattice_wasserstein(values["lattice"], reference["lattice"])
        summary["w_lengths"] = float(apart[:3].mean())
        found = np.nan_to_num(values["symmetry"]).astype(np.int64)
        theirs = np.nan_to_num(reference["symmetry"]).astype(np.int64)
        summary["js_groups"] = distributions.space_group_divergence(found[:, 2], theirs[:, 2])
        summary["js_elements"] = distributions.element_divergence(
            structures.numbers, self.reference.numbers
        )
        summary["p1_share"] = distributions.p1_share(found[:, 2], attempted)
        asked = structures.group > 0
        if asked.any():
            missing = attempted - len(structures)
            retention = distributions.group_retention(
                structures.group[asked], found[asked], int(asked.sum()) + missing
            )
            for tolerance, kept, higher in zip(
                SYMPRECS, retention.kept, retention.higher, strict=True
            ):
                summary[f"kept_{tolerance:g}"] = float(kept)
                summary[f"higher_{tolerance:g}"] = float(higher)
        summary["formula_diversity"] = distributions.formula_diversity(
            structures.formulas, attempted
        )
        _record(
            column,
            min_distance=values["geometry"][:, 0],
            volume_per_atom=values["geometry"][:, 2] / values["geometry"][:, 4],
            density=values["geometry"][:, 3],
            groups_found=found,
            lengths=values["lattice"][:, :3],
        )
        if "crystalnn" in values:
            mine, ours = finite_rows(values["crystalnn"]), finite_rows(reference["crystalnn"])
            summary["fd_crystalnn"] = frechet_distance(mine, ours)
            summary["fingerprint_diversity"] = distributions.fingerprint_diversity(mine)
        if "chgnet" in values:
            mine, ours = finite_rows(values["chgnet"]), finite_rows(reference["chgnet"])
            summary["fd_chgnet"] = frechet_distance(mine[:, 1:], ours[:, 1:])
            summary["w_energy"] = distributions.wasserstein(mine[:, 0], ours[:, 0])
            _record(column, energy=values["chgnet"][:, 0])
        if {"crystalnn", "magpie"} <= set(values):
            near = coverage(
                values["crystalnn"],
                scale_magpie(values["magpie"]),
                reference["crystalnn"],
                scale_magpie(reference["magpie"]),
                attempted=attempted,
            )
            summary["cov_recall"], summary["cov_precision"] = near.recall, near.precision
            summary["cov_recall_joint"] = near.joint_recall
            summary["cov_precision_joint"] = near.joint_precision
            _record(
                column,
                nearest_structure=near.structure_precision,
                nearest_composition=near.composition_precision,
            )

    def add_membership(self, column: Column, structures: StructureSet) -> None:
        """Uniqueness and novelty."""
        failures: dict[tuple[str, str], str] = {}
        labels = duplicates.unique_groups(
            structures,
            progress=self.stage(f"{structures.label}: uniqueness"),
            failures=failures,
            cache=self.cache,
            workers=self.options.workers,
        )
        column.summary["unique"] = len(set(labels.tolist())) / structures.attempted
        _record(column, same_as=labels)
        if self.training is not None:
            new = duplicates.novel(
                structures,
                self.training,
                progress=self.stage(f"{structures.label}: novelty"),
                failures=failures,
                cache=self.cache,
                workers=self.options.workers,
            )
            column.summary["novel"] = new.sum() / structures.attempted
            _record(column, novel=new)
        column.failures["comparison"] = {a: f"{reason} (with {b})" for (a, b), reason in
                                         failures.items()}  # fmt: skip

    def add_metre(self, column: Column, structures: StructureSet) -> None:
        """METRe over all trials: of the targets where there are some, else of the reference."""
        if self.options.per_composition:
            structures = _per_composition(structures, self.targets)
        column.summary["metre"], column.summary["crmse"], _ = duplicates.metre(
            structures,
            self.target_set if self.targets else self.reference,
            cache=self.cache,
            workers=self.options.workers,
            progress=self.stage(f"{structures.label}: METRe"),
        )

    def add_prediction(
        self, column: Column, structures: StructureSet, first_valid: Mapping[str, bool]
    ) -> None:
        """Match rates; nothing where no structure predicts a target."""
        trials = self.trials_of.get(structures.label, 0)
        if not trials:
            return
        valid = self._all_valid(structures, first_valid) if trials > 1 else first_valid
        table = prediction.predict_table(
            structures,
            self.target_set,
            targets=[t.id for t in self.targets],
            trials=trials,
            prediction_valid=valid,
            target_valid=self.target_valid,
            freedom={t.id: t.freedom for t in self.targets},
            progress=self.stage(f"{structures.label}: matching"),
            cache=self.cache,
            workers=self.options.workers,
        )
        column.failures["match"] = table.failures
        summary = column.summary
        summary["targets"] = len(self.targets)
        summary["predicted"] = int(table.present.any(axis=1).sum())
        summary["formula_right"] = float(table.formula_right[:, 0].mean())
        for key, k in (("1", 1), ("k", trials)):
            if key == "k" and trials == 1:
                continue
            rate = prediction.match_rate(table, k)
            summary[f"match_{key}"], summary[f"rmse_{key}"] = rate.rate, rate.rmse
            summary[f"match_{key}_interval"] = list(rate.interval)
            filtered = prediction.match_rate(table, k, filtered=True)
            summary[f"match_{key}_filtered"] = filtered.rate
            free = prediction.match_rate(table, k, pick=table.freedom > 0)
            summary[f"match_{key}_free"] = free.rate
        summary["trials"] = trials if trials > 1 else None
        names = {"freedom": prediction.freedom_labels(table.freedom),
                 "atoms": prediction.atom_labels([t.primitive_atoms for t in self.targets]),
                 "system": [t.group.crystal_system for t in self.targets]}  # fmt: skip
        for kind, labels in names.items():
            for key, k in (("", 1), ("_k", trials)):
                rates = prediction.rates_by(table, labels, k)
                column.tables[f"by_{kind}{key}"] = {
                    name: {"targets": r.targets, "rate": r.rate, "rmse": r.rmse}
                    for name, r in rates.items()
                }
        first = dict(zip(table.targets, table.rms[:, 0].tolist(), strict=True))
        lengths = self.reference_features.values["lattice"]
        for entry in column.structures:
            target = split_id(entry["id"])[0]
            if target in first:
                place = self.reference.index_of[target]
                entry["target"], entry["rms"] = target, first[target]
                entry["target_lengths"] = lengths[place, :3].tolist()
        column.tables["prediction"] = {
            "targets": list(table.targets),
            "freedom": table.freedom,
            "rms": table.rms,
        }

    def _all_valid(self, structures: StructureSet, first: Mapping[str, bool]) -> dict[str, bool]:
        """Of later trials by geometry and composition alone: fingerprints of all cost hours."""
        features = self._features(structures, ("geometry",))
        geometry = features.values["geometry"]
        shape = validity.structure_valid(geometry[:, 0], geometry[:, 2])
        composition, _ = validity.compositions_valid(structures.formulas)
        both = (shape & composition).tolist()
        return dict(zip(structures.ids, both, strict=True)) | dict(first)

    # -- relaxed

    def relaxed_column(self, structures: StructureSet) -> Column:
        """The same set after relaxation: prediction and stability."""
        known = set(self.reference.ids)
        chosen = _some_trials(structures, known, self.options.relax_trials)
        label = f"{structures.label} relaxed"
        relaxations = relax(
            list(chosen.cells()),
            self.options.relaxation,
            cache=self.cache,
            workers=self.options.workers,
            progress=self.stage(f"{structures.label}: relaxation"),
        )
        after = _relaxed_set(chosen, relaxations, label)
        self.trials_of[label] = _trials(after, known)
        first = _first_trials(after, known)
        features = self._features(first, ("geometry", "symmetry"))
        column, both = self.begin(after, first, features)
        _record(column, groups_found=np.nan_to_num(features.values["symmetry"]).astype(np.int64))
        self.add_membership(column, first)
        self.add_metre(column, after)
        self.add_stability(column, first, chosen, relaxations)
        if self.targets:
            self.add_prediction(column, after, dict(zip(first.ids, both.tolist(), strict=True)))
        return column

    def add_stability(
        self,
        column: Column,
        first: StructureSet,
        before: StructureSet,
        relaxations: Sequence[Relaxation],
    ) -> None:
        """Energies above hull, S.U.N. and how far the atoms moved."""
        hull = HullReferences.shipped(self.options.relaxation.potential)
        self.used_hull = hull
        of = dict(zip(before.ids, relaxations, strict=True))
        mine = [of[name] for name in first.ids]
        results = [hull.energy_above_hull(r.cell[2], r.energy) for r in mine]
        above = np.array(
            [np.nan if r.e_above_hull is None else r.e_above_hull for r in results], dtype=float
        )
        starts = [before.cell(before.index_of[name]) for name in first.ids]
        rms = matching.match_pairs(
            [(start, r.cell) for start, r in zip(starts, mine, strict=True)],
            cache=self.cache,
            workers=self.options.workers,
            progress=self.stage(f"{column.label}: displacement"),
        )
        scale = np.array(
            [(abs(np.linalg.det(r.cell[0])) / len(r.cell[2])) ** (1 / 3) for r in mine]
        )
        stable = above <= STABLE
        unique = np.zeros(len(first), dtype=bool)
        labels = [entry["same_as"] for entry in column.structures]
        unique[np.unique(labels, return_index=True)[1]] = True
        summary, attempted = column.summary, first.attempted
        summary["relaxed_share"] = len(first) / attempted
        summary["converged"] = sum(r.converged for r in mine) / attempted
        moved = rms * scale
        summary["rmsd_relaxed"] = float(np.nanmedian(moved)) if np.isfinite(moved).any() else None
        summary["relaxed_match"] = float(np.isfinite(rms).sum() / attempted)
        known = above[np.isfinite(above)]
        summary["e_hull_median"] = float(np.median(known)) if len(known) else None
        summary["stable"] = stable.sum() / attempted
        if self.training is not None:
            new = np.array([entry["novel"] for entry in column.structures], dtype=bool)
            summary["sun"] = (stable & unique & new).sum() / attempted
        _record(
            column,
            energy=np.array([r.energy for r in mine]),
            start_energy=np.array([r.start_energy for r in mine]),
            steps=np.array([r.steps for r in mine]),
            converged=np.array([r.converged for r in mine]),
            e_above_hull=above,
            rms_to_start=rms,
        )

    # -- the rest of the report

    def reference_values(self) -> dict[str, FloatArray | NDArray[np.int64]]:
        """What the plots compare with."""
        values = self.reference_features.values
        geometry = values["geometry"]
        found: dict[str, FloatArray | NDArray[np.int64]] = {
            "density": geometry[:, 3],
            "volume_per_atom": geometry[:, 2] / geometry[:, 4],
            "min_distance": geometry[:, 0],
            "group": np.nan_to_num(values["symmetry"][:, 2]).astype(np.int64),
        }
        if "chgnet" in values:
            found["energy"] = values["chgnet"][:, 0]
        return found

    def settings(self, data: PackedDataset) -> dict[str, object]:
        """Everything needed to make the numbers again."""
        from importlib.metadata import PackageNotFoundError, version

        def installed(name: str) -> str:
            try:
                return version(name)
            except PackageNotFoundError:
                return "not installed"

        packages = ("langevin-xtal", "pymatgen", "spglib", "matminer", "smact", "chgnet", "pyxtal")
        return {
            "reference": data.meta.get("source", ""),
            "reference_hash": data.content_hash,
            "reference_crystals": len(data),
            "training_hash": self.training_hash,
            "features": list(self.options.features),
            "relaxation": repr(self.options.relaxation) if self.options.relax else None,
            "versions": {name: installed(name) for name in packages},
        }

    def notes(self) -> list[str]:
        """What a reader must know to compare the numbers."""
        lines = [
            f"Reference: {len(self.reference)} crystals. Missing structures count against every "
            "rate; distances between distributions are over the structures that are there.",
            f"Matching: StructureMatcher, {matching.TOLERANCES}; uniqueness and novelty: "
            f"{matching.STRICT}. RMSE is normalised by (V/N)^(1/3), over matches.",
            f"Composition validity: {validity.describe()}.",
            "COV as CDVAE: CrystalNN cut-off 0.4, Magpie 10; nearest neighbours taken one by one.",
            "Jensen–Shannon distances have natural logarithms and all 230 groups; groups by "
            "spglib, 0.1 Å for the distributions.",
        ]
        if self.options.per_composition and self.targets:
            different = len(_of_compositions(self.targets))
            lines.append(
                "METRe: as many structures for each composition (atoms in the primitive cell) as "
                f"there are trials; {len(self.targets)} targets have {different} compositions, "
                "and those that share one share the predictions of the first of them."
            )
        if self.used_hull is not None:
            lines.append(
                f"Stability: relaxed with {self.options.relaxation.potential}; "
                f"{self.used_hull.describe()}; stable means at most {STABLE} eV/atom above it."
            )
        return lines


def _record(column: Column, **values: ArrayLike) -> None:
    """Add (B, …) arrays to the entries of the structures."""
    for key, array in values.items():
        for entry, value in zip(column.structures, np.asarray(array).tolist(), strict=True):
            entry[key] = value


def _trials(structures: StructureSet, known: Collection[str]) -> int:
    """Most trials of a target; 0 when no identifier names a crystal of the reference."""
    names = [*structures.ids, *(m.id for m in structures.missing)]
    numbers = [trial for target, trial in map(split_id, names) if target in known]
    return max(numbers) + 1 if numbers else 0


def _some_trials(
    structures: StructureSet, known: Collection[str], trials: int, label: str | None = None
) -> StructureSet:
    """The first trials of every target, and all that predict no target."""

    def early(name: str) -> bool:
        target, trial = split_id(name)
        return target not in known or trial < trials

    picked: list[int] = [k for k, name in enumerate(structures.ids) if early(name)]
    chosen = structures.select(picked, label)
    missing = [m for m in structures.missing if early(m.id)]
    return StructureSet.of(chosen.label, list(chosen.cells()), chosen.ids, chosen.group, missing)


def _of_compositions(targets: Sequence[Target]) -> list[str]:
    """Identifiers of the first targets of their composition, atoms in the primitive cell."""
    first: dict[tuple[tuple[int, int], ...], str] = {}
    for target in targets:
        units = len(target.group.centring)
        atoms = tuple((z, n // units) for z, n in target.counts().items())
        first.setdefault(atoms, target.id)
    return list(first.values())


def _per_composition(structures: StructureSet, targets: Sequence[Target]) -> StructureSet:
    """Predictions of the first target of each composition, and all that predict no target."""
    left_out = {t.id for t in targets} - set(_of_compositions(targets))
    return structures.select(
        [k for k, name in enumerate(structures.ids) if split_id(name)[0] not in left_out]
    )


def _first_trials(structures: StructureSet, known: Collection[str]) -> StructureSet:
    return _some_trials(structures, known, 1)


def _relaxed_set(
    before: StructureSet, relaxations: Sequence[Relaxation], label: str
) -> StructureSet:
    """Relaxed cells; those that failed are missing, with the reason."""
    cells, ids, missing = [], [], list(before.missing)
    for name, relaxation in zip(before.ids, relaxations, strict=True):
        if relaxation.reason:
            missing.append(Missing(name, relaxation.reason))
        else:
            cells.append(relaxation.cell)
            ids.append(name)
    return StructureSet.of(label, cells, ids, None, missing)
