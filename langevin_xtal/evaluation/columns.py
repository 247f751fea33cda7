"""What all columns of an evaluation share, and how one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.config.evaluation import EvaluateOptions
from langevin_xtal.config.tolerances import SYMPRECS
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation import distributions, duplicates, matching, prediction, validity
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.coverage import coverage
from langevin_xtal.evaluation.features import Features, compute_features, scale_magpie
from langevin_xtal.evaluation.frechet import finite_rows, frechet_distance
from langevin_xtal.evaluation.report import Column
from langevin_xtal.evaluation.structures import Missing, StructureSet, split_id
from langevin_xtal.evaluation.targets import Target
from langevin_xtal.evaluation.trials import (
    completed,
    of_compositions,
    per_composition,
    reference_targets,
    some_trials,
    trials_in,
)
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.relax import Relaxation, relax

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, items done and items planned."""

ALWAYS = ("geometry", "symmetry", "lattice")
STABLE = 0.1
"""Energy above hull of a stable structure [eV/atom], as MatterGen."""


class Evaluation:
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
        self.trials_of = {s.label: trials_in(s, known) for s in sets}
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
        first = some_trials(structures, known, 1)
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
        _add_fingerprints(column, values, reference, attempted)

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
            structures = per_composition(structures, self.targets)
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
        chosen = some_trials(structures, known, self.options.relax_trials)
        label = f"{structures.label} relaxed"
        relaxations = relax(
            list(chosen.cells()),
            self.options.relaxation,
            cache=self.cache,
            workers=self.options.workers,
            progress=self.stage(f"{structures.label}: relaxation"),
        )
        after = _relaxed_set(chosen, relaxations, label)
        self.trials_of[label] = trials_in(after, known)
        first = some_trials(after, known, 1)
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
            different = len(of_compositions(self.targets))
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


def _add_fingerprints(
    column: Column,
    values: Mapping[str, FloatArray],
    reference: Mapping[str, FloatArray],
    attempted: int,
) -> None:
    """Fréchet distances and coverage, as far as both sets have the fingerprints."""
    summary = column.summary
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
