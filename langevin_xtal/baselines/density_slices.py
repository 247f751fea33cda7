"""Pictures of slices of charge densities, from noise, by a diffusion model.

After Sood, "Generative models of crystal structures by images" (2024): planes through three atoms
of a crystal, the density on them, and a diffusion model of such pictures. A slice shows the atoms
of one plane and not their elements, so no crystal follows from it; the generator gives pictures,
and is judged by how many atoms there are in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.baselines.base import Given, Recipe, primitive_cells
from langevin_xtal.baselines.density import atoms_in_slice, plane_slice, random_plane
from langevin_xtal.baselines.picture_diffusion import (
    FoldedUnet,
    PictureFit,
    UnetGenerator,
    sampled_pictures,
)
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

WIDTH = 9.6
"""Of a slice [Å]."""
PIXELS = 32
SHAPE = (1, PIXELS, PIXELS)
MOST_ATOMS = 52
HALF = 2.0
"""Density that a picture shows as 1/2 [e/Å^3]: ρ / (ρ + 2)."""
LEAST = 0.3
"""A peak of a picture this high is an atom."""


@dataclass(frozen=True, kw_only=True)
class DensitySlicesRecipe(Recipe):
    """How the diffusion model is fitted."""

    rate: float = 1e-3
    weight_decay: float = 0.0
    width: int = 48


def picture(density: FloatArray) -> FloatArray:
    """A density [e/Å^3] as values from 0 to 1."""
    return density / (density + HALF)


def atoms_counted(pictures: Iterable[FloatArray]) -> IntArray:
    """(B,) atoms in each picture (32, 32)."""
    return np.array([len(atoms_in_slice(p, WIDTH, LEAST)) for p in pictures], dtype=np.int64)


def counts_apart(first: IntArray, second: IntArray) -> tuple[float, float]:
    """The thesis's measure of two sets of pictures: Kolmogorov and Smirnov's statistic of the
    numbers of atoms in them, and its p-value."""
    from scipy.stats import ks_2samp

    found = ks_2samp(first, second)
    return float(found.statistic), float(found.pvalue)


def random_slice(cell: Cell, rng: np.random.Generator) -> FloatArray:
    """(32, 32) picture of a plane through three atoms of a crystal."""
    centre, axes = random_plane(cell, rng)
    return picture(plane_slice(cell, centre, axes, WIDTH, PIXELS))


class DensitySlices(UnetGenerator):
    """Pictures of slices; no crystals."""

    name: ClassVar[str] = "density-slices"
    given: ClassVar[Given] = "nothing"
    serves: ClassVar[str] = "no requests: ask it for pictures in Python, by its method slices"
    recipe: ClassVar[type[Recipe]] = DensitySlicesRecipe
    shape: ClassVar[tuple[int, int, int]] = SHAPE

    @classmethod
    def start_fit(cls, data: PackedDataset, recipe: Recipe, out: Path | None) -> DensitySlicesFit:
        """See :class:`~langevin_xtal.baselines.base.Generator`."""
        assert isinstance(recipe, DensitySlicesRecipe)
        return DensitySlicesFit(data, recipe, out)

    def check(self, request: Request) -> None:
        """Refuses all."""
        raise self.refused("gives pictures of single planes, from which no crystal follows")

    def generate(
        self, requests: Sequence[Request], seed: int, indices: Sequence[int]
    ) -> list[Cell | str]:
        """Nothing: :meth:`check` refuses every request."""
        return ["no crystal follows from a slice"] * len(requests)

    def slices(self, count: int, seed: int = 0) -> FloatArray:
        """(count, 32, 32) pictures."""
        parts = [
            sampled_pictures(self.network, seed, range(first, min(first + self.part, count)))
            for first in range(0, count, self.part)
        ]
        return np.concatenate([np.zeros((0, PIXELS, PIXELS)), *(p[:, 0] for p in parts)])


class DensitySlicesFit(PictureFit):
    """The fit of :class:`DensitySlices`: a new plane of every crystal in every epoch."""

    def __init__(self, data: PackedDataset, recipe: DensitySlicesRecipe, out: Path | None) -> None:
        torch.manual_seed(recipe.seed)
        self.cells, _ = primitive_cells(data, MOST_ATOMS)
        if not self.cells:
            raise InputError(
                f"no crystal of the data has at most {MOST_ATOMS} atoms in the primitive cell; "
                "density-slices learns from such"
            )
        network = FoldedUnet(recipe.width, SHAPE)
        super().__init__(network, recipe, data.content_hash, out, len(self.cells))
        self.begin()

    def generator(self) -> DensitySlices:
        """With the mean of the weights."""
        return DensitySlices(self.mean, {"crystals": self.crystals} | self.card())

    def _pictures(self, chosen: IntArray) -> Tensor:
        assert self.rng is not None
        drawn = [random_slice(self.cells[k], self.rng) for k in chosen.tolist()]
        return torch.as_tensor(np.array(drawn)[:, None], dtype=torch.float32)
