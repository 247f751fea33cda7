"""GemsDiff: diffusion of positions and cell with an equivariant vector field.

After Klipfel, Frégier, Sayede and Bouraoui, "Vector field oriented diffusion model for crystal
material generation" (AAAI 2024). Atoms diffuse on the torus, the cell in the logarithm of its
symmetric form; a network sees the noisy crystal and says where the atoms and the cell came from.
What differs from the paper, and why, is in the documentation (page ``baselines``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.baselines.algebra import (
    BASIS,
    coordinates_of,
    symmetric_cell,
    symmetric_part,
)
from langevin_xtal.baselines.base import (
    Generator,
    GeneratorFit,
    Given,
    Recipe,
    own_stream,
    primitive_cells,
    steps_in,
)
from langevin_xtal.baselines.neighbours import nearest_neighbours
from langevin_xtal.baselines.torus import linear_variances, posterior, shortest
from langevin_xtal.baselines.vector_field import VectorField, VectorFieldConfig
from langevin_xtal.config.tables import from_table
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEPS = 100
"""Of the diffusion."""
POSITION_VARIANCES = (1e-6, 2e-3)
"""First and last variance that a step adds to fractional coordinates."""
CELL_VARIANCES = (1e-5, 1e-1)
MOST_ATOMS = 20
"""Of a primitive cell."""
CELL_WEIGHT = 1.0
POSITION_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True)
class GemsDiffRecipe(Recipe):
    """How GemsDiff is fitted."""

    rate: float = 1e-3
    weight_decay: float = 0.0
    width: int = 96
    layers: int = 3
    neighbours: int = 14


@dataclass(frozen=True)
class CellScale:
    """Coordinates of cells as the network sees them, with a variance near 1.

    The volume is that of one atom. All coordinates of the shape have one scale, and no mean, so
    that rotations still act on them.
    """

    volume_mean: float
    volume_deviation: float
    shape_deviation: float

    @classmethod
    def of(cls, coordinates: FloatArray, atoms: IntArray) -> CellScale:
        """From (C, 6) coordinates of shape and volume."""
        volume = coordinates[:, 5] - np.log(atoms) / np.sqrt(3)
        return cls(
            float(volume.mean()),
            max(float(volume.std()), 1e-3),
            max(float(np.sqrt((coordinates[:, :5] ** 2).mean())), 1e-3),
        )

    def scaled(self, coordinates: FloatArray, atoms: IntArray) -> FloatArray:
        """(B, 6) of coordinates (B, 6) and numbers of atoms (B,)."""
        volume = coordinates[:, 5] - np.log(atoms) / np.sqrt(3) - self.volume_mean
        shape = coordinates[:, :5] / self.shape_deviation
        return np.column_stack([shape, volume / self.volume_deviation])

    def cells(self, scaled: FloatArray, atoms: IntArray) -> FloatArray:
        """(B, 3, 3) symmetric cells [Å] of what :meth:`scaled` gave."""
        volume = scaled[:, 5] * self.volume_deviation + self.volume_mean
        volume += np.log(atoms) / np.sqrt(3)
        shape = scaled[:, :5] * self.shape_deviation
        matrix = np.einsum("bk,kij->bij", np.column_stack([shape, volume]), BASIS[3:])
        # beyond exp(±3) a cell is no cell, and an early step may ask for one
        values, vectors = np.linalg.eigh(matrix)
        values = np.exp(np.clip(values, -1.0, 4.0))
        return np.asarray((vectors * values[:, None, :]) @ np.swapaxes(vectors, 1, 2))


@dataclass(frozen=True, eq=False)
class _Noisy:
    """B crystals on their way, as flat arrays."""

    cell: FloatArray  #: (B, 6) scaled coordinates
    frac: FloatArray  #: (N, 3)
    numbers: IntArray  #: (N,)
    atoms: IntArray  #: (B,)


class GemsDiff(Generator):
    """Composition to crystal, in 100 steps."""

    name: ClassVar[str] = "gemsdiff"
    given: ClassVar[Given] = "composition"
    serves: ClassVar[str] = (
        f"a formula with at most {MOST_ATOMS} atoms in the primitive cell and no space group, "
        "such as --formula TiO2 --atoms 6"
    )
    recipe: ClassVar[type[Recipe]] = GemsDiffRecipe
    network: VectorField

    def __init__(
        self, network: VectorField, scale: CellScale, card: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(network, card)
        self.scale = scale

    @classmethod
    def start_fit(cls, data: PackedDataset, recipe: Recipe, out: Path | None) -> GemsDiffFit:
        """See :class:`~langevin_xtal.baselines.base.Generator`."""
        assert isinstance(recipe, GemsDiffRecipe)
        return GemsDiffFit(data, recipe, out)

    @classmethod
    def unfitted(cls, header: Mapping[str, object]) -> Self:
        """With any weights, as :meth:`header` says."""
        network = VectorField(from_table(VectorFieldConfig, header["network"], "network"))
        return cls(network, from_table(CellScale, header["scale"], "scale"))

    def header(self) -> dict[str, object]:
        """Sizes of the network and the scale of cells."""
        return {
            "network": dataclasses.asdict(self.network.config),
            "scale": dataclasses.asdict(self.scale),
        }

    def check(self, request: Request) -> None:
        """Formula without a group, and few atoms."""
        if request.formula is None:
            raise self.refused("needs a composition")
        if request.space_group is not None or request.groups:
            raise self.refused("takes no space group")
        if request.z is not None:
            raise self.refused("knows no conventional cell, so Z means nothing to it")
        if len(_atoms_of(request)) > MOST_ATOMS:
            raise self.refused(f"cannot place {len(_atoms_of(request))} atoms")

    def generate(
        self, requests: Sequence[Request], seed: int, indices: Sequence[int]
    ) -> list[Cell | str]:
        """All requests together, from pure noise to a crystal."""
        streams = [own_stream(seed, k) for k in indices]
        kinds = [_atoms_of(request) for request in requests]
        atoms = np.array([len(k) for k in kinds])
        start = np.concatenate([[0], np.cumsum(atoms)])

        def normal() -> tuple[FloatArray, FloatArray]:
            drawn = [(s.standard_normal(6), s.standard_normal((n, 3)))
                     for s, n in zip(streams, atoms.tolist(), strict=True)]  # fmt: skip
            return np.array([c for c, _ in drawn]), np.concatenate([p for _, p in drawn])

        noisy = _Noisy(
            cell=np.array([s.standard_normal(6) for s in streams]),
            frac=np.concatenate([s.random((n, 3)) for s, n in zip(streams, atoms, strict=True)]),
            numbers=np.concatenate(kinds),
            atoms=atoms,
        )
        of_position = linear_variances(*POSITION_VARIANCES, STEPS)
        of_cell = linear_variances(*CELL_VARIANCES, STEPS)
        for step in range(STEPS, 0, -1):
            moved, cell = predicted(self.network, self.scale, noisy, np.full(len(atoms), step))
            cell_noise, position_noise = normal()
            noisy = dataclasses.replace(
                noisy,
                frac=posterior(
                    noisy.frac,
                    noisy.frac + moved.double().numpy(),
                    of_position[step - 1],
                    of_position[step],
                    position_noise,
                ),
                cell=gaussian_posterior(
                    noisy.cell,
                    cell.double().numpy().clip(-6, 6),
                    of_cell[step - 1],
                    of_cell[step],
                    cell_noise,
                ),
            )
        cells = self.scale.cells(noisy.cell, atoms)
        return [
            (cells[k], noisy.frac[start[k] : start[k + 1]], kinds[k]) for k in range(len(kinds))
        ]


def _atoms_of(request: Request) -> IntArray:
    """Atomic number of each atom in the primitive cell; one formula unit by default."""
    total = sum(request.units.values())
    atoms = request.atoms or total
    return np.array(
        [atomic_number(s) for s, n in request.units.items() for _ in range(n * atoms // total)],
        dtype=np.int64,
    )


def gaussian_posterior(
    noisy: FloatArray, clean: FloatArray, before: float, now: float, noise: FloatArray
) -> FloatArray:
    """One step back of a diffusion that keeps the variance at 1.

    Parameters
    ----------
    noisy, clean, noise
        Arrays of one shape.
    before, now
        Shares of variance 1 − ᾱ a step earlier and now.
    """
    kept = (1.0 - now) / (1.0 - before)  # α_t
    added = 1.0 - kept
    mean = np.sqrt(1.0 - before) * added / now * clean + np.sqrt(kept) * before / now * noisy
    return np.asarray(mean + np.sqrt(added * before / now) * noise)


def predicted(
    network: VectorField, scale: CellScale, noisy: _Noisy, step: IntArray
) -> tuple[Tensor, Tensor]:
    """Fractional displacements (N, 3) to the clean crystal, and its scaled cell (B, 6)."""
    cells = scale.cells(noisy.cell, noisy.atoms)
    start = np.concatenate([[0], np.cumsum(noisy.atoms)])
    crystals: list[Cell] = [
        (
            cells[k],
            noisy.frac[start[k] : start[k + 1]],
            noisy.numbers[start[k] : start[k + 1]],
        )
        for k in range(len(cells))
    ]
    graph = nearest_neighbours(crystals, network.config.neighbours)
    time = torch.as_tensor(step / STEPS, dtype=torch.get_default_dtype())
    moved, change = network(graph, torch.from_numpy(noisy.numbers), time)
    inverse = torch.as_tensor(np.linalg.inv(cells), dtype=moved.dtype)
    frac = torch.einsum("ni,nij->nj", moved, inverse[torch.from_numpy(graph.crystal)])
    # the best guess without a look at the crystal is the noisy cell, drawn towards the mean
    kept = np.sqrt(1.0 - linear_variances(*CELL_VARIANCES, STEPS)[step])
    guess = torch.as_tensor(kept[:, None] * noisy.cell, dtype=moved.dtype)
    return frac, guess + symmetric_part(change)


class GemsDiffFit(GeneratorFit[IntArray]):
    """The fit of :class:`GemsDiff`: noise of a random step, and what it came from."""

    losses = ("position", "cell")
    network: VectorField
    mean: VectorField

    def __init__(self, data: PackedDataset, recipe: GemsDiffRecipe, out: Path | None) -> None:
        torch.manual_seed(recipe.seed)
        cells, _ = primitive_cells(data, MOST_ATOMS)
        if not cells:
            raise InputError(
                f"no crystal of the data has at most {MOST_ATOMS} atoms in the primitive cell; "
                "gemsdiff learns from such"
            )
        self.frac = [frac for _, frac, _ in cells]
        self.numbers = [numbers for _, _, numbers in cells]
        self.atoms = np.array([len(n) for n in self.numbers])
        coordinates = coordinates_of(symmetric_cell(np.array([c[0] for c in cells])))[:, 3:]
        self.scale = CellScale.of(coordinates, self.atoms)
        self.cell = self.scale.scaled(coordinates, self.atoms)
        network = VectorField(
            VectorFieldConfig(
                width=recipe.width, layers=recipe.layers, neighbours=recipe.neighbours
            )
        )
        super().__init__(
            network,
            recipe,
            data.content_hash,
            out,
            rate=recipe.rate,
            total_steps=steps_in(len(cells), recipe.batch_size, recipe.epochs),
            rng=np.random.default_rng(recipe.seed),
        )
        self.begin()

    def generator(self) -> GemsDiff:
        """With the mean of the weights."""
        return GemsDiff(self.mean, self.scale, {"crystals": len(self.atoms)} | self.card())

    def _draw(self) -> list[IntArray]:
        return self._shuffled(len(self.atoms))

    def _loss(self, batch: IntArray) -> tuple[Tensor, Tensor]:
        assert self.rng is not None
        step = self.rng.integers(1, STEPS + 1, len(batch))
        atoms = self.atoms[batch]
        clean = np.concatenate([self.frac[k] for k in batch])
        crystal = np.repeat(np.arange(len(batch)), atoms)
        spread = np.sqrt(linear_variances(*POSITION_VARIANCES, STEPS)[step])[crystal, None]
        share = linear_variances(*CELL_VARIANCES, STEPS)[step][:, None]
        noise = self.rng.standard_normal((len(batch), 6))
        noisy = _Noisy(
            cell=np.sqrt(1 - share) * self.cell[batch] + np.sqrt(share) * noise,
            frac=clean + spread * self.rng.standard_normal(clean.shape),
            numbers=np.concatenate([self.numbers[k] for k in batch]),
            atoms=atoms,
        )
        moved, cell = predicted(self.network, self.scale, noisy, step)
        wanted = shortest(clean - noisy.frac)
        # a shift of all atoms is no change of the crystal, and no network could know of it
        wanted -= (np.add.reduceat(wanted, np.cumsum(atoms) - atoms) / atoms[:, None])[crystal]
        position = ((moved - torch.as_tensor(wanted, dtype=moved.dtype)) ** 2).sum(1)
        scaled = torch.as_tensor(1.0 / (spread[:, 0] + 0.05), dtype=moved.dtype)
        position = (position * scaled).mean()
        off = ((cell - torch.as_tensor(self.cell[batch], dtype=cell.dtype)) ** 2).sum(1).mean()
        loss = POSITION_WEIGHT * position + CELL_WEIGHT * off
        return loss, torch.stack([position, off]).double()
