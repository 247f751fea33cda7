"""The embedded reference set: well-known structure types, built with numpy alone.

The file ``structure_types.json`` is installed as ``langevin_xtal.reference_data``; its README
states origin and licence (CC0).
"""

from __future__ import annotations

import json
from fractions import Fraction
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.cell import cell_from_parameters
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.dataset.packed import PackedDataset, pack
from langevin_xtal.errors import DataError
from langevin_xtal.symmetry import SpaceGroup, orbit, snap_site, wrap
from langevin_xtal.symmetry.lattice import ideal_cells

SNAP_RADIUS = 0.005
"""Rounded coordinates lie this close to the special position they mean [Å]."""


def structure_types() -> list[dict[str, Any]]:
    """The entries of ``structure_types.json`` as they stand (see ``data/README.rst``).

    Raises
    ------
    DataError
        When the file is not installed.
    """
    try:
        return json.loads(_source().joinpath("structure_types.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            "the reference set structure_types.json is missing from this installation of "
            "langevin-xtal: install it again"
        ) from None


def _source() -> Traversable:
    try:
        return resources.files("langevin_xtal.reference_data")
    except ModuleNotFoundError:  # a source checkout that was never installed
        return Path(__file__).parents[2] / "data"


def reference_dataset() -> PackedDataset:
    """All structure types as one dataset, every site exactly on its special position."""
    types = structure_types()
    return pack(
        [_unit(entry) for entry in types],
        [entry["name"] for entry in types],
        meta={
            "source": "langevin-xtal reference set (structure_types.json)",
            "licence": "CC0-1.0",
            "attribution": "",
            "rejects": {},
        },
    )


def _unit(entry: dict[str, Any]) -> AsymmetricUnit:
    group = SpaceGroup(entry["space_group"])
    lattice = ideal_cells(cell_from_parameters(entry["lattice"]), group.number)
    rotations, translations = group.rotations, group.translations
    frac, multiplicity = [], []
    for site in entry["sites"]:
        rough = np.array([float(Fraction(str(value))) for value in site["frac"]])
        point = wrap(snap_site(rough, rotations, translations, lattice, SNAP_RADIUS))
        frac.append(np.where(np.abs(point - np.rint(point)) < 1e-12, np.rint(point) % 1, point))
        multiplicity.append(len(orbit(frac[-1], rotations, translations, lattice)[1]))
        if multiplicity[-1] != site["multiplicity"]:
            raise DataError(
                f"reference structure {entry['name']!r}: {site['element']} at {site['frac']} has "
                f"{multiplicity[-1]} images, not {site['multiplicity']}"
            )
    return AsymmetricUnit(
        group=group.number,
        lattice=lattice,
        numbers=np.array([atomic_number(site["element"]) for site in entry["sites"]]),
        frac=np.array(frac),
        multiplicity=np.array(multiplicity),
        wyckoff=np.array([site["wyckoff"] for site in entry["sites"]]),
    )
