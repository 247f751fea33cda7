"""When a relaxation need not go on: it cannot come low enough, or has come back.

How much energy a relaxation can still gain is bounded from its largest force and its pull (the
largest row of the stress times the volume per atom). The bound was learned on relaxations by
CHGNet and ASE's LBFGS of candidates that kept their symmetry (as
``scripts/record_relaxations.py`` records them): of 159 of seven
systems, 3 gained more from one of their 2,365 steps on, sliding along a nearly flat path; of 43 of
two other systems, 1 did. With a limit of 0.2 eV/atom above the hull 24 and 8 of them would have
ended early, of which 1 and none came below the limit. It is no theorem: where it fails, a
candidate keeps the energy that it had when its relaxation was ended, and says so.
"""

from __future__ import annotations

import math

import numpy as np

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.ase import from_atoms, to_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.screen.fixing import kept_symmetry

REST = 0.1
"""What a relaxation may gain by sliding where there is hardly a force [eV/atom]."""
PER_PULL = 0.3
"""And for each eV/Å of force and eV of pull, [eV/atom]."""
LEARNED = 6.0
"""Few recorded steps had a larger force [eV/Å] and pull [eV]; nothing is said of such."""
RETURNED = 0.05
"""A crystal comes back when what breaks its symmetry is smaller [Å], and gets smaller. Five
crystals at a saddle point (see :class:`~langevin_xtal.config.screening.ReleaseOptions`) were
displaced in five ways each: 23 of the 25 left it, none of which would have been stopped. Another,
Hf3Ga9Rh2, came as near as 0.086 Å before it left, so that 0.1 Å is too much."""
FALLING = 5
"""Steps, one after the other, in which it gets smaller."""


def largest_gain(force: float, pull: float) -> float:
    """How much a relaxation can still gain [eV/atom], as far as recorded ones tell.

    Parameters
    ----------
    force
        Largest on an atom [eV/Å].
    pull
        Largest row of the stress times the volume per atom [eV].
    """
    if force + pull > LEARNED:
        return math.inf
    return REST + PER_PULL * (force + pull)


class Returned:
    """Whether a crystal that was displaced is on its way back to its symmetry.

    Its displacement and strain from ``home`` have a part that the operations of ``home`` leave
    unchanged, and a part that breaks them. The latter grows along an unstable mode; once it is
    small and still getting smaller, none is left along which the crystal leaves its group.

    Parameters
    ----------
    home
        The crystal relaxed with its symmetry kept. Without any operation, all of the displacement
        counts.
    options
        Of that relaxation.
    """

    def __init__(self, home: Cell, options: RelaxOptions) -> None:
        atoms = to_atoms(home)
        free = np.zeros((len(atoms), 3), dtype=bool)
        self.operations = kept_symmetry(atoms, free, options.symprec).operations
        self.lattice, self.frac, _ = from_atoms(atoms)
        self._path: list[float] = []
        self.found = False  #: whether it has come back

    def __call__(self, cell: Cell) -> bool:
        """Whether this geometry, the next on its path, is all but symmetric again."""
        self._path = [*self._path[-FALLING:], self.distance(cell)]
        falling = len(self._path) > FALLING and bool((np.diff(self._path) < 0).all())
        self.found = falling and self._path[-1] < RETURNED
        return self.found

    def distance(self, cell: Cell) -> float:
        """Root of the sum of squares of displacements, and of strains times the cell's size, that
        break the symmetry [Å]."""
        change = np.linalg.inv(self.lattice) @ cell[0]
        strain = (change @ change.T - np.eye(3)) / 2
        moves = cell[1] - self.frac
        moves = (moves - np.rint(moves)) @ self.lattice
        moves = moves - moves.mean(axis=0)
        if len(self.operations.rotations) > 1:
            strain = strain - self.operations.mean_tensor(strain, self.lattice)
            moves = moves - self.operations.mean_vectors(moves, self.lattice)
        size = abs(np.linalg.det(self.lattice)) ** (1 / 3)
        return float(np.sqrt((moves**2).sum() + ((size * strain) ** 2).sum()))
