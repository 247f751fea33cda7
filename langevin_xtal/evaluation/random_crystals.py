"""Random crystals of PyXtal: with the sites of a target, or with a composition alone."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from langevin_xtal.crystal.cell import Cell, primitive
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.controls import Made, collected
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.evaluation.targets import Progress, Target, check_trials
from langevin_xtal.extras import require
from langevin_xtal.parallel import parallel_map
from langevin_xtal.runtime import OutOfTime, time_limit
from langevin_xtal.symmetry import SpaceGroup, wrap

SECONDS_PER_CRYSTAL = 20.0
"""After this long, PyXtal is stopped and the crystal is missing [s]."""


def random_symmetric(
    targets: Sequence[Target],
    *,
    trials: int = 1,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    label: str = "random, true letters",
    seconds: float = SECONDS_PER_CRYSTAL,
) -> StructureSet:
    """PyXtal's random crystals with the **true** group, composition and Wyckoff letters.

    That is more than a model is given. Cell, volume and free coordinates are random, as PyXtal
    (Fredericks et al., Comput. Phys. Commun. 261, 107810, 2021) draws them by default: a volume
    between the covalent and the van der Waals spheres of the atoms, and atoms no closer than its
    tolerances. Trial j of target t depends on ``seed``, j and t alone.

    Parameters
    ----------
    seconds
        Limit for one crystal; it is kept only in the main thread of a process, and not on Windows.

    Raises
    ------
    InputError
        For less than one trial or a negative seed.
    MissingPackageError
        Without PyXtal.
    """
    check_trials(trials)
    if seed < 0:
        raise InputError(f"the seed is {seed}; give 0 or more")
    require("pyxtal", "evaluate", "the control of random crystals")
    jobs = [(t, (seed, trial, k)) for trial in range(trials) for k, t in enumerate(targets)]
    made = parallel_map(partial(_random_cell, seconds=seconds), jobs, workers=workers, chunk=4)
    return collected(label, targets, trials, made, progress)


def _random_cell(job: tuple[Target, tuple[int, int, int]], *, seconds: float) -> Made:
    target, key = job
    try:
        with _silence(), time_limit(seconds, "wall"):
            made = _pyxtal_cell(target, np.random.default_rng(key))
    except OutOfTime:
        return f"PyXtal: not done after {seconds:g} s"
    except Exception as error:  # PyXtal raises many kinds when it cannot place the atoms
        return f"PyXtal: {type(error).__name__}: {first_line(error)}"
    return made if isinstance(made, str) else (target.group.number, made)


def _pyxtal_cell(target: Target, generator: np.random.Generator) -> Cell | str:
    symbols, counts, sites = [], [], []
    for z in np.unique(target.numbers):
        mine = target.numbers == z
        pairs = zip(target.multiplicity[mine], target.letters[mine], strict=True)
        symbols.append(SYMBOLS[z])
        counts.append(int(target.multiplicity[mine].sum()))
        sites.append([f"{m}{letter}" for m, letter in pairs])
    made = random_crystal(target.group, symbols, counts, generator, sites)
    if isinstance(made, str):
        return made
    wanted = np.bincount(np.repeat(target.numbers, target.multiplicity), minlength=len(SYMBOLS))
    if not np.array_equal(np.bincount(made[2], minlength=len(SYMBOLS)), wanted):
        return "PyXtal: another composition"
    return primitive(target.group, made)


def random_crystal(
    group: SpaceGroup,
    symbols: Sequence[str],
    counts: Sequence[int],
    generator: np.random.Generator,
    sites: Sequence[Sequence[str]] | None = None,
) -> Cell | str:
    """A random crystal of PyXtal in the conventional cell of a group, or why there is none.

    Parameters
    ----------
    symbols, counts
        Elements, and their atoms in the conventional cell.
    sites
        Wyckoff positions of each element, such as ``["4c", "4c"]``; any that fit by default.

    Raises
    ------
    MissingPackageError
        Without PyXtal.
    Exception
        Whatever PyXtal raises when it cannot place the atoms.
    """
    crystal = require("pyxtal", "evaluate", "random crystals").pyxtal()
    with _silence():
        # a generator, not an integer: all of PyXtal's ten attempts would be the same
        crystal.from_random(3, group.number, symbols, counts, sites=sites, random_state=generator)
    if not crystal.valid:
        return "PyXtal: no valid crystal"
    atoms = [(SYMBOLS.index(str(s.specie)), s.multiplicity) for s in crystal.atom_sites]
    numbers = np.repeat(*np.array(atoms, dtype=np.int64).T)
    frac = np.concatenate([s.coords for s in crystal.atom_sites])
    lattice = np.array(crystal.lattice.matrix, dtype=float)
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return "PyXtal: not finite"
    return lattice, wrap(frac), numbers


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
