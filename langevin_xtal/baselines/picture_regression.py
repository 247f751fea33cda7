"""Properties from CrysTens pictures, by a convolutional network: a comparison, not for use.

After Sood, "Image based generation of crystals and prediction of their properties" (2024): 3 × 3
convolutions with ReLU and maximum pooling over the pictures of
:mod:`~langevin_xtal.baselines.crystens_encoding`, dense layers, one number. Here one network
gives all properties, each as its distance from the median in units of the mean absolute deviation,
and learns their absolute errors. A picture depends on the order of the atoms and on the choice of
cell, of which neither the thesis nor this network knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin_xtal.baselines.base import shuffled, steps_in
from langevin_xtal.baselines.crystens import PackedPictures
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.train.epochs import EpochConfig, EpochFit

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PictureRegressionRecipe(EpochConfig):
    """How the network is fitted."""

    epochs: int = 8
    rate: float = 1e-3
    batch_size: int = 64
    width: int = 16
    """Channels of the first convolution; the last has four times as many."""


class PictureRegression(nn.Module):
    """From pictures to numbers."""

    def __init__(self, outputs: int, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 4
        for channels in (width, 2 * width, 4 * width, 4 * width):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            before = channels
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(4 * width * 16, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, outputs),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, P) of pictures (B, 4, 64, 64)."""
        found: Tensor = self.layers(pictures)
        return found


class PictureRegressionFit(EpochFit[IntArray]):
    """The fit of :class:`PictureRegression`.

    Crystals with more than 52 atoms in the conventional cell have no picture and are left out;
    properties that a crystal lacks do not count.

    Parameters
    ----------
    names
        Columns of the data to learn.
    """

    config: PictureRegressionRecipe

    def __init__(
        self,
        data: PackedDataset,
        names: Sequence[str],
        recipe: PictureRegressionRecipe,
        out: Path | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.pictures = PackedPictures(data, "a network on pictures")
        values = np.stack([data.properties[name] for name in names], axis=1)
        values = values[self.pictures.places]
        self.middle = np.nanmedian(values, axis=0)
        self.scale = np.nanmean(np.abs(values - self.middle), axis=0)
        self._values = torch.from_numpy((values - self.middle) / self.scale).float()
        super().__init__(
            PictureRegression(len(names), recipe.width, recipe.dropout),
            recipe,
            data.content_hash,
            out,
            rate=recipe.rate,
            total_steps=steps_in(len(values), recipe.batch_size, recipe.epochs) + 1,
            rng=np.random.default_rng(recipe.seed),
            facts={"names": list(names)},
        )
        self.begin()

    def _draw(self) -> list[IntArray]:
        assert self.rng is not None
        return shuffled(self.rng, len(self._values), self.config.batch_size)

    def _loss(self, batch: IntArray) -> tuple[Tensor, Tensor]:
        off = self.network(self.pictures.batch(batch)) - self._values[batch]
        known = off.isfinite()
        loss = off[known].abs().sum() / known.sum().clamp(min=1)
        return loss, loss.detach().double()[None]

    def _epoch_losses(self) -> tuple[float, ...]:
        assert self._order is not None
        return tuple((self._sums / max(1, len(self._order))).tolist())

    def predict(self, data: PackedDataset) -> FloatArray:
        """(B, P) of every crystal; NaN for those that have no picture."""
        pictures = PackedPictures(data, "a network on pictures")
        found = np.full((len(data), len(self.middle)), np.nan)
        training = self.network.training
        self.network.eval()
        with torch.no_grad():
            for first in range(0, len(pictures.places), 256):
                own = np.arange(first, min(first + 256, len(pictures.places)))
                found[pictures.places[own]] = self.network(pictures.batch(own)).double().numpy()
        self.network.train(training)
        return found * self.scale + self.middle
