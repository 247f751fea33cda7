"""SevenNet's general-purpose models, whose weights come inside the package ``sevenn``.

Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024); MIT. Trained on MPtrj's uncorrected
energies.
"""

from __future__ import annotations

import warnings
from functools import cache, partial
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
    from ase import Atoms
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
        energy=partial(_energy, name=name, device=device),
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


def _energy(atoms: Atoms, name: str, device: str) -> float:
    """Energy of all atoms [eV]: the network up to where it would be differentiated."""
    import torch

    keys: Any = require("sevenn._keys", "sevennet", f"the potential {name}")
    graphs: Any = require("sevenn.train.dataload", "sevennet", f"the potential {name}")
    packed: Any = require("sevenn.atom_graph_data", "sevennet", f"the potential {name}")
    model = _model(name, device)
    graph = graphs.unlabeled_atoms_to_graph(atoms, model.cutoff, with_shift=False)
    data = packed.AtomGraphData.from_numpy_dict(graph).to(device)
    with torch.no_grad():
        data = model._preprocess(data)
        for part, module in model.named_children():
            if part != "force_output":
                data = module(data)
    return float(data[keys.PRED_TOTAL_ENERGY])


def _calculator(name: str, device: str) -> Calculator:
    found: Any = require("sevenn.calculator", "sevennet", f"the potential {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Calculator = found.SevenNetCalculator(
            _model(name, device), file_type="model_instance", device=device
        )
    return made
