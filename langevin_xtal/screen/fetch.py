"""Phases of the Materials Project, fetched with the user's key: the only screening that needs a
network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.dataset.fetch import MOST_ELEMENTS, Client, connected
from langevin_xtal.errors import InputError, RequestError

FUNCTIONAL = "GGA_GGA+U"
"""Thermo type of the energies: PBE and PBE+U with MP2020's corrections, as CHGNet was trained."""


@dataclass(frozen=True, eq=False)
class Phase:
    """A phase of the Materials Project."""

    numbers: NDArray[np.int64]  #: (N,) atomic numbers of its formula unit
    energy: float  #: DFT with MP2020's corrections [eV/atom]
    id: str  #: such as ``"mp-149"``


def materials_project_phases(
    elements: Sequence[str], key: str, *, client: Client | None = None
) -> tuple[list[Phase], str]:
    """All phases of elements and their subsystems, and the version of the database.

    Parameters
    ----------
    elements
        Symbols, up to :data:`MOST_ELEMENTS`.
    key
        The user's own, from :data:`~langevin_xtal.dataset.fetch.KEY_PAGE`.
    client
        By default ``mp_api.client.MPRester``.

    Raises
    ------
    InputError
        When the key is refused, or there are too many elements.
    MissingPackageError
        When mp-api is not installed.
    LangevinXtalError
        When the Materials Project cannot be reached, or answers something else.
    """
    wanted = sorted(set(elements))
    if not 1 <= len(wanted) <= MOST_ELEMENTS:
        raise InputError(
            f"{len(wanted)} elements were asked of the Materials Project: give 1 to "
            f"{MOST_ELEMENTS}"
        )
    for symbol in wanted:
        atomic_number(symbol)
    instead = ", or leave the key out to use the references that come with the package"
    with warnings.catch_warnings(), connected(key, client, instead) as project:
        warnings.simplefilter("ignore")
        entries = project.get_entries_in_chemsys(
            wanted, additional_criteria={"thermo_types": [FUNCTIONAL]}
        )
        version = str(getattr(project, "db_version", None) or "unknown")
    phases = [phase for entry in entries if (phase := _phase(entry)) is not None]
    return phases, version


def _phase(entry: Any) -> Phase | None:
    """None for what is no crystal of known elements, with whole amounts and an energy."""
    try:
        amounts = entry.composition.get_el_amt_dict()
        numbers = np.repeat(
            [atomic_number(symbol) for symbol in amounts],
            [round(amount) for amount in amounts.values()],
        )
    except RequestError:
        return None
    energy = float(entry.energy_per_atom)
    if not len(numbers) or not np.isfinite(energy):
        return None
    name = (entry.data or {}).get("material_id") or entry.entry_id
    return Phase(numbers.astype(np.int64), energy, str(name))
