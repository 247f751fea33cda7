"""A table of hull references for any potential, from structures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import InputError
from langevin_xtal.screen.cached import Progress, ResultCache
from langevin_xtal.screen.corrections import mp2020_correction
from langevin_xtal.screen.energies import PointEnergy, point_energies
from langevin_xtal.screen.hull import KEEP, HullReferences
from langevin_xtal.screen.potentials import CORRECTED, UNCORRECTED, load_potential
from langevin_xtal.screen.relax import relax_folded


def build_references(
    cells: Sequence[Cell],
    names: Sequence[str],
    *,
    potential: str,
    relaxation: RelaxOptions | None = None,
    keep: float = KEEP,
    attribution: str = "",
    cache: ResultCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[HullReferences, dict[str, str]]:
    """References of a potential from crystals, and why others have no energy, by name.

    Where the potential predicts uncorrected energies, the Materials Project's corrections are
    added, and the table is MP2020-corrected.

    Parameters
    ----------
    cells, names
        Crystals, such as those of a packed dataset; preferably at most some 0.1 eV/atom above
        the hull.
    potential
        See :func:`~langevin_xtal.screen.potentials.load_potential`.
    relaxation
        How to relax first; by default energies are those of the geometries as they stand.
    keep
        See :meth:`HullReferences.build`.
    attribution
        Of the structures.
    cache, workers, progress
        As in :func:`~langevin_xtal.screen.relax.relax`: what is done is kept there, and the next
        call goes on.

    Raises
    ------
    InputError
        When there is no such potential, or no crystal has an energy.
    """
    found = load_potential(potential)
    if relaxation is None:
        wanted = RelaxOptions(potential=potential)
        results = point_energies(cells, wanted, cache=cache, workers=workers, progress=progress)
        geometries = list(cells)
    else:
        relaxed = relax_folded(cells, relaxation, cache=cache, workers=workers, progress=progress)
        results = [PointEnergy(result.energy, result.reason) for result in relaxed]
        geometries = [result.cell for result in relaxed]
    corrects = found.energies == UNCORRECTED
    energy: NDArray[np.float64] = np.array([result.energy for result in results], dtype=float)
    failed = {name: r.reason for name, r in zip(names, results, strict=True) if r.reason}
    if corrects:
        for k in np.flatnonzero(np.isfinite(energy)).tolist():
            energy[k] += mp2020_correction(geometries[k])
            if np.isnan(energy[k]):
                failed[names[k]] = "the Materials Project has no corrections for it"
    if not np.isfinite(energy).any():
        name, reason = next(iter(failed.items()), ("", "there is none"))
        raise InputError(f"no crystal has an energy ({name + ': ' if name else ''}{reason})")
    what = "relaxed with the potential" if relaxation else "at the geometries given"
    table = HullReferences.build(
        [cell[2] for cell in cells],
        energy,
        names,
        potential=found.name,
        version=found.version,
        statement=f"energies {what}" + (", MP2020 corrections added" if corrects else ""),
        attribution=attribution,
        energies=CORRECTED if corrects else found.energies,
        keep=keep,
    )
    return table, failed


def lacking_elements(table: HullReferences, potential: str) -> list[str]:
    """Symbols of the elements that the potential knows and the table has no phase of alone."""
    from langevin_xtal.crystal.elements import SYMBOLS

    symbols = [SYMBOLS[z] for z in sorted(load_potential(potential).elements)]
    alone = {formula.rstrip("0123456789") for formula in table.formulas if " " not in formula}
    return [symbol for symbol in symbols if symbol not in alone]
