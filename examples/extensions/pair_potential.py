"""A potential: any ASE calculator, made by something that is called without arguments.

Run: langevin-xtal relax candidates/ --potential pair_potential:pairs --out relaxed/
     with this folder on PYTHONPATH
"""

from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones


def pairs() -> Calculator:
    """Lennard-Jones pairs with their minimum at 2.8 Å: a toy, the same for all elements."""
    return LennardJones(sigma=2.8 / 2 ** (1 / 6), epsilon=0.4, rc=7.0, smooth=True)
