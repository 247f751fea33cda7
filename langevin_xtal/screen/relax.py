"""Relaxation of cells with an interatomic potential, keeping their symmetry.

Positions and cell move together (ASE's UnitCellFilter, Tadmor et al., Phys. Rev. B 59, 235
(1999)) by LBFGS (:mod:`~langevin_xtal.screen.descent`) under ASE's FixSymmetry. The cell's rows
are scaled by the square root of the number of atoms, not by that number as in ASE: a strain is
then about as stiff as a displacement. Twelve crystals of MP-20 displaced by 0.15 Å and strained by
5 % take 114 evaluations of CHGNet so (with ASE's LBFGS), 185 with ASE's scaling, 280 with FIRE;
FrechetCellFilter takes as many and 6 ms more for each.

Structures are relaxed one by one, in as many processes as there are CPUs with one thread each:
evaluating them in batches gains at most a factor of 1.4 on a CPU (CHGNet, 48 crystals, batches of
16), and makes the result depend on the others in the batch.

A structure that cannot be relaxed is never an exception: its :class:`Relaxation` has a reason.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.ase import from_atoms, to_atoms
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.folding import fold
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.screen import fixing
from langevin_xtal.screen.cached import Progress, ResultCache, each_once
from langevin_xtal.screen.descent import descending_lbfgs
from langevin_xtal.screen.filters import overlap, wrong_volume
from langevin_xtal.screen.potentials import Potential, load_potential
from langevin_xtal.screen.stopping import largest_gain
from langevin_xtal.symmetry import wrap

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]

CURVATURE = 40.0
"""First guess of the Hessian for LBFGS [eV/Å²]; ASE's 70 takes a quarter more steps."""

LARGEST = 1e6
"""Of any number of a relaxation; what a cache has beyond is damaged."""
_HEAD = 7  # energy, start energy, steps, converged, force, stress, atoms
_LATTICE = _HEAD + 9


METHOD = 2
"""Of :func:`relax_cell`, counted up when the same options lead elsewhere: caches tell results of
different ones apart. 1: ASE's LBFGS."""

DEFAULT_OPTIONS = RelaxOptions()


@dataclass(frozen=True, eq=False)
class Relaxation:
    """What became of a cell.

    ``energy`` is NaN exactly when there is a ``reason``; the cell is then the one given. A
    relaxation that ran out of steps has an energy and no reason, and is not ``converged``.
    """

    cell: Cell  #: atoms in the order given
    energy: float  #: at the end [eV/atom]
    start_energy: float  #: of the cell given, symmetrised [eV/atom]; NaN where unknown
    steps: int
    converged: bool
    max_force: float  #: on any atom [eV/Å]
    max_stress: float  #: largest component [eV/Å³]
    reason: str = ""  #: why it failed, empty when it did not
    least: float = math.nan
    """Where it was ended early, an energy that it would not have come below [eV/atom]."""

    @property
    def ended_early(self) -> bool:
        """Whether it was ended because it could not come below a limit."""
        return not math.isnan(self.least)


class _FailedError(Exception):
    """A relaxation that cannot go on."""


def relax_cell(
    cell: Cell,
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    limit: float = math.inf,
    settled: Callable[[Cell], bool] | None = None,
) -> Relaxation:
    """Relax one P1 cell in this process.

    Converged means: no atom feels more than ``fmax`` [eV/Å], and no row of the stress times the
    volume per atom exceeds ``fmax`` [eV]. That is ASE's criterion for its cell filters.

    Parameters
    ----------
    limit
        The relaxation ends early when its energy cannot come below [eV/atom], as far as
        :func:`~langevin_xtal.screen.stopping.largest_gain` can tell.
    settled
        Called with the geometry after each step: where it says so, that is the end, converged.

    Raises
    ------
    InputError
        When the potential is unknown or not installed, or ``fix_atoms`` names what is not there.
    """
    potential = load_potential(options.potential, options.device)
    cell, held = fixing.held_of(fixing.marked(cell, options.fix_atoms))
    reason = unfit(cell, potential, options)
    if reason:
        return failed_relaxation(cell, reason)
    calculator = potential.calculator()
    start = [math.nan]
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _relaxed(cell, held, calculator, options, start, limit, settled)
    except _FailedError as error:
        return failed_relaxation(cell, str(error), start[0])
    except Exception as error:  # potentials, spglib and ASE raise anything on strange cells
        return failed_relaxation(cell, f"unexpected failure: {first_line(error)}", start[0])


def relax(
    cells: Sequence[Cell],
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Relaxation]:
    """Relax P1 cells in parallel, each once.

    Parameters
    ----------
    cells
        Preferably primitive: the cost grows with the number of atoms.
    cache
        Relaxations found there are not done again; new ones are put there every few seconds, so
        that an interrupted run continues where it was.
    workers
        Processes; by default one per CPU, and fewer for a few cells. See
        :func:`~langevin_xtal.parallel.parallel_map`.
    progress
        Called with how many cells are done and how many there are.

    Returns
    -------
    list
        Relaxations in the order of the cells.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    work = partial(relax_cell, options=options)
    return each_relaxed(work, "plain", cells, options, cache, workers, progress)


def relax_folded(
    cells: Sequence[Cell],
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    limits: Mapping[str, float] | None = None,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Relaxation]:
    """As :func:`relax`, done in the primitive cell; geometries come back in the cells given.

    Parameters
    ----------
    limits
        Energies [eV/atom] by :func:`~langevin_xtal.crystal.cell.cell_key`: the relaxation of such
        a cell ends early when it cannot come below. See :func:`relax_cell`.
    """
    work = partial(_relax_folded, options=options, limits=limits)
    what = "folded"
    if limits:
        said = repr(sorted((key, limits[key]) for key in map(cell_key, cells) if key in limits))
        what += f" with limits {hashlib.sha256(said.encode()).hexdigest()[:16]}"
    return each_relaxed(work, what, cells, options, cache, workers, progress)


def _relax_folded(
    cell: Cell, options: RelaxOptions, limits: Mapping[str, float] | None = None
) -> Relaxation:
    limit = math.inf if not limits else limits.get(cell_key(cell), math.inf)
    cell = fixing.marked(cell, options.fix_atoms)
    plain, held = fixing.held_of(cell)
    if fixing.is_partial(held):  # along the axes of this cell
        return relax_cell(cell, options, limit=limit)
    folded = fold(cell, options.symprec)
    result = relax_cell(folded.primitive, options, limit=limit)
    if result.reason:
        return replace(result, cell=plain)
    return replace(result, cell=fixing.held_of(folded.expand(result.cell))[0])


def each_relaxed(
    work: Callable[[Cell], Relaxation],
    what: str,
    cells: Sequence[Cell],
    options: RelaxOptions,
    cache: ResultCache | None,
    workers: int | None,
    progress: Progress | None,
) -> list[Relaxation]:
    """:func:`each_once` of a way to relax.

    Parameters
    ----------
    what
        Name of that way; it tells results in the cache apart.
    """
    version = load_potential(options.potential, options.device).version
    results = each_once(
        work,
        cells,
        kind=f"{what} relaxation {METHOD} {version} {options!r}",
        pack=_pack,
        unpack=_unpack,
        cache=cache,
        workers=workers,
        progress=progress,
    )
    return [_unmarked(result) for result in results]


def _unmarked(result: Relaxation) -> Relaxation:
    plain = fixing.held_of(result.cell)[0]
    return result if plain is result.cell else replace(result, cell=plain)


# -- one relaxation


def unfit(cell: Cell, potential: Potential, options: RelaxOptions) -> str:
    """Why a cell can have no energy; empty when it can be tried."""
    lattice, frac, numbers = cell
    if not len(numbers) or not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return "the cell is not finite, or empty"
    unknown = sorted(set(numbers.tolist()) - potential.elements)
    if unknown:
        names = ", ".join(SYMBOLS[z] if 0 < z < len(SYMBOLS) else str(z) for z in unknown)
        return f"{potential.name} does not know {names}"
    reason = wrong_volume(abs(float(np.linalg.det(lattice))) / len(numbers))
    return reason or overlap(cell, options.min_distance)


def _relaxed(
    cell: Cell,
    held: NDArray[np.bool_],
    calculator: Any,
    options: RelaxOptions,
    start: list[float],
    limit: float,
    settled: Callable[[Cell], bool] | None,
) -> Relaxation:
    """The relaxation itself; the first energy is left in ``start`` also when it fails."""
    import ase.optimize

    atoms = _constrained(cell, held, options)
    atoms.calc = calculator
    moving = _moving(atoms, options)
    more = {"alpha": CURVATURE} if options.optimiser != "FIRE" else {}
    ours = options.optimiser == "LBFGS"
    kind = descending_lbfgs() if ours else getattr(ase.optimize, options.optimiser)
    optimiser = kind(moving, logfile=None, maxstep=options.max_step, **more)
    converged, least = False, math.nan
    for _ in optimiser.irun(fmax=0.0, steps=options.steps):
        energy, force, stress = _state(atoms)
        if optimiser.nsteps == 0:
            start[0] = energy
        pull = _pull(stress, options) * atoms.get_volume() / len(atoms)
        converged = bool(force <= options.fmax and pull <= options.fmax)
        converged = converged or (settled is not None and settled(from_atoms(atoms)))
        if converged:
            break
        if limit < math.inf:
            bound = energy - largest_gain(force, pull)
            if bound > limit:
                least = bound
                break
    lattice, frac, _ = from_atoms(atoms)
    end = lattice, wrap(frac), cell[2]
    reason = overlap(end, options.min_distance)
    if reason:
        raise _FailedError(f"collapsed: {reason}")
    return Relaxation(
        cell=end,
        energy=energy,
        start_energy=start[0],
        steps=optimiser.nsteps,
        converged=converged,
        max_force=force,
        max_stress=float(np.abs(stress).max()),
        least=least,
    )


def _constrained(cell: Cell, held: NDArray[np.bool_], options: RelaxOptions) -> Atoms:
    """The atoms with what keeps their symmetry and what holds some of them (N, 3)."""
    atoms = to_atoms(cell)
    found = fixing.constraints(held)
    if options.keep_symmetry and not fixing.is_partial(held):
        found = [fixing.kept_symmetry(atoms, held, options.symprec), *found]
        # symmetrised within symprec, what is not to change at all may have changed a little
        if options.constant_cell:
            atoms.set_cell(cell[0], scale_atoms=True)  # type: ignore[no-untyped-call]
        elif options.constant_volume:
            scale = abs(np.linalg.det(cell[0])) / atoms.get_volume()
            atoms.set_cell(atoms.cell.array * scale ** (1 / 3), scale_atoms=True)  # type: ignore[no-untyped-call]
        places = np.where(held, cell[1], atoms.get_scaled_positions(wrap=False))
        atoms.set_scaled_positions(places)  # type: ignore[no-untyped-call]
    atoms.set_constraint(found)
    return atoms


def _moving(atoms: Atoms, options: RelaxOptions) -> Any:
    """What the optimiser moves: atoms, and the cell as far as it may change."""
    plain, exact = _filters()
    # at least 2, so that no step strains the cell by more than FixSymmetry can symmetrise
    factor = max(2.0, math.sqrt(len(atoms)))
    if options.constant_cell:
        return atoms
    if options.constant_volume:  # exactly, where UnitCellFilter keeps it to first order
        return exact(atoms, exp_cell_factor=factor, constant_volume=True)
    return plain(atoms, cell_factor=factor)


@cache
def _filters() -> tuple[Any, Any]:
    """ASE's filters of a cell that moves, which give the forces of a geometry once."""
    from ase.filters import FrechetCellFilter, UnitCellFilter

    class Cell(_Once, UnitCellFilter):
        pass

    class ExactCell(_Once, FrechetCellFilter):
        pass

    return Cell, ExactCell


class _Once:
    """Before a filter of ASE: optimisers ask three times in a step for the same forces."""

    atoms: Atoms
    _known: tuple[FloatArray, FloatArray, FloatArray] | None = None

    def get_forces(self, **given: Any) -> FloatArray:
        places, lattice = self.atoms.positions, self.atoms.cell.array
        known = self._known
        if (
            known is None
            or not np.array_equal(known[0], places)
            or not np.array_equal(known[1], lattice)
        ):
            forces = super().get_forces(**given)  # type: ignore[misc]
            known = self._known = places.copy(), lattice.copy(), forces
        return known[2].copy()


def _pull(stress: FloatArray, options: RelaxOptions) -> float:
    """Largest row of the stress (3, 3) that may still change the cell [eV/Å³]."""
    if options.constant_cell:
        return 0.0
    if options.constant_volume:
        stress = stress - np.eye(3) * np.trace(stress) / 3
    return float(np.linalg.norm(stress, axis=1).max())


def _state(atoms: Atoms) -> tuple[float, float, FloatArray]:
    """Energy per atom [eV], largest force [eV/Å], stress (3, 3) [eV/Å³].

    Raises
    ------
    _FailedError
        When they are not finite, or the cell has collapsed or exploded.
    """
    reason = wrong_volume(atoms.get_volume() / len(atoms))
    if reason:
        raise _FailedError(reason)
    energy = atoms.get_potential_energy() / len(atoms)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    if not (math.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all()):
        raise _FailedError("the potential's energy, forces or stress are not finite")
    return float(energy), float(np.linalg.norm(forces, axis=1).max()), stress


def failed_relaxation(cell: Cell, reason: str, start_energy: float = math.nan) -> Relaxation:
    """A relaxation that came to nothing, for this reason."""
    return Relaxation(
        cell=cell,
        energy=math.nan,
        start_energy=start_energy,
        steps=0,
        converged=False,
        max_force=math.nan,
        max_stress=math.nan,
        reason=reason,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """More threads of torch than one slow such small cells down."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- as arrays


def _pack(result: Relaxation) -> FloatArray:
    """A relaxation as one array; at the end the reason as code points, or the least energy."""
    lattice, frac, numbers = result.cell
    head = [
        result.energy,
        result.start_energy,
        result.steps,
        result.converged,
        result.max_force,
        result.max_stress,
        len(numbers),
    ]
    tail = [float(ord(letter)) for letter in result.reason]
    if result.ended_early:
        tail = [result.least]
    return np.concatenate([head, lattice.ravel(), frac.ravel(), tail]).astype(np.float64)


def _unpack(values: FloatArray, cell: Cell) -> Relaxation:
    count = int(values[_HEAD - 1])
    end = _LATTICE + 3 * count
    failed = math.isnan(values[0])
    if count != len(cell[2]) or (
        len(values) <= end if failed else len(values) not in (end, end + 1)
    ):
        raise ValueError("a relaxation of another cell")
    if not failed and not (np.abs(values) < LARGEST).all():
        raise ValueError("a relaxation that is not finite")
    lattice = values[_HEAD:_LATTICE].reshape(3, 3)
    return Relaxation(
        cell=(lattice, values[_LATTICE:end].reshape(count, 3), cell[2]),
        energy=float(values[0]),
        start_energy=float(values[1]),
        steps=int(values[2]),
        converged=bool(values[3]),
        max_force=float(values[4]),
        max_stress=float(values[5]),
        reason="".join(chr(int(code)) for code in values[end:]) if failed else "",
        least=math.nan if failed or len(values) == end else float(values[end]),
    )
