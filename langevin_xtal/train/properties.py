"""Fit of a :class:`~langevin_xtal.model.properties.PropertyModel`.

Trunk and heads are fitted together, from the weights of a score network. Every member weights the
crystals in its own way, at random with mean 1 (the Bayesian bootstrap of Rubin 1981), so that the
members differ by more than their starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.crystal.properties import PROPERTIES
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.noising import clean_graph
from langevin_xtal.errors import InputError
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from langevin_xtal.model.properties import PropertyConfig, PropertyModel, PropertyNetwork, Stretch
from langevin_xtal.runtime import keep_freed_memory
from langevin_xtal.train.epochs import EpochConfig, EpochFit, starting_point

TOGETHER = 128
"""Crystals of a batch whose properties are asked for."""
WITHIN = 0.6827
"""Share of crystals that lie within one error bar."""
FEWEST = 20
"""Crystals with a property, below which it is left out; and in a part of those held out."""
PARTS = 6
"""Parts of the crystals held out, by the size of their error bars, at most."""
TRUNK = {"all_pairs": False, "k_max": 16}
"""What a trunk reads less than the score network whose weights it starts from: energies and gaps
need no edges between sites far apart, and are predicted in two thirds of the time."""


@dataclass(frozen=True, kw_only=True)
class PropertyFitConfig(EpochConfig):
    """Settings of the fit of a property model."""

    epochs: int = 18
    rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    held_out: float = 0.05
    """Share of the crystals by which error bars are scaled."""
    save_every: int = 200


class PropertyFit(EpochFit[NDArray[np.int64]]):
    """Fit of values by their absolute errors, and of widths by likelihood."""

    config: PropertyFitConfig
    losses = ("loss", *(f"held_out_{name}" for name in PROPERTIES))
    """The mean absolute errors of crystals held out, NaN for properties that are not fitted."""

    def __init__(
        self,
        data: PackedDataset,
        config: PropertyFitConfig,
        *,
        heads: PropertyConfig | None = None,
        init: EdgeNetwork | None = None,
        network: NetworkConfig | None = None,
        out: Path | None = None,
    ) -> None:
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.names = tuple(
            name
            for name in PROPERTIES
            if np.isfinite(data.properties.get(name, np.zeros(0))).sum() >= FEWEST
        )
        if not self.names:
            raise InputError(
                f"the training data have none of {', '.join(PROPERTIES)} for {FEWEST} crystals or "
                "more; data info lists the properties of a packed file"
            )
        self.targets = np.stack([data.properties[name] for name in self.names], axis=1)
        self.middle = np.nanmedian(self.targets, axis=0)
        self.scale = np.nanmean(np.abs(self.targets - self.middle), axis=0).clip(min=1e-6)
        scaled = (self.targets - self.middle) / self.scale
        self._scaled = torch.from_numpy(scaled).float()
        heads = heads or PropertyConfig()
        start = NetworkConfig() if init is None else init.config
        trunk = network or dataclasses.replace(start, **TRUNK)  # type: ignore[arg-type]
        self.model_network = PropertyNetwork(trunk, heads, len(self.names))
        if init is not None:
            self.model_network.start_from(init)
        self.elements = frozenset(data.numbers.tolist())
        self.crystals = CrystalStore(data)
        self.operations = all_operations()
        self.settings = trunk.graph_settings()
        rng = np.random.default_rng(config.seed)
        order = rng.permutation(len(data))
        few = max(1, round(config.held_out * len(order)))
        self.held_out, self.chosen = np.sort(order[:few]), np.sort(order[few:])
        self.weights_of_members = torch.from_numpy(
            rng.exponential(size=(heads.members, len(data), 1))
        ).float()
        facts = starting_point(self.model_network, init)
        super().__init__(
            self.model_network,
            config,
            data.content_hash,
            out,
            rate=config.peak(False),
            total_steps=-(-len(self.chosen) // config.batch_size) * config.epochs + 1,
            facts=facts,
        )
        self.begin()

    def _graph(self, index: NDArray[np.int64]) -> GraphBatch:
        batch = self.crystals.batch(torch.from_numpy(index))
        return clean_graph(batch, self.settings, self.operations)

    def _draw(self) -> list[NDArray[np.int64]]:
        order = torch.randperm(len(self.chosen)).numpy()
        size = self.config.batch_size
        return [self.chosen[order[k : k + size]] for k in range(0, len(order), size)]

    def _loss(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        value, width = self.network(self._graph(batch))
        target = self._scaled[batch]
        known = torch.isfinite(target)
        off = (torch.where(known, target, 0.0) - value).abs()
        # widths learn from the errors, not the other way round: small errors stay worth lowering
        each = off + off.detach() * (-width).exp() + width
        weight = self.weights_of_members[:, batch] * known
        loss = (each * weight).sum() / known.sum().clamp(min=1) / value.shape[0]
        return loss, torch.cat([loss.detach().reshape(1), torch.zeros(len(PROPERTIES))])

    def _epoch_losses(self) -> tuple[float, ...]:
        steps = -(-len(self.chosen) // self.config.batch_size)
        off, _ = self._held_out_errors(self._model((Stretch(),) * len(self.names)))
        off = np.nanmean(np.abs(off), axis=0)
        found = dict(zip(self.names, off.tolist(), strict=True))
        return float(self._sums[0]) / steps, *(found.get(name, math.nan) for name in PROPERTIES)

    def _held_out_errors(
        self, model: PropertyModel
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(H, P) what is wrong with the crystals held out, and the error bars."""
        found = [
            model.of_batch(self._graph(self.held_out[k : k + TOGETHER]))
            for k in range(0, len(self.held_out), TOGETHER)
        ]
        value = np.concatenate([f.value for f in found])
        return value - self.targets[self.held_out], np.concatenate([f.error for f in found])

    def _model(self, stretch: tuple[Stretch, ...]) -> PropertyModel:
        return PropertyModel(
            "properties",
            self.model_network,
            self.names,
            tuple(self.middle.tolist()),
            tuple(self.scale.tolist()),
            stretch,
            self.elements,
        )

    def halve(self) -> None:
        """Round the weights to half precision, which takes half the space in a file."""
        for weights in self.network.parameters():
            weights.data.copy_(weights.data.half())

    def model(
        self, name: str = "properties", card: Mapping[str, object] | None = None
    ) -> PropertyModel:
        """The fitted model, its error bars scaled by the crystals held out."""
        off, error = self._held_out_errors(self._model((Stretch(),) * len(self.names)))
        stretch = []
        for own, size, scale in zip(np.abs(off).T, error.T, self.scale, strict=True):
            known = np.isfinite(own)
            parts = min(PARTS, int(known.sum()) // FEWEST)
            stretch.append(
                Stretch.fitted(own[known] / scale, size[known] / scale, WITHIN, parts)
                if parts
                else Stretch()
            )
        return dataclasses.replace(self._model(tuple(stretch)), name=name, card=card or {})


def fit_properties(
    data: PackedDataset,
    *,
    seed: int = 0,
    epochs: int = PropertyFitConfig.epochs,
    init: EdgeNetwork | None = None,
    network: NetworkConfig | None = None,
    heads: PropertyConfig | None = None,
    on_epoch: Callable[..., None] | None = None,
    out: Path | None = None,
    until: float = math.inf,
    name: str = "properties",
    halved: bool = False,
) -> PropertyModel:
    """A model of those :data:`~langevin_xtal.crystal.properties.PROPERTIES` that the data have.

    Parameters
    ----------
    init
        Score network whose weights the trunk starts from, of the same widths.
    network
        The trunk; by default that of ``init``, or of the size ``small``, without edges between
        distant sites.
    on_epoch
        Called with the epochs done, the loss, and the mean absolute errors of crystals held out.
    out, until
        As for :func:`~langevin_xtal.train.prior.fit_prior`.
    halved
        Round the weights to half precision in the end.

    Raises
    ------
    InputError
        When the data have none of the properties.
    """
    fit = PropertyFit(
        data,
        PropertyFitConfig(epochs=epochs, seed=seed),
        heads=heads,
        init=init,
        network=network,
        out=out,
    )
    fit.finish(on_epoch, until)
    if halved:
        fit.halve()
    return fit.model(name)
