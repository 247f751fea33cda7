"""Refinement of a crystal against a powder pattern, within the symmetry of its group.

Free are what the group leaves free: coordinates of sites along their special positions, cell
lengths and angles by crystal system; and the pattern's own: zero shift, peak width and shape,
overall displacement factor, preferred orientation if asked for. Scale and background enter
linearly and are solved for exactly at every step (variable projection, Kaufman's approximation of
the Jacobian). The rest is least squares by :func:`scipy.optimize.least_squares`; derivatives of
structure factors and peak positions come from torch, those of the peak shape are closed forms.

A start far from the solution is refined against a blurred pattern first: with peaks as wide as
their displacement, least squares sees them overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.sparse import csr_array

from langevin_xtal.diffraction.pattern import POINTS_PER_WIDTH, Pattern, background_of, peak_width
from langevin_xtal.diffraction.simulate import Crystal, PatternModel, Profile, chebyshev
from langevin_xtal.symmetry import SpaceGroup, lattice_driver, lattice_freedom, wrap
from langevin_xtal.symmetry.sites import site_projector, stabiliser

FloatArray = NDArray[np.float64]

REACH = 15.0
"""Half of the range in which a peak is computed, in full widths at half maximum."""
BACKGROUND = 8
"""Chebyshev polynomials of the background."""
MODEL_ERROR = 0.03
"""Share of a blurred intensity that counts as its error: no start agrees better."""
WIDEST_ZERO = 0.5
"""Largest zero shift [degrees]."""
MOST_STRAIN = 0.12
"""Largest change of a cell length, as a logarithm."""
MOST_TURN = 8.0
"""Largest change of a cell angle [degrees]."""
MOST_SHIFT = 0.8
"""Largest change of a free coordinate in one refinement [Å]; atoms seldom collapse then."""


@dataclass(frozen=True, eq=False)
class Refined:
    """A crystal fitted to a pattern."""

    crystal: Crystal
    profile: Profile
    scale: float
    pattern: Pattern  #: what it was fitted to
    calculated: FloatArray  #: (N,) with the background
    background: FloatArray  #: (N,)
    r_wp: float  #: weighted profile residual
    gof: float  #: root of chi squared over degrees of freedom; 1 where the noise is all
    parameters: int  #: refined ones


@dataclass(frozen=True, eq=False)
class Target:
    """A pattern made ready for comparison: as coarse as its peaks allow."""

    pattern: Pattern
    width: float  #: typical full width at half maximum [degrees]
    step: float  #: median distance of points [degrees]
    net: FloatArray  #: (N,) intensities above the background

    @classmethod
    def of(cls, pattern: Pattern) -> Target:
        """Prepare a pattern.

        Raises
        ------
        DataError
            When nothing rises above the noise.
        """
        width = peak_width(pattern)
        coarse = pattern.coarser(width / POINTS_PER_WIDTH)
        step = float(np.median(np.diff(coarse.two_theta)))
        net = np.maximum(coarse.intensity - background_of(coarse.intensity, step), 0.0)
        return cls(coarse, width, step, net)

    def blurred(self, blur: float) -> tuple[Pattern, int]:
        """The pattern with peaks wider by ``blur`` degrees, and how many points are left."""
        size = blur / 2.3548 / self.step
        reach = max(1, int(4 * size))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / size) ** 2)
        kernel /= kernel.sum()

        def smooth(values: FloatArray) -> FloatArray:
            return np.convolve(np.pad(values, reach, mode="edge"), kernel, mode="valid")

        intensity = smooth(self.pattern.intensity)
        net = smooth(self.net)
        error = np.sqrt(
            smooth(self.pattern.error**2) * (kernel**2).sum()
            + (MODEL_ERROR * net) ** 2
            + (0.01 * net.max()) ** 2
        )
        return replace(self.pattern, intensity=intensity, error=error).coarser(blur / 4), reach


class _Peaks:
    """Sparse matrices of peaks on the points of a pattern, with derivatives."""

    def __init__(self, x: FloatArray, angle: FloatArray, width: FloatArray, mixing: float) -> None:
        reach = REACH * float(np.median(width))
        low = np.searchsorted(x, angle - reach)
        high = np.searchsorted(x, angle + reach)
        count = high - low
        start = np.concatenate([[0], np.cumsum(count)])
        row = np.repeat(np.arange(len(angle)), count)
        column = np.arange(start[-1]) - start[row] + low[row]
        wide = width[row]
        t = (x[column] - angle[row]) / wide
        square = t * t
        bell = 1 / (1 + 4 * square)
        lorentzian = 2 / math.pi * bell
        gaussian = 2 * math.sqrt(math.log(2) / math.pi) * np.exp(-4 * math.log(2) * square)
        value = (mixing * lorentzian + (1 - mixing) * gaussian) / wide
        slope = -t * (mixing * 8 * bell * lorentzian + (1 - mixing) * 8 * math.log(2) * gaussian)
        slope /= wide * wide
        self.parts = (column, start, (len(angle), len(x)))
        self.value = self._matrix(value)
        self.by_angle = self._matrix(-slope)
        self.by_width = self._matrix(-value / wide - t * slope)
        self.by_mixing = self._matrix((lorentzian - gaussian) / wide)

    def _matrix(self, data: FloatArray) -> csr_array:
        column, start, shape = self.parts
        return csr_array((data, column, start), shape=shape).T


class Parameters:
    """What is free, as a vector: cell, coordinates, then what belongs to the pattern."""

    def __init__(self, crystal: Crystal, *, cell: bool = True, coordinates: bool = True) -> None:
        self.crystal = crystal
        self.cell = cell_parameters(crystal.lattice)
        self.driver, self.free_cell = cell_freedom(crystal.group)
        self.cell_count = len(self.free_cell) if cell else 0
        self.basis = site_basis(crystal) if coordinates else np.zeros((*crystal.frac.shape, 0))
        self.count = self.cell_count + self.basis.shape[2]
        self._frac = torch.from_numpy(crystal.frac)
        self._basis = torch.from_numpy(self.basis)
        self._cell = torch.from_numpy(self.cell)

    def geometry(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, 3) coordinates and (3, 3) lattice at parameters."""
        frac = self._frac + self._basis @ theta[self.cell_count : self.count]
        cell = self._cell
        if self.cell_count:
            change = torch.zeros(6, dtype=theta.dtype)
            change = change.index_put(
                (torch.as_tensor(self.free_cell),), theta[: self.cell_count]
            )[torch.as_tensor(self.driver)]
            lengths = cell[:3] * torch.exp(change[:3])
            cell = torch.cat([lengths, cell[3:] + change[3:]])
        return frac, lattice_of(cell)

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper limits of cell and coordinates."""
        limit = [
            MOST_STRAIN if k < 3 else MOST_TURN for k in self.free_cell[: self.cell_count]
        ] + [MOST_SHIFT] * self.basis.shape[2]
        return -np.array(limit), np.array(limit)

    def scales(self) -> FloatArray:
        """Typical changes, for least squares."""
        return np.array(
            [0.01 if k < 3 else 0.5 for k in self.free_cell[: self.cell_count]]
            + [0.1] * self.basis.shape[2]
        )

    def crystal_at(self, theta: FloatArray) -> Crystal:
        """The crystal at parameters."""
        frac, lattice = self.geometry(torch.from_numpy(theta))
        return replace(self.crystal, frac=wrap(frac.numpy()), lattice=lattice.numpy())


def refine(
    crystal: Crystal,
    target: Target,
    profile: Profile | None = None,
    *,
    blur: float = 0.0,
    steps: int = 15,
    cell: bool = True,
    coordinates: bool = True,
    orientation: bool = False,
    caglioti: bool = False,
    background: int = BACKGROUND,
) -> Refined:
    """Fit a crystal to a pattern.

    Parameters
    ----------
    profile
        Where the pattern's own parameters start; by default from the width of its peaks.
    blur
        Refine against the pattern with peaks wider by so much [degrees]; the pattern's own
        parameters then stay.
    steps
        Evaluations at most.
    cell, coordinates
        Whether they are free.
    orientation, caglioti
        Whether March-Dollase's r, and U and V of the widths, are refined too.
    background
        Chebyshev polynomials.
    """
    pattern = target.blurred(blur)[0] if blur else target.pattern
    profile = profile or Profile(w=target.width**2)
    fit = _Fit(
        crystal, pattern, profile, blur, cell, coordinates, orientation, caglioti, background
    )
    start = np.concatenate([np.zeros(fit.geometry.count), fit.own_start])
    low, high = fit.bounds()
    if len(start) and steps > 1:
        found = least_squares(
            fit.residual,
            np.clip(start, low + 1e-9, high - 1e-9),
            jac=fit.jacobian,
            bounds=(low, high),
            x_scale=fit.scales(),
            max_nfev=steps,
            ftol=1e-4,
            xtol=1e-5,
            method="trf",
        )
        theta = found.x
    else:
        theta = start
    return fit.result(theta)


def refine_in_stages(
    crystal: Crystal,
    target: Target,
    profile: Profile | None = None,
    *,
    blurs: Sequence[float] = (0.5, 0.2),
    steps: int = 15,
    orientation: bool = False,
) -> Refined:
    """Refine against patterns less and less blurred, and last against the pattern itself."""
    for blur in blurs:
        if blur > target.width:
            crystal = refine(crystal, target, profile, blur=blur, steps=8).crystal
    return refine(crystal, target, profile, steps=steps, orientation=orientation)


class _Fit:
    """Residuals and derivatives of one refinement."""

    def __init__(
        self,
        crystal: Crystal,
        pattern: Pattern,
        profile: Profile,
        blur: float,
        cell: bool,
        coordinates: bool,
        orientation: bool,
        caglioti: bool,
        background: int,
    ) -> None:
        self.pattern, self.profile, self.blur = pattern, profile, blur
        self.geometry = Parameters(crystal, cell=cell, coordinates=coordinates)
        self.model = PatternModel(crystal, pattern.radiation, float(pattern.two_theta[-1]))
        self.names = [] if blur else ["zero", "w", "mixing", "b"]
        self.names += ["u", "v"] if caglioti and not blur else []
        self.names += ["march"] if orientation and not blur else []
        self.own_start = np.array([getattr(profile, name) for name in self.names])
        self.linear = chebyshev(pattern.two_theta, background)
        self.weighted = pattern.intensity / pattern.error
        self._theta: FloatArray | None = None

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        limits = {
            "zero": (-WIDEST_ZERO, WIDEST_ZERO),
            "w": (1e-4, 4.0),
            "mixing": (0.0, 1.0),
            "b": (-1.0, 10.0),
            "u": (-1.0, 4.0),
            "v": (-2.0, 2.0),
            "march": (0.2, 5.0),
        }
        low, high = self.geometry.bounds()
        return (
            np.concatenate([low, [limits[name][0] for name in self.names]]),
            np.concatenate([high, [limits[name][1] for name in self.names]]),
        )

    def scales(self) -> FloatArray:
        size = {"zero": 0.02, "w": 0.01, "mixing": 0.2, "b": 0.5, "u": 0.02, "v": 0.02,
                "march": 0.1}  # fmt: skip
        return np.concatenate([self.geometry.scales(), [size[name] for name in self.names]])

    def _own(self, theta: FloatArray) -> Profile:
        values: dict[str, Any] = {
            name: float(v)
            for name, v in zip(self.names, theta[self.geometry.count :], strict=True)
        }
        return replace(self.profile, **values)

    def _sticks(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Angles and intensities by cell, coordinates, B and March-Dollase's r."""
        frac, lattice = self.geometry.geometry(own[:-2])
        march = own[-1] if "march" in self.names or self.profile.march != 1 else None
        return self.model.sticks(frac, lattice, own[-2], march, self.profile.axis)

    def _evaluate(self, theta: FloatArray) -> None:
        if self._theta is not None and np.array_equal(theta, self._theta):
            return
        self._theta = theta.copy()
        own = self.own = self._own(theta)
        self.inner = torch.from_numpy(
            np.concatenate([theta[: self.geometry.count], [own.b, own.march]])
        )
        angle, height = (part.numpy() for part in self._sticks(self.inner))
        self.tangent = np.tan(np.radians(np.minimum(angle, 170.0) / 2))
        squared = own.u * self.tangent**2 + own.v * self.tangent + own.w
        self.width = np.sqrt(np.maximum(squared, 1e-4) + self.blur**2)
        self.height = height
        self.peaks = _Peaks(self.pattern.two_theta, angle + own.zero, self.width, own.mixing)
        self.shape = self.peaks.value @ height
        columns = np.column_stack([self.shape, self.linear]) / self.pattern.error[:, None]
        self.norms = np.linalg.norm(columns, axis=0) + 1e-300
        self.q, r = np.linalg.qr(columns / self.norms)
        along = self.q.T @ self.weighted
        coefficients = np.linalg.lstsq(r, along, rcond=1e-12)[0] / self.norms
        if coefficients[0] <= 0:  # a negative pattern fits nothing
            columns[:, 0] = 0.0
            self.q = np.linalg.qr(columns[:, 1:] / self.norms[1:])[0]
            coefficients = np.concatenate(
                [[0.0], np.linalg.lstsq(columns[:, 1:], self.weighted, rcond=None)[0]]
            )
        self.coefficients = coefficients
        self.rest = self.weighted - columns @ coefficients

    def residual(self, theta: FloatArray) -> FloatArray:
        self._evaluate(theta)
        return self.rest

    def jacobian(self, theta: FloatArray) -> FloatArray:
        self._evaluate(theta)
        count = self.geometry.count
        by_angle, by_height = torch.func.jacfwd(self._sticks)(self.inner)
        by_angle, by_height = by_angle.numpy(), by_height.numpy()
        inner = self.peaks.value @ by_height + self.peaks.by_angle @ (
            by_angle * self.height[:, None]
        )
        columns = [inner[:, :count]]
        by_width = self.height / (2 * self.width)
        for name in self.names:
            if name == "zero":
                column = self.peaks.by_angle @ self.height
            elif name in ("u", "v", "w"):
                power = {"u": 2, "v": 1, "w": 0}[name]
                column = self.peaks.by_width @ (by_width * self.tangent**power)
            elif name == "mixing":
                column = self.peaks.by_mixing @ self.height
            else:
                column = inner[:, count + (name == "march")]
            columns.append(column[:, None])
        total = -self.coefficients[0] * np.concatenate(columns, axis=1)
        total /= self.pattern.error[:, None]
        result: FloatArray = total - self.q @ (self.q.T @ total)
        return result

    def result(self, theta: FloatArray) -> Refined:
        self._evaluate(theta)
        background = self.linear @ self.coefficients[1:]
        calculated = self.coefficients[0] * self.shape + background
        misfit = float((self.rest**2).sum())
        parameters = len(theta) + len(self.coefficients)
        return Refined(
            crystal=self.geometry.crystal_at(theta[: self.geometry.count]),
            profile=self.own,
            scale=float(self.coefficients[0]),
            pattern=self.pattern,
            calculated=calculated,
            background=background,
            r_wp=math.sqrt(misfit / float((self.weighted**2).sum())),
            gof=math.sqrt(misfit / max(1, len(self.pattern) - parameters)),
            parameters=parameters,
        )


def cell_parameters(lattice: FloatArray) -> FloatArray:
    """(..., 6) a, b, c [Å], α, β, γ [degrees] of lattices (..., 3, 3)."""
    lengths = np.linalg.norm(lattice, axis=-1)
    unit = lattice / lengths[..., None]
    cosines = [
        np.sum(unit[..., i, :] * unit[..., j, :], axis=-1) for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    angles = np.degrees(np.arccos(np.clip(np.stack(cosines, -1), -1, 1)))
    return np.concatenate([lengths, angles], -1)


def cell_freedom(number: int) -> tuple[NDArray[np.int64], list[int]]:
    """(6,) which of a, b, c, α, β, γ drives each, and those that are free, in a group."""
    driver = np.concatenate([lattice_driver(number)[:3], [3, 4, 5]])
    free = [k for k in range(3) if driver[k] == k]
    angles = lattice_freedom(number)[3:]  # of γ, β and the third
    free += [3, 4, 5] if angles.all() else [4] if angles.any() else []
    return driver, free


def lattice_of(cell: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rows, a along x and b in the xy plane, of (..., 6) lengths and angles."""
    a, b, c = cell[..., 0], cell[..., 1], cell[..., 2]
    cosine = torch.cos(torch.deg2rad(cell[..., 3:]))
    alpha, beta, gamma = cosine[..., 0], cosine[..., 1], cosine[..., 2]
    sine = (1 - gamma.square()).clamp(min=1e-6).sqrt()
    along = (alpha - beta * gamma) / sine
    height = (1 - beta.square() - along.square()).clamp(min=1e-6).sqrt()
    zero = torch.zeros_like(a)
    rows = [
        torch.stack([a, zero, zero], -1),
        torch.stack([b * gamma, b * sine, zero], -1),
        torch.stack([c * beta, c * along, c * height], -1),
    ]
    return torch.stack(rows, -2)


def site_basis(crystal: Crystal) -> FloatArray:
    """(A, 3, F) change of each site with each free coordinate, which are measured in Å."""
    group = SpaceGroup(crystal.group)
    columns: list[FloatArray] = []
    for site, point in enumerate(crystal.frac):
        fixing = stabiliser(point, group.rotations, group.translations, crystal.lattice)
        projector = site_projector(group.rotations[fixing], crystal.lattice)
        values, vectors = np.linalg.eigh((projector + projector.T) / 2)
        for vector in vectors[:, values > 0.5].T:
            column = np.zeros_like(crystal.frac)
            column[site] = vector @ np.linalg.inv(crystal.lattice)
            columns.append(column)
    return np.stack(columns, -1) if columns else np.zeros((*crystal.frac.shape, 0))
