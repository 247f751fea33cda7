"""Fitting what says which space group and cell content a composition has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

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
from langevin_xtal.train.assignments import REFIT, substitution

BATCH = 128
RATE = 2e-3
WEIGHT_DECAY = 2e-2
DROPOUT = 0.1
HELD_OUT = 0.05  # share of the crystals that decides which epoch is kept
FORGOTTEN = 0.6  # most of the neighbours hidden at a time: each crystal lacks just itself
FAR_ABOVE = (
    0.25  # share of the crystals far above the hull that are learned from; all of them vote
)


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
    """C crystals as compositions with the neighbours of each, itself left out."""

    row: NDArray[np.int64]  #: (C,) of the table
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
    init: SettingModel | None = None,
    on_epoch: Callable[[str, int, float], None] | None = None,
) -> SettingModel:
    """Maximum likelihood of the groups and of the cell contents of a dataset's compositions.

    No crystal votes for itself, and random ones of its neighbours are hidden: what just one
    crystal lacks would give it away. All crystals vote; learned from are the near-stable ones and
    a quarter of the others. One in twenty is held out, and the epoch that explains these best is
    kept.

    Parameters
    ----------
    resemblance
        (119, D) place of every element, as a ranker has learned it: neighbours are found by it,
        and the classifiers' own resemblance starts from it.
    init
        A model whose networks are where the fit starts, in place of random ones; the crystals it
        knows are not taken over.
    on_epoch
        Called with the name of the part, the epochs done and the mean negative log-likelihood of
        the crystals held out.
    """
    torch.manual_seed(seed)
    known, _ = known_crystals(data)
    config = (config or SettingConfig()) if init is None else init.config
    if resemblance.shape[1] != config.similarity:
        config = replace(config, similarity=resemblance.shape[1])
    model = SettingModel(known, resemblance, config)
    rng = np.random.default_rng(seed)
    learned = (known.stable > 0) | (rng.random(len(known)) < FAR_ABOVE)
    rows = np.flatnonzero(learned)
    for name, classifier in (("group", model.group), ("units", model.units)):
        if init is not None:
            classifier.load_state_dict(getattr(init, name).state_dict())
        else:
            with torch.no_grad():
                classifier.resemble.weight.copy_(resemblance)
                classifier.resemble_described.weight.zero_()
                classifier.resemble_described.bias.zero_()
        _fit(
            classifier,
            model,
            _examples(model, name, rows),
            epochs,
            RATE if init is None else REFIT * RATE,
            seed,
            None if on_epoch is None else partial(on_epoch, name),
        )
    return model.eval().requires_grad_(False)


def _fit(
    classifier: VotingClassifier,
    model: SettingModel,
    examples: _Examples,
    epochs: int,
    rate: float,
    seed: int,
    report: Callable[[int, float], None] | None,
) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(examples.row))
    held_out, chosen = np.split(order, [int(HELD_OUT * len(order))])
    steps = epochs * (-(-len(chosen) // BATCH))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1)
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
        elements=torch.from_numpy(model.known.elements[examples.row[pick]]),
        counts=examples.counts[pick],
        label=torch.where(rows >= 0, examples.labels_of[here], -1),
        kind=examples.kind_of[pick],
        matched=torch.from_numpy(examples.neighbours.matched[pick].astype(np.int64)),
        stable=torch.from_numpy(model.known.stable)[here] > 0,
        wanted=torch.from_numpy(model.known.stable[examples.row[pick]]) > 0,
        allowed=examples.allowed[pick],
    )


def _examples(model: SettingModel, name: str, rows: NDArray[np.int64]) -> _Examples:
    """Neighbours of crystals: for the group, those of the same cell content come first."""
    known, config = model.known, model.config
    crystals = len(rows)
    most = config.neighbours + config.elsewhere
    row = np.full((crystals, most), -1)
    matched = np.zeros((crystals, most, MOST_ELEMENTS), dtype=np.uint8)
    kind = np.zeros((crystals, most), dtype=np.int64)
    place_of = np.full(len(known), -1)
    place_of[rows] = np.arange(crystals)
    for family, members in known.families.items():
        asking = members[place_of[members] >= 0]
        if not len(asking):
            continue
        elements = known.elements[asking][:, : len(family)]
        places, units = place_of[asking], known.units[asking]
        find = partial(nearest, known, model.distances, family)
        if name == "units":
            found = find(elements, most, without=asking)
            row[places], matched[places] = found.row, found.matched
            continue
        own, other = slice(None, config.neighbours), slice(config.neighbours, None)
        for n in np.unique(units):
            mine, same = units == n, known.units[members] == n
            for part, number, among in (
                (own, config.neighbours, members[same]),
                (other, config.elsewhere, members[~same]),
            ):
                found = find(elements[mine], number, among=among, without=asking[mine])
                row[places[mine], part], matched[places[mine], part] = found.row, found.matched
    kind[:, config.neighbours :] = name == "group"
    if name == "group":
        counts, labels = known.counts, known.group
        masks = {c: group_mask(c) for c in set(map(tuple, counts[rows].tolist()))}
        allowed = np.stack([masks[tuple(c)] for c in counts[rows].tolist()])
    else:
        counts, labels = known.counts // known.units[:, None], known.units.clip(max=MOST_UNITS)
        allowed = np.stack([units_mask(c) for c in counts[rows].tolist()])
    return _Examples(
        row=rows,
        neighbours=Neighbours(row, matched),
        label=torch.from_numpy(labels[rows]),
        counts=torch.from_numpy(counts[rows]),
        allowed=torch.from_numpy(allowed),
        labels_of=torch.from_numpy(labels),
        kind_of=torch.from_numpy(kind),
    )
