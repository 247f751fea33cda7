"""Powder patterns of crystals: a differentiable model within the symmetry of a space group.

A crystal is its space group, cell and independent sites. With s = sin θ / λ and the operations
x' = W x + w of the group::

    F(h)  =  Σ_sites (m / |G|) f(s) exp(−B s²)  Σ_ops exp 2πi h·(W x + w)
    I(h)  =  n |F|² · (1 + cos² 2θ) / (sin² θ cos θ) · P(h)

where m is the multiplicity of the site, n the number of equivalent reflections and P the
March-Dollase factor of preferred orientation. Peaks are pseudo-Voigt functions whose full width at
half maximum follows Caglioti, FWHM² = U tan² θ + V tan θ + W. No absorption, no anomalous
scattering. Reflections are equivalent by the point group and inversion; absent ones are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.diffraction.radiation import Radiation, scattering_parameters
from langevin_xtal.errors import InputError
from langevin_xtal.symmetry import SpaceGroup

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ELECTRON = 41.78214
"""Of the parametrisation of scattering factors."""
MOST_REFLECTIONS = 20_000
"""Lattice points that are listed for one pattern, before equivalent ones are merged."""


Crystal = AsymmetricUnit


@dataclass(frozen=True, eq=False)
class Reflections:
    """H reflections of a space group up to a limit, no two of them equivalent."""

    hkl: IntArray  #: (H, 3)
    multiplicity: IntArray  #: (H,) equivalent ones, opposite ones included
    turned: IntArray  #: (H, P, 3) h W for every operation, one lattice point of a centred cell
    phase: FloatArray  #: (H, P) h·w, in turns

    def __len__(self) -> int:
        return len(self.hkl)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Shape of the peaks, and what shifts and scales them."""

    u: float = 0.0  #: Caglioti's U [degrees²]
    v: float = 0.0
    w: float = 0.02
    mixing: float = 0.5  #: share of the Lorentzian
    zero: float = 0.0  #: added to all angles [degrees]
    b: float = 0.0  #: overall displacement factor B [Å²]
    march: float = 1.0  #: March-Dollase r: below 1 for plates, above for needles, 1 for none
    axis: tuple[int, int, int] = (0, 0, 1)  #: h k l of the preferred orientation


def reflections(number: int, lattice: FloatArray, wavelength: float, limit: float) -> Reflections:
    """All reflections up to 2θ = ``limit`` degrees.

    Raises
    ------
    InputError
        When the cell has too many of them.
    """
    longest = 2 * math.sin(math.radians(min(limit, 180.0)) / 2) / wavelength
    most = np.floor(np.linalg.norm(lattice, axis=1) * longest).astype(int)
    if np.prod(2.0 * most + 1) > 50 * MOST_REFLECTIONS:
        raise InputError(
            f"a cell of {abs(np.linalg.det(lattice)):.0f} Å^3 has too many reflections up to "
            f"{limit:g} degrees; use a smaller range or a longer wavelength"
        )
    axes = [np.arange(-m, m + 1) for m in most]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    length = np.linalg.norm(hkl @ np.linalg.inv(lattice).T, axis=1)
    hkl = hkl[(length <= longest) & (length > 0)]
    # one of each pair h, -h; the others are equivalent by inversion
    first = hkl[np.arange(len(hkl)), np.argmax(hkl != 0, axis=1)]
    hkl = hkl[first > 0]
    group = SpaceGroup(number)
    _, chosen = np.unique(group.rotations, axis=0, return_index=True)
    images = np.einsum("hi,gij->hgj", hkl, group.rotations[chosen])
    base = 2 * int(np.abs(images).max(initial=1)) + 1
    weights = np.array([base * base, base, 1])
    code = np.abs(images @ weights)  # equal for h and -h
    kept = hkl @ weights == code.max(axis=1)
    hkl, code = hkl[kept], np.sort(code[kept], axis=1)
    multiplicity = 2 * (1 + (np.diff(code, axis=1) > 0).sum(axis=1))
    turned = images[kept]
    # the operations left out differ from these by centring vectors
    centred = (hkl @ group.centring.T % 24 == 0).all(axis=1)
    shift = hkl @ group.translations24[chosen].T
    fixed = (turned == hkl[:, None]).all(axis=2)
    present = centred & ~(fixed & (shift % 24 != 0)).any(axis=1)
    return Reflections(hkl[present], multiplicity[present], turned[present], shift[present] / 24.0)


class PatternModel:
    """Sticks of a crystal as differentiable functions of its coordinates and cell.

    Parameters
    ----------
    crystal
        Its group, elements and multiplicities stay; coordinates and cell are arguments.
    radiation, limit
        Lines, and the largest 2θ [degrees]; reflections a little beyond are included so that the
        cell may change.
    """

    def __init__(
        self, crystal: Crystal, radiation: Radiation, limit: float, margin: float = 1.03
    ) -> None:
        self.crystal, self.radiation = crystal, radiation
        shortest = min(length for length, _ in radiation.lines)
        sine = min(1.0, margin * math.sin(math.radians(limit) / 2))
        self.reflections = reflections(
            crystal.group, crystal.lattice, shortest, 2 * math.degrees(math.asin(sine))
        )
        if not len(self.reflections):
            raise InputError(f"no reflection lies below {limit:g} degrees; measure further")
        r = self.reflections
        self.hkl = torch.from_numpy(r.hkl.astype(np.float64))
        self.turned = torch.from_numpy(r.turned.astype(np.float64))
        self.phase = torch.from_numpy(r.phase)
        self.count = torch.from_numpy(r.multiplicity.astype(np.float64))
        self.share = torch.from_numpy(crystal.multiplicity / r.turned.shape[1])
        parameters = scattering_parameters(crystal.numbers.tolist())
        self.a = torch.from_numpy(parameters[..., 0])
        self.b = torch.from_numpy(parameters[..., 1])
        self.electrons = torch.from_numpy(crystal.numbers.astype(np.float64))

    def inverse_squares(self, lattice: Tensor) -> Tensor:
        """(..., H) 1/d² [Å⁻²] for cells (..., 3, 3)."""
        vectors = self.hkl @ torch.linalg.inv(lattice).transpose(-1, -2)
        return vectors.square().sum(-1)

    def angles(self, inverse_squares: Tensor, wavelength: float) -> Tensor:
        """(..., H) 2θ [degrees], just below 180 where there is no reflection."""
        sine = (inverse_squares.sqrt() * (wavelength / 2)).clamp(max=0.9999)
        return 2 * torch.rad2deg(torch.asin(sine))

    def structure_factors(self, frac: Tensor, inverse_squares: Tensor, b: Tensor) -> Tensor:
        """(..., H, 2) real and imaginary parts for sites (..., A, 3).

        ``inverse_squares`` (..., H) give s² = 1/(2d)², ``b`` (...) is the overall displacement
        factor [Å²].
        """
        s2 = inverse_squares[..., None] / 4
        terms = self.a * torch.exp(-self.b * s2[..., None])  # (..., H, A, 4)
        factor = self.electrons - ELECTRON * s2 * terms.sum(-1)
        factor = factor * torch.exp(-b[..., None, None] * s2) * self.share
        turns = torch.einsum("hgi,...ai->...hga", self.turned, frac) + self.phase[..., None]
        wave = 2 * math.pi * turns
        real = (torch.cos(wave).sum(-2) * factor).sum(-1)
        imaginary = (torch.sin(wave).sum(-2) * factor).sum(-1)
        return torch.stack([real, imaginary], -1)

    def march_dollase(self, lattice: Tensor, march: Tensor, axis: ArrayLike) -> Tensor:
        """(H,) factor of preferred orientation, mean over equivalent reflections."""
        inverse = torch.linalg.inv(lattice).T
        direction = torch.as_tensor(np.asarray(axis, dtype=float)) @ inverse
        vectors = self.turned @ inverse
        cosine = (vectors @ direction) / (vectors.norm(dim=-1) * direction.norm())
        c2 = cosine.square().clamp(max=1.0)
        return (march.square() * c2 + (1 - c2) / march).pow(-1.5).mean(-1)

    def sticks(
        self,
        frac: Tensor,
        lattice: Tensor,
        b: Tensor,
        march: Tensor | None = None,
        axis: ArrayLike = (0, 0, 1),
    ) -> tuple[Tensor, Tensor]:
        """(L·H,) angles [degrees] and intensities of all reflections at all L lines."""
        q = self.inverse_squares(lattice)
        square = self.structure_factors(frac, q, b).square().sum(-1) * self.count
        if march is not None:
            square = square * self.march_dollase(lattice, march, axis)
        angles, heights = [], []
        for wavelength, share in self.radiation.lines:
            angle = self.angles(q, wavelength)
            angles.append(angle)
            heights.append(share * square * lorentz_polarisation(angle))
        return torch.cat(angles, -1), torch.cat(heights, -1)


def lorentz_polarisation(angle: Tensor) -> Tensor:
    """(1 + cos² 2θ) / (sin² θ cos θ) of 2θ [degrees]."""
    theta = torch.deg2rad(angle / 2)
    return (1 + torch.cos(2 * theta).square()) / (theta.sin().square() * theta.cos())


def caglioti(angle: Tensor, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Full widths at half maximum [degrees] at 2θ [degrees], at least 0.01."""
    tangent = torch.tan(torch.deg2rad(angle.clamp(max=170.0) / 2))
    return (u * tangent.square() + v * tangent + w).clamp(min=1e-4).sqrt()


def pseudo_voigt(delta: Tensor, width: Tensor, mixing: Tensor) -> Tensor:
    """Peaks of unit area at distances ``delta`` from their centres, all [degrees]."""
    x2 = (delta / width).square()
    lorentzian = 2 / math.pi / (1 + 4 * x2)
    gaussian = 2 * math.sqrt(math.log(2) / math.pi) * torch.exp(-4 * math.log(2) * x2)
    return (mixing * lorentzian + (1 - mixing) * gaussian) / width


def chebyshev(two_theta: FloatArray, count: int) -> FloatArray:
    """(N, count) polynomials on the range of a pattern, for its background."""
    low, high = float(two_theta[0]), float(two_theta[-1])
    place = 2 * (two_theta - low) / (high - low) - 1
    return np.asarray(np.polynomial.chebyshev.chebvander(place, count - 1), dtype=np.float64)


def simulate(
    crystal: Crystal, radiation: Radiation, two_theta: ArrayLike, profile: Profile | None = None
) -> FloatArray:
    """(N,) calculated intensities at 2θ [degrees], without background, on an absolute scale.

    Raises
    ------
    InputError
        For an element without a scattering factor, or a range without reflections.
    """
    profile = profile or Profile()
    x = torch.as_tensor(np.asarray(two_theta, dtype=float))
    model = PatternModel(crystal, radiation, float(x[-1]) + 1.0, margin=1.0)
    number = {name: torch.tensor(float(getattr(profile, name)), dtype=torch.float64)
              for name in ("u", "v", "w", "mixing", "b", "march")}  # fmt: skip
    angle, height = model.sticks(
        torch.from_numpy(crystal.frac),
        torch.from_numpy(crystal.lattice),
        number["b"],
        None if profile.march == 1.0 else number["march"],
        profile.axis,
    )
    width = caglioti(angle, number["u"], number["v"], number["w"])
    total = torch.zeros_like(x)
    for part in torch.arange(len(angle)).split(256):  # bounds memory
        delta = x[:, None] - angle[part] - profile.zero
        total += pseudo_voigt(delta, width[part], number["mixing"]) @ height[part]
    return total.numpy()


def stick_pattern(
    crystal: Crystal, wavelength: float, limit: float
) -> tuple[FloatArray, FloatArray, IntArray]:
    """(H,) angles up to ``limit`` [degrees], intensities, and (H, 3) indices, by angle."""
    model = PatternModel(crystal, Radiation(((wavelength, 1.0),)), limit, margin=1.0)
    angle, height = model.sticks(
        torch.from_numpy(crystal.frac),
        torch.from_numpy(crystal.lattice),
        torch.zeros((), dtype=torch.float64),
    )
    order = np.argsort(angle.numpy(), kind="stable")
    return angle.numpy()[order], height.numpy()[order], model.reflections.hkl[order]


def peaks(
    crystal: Crystal, wavelength: float, limits: tuple[float, float], *, apart: float = 0.05
) -> tuple[FloatArray, FloatArray]:
    """(K,) angles within ``limits`` [degrees] and heights, 100 for the highest, by angle.

    Lines less than ``apart`` degrees from the one before are one peak, at their mean angle.

    Raises
    ------
    InputError
        For an element without a scattering factor, or limits without reflections.
    """
    low, high = limits
    angle, height, _ = stick_pattern(crystal, wavelength, high)
    seen = (angle >= low) & (height > 0)
    angle, height = angle[seen], height[seen]
    if not len(angle):
        raise InputError(f"no reflection between {low:g} and {high:g} degrees")
    peak = np.concatenate([[0], np.cumsum(np.diff(angle) >= apart)])
    total = np.bincount(peak, height)
    return np.bincount(peak, height * angle) / total, 100 * total / total.max()
