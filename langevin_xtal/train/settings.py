"""Fitting what says which space group and cell content a composition has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.known import MOST_ELEMENTS, KnownCrystals, Neighbours, nearest, ordered
from langevin_xtal.model.settings import (
    MOST_UNITS,
    SettingConfig,
    SettingModel,
    group_mask,
    units_mask,
)
from langevin_xtal.model.voting import Ballot, VotingClassifier
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.train.assignments import substitution

BATCH = 128
RATE = 2e-3
WEIGHT_DECAY = 2e-2
DROPOUT = 0.1
HELD_OUT = 0.05  # share of the crystals that decides which epoch is kept
FORGOTTEN = 0.6  # most of the neighbours hidden at a time: each crystal lacks just itself


def known_crystals(data: PackedDataset) -> tuple[KnownCrystals, NDArray[np.int64]]:
    """Composition and group of every crystal of a dataset, and its row there.

    Crystals of more than :data:`MOST_ELEMENTS` elements are left out. A crystal counts as
    near-stable unless the property ``near_stable`` is 0.
    """
    centring = np.array([1] + [len(SpaceGroup(n).centring) for n in range(1, 231)])
    flag = data.properties.get("near_stable", np.full(len(data), np.nan))
    elements, counts, rows = [], [], []
    for k in range(len(data)):
        sites = data.sites_of(k)
        numbers, multiplicity = data.numbers[sites], data.multiplicity[sites]
        kinds, of = np.unique(numbers, return_inverse=True)
        if len(kinds) > MOST_ELEMENTS:
            continue
        atoms = np.bincount(of, weights=multiplicity).astype(np.int64) // centring[data.group[k]]
        order = ordered(kinds.tolist(), atoms.tolist())
        padding = [0] * (MOST_ELEMENTS - len(kinds))
        elements.append([*kinds[order].tolist(), *padding])
        counts.append([*atoms[order].tolist(), *padding])
        rows.append(k)
    picked = np.array(rows, dtype=np.int64)
    known = KnownCrystals(
        elements=np.array(elements, dtype=np.int64).reshape(-1, MOST_ELEMENTS),
        counts=np.array(counts, dtype=np.int64).reshape(-1, MOST_ELEMENTS),
        group=data.group[picked],
        stable=(flag[picked] != 0).astype(np.int64),
    )
    return known, picked


@dataclass(frozen=True)
class _Examples:
    """Crystals as compositions with the neighbours of each, itself left out."""

    neighbours: Neighbours
    label: Tensor  #: (C,)
    counts: Tensor  #: (C, E)
    allowed: Tensor  #: (C, labels)
    labels_of: Tensor  #: (rows of the table,)
    kind_of: Tensor  #: (C, K)


def fit_settings(
    data: PackedDataset,
    resemblance: Tensor,
    *,
    seed: int = 0,
    epochs: int = 5,
    config: SettingConfig | None = None,
    on_epoch: Callable[[str, int, float], None] | None = None,
) -> SettingModel:
    """Maximum likelihood of the groups and of the cell contents of a dataset's compositions.

    No crystal votes for itself, and random ones of its neighbours are hidden: what just one
    crystal lacks would give it away. One in twenty is held out, and the epoch that explains these
    best is kept.

    Parameters
    ----------
    resemblance
        (119, D) place of every element, as a ranker has learned it: neighbours are found by it,
        and the classifiers' own resemblance starts from it.
    on_epoch
        Called with the name of the part, the epochs done and the mean negative log-likelihood of
        the crystals held out.
    """
    torch.manual_seed(seed)
    known, _ = known_crystals(data)
    config = config or SettingConfig()
    if resemblance.shape[1] != config.similarity:
        config = replace(config, similarity=resemblance.shape[1])
    model = SettingModel(known, resemblance, config)
    for name, classifier in (("group", model.group), ("units", model.units)):
        with torch.no_grad():
            classifier.resemble.weight.copy_(resemblance)
            classifier.resemble_described.weight.zero_()
            classifier.resemble_described.bias.zero_()
        examples = _examples(model, name)
        report = (
            None
            if on_epoch is None
            else (lambda n, e, v: lambda k, x: v(n, k, x))(name, epochs, on_epoch)
        )
        _fit(classifier, model, examples, epochs, seed, report)
    return model.eval().requires_grad_(False)


def _fit(
    classifier: VotingClassifier,
    model: SettingModel,
    examples: _Examples,
    epochs: int,
    seed: int,
    report: Callable[[int, float], None] | None,
) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(model.known))
    held_out, chosen = np.split(order, [int(HELD_OUT * len(order))])
    steps = epochs * (-(-len(chosen) // BATCH))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + 1)
    best, best_loss = copy.deepcopy(classifier.state_dict()), np.inf
    for epoch in range(epochs):
        for pick in _batches(rng.permutation(chosen)):
            logits = classifier(
                _ballot(model, examples, pick, rng), dropout=DROPOUT, shown=substitution()
            )
            loss = functional.cross_entropy(logits, examples.label[pick])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        loss_held_out = _mean_loss(classifier, model, examples, held_out)
        if loss_held_out < best_loss or not len(held_out):
            best, best_loss = copy.deepcopy(classifier.state_dict()), loss_held_out
        if report is not None:
            report(epoch + 1, loss_held_out)
    classifier.load_state_dict(best)


def _mean_loss(
    classifier: VotingClassifier,
    model: SettingModel,
    examples: _Examples,
    rows: NDArray[np.int64],
) -> float:
    if not len(rows):
        return float("nan")
    total = 0.0
    with torch.inference_mode():
        for pick in _batches(rows):
            logits = classifier(_ballot(model, examples, pick, None))
            total += float(functional.cross_entropy(logits, examples.label[pick], reduction="sum"))
    return total / len(rows)


def _batches(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[k : k + BATCH] for k in range(0, len(rows), BATCH))


def _ballot(
    model: SettingModel,
    examples: _Examples,
    pick: NDArray[np.int64],
    rng: np.random.Generator | None,
) -> Ballot:
    row = examples.neighbours.row[pick]
    if rng is not None:
        share = FORGOTTEN * rng.random((len(pick), 1))
        row = np.where(rng.random(row.shape) < share, -1, row)
    rows = torch.from_numpy(row)
    here = rows.clamp(min=0)
    return Ballot(
        elements=torch.from_numpy(model.known.elements[pick]),
        counts=examples.counts[pick],
        label=torch.where(rows >= 0, examples.labels_of[here], -1),
        kind=examples.kind_of[pick],
        matched=torch.from_numpy(examples.neighbours.matched[pick]),
        stable=torch.from_numpy(model.known.stable)[here] > 0,
        wanted=torch.from_numpy(model.known.stable[pick]) > 0,
        allowed=examples.allowed[pick],
    )


def _examples(model: SettingModel, name: str) -> _Examples:
    """Neighbours of every crystal: for its group, those of its cell content come first."""
    known, config = model.known, model.config
    crystals = len(known)
    most = config.neighbours + config.elsewhere
    row = np.full((crystals, most), -1)
    matched = np.zeros((crystals, most, MOST_ELEMENTS), dtype=np.int64)
    kind = np.zeros((crystals, most), dtype=np.int64)
    for family, members in known.families.items():
        asked = known.elements[members][:, : len(family)]
        if name == "units":
            found = nearest(known, model.distances, family, asked, most, without=members)
            row[members], matched[members] = found.row, found.matched
            continue
        units = known.units[members]
        for n in np.unique(units):
            mine = np.flatnonzero(units == n)
            own = slice(None, config.neighbours)
            other = slice(config.neighbours, None)
            for place, among in ((own, members[mine]), (other, members[units != n])):
                found = nearest(
                    known,
                    model.distances,
                    family,
                    asked[mine],
                    config.neighbours if place is own else config.elsewhere,
                    among=among,
                    without=members[mine],
                )
                row[members[mine], place] = found.row
                matched[members[mine], place] = found.matched
    kind[:, config.neighbours :] = name == "group"
    if name == "group":
        counts, label = known.counts, known.group
        masks = {c: group_mask(c) for c in set(map(tuple, counts.tolist()))}
        allowed = np.stack([masks[tuple(c)] for c in counts.tolist()])
    else:
        counts, label = known.counts // known.units[:, None], known.units
        allowed = np.stack([units_mask(c) for c in counts.tolist()])
        label = np.minimum(label, MOST_UNITS)
    return _Examples(
        neighbours=Neighbours(row, matched),
        label=torch.from_numpy(label),
        counts=torch.from_numpy(counts),
        allowed=torch.from_numpy(allowed),
        labels_of=torch.from_numpy(label),
        kind_of=torch.from_numpy(kind),
    )
