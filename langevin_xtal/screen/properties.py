"""Predicted properties of crystals.

>>> from langevin_xtal.screen.properties import predict_properties
>>> found = predict_properties([cell])                                # doctest: +SKIP
>>> found[0].values["band_gap"], found[0].errors["band_gap"]          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from langevin_xtal.config.screening import DEFAULT_PROPERTIES
from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.asymmetric import AsymmetricUnit, asymmetric_unit
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.packed import PackedDataset, pack
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.noising import clean_graph
from langevin_xtal.errors import GraphError, RejectError
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.properties import (
    Predictions,
    PropertyModel,
    load_properties,
)

TOGETHER = 64
"""Crystals of a batch."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one crystal."""

    values: dict[str, float] = field(default_factory=dict)  #: by name; empty with a reason
    errors: dict[str, float] = field(default_factory=dict)  #: standard deviations
    group: int | None = None  #: space group that was found
    reason: str = ""  #: why nothing is predicted


def predict_packed(
    data: PackedDataset,
    model: PropertyModel | str = DEFAULT_PROPERTIES,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Properties of all crystals of a packed dataset.

    A crystal's properties do not depend on the others of the dataset beyond rounding.
    """
    model = load_properties(model) if isinstance(model, str) else model
    crystals, operations = CrystalStore(data), all_operations()
    settings = model.network.trunk.config.graph_settings()
    found = []
    for start in range(0, len(data), TOGETHER):
        index = torch.arange(start, min(start + TOGETHER, len(data)))
        found.append(model.of_batch(clean_graph(crystals.batch(index), settings, operations)))
        if progress is not None:
            progress(min(start + TOGETHER, len(data)), len(data))
    return Predictions(
        model.names,
        np.concatenate([f.value for f in found]) if found else np.zeros((0, len(model.names))),
        np.concatenate([f.error for f in found]) if found else np.zeros((0, len(model.names))),
    )


def predict_properties(
    cells: Sequence[Cell],
    model: PropertyModel | str = DEFAULT_PROPERTIES,
    *,
    symprec: float = USUAL,
    together: int = TOGETHER,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Properties of crystals given by all atoms of a cell, whichever cell it is.

    Parameters
    ----------
    together
        Crystals in a batch; alone, a crystal's properties do not depend on the others by rounding
        either.
    symprec
        Tolerance of the symmetry search [Å]; positions are averaged over the symmetry found.
    """
    model = load_properties(model) if isinstance(model, str) else model
    found: list[Prediction | None] = [None] * len(cells)
    units: list[AsymmetricUnit] = []
    places: list[int] = []
    for k, (lattice, frac, numbers) in enumerate(cells):
        unknown = sorted(set(np.asarray(numbers).tolist()) - model.elements)
        if unknown:
            names = ", ".join(SYMBOLS[z] for z in unknown)
            found[k] = Prediction(reason=f"no training crystal of model {model.name} has {names}")
            continue
        try:
            units.append(asymmetric_unit(lattice, frac, numbers, symprec))
        except RejectError as reject:
            found[k] = Prediction(reason=str(reject))
        else:
            places.append(k)
    for start in range(0, len(units), together):
        some = units[start : start + together]
        for k, prediction in zip(places[start:], _predict(some, model), strict=False):
            found[k] = prediction
        if progress is not None:
            progress(len(cells) - len(units) + start + len(some), len(cells))
    return [prediction or Prediction(reason="not predicted") for prediction in found]


def _predict(units: Sequence[AsymmetricUnit], model: PropertyModel) -> list[Prediction]:
    """Of some crystals together; alone where one of them has no multigraph."""
    try:
        found = predict_packed(pack(units, [str(k) for k in range(len(units))]), model)
    except GraphError as error:
        if len(units) == 1:
            return [Prediction(reason=str(error), group=units[0].group)]
        return [_predict([unit], model)[0] for unit in units]
    return [
        Prediction(
            dict(zip(found.names, value.tolist(), strict=True)),
            dict(zip(found.names, error.tolist(), strict=True)),
            unit.group,
        )
        for unit, value, error in zip(units, found.value, found.error, strict=True)
    ]
