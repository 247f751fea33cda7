"""Cells that fit a pattern: a search by strained copies of a candidate's cell.

Candidates come with cells that are wrong by some per cent, and with peaks narrower than that,
least squares would see nothing. Here many strained cells are compared with the pattern at once:
sticks are counted into bins and blurred, which costs little; the best are strained again, less,
and compared less blurred. Compared are square roots of intensities, so that weak peaks count, by
the cosine of the angle between them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.diffraction.refine import (
    Target,
    cell_freedom,
    cell_parameters,
    lattice_of,
)
from langevin_xtal.diffraction.simulate import Crystal, PatternModel

FloatArray = NDArray[np.float64]

BIN = 0.1
"""Width of the bins of 2θ [degrees]."""
GENERATIONS = ((1.2, 1.0, 256), (0.6, 0.4, 192), (0.3, 0.15, 192))
"""Blur [degrees], factor of the strains, and cells that are compared."""
SURVIVORS = 12
STRAIN = 0.025
"""Of lengths, each and all together (standard deviation, logarithm)."""
TURN = 2.0
"""Of free angles [degrees], standard deviation."""


class Bins:
    """The pattern in bins, blurred at each generation's width."""

    def __init__(self, target: Target) -> None:
        x = target.pattern.two_theta
        self.low = float(x[0])
        self.count = max(2, int((float(x[-1]) - self.low) / BIN))
        place = np.minimum(((x - self.low) / BIN).astype(int), self.count - 1)
        total = np.bincount(place, target.net, self.count)
        filled = np.maximum(np.bincount(place, minlength=self.count), 1)
        self.net = total / filled
        centres = np.arange(self.count)
        self.kernels: list[FloatArray] = []
        self.levels: list[FloatArray] = []
        for blur, _, _ in GENERATIONS:
            size = blur / 2.3548 / BIN
            kernel = np.exp(-0.5 * ((centres[:, None] - centres) / size) ** 2)
            self.kernels.append(kernel)
            self.levels.append(_unit(np.sqrt(self.net @ kernel)))

    def likeness(self, angles: FloatArray, heights: FloatArray, generation: int) -> FloatArray:
        """(T,) 0 to 1 for T patterns of sticks (T, H) at 2θ [degrees]."""
        trials = len(angles)
        place = np.floor((angles - self.low) / BIN).astype(int)
        inside = (place >= 0) & (place < self.count)
        flat = (np.arange(trials)[:, None] * self.count + place)[inside]
        counted = np.bincount(flat, heights[inside], trials * self.count)
        blurred = counted.reshape(trials, self.count) @ self.kernels[generation]
        result: FloatArray = _unit(np.sqrt(blurred)) @ self.levels[generation]
        return result


def fitted_cells(
    crystal: Crystal,
    target: Target,
    bins: Bins,
    rng: np.random.Generator,
    *,
    keep: int = 2,
    strain: float = 1.0,
) -> list[tuple[float, Crystal]]:
    """The crystal in the cells that fit the pattern best, with how alike the patterns are.

    ``keep`` cells at most, changed by ``strain`` times the usual strains.

    The first is the best; others are kept where their cells differ by more than one per cent.
    """
    wavelength = sum(length * share for length, share in target.pattern.radiation.lines)
    model = PatternModel(
        crystal, target.pattern.radiation, float(target.pattern.two_theta[-1]), margin=1.08
    )
    start = torch.from_numpy(crystal.lattice)
    q = model.inverse_squares(start)
    zero = torch.zeros((), dtype=torch.float64)
    factors = model.structure_factors(torch.from_numpy(crystal.frac), q, zero)
    square = (factors.square().sum(-1) * model.count).numpy()
    driver, free = cell_freedom(crystal.group)
    base = cell_parameters(crystal.lattice)
    hkl = model.hkl.numpy()

    def compare(changes: FloatArray, generation: int) -> FloatArray:
        cells = _strained(base, changes, driver, free)
        inverse = np.linalg.inv(lattice_of(torch.from_numpy(cells)).numpy())
        length = np.linalg.norm(hkl @ np.swapaxes(inverse, -1, -2), axis=-1)
        theta = np.arcsin(np.minimum(length * (wavelength / 2), 0.999))
        factor = (1 + np.cos(2 * theta) ** 2) / (np.sin(theta) ** 2 * np.cos(theta))
        return bins.likeness(np.degrees(2 * theta), square * factor, generation)

    size = strain * np.array([STRAIN if k < 3 else TURN for k in free])
    lengths = np.array([k < 3 for k in free], dtype=float)
    changes = np.zeros((1, len(free)))
    for generation, (_, factor, count) in enumerate(GENERATIONS):
        copies = count // len(changes)
        together = rng.normal(size=(len(changes), copies, 1)) * strain * STRAIN * factor * lengths
        alone = rng.normal(size=(len(changes), copies, len(free))) * size * factor
        if len(free) == 1:  # one length: no need for chance
            even = (np.arange(copies) / max(1, copies - 1) - 0.5) * 6 * strain * STRAIN * factor
            together, alone = np.broadcast_to(even[:, None], alone.shape), 0.0 * alone
        tried = changes[:, None] + together + alone
        tried = np.concatenate([changes, tried.reshape(-1, len(free))])
        found = compare(tried, generation)
        order = np.argsort(-found)[:SURVIVORS]
        changes, scores = tried[order], found[order]
    chosen: list[int] = []
    for k in range(len(changes)):
        apart = [np.abs((changes[k] - changes[j]) / size).max() for j in chosen]
        if not apart or min(apart) > 0.4:
            chosen.append(k)
    cells = _strained(base, changes[chosen[:keep]], driver, free)
    lattices = lattice_of(torch.from_numpy(cells)).numpy()
    return [
        (float(scores[k]), replace(crystal, lattice=lattice))
        for k, lattice in zip(chosen, lattices, strict=False)
    ]


def _strained(
    base: FloatArray, changes: FloatArray, driver: NDArray[np.int64], free: list[int]
) -> FloatArray:
    """(T, 6) cells changed by (T, F): logarithms of lengths, degrees of angles."""
    full = np.zeros((len(changes), 6))
    full[:, free] = changes
    full = full[:, driver]
    cells = np.concatenate([base[:3] * np.exp(full[:, :3]), base[3:] + full[:, 3:]], axis=1)
    cells[:, 3:] = np.clip(cells[:, 3:], 30.0, 150.0)
    return cells


def _unit(values: FloatArray) -> FloatArray:
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.maximum(norm, math.ulp(1.0))
