"""SevenNet's general-purpose models, whose weights come inside the package ``sevenn``.

Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024); MIT. Trained on MPtrj's uncorrected
energies.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin_xtal.errors import InputError
from langevin_xtal.extras import require
from langevin_xtal.screen.potentials.base import (
    TRAINED_ON_MPTRJ,
    UNCORRECTED,
    Potential,
    file_hash,
)

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

MODELS = {
    "sevennet-0": "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "sevennet-l3i5": "SevenNet_l3i5/checkpoint_l3i5.pth",
}
"""Name to the file of weights within the package; its other models would be downloaded."""


def sevennet(name: str, device: str) -> Potential:
    """One of :data:`MODELS`.

    Raises
    ------
    InputError
        When the installed version lacks the weights.
    MissingPackageError
        When ``sevenn`` is not installed.
    """
    path = _weights(name)
    return Potential(
        name=name,
        version=f"sevenn {metadata.version('sevenn')}, weights {file_hash(path)}",
        energies=UNCORRECTED,
        elements=TRAINED_ON_MPTRJ,
        calculator=lambda: _calculator(name, device),
        licence="MIT",
    )


def _weights(name: str) -> Path:
    package = require("sevenn", "sevennet", f"the potential {name}")
    path = Path(str(package.__file__)).parent / "pretrained_potentials" / MODELS[name]
    if not path.is_file():
        raise InputError(
            f"sevenn {metadata.version('sevenn')} comes without the weights of {name}: install "
            "sevenn 0.13 with pip install 'langevin-xtal[sevennet]'"
        )
    return path


@cache
def _model(name: str, device: str) -> Any:
    """The model, read once in a process: that takes longer than many relaxations."""
    found: Any = require("sevenn.calculator", "sevennet", f"the potential {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of accelerators that need a GPU
        return found.SevenNetCalculator(str(_weights(name)), device=device).model


def _calculator(name: str, device: str) -> Calculator:
    found: Any = require("sevenn.calculator", "sevennet", f"the potential {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Calculator = found.SevenNetCalculator(
            _model(name, device), file_type="model_instance", device=device
        )
    return made
