"""Relaxation that keeps symmetry, then without: whether a crystal leaves its space group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from langevin_xtal.config.screening import RelaxOptions, ReleaseOptions
from langevin_xtal.config.tolerances import LOOSE, USUAL
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.folding import fold
from langevin_xtal.errors import InputError
from langevin_xtal.screen.cached import Progress, ResultCache
from langevin_xtal.screen.relax import (
    DEFAULT_OPTIONS,
    Relaxation,
    each_relaxed,
    failed_relaxation,
    relax_cell,
    relax_folded,
)
from langevin_xtal.screen.stopping import Returned
from langevin_xtal.symmetry import wrap
from langevin_xtal.symmetry.detection import group_numbers

GROUP_SYMPRECS = (USUAL, LOOSE)
"""Tolerances at which space groups are reported [Å]; whether symmetry broke is seen at the last:
cells relaxed without symmetry are never exact."""


DEFAULT_RELEASE = ReleaseOptions()


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
    released = [failed_relaxation(result.cell, failed) for result in kept]
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

    A crystal that comes back to its symmetry is not followed to the end: the cell given is the
    result then (:class:`~langevin_xtal.screen.stopping.Returned`). Done in the primitive cell;
    geometries come back in the cells given, atom by atom. A distortion that needs a larger cell
    than the primitive one is not found: that is what phonons are for.

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
        When the potential is unknown or not installed, or atoms are fixed.
    """
    if options.fix_atoms:
        raise InputError(
            "a released relaxation displaces every atom: leave out fix_atoms, or the release"
        )
    fmax, steps = min(options.fmax, release.fmax), options.steps + release.more_steps
    free = replace(options, keep_symmetry=False, fmax=fmax, steps=steps)
    return each_relaxed(
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
    lattice, frac, numbers = perturbed(folded.primitive, size, seed)
    try:
        settled = Returned(folded.primitive, options)
    except Exception:  # ASE and spglib raise anything on strange cells
        settled = None
    given = folded.primitive[0]
    if options.constant_cell:
        lattice = given
    elif options.constant_volume:
        lattice = lattice * abs(np.linalg.det(given) / np.linalg.det(lattice)) ** (1 / 3)
    result = relax_cell((lattice, frac, numbers), options, settled=settled)
    if settled is not None and settled.found and not result.reason:
        home = relax_cell(folded.primitive, replace(options, steps=0))
        found = replace(home, cell=cell, start_energy=result.start_energy, steps=result.steps)
        return found if home.reason else replace(found, converged=True)
    return replace(result, cell=cell if result.reason else folded.expand(result.cell))


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
