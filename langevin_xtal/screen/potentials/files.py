"""Potentials whose model is a file that the user has, each read by its own package.

A model's file is in most cases a pickle, which is a programme: take it from a source you trust.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import InputError, MissingPackageError
from langevin_xtal.extras import require
from langevin_xtal.screen.potentials.base import (
    CORRECTED,
    EVERY_ELEMENT,
    UNCORRECTED,
    UNDECLARED,
    Potential,
    file_hash,
)

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

CONVENTIONS = {"corrected": CORRECTED, "uncorrected": UNCORRECTED}
"""What may be declared behind ``@``."""
COMPILED = (".nequip.pt2", ".nequip.pth", ".pt2", ".pth")
"""Endings of what ``nequip-compile`` writes."""


def _mace(path: str, device: str) -> Calculator:
    found: Any = require("mace.calculators", "mace", "a potential of MACE")
    made: Calculator = found.MACECalculator(
        model_paths=path, device=device, default_dtype="float64"
    )
    return made


def _orb(path: str, device: str) -> Calculator:
    pretrained: Any = require("orb_models.forcefield.pretrained", "orb", "a potential of Orb")
    found: Any = require("orb_models.forcefield.calculator", "orb", "a potential of Orb")
    known = pretrained.ORB_PRETRAINED_MODELS
    stem = Path(path).name.lower().replace("_", "-")
    fitting = [name for name in known if stem.startswith(name)]
    if not fitting:
        raise InputError(
            f"{Path(path).name} does not say of which Orb model it is: its name must begin with "
            f"one of {', '.join(sorted(known))}"
        )
    build = known[max(fitting, key=len)]
    model = build(weights_path=path, device=device, precision="float32-highest", compile=False)
    made: Calculator = found.ORBCalculator(model, device=device)
    return made


def _mattersim(path: str, device: str) -> Calculator:
    found: Any = require("mattersim.forcefield.potential", "mattersim", "a potential of MatterSim")
    model = found.Potential.from_checkpoint(
        load_path=path, device=device, load_training_state=False
    )
    made: Calculator = found.MatterSimCalculator(potential=model, device=device)
    return made


def _nequip(path: str, device: str) -> Calculator:
    found: Any = require("nequip.integrations.ase", "nequip", "a potential of NequIP")
    if not path.endswith(COMPILED):
        raise InputError(
            f"{Path(path).name} is no compiled model of NequIP: make one (.nequip.pt2 or "
            ".nequip.pth) with nequip-compile --target ase"
        )
    made: Calculator = found.NequIPCalculator.from_compiled_model(path, device=device)
    return made


def _upet(path: str, device: str) -> Calculator:
    found: Any = require("upet.ase", "upet", "a potential of UPET")
    made: Calculator = found.UPETCalculator(checkpoint_path=path, device=device)
    return made


def _grace(path: str, device: str) -> Calculator:
    found: Any = require(
        "tensorpotential.calculator.asecalculator", "grace", "a potential of GRACE"
    )
    made: Calculator = found.TPCalculator(model=path)
    return made


@dataclass(frozen=True)
class _Family:
    package: str  #: as on PyPI
    licence: str  #: of the package
    make: Callable[[str, str], Calculator]  #: given path and device
    elements: str  #: attribute of the calculator that names its elements, dotted


FAMILIES = {
    "mace": _Family("mace-torch", "MIT", _mace, "z_table.zs"),
    "orb": _Family("orb-models", "Apache-2.0", _orb, ""),
    "mattersim": _Family("mattersim", "MIT", _mattersim, ""),
    "nequip": _Family("nequip", "MIT", _nequip, ""),
    "upet": _Family("upet", "BSD-3-Clause", _upet, ""),
    "grace": _Family("tensorpotential", "Academic Software License", _grace, "element_map"),
}


def from_file(family: str, rest: str, device: str) -> Potential:
    """The potential of a file, read now.

    Parameters
    ----------
    family
        One of :data:`FAMILIES`.
    rest
        Path of the file, with ``@corrected`` or ``@uncorrected`` behind it where the convention
        of its energies is declared.

    Raises
    ------
    InputError
        When the file is missing or the package cannot read it.
    MissingPackageError
        When the package is not installed.
    """
    kind = FAMILIES[family]
    name, at, word = rest.rpartition("@")
    declared = CONVENTIONS.get(word) if at else None
    path = Path(os.path.expanduser(name if declared else rest)).absolute()
    if not path.exists():
        hint = ""
        if at and re.fullmatch(r"\w+", word) and Path(name).exists():
            hint = f"; behind @ stands one of {', '.join(CONVENTIONS)}, not {word}"
        raise InputError(
            f"potential {family}:{rest}: there is no file {path.name} at that place{hint}"
        )
    try:
        known = _elements(_shared(family, str(path), device), kind.elements)
        version = metadata.version(kind.package)
    except (InputError, MissingPackageError):
        raise
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    except Exception as error:  # packages raise anything on files that are not theirs
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"potential {family}:{rest}: {kind.package} cannot read {path.name} ({first[:200]})"
        ) from None
    return Potential(
        name=f"{family}:{path.name}",
        version=f"{kind.package} {version}, weights {file_hash(path)}",
        energies=declared or UNDECLARED,
        elements=known,
        calculator=lambda: _shared(family, str(path), device),
        licence=f"package {kind.licence}, weights as their file's authors say",
    )


@cache
def _shared(family: str, path: str, device: str) -> Calculator:
    """One calculator for all cells of a process: reading a file takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FAMILIES[family].make(path, device)


def _elements(calculator: Any, attribute: str) -> frozenset[int]:
    """Atomic numbers a calculator names, as numbers or symbols; all where it names none."""
    found: Any = calculator
    for part in attribute.split(".") if attribute else []:
        found = getattr(found, part, None)
    if not attribute or not isinstance(found, Iterable):
        return EVERY_ELEMENT
    numbers = set()
    for one in found:
        if isinstance(one, str) and one in SYMBOLS:
            numbers.add(SYMBOLS.index(one))
        elif not isinstance(one, str):
            numbers.add(int(one))
    return frozenset(numbers) or EVERY_ELEMENT
