"""Relaxation of cells with an interatomic potential, keeping their symmetry.

Positions and cell move together (ASE's UnitCellFilter, Tadmor et al., Phys. Rev. B 59, 235
(1999)) by LBFGS under ASE's FixSymmetry. The cell's rows are scaled by the square root of the
number of atoms, not by that number as in ASE: a strain is then about as stiff as a displacement.
Twelve crystals of MP-20 displaced by 0.15 Å and strained by 5 % take 114 evaluations of CHGNet so,
185 with ASE's scaling, 280 with FIRE; FrechetCellFilter takes as many and 6 ms more for each.

Structures are relaxed one by one, in as many processes as there are CPUs with one thread each:
evaluating them in batches gains at most a factor of 1.4 on a CPU (CHGNet, 48 crystals, batches of
16), and makes the result depend on the others in the batch.

A structure that cannot be relaxed is never an exception: its :class:`Relaxation` has a reason.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import RelaxOptions, ReleaseOptions
from langevin_xtal.config.tolerances import LOOSE, USUAL
from langevin_xtal.crystal.ase import from_atoms, to_atoms
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import LangevinXtalWarning
from langevin_xtal.parallel import parallel_map
from langevin_xtal.screen.filters import overlap, wrong_volume
from langevin_xtal.screen.potentials import Potential, load_potential
from langevin_xtal.symmetry import wrap
from langevin_xtal.symmetry.detection import group_numbers, symmetry_dataset

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
Outcome = TypeVar("Outcome")
Progress = Callable[[int, int], None]

CURVATURE = 40.0
"""First guess of the Hessian for LBFGS [eV/Å²]; ASE's 70 takes a quarter more steps."""
GROUP_SYMPRECS = (USUAL, LOOSE)
"""Tolerances at which space groups are reported [Å]; whether symmetry broke is seen at the last:
cells relaxed without symmetry are never exact."""
SAVE_EVERY = 20
SAVE_SECONDS = 10.0
PER_WORKER = 8
"""Cells that pay for starting one more process, which takes about ten seconds."""

LARGEST = 1e6
"""Of any number of a relaxation; what a cache has beyond is damaged."""
_HEAD = 7  # energy, start energy, steps, converged, force, stress, atoms
_LATTICE = _HEAD + 9


class ResultCache(Protocol):
    """Where relaxations are kept: 1-D arrays of float64 by (kind, key)."""

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, FloatArray]:
        """The arrays of those ``keys`` that are there."""
        ...

    def put(self, kind: str, values: Mapping[str, FloatArray]) -> None:
        """Keep arrays."""
        ...


DEFAULT_OPTIONS = RelaxOptions()
DEFAULT_RELEASE = ReleaseOptions()


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


class _FailedError(Exception):
    """A relaxation that cannot go on."""


def relax_cell(cell: Cell, options: RelaxOptions = DEFAULT_OPTIONS) -> Relaxation:
    """Relax one P1 cell in this process.

    Converged means: no atom feels more than ``fmax`` [eV/Å], and no row of the stress times the
    volume per atom exceeds ``fmax`` [eV]. That is ASE's criterion for its cell filters.

    Raises
    ------
    InputError
        When the potential is unknown or not installed; nothing a cell can cause.
    """
    potential = load_potential(options.potential, options.device)
    reason = _unfit(cell, potential, options)
    if reason:
        return _failed(cell, reason)
    calculator = potential.calculator()
    start = [math.nan]
    try:
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _relaxed(cell, calculator, options, start)
    except _FailedError as error:
        return _failed(cell, str(error), start[0])
    except Exception as error:  # potentials, spglib and ASE raise anything on strange cells
        return _failed(cell, f"unexpected failure: {first_line(error)}", start[0])


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
    return _each_relaxed(work, "plain", cells, options, cache, workers, progress)


def relax_folded(
    cells: Sequence[Cell],
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Relaxation]:
    """As :func:`relax`, done in the primitive cell; geometries come back in the cells given."""
    work = partial(_relax_folded, options=options)
    return _each_relaxed(work, "folded", cells, options, cache, workers, progress)


def _relax_folded(cell: Cell, options: RelaxOptions) -> Relaxation:
    folded = fold(cell, options.symprec)
    result = relax_cell(folded.primitive, options)
    return replace(result, cell=cell) if result.reason else folded.expand(result)


def _each_relaxed(
    work: Callable[[Cell], Relaxation],
    what: str,
    cells: Sequence[Cell],
    options: RelaxOptions,
    cache: ResultCache | None,
    workers: int | None,
    progress: Progress | None,
) -> list[Relaxation]:
    version = load_potential(options.potential, options.device).version
    return each_once(
        work,
        cells,
        kind=f"{what} relaxation {version} {options!r}",
        pack=_pack,
        unpack=_unpack,
        cache=cache,
        workers=workers,
        progress=progress,
    )


def each_once(
    work: Callable[[Cell], Outcome],
    cells: Sequence[Cell],
    *,
    kind: str,
    pack: Callable[[Outcome], FloatArray],
    unpack: Callable[[FloatArray, Cell], Outcome],
    cache: ResultCache | None,
    workers: int | None,
    progress: Progress | None,
    per_worker: int = PER_WORKER,
) -> list[Outcome]:
    """``work`` of each different cell in parallel, kept as it comes.

    Parameters
    ----------
    work
        Picklable; should not raise for anything a cell can cause.
    kind
        What the results depend on besides the cell: potential, version, options.
    pack, unpack
        A result as a 1-D array, and back, given the cell it belongs to.
    cache, workers, progress
        As in :func:`relax`.
    per_worker
        Cells that pay for starting one more process.
    """
    keys = [cell_key(cell) for cell in cells]
    of = dict(zip(keys, cells, strict=True))
    stored = cache.get(kind, list(of)) if cache is not None else {}
    done = _unpacked(stored, of, unpack)
    todo = [key for key in of if key not in done]
    report = progress or (lambda finished, planned: None)
    report(len(done), len(of))
    useful = useful_workers(len(todo), workers, per_worker)
    fresh: dict[str, FloatArray] = {}
    saved = time.monotonic()
    # two at a time save messages; one at a time share few cells evenly
    chunk = 2 if len(todo) >= 4 * useful else 1
    results = parallel_map(work, [of[key] for key in todo], workers=useful, chunk=chunk)
    try:
        for key, result in zip(todo, results, strict=True):
            done[key] = result
            fresh[key] = pack(result)
            report(len(done), len(of))
            if len(fresh) >= SAVE_EVERY or time.monotonic() - saved > SAVE_SECONDS:
                _save(cache, kind, fresh)
                saved = time.monotonic()
    finally:
        _save(cache, kind, fresh)
    return [done[key] for key in keys]


def _unpacked(
    stored: Mapping[str, FloatArray],
    of: Mapping[str, Cell],
    unpack: Callable[[FloatArray, Cell], Outcome],
) -> dict[str, Outcome]:
    """Results of a cache; damaged ones are reported, and missing."""
    done = {}
    for key, values in stored.items():
        try:
            done[key] = unpack(values, of[key])
        except (ValueError, IndexError, OverflowError):  # numpy's, of arrays of another length
            continue
    if len(done) < len(stored):
        warnings.warn(
            f"{len(stored) - len(done)} entries of the cache are damaged; they are computed again",
            LangevinXtalWarning,
            stacklevel=3,
        )
    return done


def useful_workers(count: int, workers: int | None, per_worker: int = PER_WORKER) -> int:
    """How many processes :func:`each_once` starts for so many cells; see there."""
    return max(1, min(workers or os.cpu_count() or 1, math.ceil(count / per_worker)))


def single_point(cell: Cell, options: RelaxOptions = DEFAULT_OPTIONS) -> float:
    """Energy per atom [eV] of a P1 cell as it stands, NaN where :func:`relax_cell` would give up.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    return relax_cell(cell, replace(options, steps=0, keep_symmetry=False)).energy


# -- with symmetry, then without


@dataclass(frozen=True, eq=False)
class TwoRelaxations:
    """A cell relaxed as its space group allows, and then without symmetry.

    Groups are space-group numbers found by spglib, by tolerance [Å] (:data:`GROUP_SYMPRECS`), 0
    where it finds none.
    """

    kept: Relaxation  #: symmetry kept
    released: Relaxation  #: from the end of ``kept``, displaced a little, without symmetry
    groups_before: Mapping[float, int]  #: of the cell given
    groups_kept: Mapping[float, int]
    groups_released: Mapping[float, int]
    broke: bool  #: the released cell is of another group, and lower in energy than the tolerance
    note: str  #: what to know of the released relaxation; empty when it changed nothing

    @property
    def gain(self) -> float:
        """Energy of the released cell less that of the other [eV/atom], NaN without one."""
        return self.released.energy - self.kept.energy

    @property
    def best(self) -> Relaxation:
        """The released relaxation where symmetry broke, else the one that kept it."""
        return self.released if self.broke else self.kept


def relax_twice(
    cells: Sequence[Cell],
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    release: ReleaseOptions = DEFAULT_RELEASE,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[TwoRelaxations]:
    """Relax P1 cells with the symmetry they have, then without (:func:`relax_released`).

    Parameters
    ----------
    options
        Of the first relaxation; the second differs in what ``release`` says.
    cache, workers, progress
        As in :func:`relax`; each relaxation is one piece of work.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    options = replace(options, keep_symmetry=True)
    report = progress or (lambda finished, planned: None)
    kept = relax_folded(
        cells,
        options,
        cache=cache,
        workers=workers,
        progress=lambda finished, planned: report(finished, 2 * planned),
    )
    fit = [k for k, result in enumerate(kept) if not result.reason]
    first = len(kept)
    found = relax_released(
        [kept[k].cell for k in fit],
        options,
        release=release,
        cache=cache,
        workers=workers,
        progress=lambda finished, planned: report(first + finished, first + planned),
    )
    failed = "the relaxation that keeps symmetry failed"
    released = [_failed(result.cell, failed) for result in kept]
    for k, result in zip(fit, found, strict=True):
        released[k] = result
    return [
        judge(first, second, found_groups(cell), release.tolerance)
        for cell, first, second in zip(cells, kept, released, strict=True)
    ]


def relax_released(
    cells: Sequence[Cell],
    options: RelaxOptions = DEFAULT_OPTIONS,
    *,
    release: ReleaseOptions = DEFAULT_RELEASE,
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Relaxation]:
    """Relax P1 cells without symmetry, from a little beside where they are.

    Done in the primitive cell; geometries come back in the cells given, atom by atom. A distortion
    that needs a larger cell than the primitive one is not found: that is what phonons are for.

    Parameters
    ----------
    cells
        Relaxed with their symmetry.
    options
        Of that relaxation; ``release`` says what differs.
    cache, workers, progress
        As in :func:`relax`.

    Raises
    ------
    InputError
        When the potential is unknown or not installed.
    """
    fmax, steps = min(options.fmax, release.fmax), options.steps + release.more_steps
    free = replace(options, keep_symmetry=False, fmax=fmax, steps=steps)
    return _each_relaxed(
        partial(_relax_released, options=free, size=release.perturbation, seed=release.seed),
        f"released ({release.perturbation!r}, {release.seed})",
        cells,
        free,
        cache,
        workers,
        progress,
    )


def _relax_released(cell: Cell, options: RelaxOptions, size: float, seed: int) -> Relaxation:
    folded = fold(cell, options.symprec)
    result = relax_cell(perturbed(folded.primitive, size, seed), options)
    return replace(result, cell=cell) if result.reason else folded.expand(result)


def judge(
    kept: Relaxation,
    released: Relaxation,
    before: Mapping[float, int],
    tolerance: float = DEFAULT_RELEASE.tolerance,
) -> TwoRelaxations:
    """What a released relaxation says of the one that kept symmetry.

    Parameters
    ----------
    before
        Groups of the cell before both (:func:`found_groups`).
    tolerance
        See :class:`ReleaseOptions` [eV/atom].
    """
    groups_kept = found_groups(kept.cell)
    lost = dict.fromkeys(GROUP_SYMPRECS, 0)
    groups_released = lost if released.reason else found_groups(released.cell)
    gain = released.energy - kept.energy
    loose = GROUP_SYMPRECS[-1]
    left = groups_released[loose] != groups_kept[loose]
    broke = bool(left and gain < -tolerance)
    note = ""
    if kept.reason:
        note = f"not relaxed: {kept.reason}"
    elif released.reason:
        note = f"released relaxation failed: {released.reason}"
    elif gain < -tolerance:
        what = "symmetry broke" if left else "released atoms moved within the group"
        note = f"{what}, ΔE = {1000 * gain:.0f} meV/atom"
        note += f" ({groups_kept[loose]} to {groups_released[loose]})" if left else ""
    if not kept.reason and not released.reason and not (kept.converged and released.converged):
        which = "kept" if not kept.converged else "released"
        note += f"{'; ' if note else ''}{which} relaxation ran out of steps"
    return TwoRelaxations(kept, released, before, groups_kept, groups_released, broke, note)


def found_groups(cell: Cell) -> dict[float, int]:
    """Space-group number by tolerance (:data:`GROUP_SYMPRECS`) [Å], 0 where spglib finds none."""
    return group_numbers(cell, GROUP_SYMPRECS)


def perturbed(cell: Cell, size: float, seed: int) -> Cell:
    """The cell with every atom displaced and the lattice strained at random.

    Displacements are Gaussian of ``size`` [Å] in each direction, strains (symmetric) Gaussian of
    ``size`` over the cube root of the volume. The random stream depends on ``seed`` and the
    elements only.
    """
    lattice, frac, numbers = cell
    rng = np.random.default_rng([seed, len(numbers), *numbers.tolist()])
    moves = rng.normal(0.0, size, frac.shape)
    strain = rng.normal(0.0, size / abs(np.linalg.det(lattice)) ** (1 / 3), (3, 3))
    moved = frac + (moves - moves.mean(axis=0)) @ np.linalg.inv(lattice)
    return lattice @ (np.eye(3) + (strain + strain.T) / 2), wrap(moved), numbers


@dataclass(frozen=True, eq=False)
class Folded:
    """A cell and its primitive cell, with the way back.

    With T the integer rows such that ``lattice = T @ primitive lattice``, atom i of the cell lies
    at ``x_i T = y_(own i) + offset_i`` of the primitive one.
    """

    primitive: Cell
    rows: FloatArray  #: (3, 3) T
    own: NDArray[np.int64]  #: (N,) atom of the primitive cell
    offset: FloatArray  #: (N, 3) whole numbers

    def expand(self, found: Relaxation) -> Relaxation:
        """What happened to the primitive cell, in the cell given."""
        lattice, frac, numbers = found.cell
        frac = frac - np.rint(frac - self.primitive[1])  # undoes wrapping
        whole = (frac[self.own] + self.offset) @ np.linalg.inv(self.rows)
        return replace(found, cell=(self.rows @ lattice, wrap(whole), numbers[self.own]))


def fold(cell: Cell, symprec: float) -> Folded:
    """The primitive cell of a cell, by the translations spglib finds within ``symprec`` [Å].

    The cell itself where there is no smaller one, or spglib finds nothing.
    """
    lattice, frac, numbers = cell
    unchanged = Folded(cell, np.eye(3), np.arange(len(numbers)), np.zeros_like(frac))
    found = symmetry_dataset(cell, symprec)
    if found is None:
        return unchanged
    own = np.asarray(found.mapping_to_primitive, dtype=np.int64)
    first = np.unique(own, return_index=True)[1]
    basis = np.asarray(found.primitive_lattice)
    exact = lattice @ np.linalg.inv(basis)
    rows = np.rint(exact)
    ratio = abs(round(float(np.linalg.det(rows))))
    if len(first) == len(numbers) or ratio * len(first) != len(numbers):
        return unchanged
    basis = np.linalg.inv(rows) @ lattice
    inside = frac @ rows
    difference = inside - inside[first][own]
    offset = np.rint(difference)
    away = np.linalg.norm((difference - offset) @ basis, axis=1).max()
    if away > 2 * symprec or np.abs(exact - rows).max() > 0.1:
        return unchanged
    small = wrap(inside[first])
    offset += np.rint(inside[first] - small)[own]
    return Folded((basis, small, numbers[first]), rows, own, offset)


# -- one relaxation


def _unfit(cell: Cell, potential: Potential, options: RelaxOptions) -> str:
    """Why a cell cannot be relaxed; empty when it can be tried."""
    lattice, frac, numbers = cell
    if not len(numbers) or not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return "the cell is not finite, or empty"
    unknown = sorted(set(numbers.tolist()) - potential.elements)
    if unknown:
        names = ", ".join(SYMBOLS[z] if 0 < z < len(SYMBOLS) else str(z) for z in unknown)
        return f"{potential.name} does not know {names}"
    reason = wrong_volume(abs(float(np.linalg.det(lattice))) / len(numbers))
    return reason or overlap(cell, options.min_distance)


def _relaxed(cell: Cell, calculator: Any, options: RelaxOptions, start: list[float]) -> Relaxation:
    """The relaxation itself; the first energy is left in ``start`` also when it fails."""
    import ase.optimize
    from ase.constraints import FixSymmetry
    from ase.filters import UnitCellFilter

    atoms = to_atoms(cell)
    if options.keep_symmetry:
        atoms.set_constraint(FixSymmetry(atoms, symprec=options.symprec))
    atoms.calc = calculator
    # at least 2, so that no step strains the cell by more than FixSymmetry can symmetrise
    moving = UnitCellFilter(atoms, cell_factor=max(2.0, math.sqrt(len(atoms))))
    more = {"alpha": CURVATURE} if options.optimiser != "FIRE" else {}
    optimiser = getattr(ase.optimize, options.optimiser)(
        moving, logfile=None, maxstep=options.max_step, **more
    )
    converged = False
    for _ in optimiser.irun(fmax=0.0, steps=options.steps):
        energy, force, stress = _state(atoms)
        if optimiser.nsteps == 0:
            start[0] = energy
        pull = np.linalg.norm(stress, axis=1).max() * atoms.get_volume() / len(atoms)
        converged = bool(force <= options.fmax and pull <= options.fmax)
        if converged:
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
    )


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


def _failed(cell: Cell, reason: str, start_energy: float = math.nan) -> Relaxation:
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
    """A relaxation as one array; the reason as code points at the end."""
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
    reason = [float(ord(letter)) for letter in result.reason]
    return np.concatenate([head, lattice.ravel(), frac.ravel(), reason]).astype(np.float64)


def _unpack(values: FloatArray, cell: Cell) -> Relaxation:
    count = int(values[_HEAD - 1])
    end = _LATTICE + 3 * count
    failed = math.isnan(values[0])
    if count != len(cell[2]) or (len(values) <= end if failed else len(values) != end):
        raise ValueError("a relaxation of another cell")
    if not failed and not (np.abs(values[:end]) < LARGEST).all():
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
        reason="".join(chr(int(code)) for code in values[end:]),
    )


def _save(cache: ResultCache | None, kind: str, fresh: dict[str, FloatArray]) -> None:
    if cache is not None and fresh:
        cache.put(kind, fresh)
    fresh.clear()
