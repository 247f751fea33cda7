"""Fitting what says which space group and cell content a composition has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from langevin_xtal.config.training import EpochsConfig
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.known import MOST_ELEMENTS, KnownCrystals, Neighbours, nearest, ordered
from langevin_xtal.model.settings import (
    MOST_UNITS,
    SettingConfig,
    SettingModel,
    group_mask,
    units_mask,
)
from langevin_xtal.model.tensor_file import weights_hash
from langevin_xtal.model.voting import Ballot, VotingClassifier
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.train.epochs import EpochConfig, EpochFit
from langevin_xtal.train.prior import substitution

TOGETHER = 128  # crystals whose losses are taken in one go


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


@dataclass(frozen=True, kw_only=True)
class SettingsFitConfig(EpochConfig):
    """Settings of the fit of the distribution over settings."""

    epochs: int = EpochsConfig.settings
    batch_size: int = 128
    held_out: float = 0.05
    """Share of the crystals that decides which epoch is kept."""
    forgotten: float = 0.6
    """Most of the neighbours hidden at a time: each crystal lacks just itself."""
    far_above: float = 0.25
    """Share of the crystals far above the hull that are learned from; all of them vote."""


class ClassifierFit(EpochFit[NDArray[np.int64]]):
    """Fit of one of the two classifiers, see :func:`fit_settings`; torch is seeded outside.

    Parameters
    ----------
    name
        Of the classifier in the model: ``group`` or ``units``.
    rows
        Crystals learned from.
    """

    config: SettingsFitConfig
    losses = ("held_out",)
    keeps_best = True

    def __init__(
        self,
        name: str,
        model: SettingModel,
        rows: NDArray[np.int64],
        config: SettingsFitConfig,
        data_hash: str,
        *,
        init: VotingClassifier | None = None,
        out: Path | None = None,
    ) -> None:
        self.model = model
        self.classifier: VotingClassifier = getattr(model, name)
        if init is not None:
            self.classifier.load_state_dict(init.state_dict())
        else:
            with torch.no_grad():
                self.classifier.resemble.weight.copy_(model.resemblance)
                self.classifier.resemble_described.weight.zero_()
                self.classifier.resemble_described.bias.zero_()
        self.examples = _examples(model, name, rows)
        rng = np.random.default_rng(config.seed)
        order = rng.permutation(len(self.examples.row))
        self.held_out, self.chosen = np.split(order, [int(config.held_out * len(order))])
        self.holds_out = bool(len(self.held_out))
        super().__init__(
            self.classifier,
            config,
            data_hash,
            out,
            rate=config.peak(init is not None),
            total_steps=config.epochs * -(-len(self.chosen) // config.batch_size) + 1,
            rng=rng,
            facts={
                "network": dataclasses.asdict(model.config),
                "starts_from": weights_hash(self.classifier.state_dict()),
            },
        )
        self.begin()

    def _draw(self) -> list[NDArray[np.int64]]:
        assert self.rng is not None
        return list(_batches(self.rng.permutation(self.chosen), self.config.batch_size))

    def _loss(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        assert self.rng is not None
        ballot = _ballot(self.model, self.examples, batch, self.rng, self.config.forgotten)
        logits = self.classifier(ballot, dropout=self.config.dropout, shown=substitution())
        loss = functional.cross_entropy(logits, self.examples.label[batch])
        return loss, loss.detach()

    def _epoch_losses(self) -> tuple[float, ...]:
        return (_mean_loss(self.classifier, self.model, self.examples, self.held_out),)


def fit_settings(
    data: PackedDataset,
    resemblance: Tensor,
    *,
    seed: int = 0,
    epochs: int = SettingsFitConfig.epochs,
    config: SettingConfig | None = None,
    init: SettingModel | None = None,
    on_epoch: Callable[[str, int, float], None] | None = None,
    out: Path | None = None,
    until: float = math.inf,
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
    out, until
        As for :func:`~langevin_xtal.train.prior.fit_prior`; each classifier has a folder in
        this one.
    """
    torch.manual_seed(seed)
    known, _ = known_crystals(data)
    config = (config or SettingConfig()) if init is None else init.config
    if resemblance.shape[1] != config.similarity:
        config = replace(config, similarity=resemblance.shape[1])
    chosen = SettingsFitConfig(epochs=epochs, seed=seed)
    model = SettingModel(known, resemblance, config)
    rng = np.random.default_rng(seed)
    learned = (known.stable > 0) | (rng.random(len(known)) < chosen.far_above)
    rows = np.flatnonzero(learned)
    for name in ("group", "units"):
        fit = ClassifierFit(
            name,
            model,
            rows,
            chosen,
            data.content_hash,
            init=None if init is None else getattr(init, name),
            out=None if out is None else out / name,
        )
        fit.finish(None if on_epoch is None else partial(on_epoch, name), until)
    return model.eval().requires_grad_(False)


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
        for pick in _batches(rows, TOGETHER):
            logits = classifier(_ballot(model, examples, pick, None))
            total += float(functional.cross_entropy(logits, examples.label[pick], reduction="sum"))
    return total / len(rows)


def _batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (rows[k : k + size] for k in range(0, len(rows), size))


def _ballot(
    model: SettingModel,
    examples: _Examples,
    pick: NDArray[np.int64],
    rng: np.random.Generator | None,
    forgotten: float = 0.0,
) -> Ballot:
    row = examples.neighbours.row[pick]
    if rng is not None:
        share = forgotten * rng.random((len(pick), 1))
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
