"""Phonons by finite displacements with an interatomic potential: is a crystal a minimum at all?

A crystal is relaxed tightly with its symmetry kept; in a supercell of the conventional cell atoms
are displaced one by one (phonopy: A. Togo et al., J. Phys. Condens. Matter 35, 353001 (2023)), and
the forces of the potential give force constants, made invariant to translations. Frequencies are
taken at the wave vectors that fit into the supercell, where they are exact, on a mesh, and along
the path between points of high symmetry (ASE's), where they are interpolated. An imaginary
frequency is given as a negative one.

There is no non-analytic correction, as potentials know no charges: the longitudinal optical modes
of polar crystals lie too low near Γ. That makes no mode imaginary. CHGNet is too soft on the whole
(Si's highest frequency comes out at 11.9 THz, measured is 15.5): trust the sign.

A crystal that cannot be judged is never an exception: its :class:`PhononResult` has a reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import PhononOptions, RelaxOptions
from langevin_xtal.config.tolerances import TIGHT
from langevin_xtal.crystal.ase import to_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.folding import fold
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import InputError
from langevin_xtal.files import save_figure
from langevin_xtal.screen.cached import Progress, ResultCache, each_once
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import one_thread, relax_cell
from langevin_xtal.symmetry.detection import standard_cell

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SLACK = 0.1
"""How much of a cell may be missing from ``length``: two cells of a perovskite will do, and zone
boundaries fit into an even number only."""
SHRINK = 0.95
"""Supercells with too many atoms are tried again with edges shorter by this."""
ACOUSTIC = 3
"""Modes at Γ that move the crystal as a whole."""

_HEAD = 19  # numbers before the arrays of a packed result


DEFAULT_PHONONS = PhononOptions()


@dataclass(frozen=True, eq=False)
class PhononResult:
    """Phonons of a crystal with N atoms in the primitive cell; Q points on the path.

    With a ``reason`` there are no phonons, ``minimum`` is NaN and ``imaginary`` false.
    """

    cell: Cell  #: relaxed primitive cell; wave vectors are in its reciprocal basis
    energy: float  #: of the relaxed cell [eV/atom]
    converged: bool  #: whether the relaxation reached its ``fmax``
    supercell: IntArray  #: (3,) copies of the conventional cell along its axes
    atoms: int  #: of the supercell
    edge: float  #: shortest edge of the supercell [Å]
    displacements: int  #: number of displaced supercells
    minimum: float  #: lowest frequency but for acoustic modes at Γ [THz], negative: imaginary
    minimum_at: FloatArray  #: (3,) its wave vector
    exact_minimum: float  #: the same at wave vectors that fit into the supercell [THz]
    exact_at: FloatArray  #: (3,)
    tolerance: float  #: [THz]
    path: FloatArray  #: (Q, 3) wave vectors
    bands: FloatArray  #: (Q, 3 N) frequencies [THz]
    reason: str = ""  #: why there are no phonons

    @property
    def imaginary(self) -> bool:
        """Whether a frequency is more negative than the tolerance."""
        return self.minimum < -self.tolerance

    @property
    def certain(self) -> bool:
        """Whether an imaginary mode fits into the supercell, so that it is not interpolated."""
        return self.exact_minimum < -self.tolerance

    @property
    def note(self) -> str:
        """The outcome in a phrase."""
        if self.reason:
            return f"no phonons: {self.reason}"
        if not self.imaginary:
            text = "no imaginary mode"
            if math.isfinite(self.exact_minimum):
                text += f" (lowest in the supercell {self.exact_minimum:.2f} THz)"
        else:
            where = point_text(self.exact_at if self.certain else self.minimum_at)
            lowest = self.exact_minimum if self.certain else self.minimum
            text = f"imaginary mode of {lowest:.2f} THz at {where}"
            text += "" if self.certain else ", interpolated: a larger supercell would tell"
        return text if self.converged else f"{text}; the relaxation ran out of steps"


def phonon_check(cell: Cell, options: PhononOptions = DEFAULT_PHONONS) -> PhononResult:
    """Phonons of one P1 cell in this process; takes seconds to minutes.

    Raises
    ------
    InputError
        When the potential is unknown or not installed; nothing a cell can cause.
    """
    relaxation = RelaxOptions(
        potential=options.potential,
        fmax=options.fmax,
        steps=options.steps,
        device=options.device,
    )
    relaxed = relax_cell(fold(cell, relaxation.symprec).primitive, relaxation)
    if relaxed.reason:
        return _failed(cell, relaxed.reason, options.tolerance)
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _phonons(relaxed.cell, options)
    except Exception as error:  # potentials, spglib and phonopy raise anything on strange cells
        reason = f"unexpected failure: {first_line(error)}"
        return _failed(cell, reason, options.tolerance)
    return replace(found, energy=relaxed.energy, converged=relaxed.converged)


def phonon_checks(
    cells: Sequence[Cell],
    options: PhononOptions = DEFAULT_PHONONS,
    *,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[PhononResult]:
    """Phonons of P1 cells in parallel, each once.

    Parameters
    ----------
    cache, workers, progress
        As in :func:`~langevin_xtal.screen.relax.relax`.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    version = load_potential(options.potential, options.device).version
    return each_once(
        partial(phonon_check, options=options),
        cells,
        # whatever the tolerance, frequencies are the same
        kind=f"phonons {version} {replace(options, tolerance=DEFAULT_PHONONS.tolerance)!r}",
        pack=_pack,
        unpack=partial(_unpack, tolerance=options.tolerance),
        cache=cache,
        workers=workers,
        progress=progress,
        per_worker=1,
    )


def band_path(cell: Cell, points: int) -> tuple[FloatArray, FloatArray, list[tuple[float, str]]]:
    """Path between the points of high symmetry, as ASE has it for the lattice.

    Returns
    -------
    tuple
        (Q, 3) wave vectors in the reciprocal basis of the cell, (Q,) length along the path
        [1/Å], and (length, name) of each corner. All empty where ASE knows no path.
    """
    import ase.cell

    try:
        path = ase.cell.Cell(cell[0]).bandpath(npoints=points)
        length, corners, names = path.get_linear_kpoint_axis()
    except Exception:  # lattices ASE cannot classify
        return np.zeros((0, 3)), np.zeros(0), []
    ticks = [(float(x), str(name)) for x, name in zip(corners, names, strict=True)]
    return np.asarray(path.kpts), np.asarray(length), ticks


def plot_bands(result: PhononResult, target: Path, title: str = "") -> None:
    """Draw frequencies along the path to a picture; the format follows from the name.

    Raises
    ------
    InputError
        When there are no bands to draw.
    """
    if not len(result.bands):
        raise InputError(f"there are no bands to draw: {result.reason or 'no path is known'}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _, length, ticks = band_path(result.cell, len(result.path))
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    breaks = np.flatnonzero(np.diff(length) < 1e-9) + 1  # the path goes on elsewhere
    for part in np.split(np.arange(len(length)), breaks):
        axes.plot(length[part], result.bands[part], color="tab:blue", lw=0.8)
    axes.axhline(0, color="black", lw=0.5)
    axes.axhline(-result.tolerance, color="tab:red", lw=0.5, ls=":")
    names: dict[float, str] = {}
    for x, name in ticks:
        here = name.replace("G", "Γ")
        names[x] = f"{names[x]}|{here}" if x in names else here
    axes.set_xticks(list(names), list(names.values()))
    for x in names:
        axes.axvline(x, color="0.8", lw=0.5, zorder=0)
    axes.set_xlim(length[0], length[-1])
    axes.set_ylabel("frequency [THz]; negative: imaginary")
    axes.set_title(title)
    save_figure(figure, target, dpi=150)


def point_text(point: FloatArray) -> str:
    """A wave vector such as ``(0, 1/2, 0.31)``."""
    return "(" + ", ".join(_fraction(float(x)) for x in point) + ")"


def _fraction(value: float) -> str:
    for divisor in (1, 2, 3, 4, 6, 8):
        scaled = round(value * divisor)
        if abs(value * divisor - scaled) < 1e-4:
            return str(scaled // divisor) if scaled % divisor == 0 else f"{scaled}/{divisor}"
    return f"{value:.2f}"


# -- the work


def _phonons(primitive: Cell, options: PhononOptions) -> PhononResult:
    from phonopy import Phonopy

    unit = standard_cell(primitive, TIGHT, primitive=False, idealise=False) or primitive
    copies = supercell_copies(unit, options.length, options.max_atoms)
    if copies is None:
        unit = primitive
        copies = supercell_copies(unit, options.length, options.max_atoms)
    if copies is None:
        reason = f"{len(unit[2])} atoms in the primitive cell; the most is {options.max_atoms}"
        return _failed(primitive, reason, options.tolerance)
    phonon = Phonopy(
        _phonopy_atoms(unit),
        supercell_matrix=np.diag(copies),
        primitive_matrix="auto",
        symprec=TIGHT,
    )
    phonon.generate_displacements(distance=options.displacement)
    calculator = load_potential(options.potential, options.device).calculator()
    rest = _forces(phonon.supercell, calculator)
    displaced: Any = phonon.supercells_with_displacements
    phonon.forces = np.array([_forces(each, calculator) - rest for each in displaced])
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return _judged(phonon, unit, copies, options)


def _judged(phonon: Any, unit: Cell, copies: IntArray, options: PhononOptions) -> PhononResult:
    """The lowest frequencies, and the bands."""
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    matrix = np.linalg.inv(phonon.primitive_matrix) @ phonon.supercell_matrix
    exact = np.asarray(get_commensurate_points(np.rint(matrix).astype(int)))
    primitive = phonon.primitive
    cell = (
        np.array(primitive.cell),
        np.array(primitive.scaled_positions),
        np.array(primitive.numbers, dtype=np.int64),
    )
    path, _, _ = band_path(cell, options.path_points)
    phonon.run_mesh(options.mesh, is_gamma_center=True)
    mesh = np.asarray(phonon.get_mesh_dict()["qpoints"])
    bands = _frequencies(phonon, path)
    lowest, where = _lowest(
        np.concatenate([exact, mesh, path]),
        np.concatenate(
            [
                _frequencies(phonon, exact),
                np.asarray(phonon.get_mesh_dict()["frequencies"]),
                bands,
            ]
        ),
    )
    exact_lowest, exact_where = _lowest(exact, _frequencies(phonon, exact))
    edges = np.linalg.norm(unit[0], axis=1) * copies
    return PhononResult(
        cell=cell,
        energy=math.nan,
        converged=False,
        supercell=copies,
        atoms=len(phonon.supercell),
        edge=float(edges.min()),
        displacements=len(phonon.displacements),
        minimum=lowest,
        minimum_at=where,
        exact_minimum=exact_lowest,
        exact_at=exact_where,
        tolerance=options.tolerance,
        path=path,
        bands=bands,
    )


def _lowest(points: FloatArray, frequencies: FloatArray) -> tuple[float, FloatArray]:
    """The lowest frequency but for the acoustic modes at Γ, and its wave vector.

    NaN and Γ where there is none: one atom, and no point but Γ.
    """
    values = np.array(frequencies, dtype=float)
    for row in np.flatnonzero(np.abs(points - np.rint(points)).max(axis=1) < 1e-8):
        values[row, np.argsort(np.abs(values[row]), kind="stable")[:ACOUSTIC]] = np.inf
    row = values.min(axis=1).argmin()
    lowest = float(values[row].min())
    return (lowest, points[row]) if math.isfinite(lowest) else (math.nan, np.zeros(3))


def _frequencies(phonon: Any, points: FloatArray) -> FloatArray:
    """(Q, 3 N) [THz]"""
    if not len(points):
        return np.zeros((0, 3 * len(phonon.primitive)))
    phonon.run_qpoints(points)
    return np.array(phonon.get_qpoints_dict()["frequencies"], dtype=float)


def _forces(atoms: Any, calculator: Any) -> FloatArray:
    """(N, 3) forces on a supercell of phonopy [eV/Å].

    Raises
    ------
    FloatingPointError
        When they are not finite.
    """
    own = to_atoms((atoms.cell, atoms.scaled_positions, atoms.numbers))
    own.calc = calculator
    forces = np.array(own.get_forces(), dtype=float)
    if not np.isfinite(forces).all():
        raise FloatingPointError("the potential's forces are not finite")
    return forces


def supercell_copies(unit: Cell, length: float, max_atoms: int) -> IntArray | None:
    """(3,) copies of a cell along its axes, so that no edge is shorter than ``length`` [Å].

    Shorter edges where there would be more than ``max_atoms``; None when the cell itself has more.
    Axes of equal length get the same number, so that the supercell keeps the symmetry.
    """
    edges = np.linalg.norm(unit[0], axis=1)
    while True:
        copies = np.maximum(1, np.ceil(length / edges - SLACK)).astype(np.int64)
        if copies.prod() * len(unit[2]) <= max_atoms:
            return copies
        if (copies == 1).all():
            return None
        length *= SHRINK


def _phonopy_atoms(cell: Cell) -> Any:
    from phonopy.structure.atoms import PhonopyAtoms

    lattice, frac, numbers = cell
    return PhonopyAtoms(cell=lattice, scaled_positions=frac, numbers=numbers)


def _failed(cell: Cell, reason: str, tolerance: float) -> PhononResult:
    return PhononResult(
        cell=cell,
        energy=math.nan,
        converged=False,
        supercell=np.zeros(3, dtype=np.int64),
        atoms=0,
        edge=math.nan,
        displacements=0,
        minimum=math.nan,
        minimum_at=np.zeros(3),
        exact_minimum=math.nan,
        exact_at=np.zeros(3),
        tolerance=tolerance,
        path=np.zeros((0, 3)),
        bands=np.zeros((0, 3 * len(cell[2]))),
        reason=reason,
    )


# -- as arrays


def _pack(result: PhononResult) -> FloatArray:
    """A result as one array; the reason as code points at the end."""
    lattice, frac, numbers = result.cell
    head = [
        len(numbers),
        len(result.path),
        result.energy,
        result.converged,
        *result.supercell.tolist(),
        result.atoms,
        result.edge,
        result.displacements,
        result.minimum,
        *result.minimum_at.tolist(),
        result.exact_minimum,
        *result.exact_at.tolist(),
        len(result.reason),
    ]
    reason = [float(ord(letter)) for letter in result.reason]
    arrays = [lattice, frac, numbers, result.path, result.bands]
    return np.concatenate([head, *(np.asarray(a, float).ravel() for a in arrays), reason])


def _unpack(values: FloatArray, cell: Cell, *, tolerance: float) -> PhononResult:
    count, points = int(values[0]), int(values[1])
    sizes = [9, 3 * count, count, 3 * points, 3 * count * points]
    if min(count, points) < 0 or len(values) != _HEAD + sum(sizes) + int(values[_HEAD - 1]):
        raise ValueError("phonons of another length")
    if not int(values[_HEAD - 1]) and not (np.abs(values[_HEAD:][: sum(sizes[:3])]) < 1e6).all():
        raise ValueError("phonons of no crystal")
    lattice, frac, numbers, path, bands, reason = np.split(values[_HEAD:], np.cumsum(sizes))
    return PhononResult(
        cell=(lattice.reshape(3, 3), frac.reshape(count, 3), numbers.astype(np.int64)),
        energy=float(values[2]),
        converged=bool(values[3]),
        supercell=values[4:7].astype(np.int64),
        atoms=int(values[7]),
        edge=float(values[8]),
        displacements=int(values[9]),
        minimum=float(values[10]),
        minimum_at=values[11:14].copy(),
        exact_minimum=float(values[14]),
        exact_at=values[15:18].copy(),
        tolerance=tolerance,
        path=path.reshape(points, 3),
        bands=bands.reshape(points, 3 * count),
        reason="".join(chr(int(code)) for code in reason),
    )
