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
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from langevin_xtal.config.evaluation import EvaluateOptions
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import reduced_formula
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.prepare import load_crystals
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.cache import SpareCache
from langevin_xtal.evaluation.columns import Evaluation, Progress
from langevin_xtal.evaluation.report import Report
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.evaluation.targets import Target
from langevin_xtal.screen.hull import HullReferences


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
        run = Evaluation(options, cache, progress or (lambda stage, done, planned: None))
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
