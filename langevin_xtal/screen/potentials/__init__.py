"""Interatomic potentials by name, as ASE calculators that work without a network.

==========================  ===================================================================
name                        potential
==========================  ===================================================================
``chgnet``                  CHGNet 0.3.0, weights in its package
``sevennet-0``              SevenNet-0 of July 2024, weights in its package
``sevennet-l3i5``           SevenNet-l3i5, weights in its package
``mace:/path/to/file``      a file the user has, read by the potential's own package; also
                            ``orb:``, ``mattersim:``, ``nequip:``, ``upet:`` and ``grace:``
``module:attribute``        a function or class that makes an ASE calculator when called without
                            arguments
==========================  ===================================================================

Nothing says which energies the model of a file predicts: ``mace:/path/to/file@uncorrected``
declares PBE(+U) energies with the Materials Project's settings, ``@corrected`` those with its
corrections of 2020. Energies of different potentials, or of different conventions, never belong
in one hull.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from langevin_xtal.config.screening import DEFAULT_POTENTIAL
from langevin_xtal.errors import InputError
from langevin_xtal.extras import named
from langevin_xtal.screen.potentials.base import (
    CORRECTED,
    EVERY_ELEMENT,
    UNCORRECTED,
    UNDECLARED,
    Potential,
)
from langevin_xtal.screen.potentials.chgnet import chgnet
from langevin_xtal.screen.potentials.files import FAMILIES, from_file
from langevin_xtal.screen.potentials.sevennet import MODELS, sevennet

__all__ = [
    "CORRECTED",
    "NAMES",
    "UNCORRECTED",
    "UNDECLARED",
    "Potential",
    "load_potential",
]


_SHIPPED: dict[str, Callable[[str, str], Potential]] = {
    "chgnet": chgnet,
    **dict.fromkeys(MODELS, sevennet),
}
NAMES = (*_SHIPPED, *(f"{family}:FILE" for family in FAMILIES))
"""Potentials by name; ``module:attribute`` may be any other."""


@cache
def load_potential(name: str = DEFAULT_POTENTIAL, device: str = "cpu") -> Potential:
    """The potential of that name.

    Weights of a user's file are read at once, other weights when a calculator is first made.

    Parameters
    ----------
    name
        See this module.
    device
        Of torch; calculators named as ``module:attribute`` choose their own.

    Raises
    ------
    InputError
        When there is no such potential, or its file is missing or none of that potential.
    MissingPackageError
        When its package is not installed.
    """
    if name in _SHIPPED:
        return _SHIPPED[name](name, device)
    family, colon, rest = name.partition(":")
    if family in FAMILIES and colon:
        return from_file(family, rest, device)
    if family in FAMILIES:
        raise InputError(f"potential {name!r} needs the file of its model: {family}:/path/to/file")
    factory = named(
        name,
        "potential",
        f"one of {', '.join(NAMES)}",
        "anything that makes an ASE calculator when called without arguments",
    )
    return Potential(
        name=name,
        version=name,
        energies=UNDECLARED,
        elements=EVERY_ELEMENT,
        calculator=factory,
    )
