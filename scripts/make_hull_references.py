r"""Write ``langevin_xtal/screen/hull_references*.npz``: known phases and their energies.

Every crystal of the given sources gets the potential's energy at its own (DFT) geometry, without
relaxing it; the lowest of each composition is kept when it lies within 0.1 eV/atom of the hull of
all of them. Elements are also tried in the elemental structure types of the built-in reference
set and alpha-boron, relaxed with the potential, because the sources lack some elements' ground
states.

    python scripts/make_hull_references.py mp20_train.lxd mp20_val.lxd le20.lxd 21to52.lxd

The last two of the shipped table: crystals of the 2025 release with an ``e_hull`` of at most 0.01
eV/atom, those of up to 20 atoms without MP-20's, packed by ``langevin-xtal data prepare``.
The table of SevenNet-0 has fewer phases: of each composition the crystal lowest above the
published hull, where it is at most 0.001 eV/atom above it and has at most 12 atoms, or its energy
is in a table of ``--energies`` (a quarter of those of 13 to 30 atoms, drawn at random); every
elemental crystal of at most 12 atoms; and the elements in the types that CHGNet's table has:

    python scripts/make_hull_references.py --potential sevennet-0 --published 0.001 \
        --most-atoms 12 --types-of chgnet --energies known.npz mp20_train.lxd mp20_val.lxd \
        mp_le20.lxd mp_21to52.lxd

Where the potential predicts uncorrected energies, the Materials Project's corrections are added.

Sources are packed datasets or anything else ``StructureSet.read`` takes. Energies are computed in
parallel and kept beside the output (``<out>.energies.npz``), so that an interrupted run continues;
``--energies`` takes such tables from elsewhere: arrays ``id`` and ``e`` [eV/atom, NaN unknown].
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray
from pymatgen.core import Lattice, Structure
from tqdm import tqdm

from langevin_xtal.config.screening import DEFAULT_POTENTIAL, RelaxOptions
from langevin_xtal.crystal.cell import Cell, reduced_formula
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.parallel import parallel_map
from langevin_xtal.screen.corrections import mp2020_correction
from langevin_xtal.screen.energies import single_point
from langevin_xtal.screen.hull import KEEP, SHIPPED, HullReferences
from langevin_xtal.screen.potentials import CORRECTED, UNCORRECTED, load_potential
from langevin_xtal.screen.relax import relax

FOLDER = Path(__file__).parents[1] / "langevin_xtal" / "screen"
ATTRIBUTION = (
    "Structures: Materials Project, CC-BY 4.0, A. Jain et al., APL Materials 1, 011002 (2013)"
)
STATEMENT = (
    "energies at DFT geometries of the Materials Project, not relaxed with the potential; "
    "elements also relaxed in {count} structure types"
)
SAVE_EVERY = 500
BONDS = (1.6, 1.8, 2.0, 2.2, 2.4)
"""Shortest distances tried in an elemental crystal, in covalent radii."""
WINDOW = 0.3
"""Elemental structure types this far above the best are not relaxed [eV/atom]."""
MOST_ATOMS = 12
"""Structure types with more atoms in the primitive cell are tried for their own element only."""
ALPHA_BORON = (4.91, 12.57, ((0.119, -0.119, 0.891), (0.197, -0.197, 0.024)))
"""a and c of the hexagonal cell [Å] and two sites of R-3m, rounded: it is relaxed."""


def energies(
    structures: StructureSet, tables: list[Path], own: Path, potential: str, workers: int | None
) -> NDArray[np.float64]:
    """(B,) energies per atom, from the tables where they are known."""
    known = known_energies([*tables, *([own] if own.exists() else [])])
    todo = [k for k, name in enumerate(structures.ids) if name not in known]
    mine: dict[str, float] = {}
    results = parallel_map(
        partial(single_point, options=RelaxOptions(potential=potential)),
        (structures.cell(k) for k in todo),
        workers=workers if len(todo) > SAVE_EVERY else 1,
    )
    for k, value in tqdm(zip(todo, results, strict=True), total=len(todo), disable=None):
        mine[structures.ids[k]] = value
        if len(mine) % SAVE_EVERY == 0 or k == todo[-1]:
            save_energies(own, {**known, **mine})
    known |= mine
    return np.array([known[name] for name in structures.ids])


def lowest_published(
    sources: tuple[Path, ...], published: float, most_atoms: int | None, known: set[str]
) -> set[str]:
    """Identifiers: of each composition the crystal lowest above the published hull, if near it,
    and all elemental crystals; those of more atoms only where they are known."""
    best: dict[str, tuple[float, str]] = {}
    elemental: set[str] = set()
    for source in sources:
        data = PackedDataset.load(source)
        above = data.properties["e_hull"]
        kinds = [len(set(data.numbers[data.sites_of(k)].tolist())) for k in range(len(data))]
        alone = np.array(kinds) == 1
        for k in np.flatnonzero((above <= published) | alone).tolist():
            unit = data.unit(k)
            numbers = np.repeat(unit.numbers, data.multiplicity[data.sites_of(k)])
            formula, found = reduced_formula(numbers), (float(above[k]), str(data.id[k]))
            atoms = len(numbers) // len(unit.space_group.centring)
            if most_atoms is not None and atoms > most_atoms and found[1] not in known:
                continue
            if alone[k]:
                elemental.add(found[1])
            else:
                best[formula] = min(found, best.get(formula, found))
    return elemental | {name for _, name in best.values()}


def some_of(source: Path, names: set[str]) -> StructureSet:
    """Crystals of a packed dataset with these identifiers."""
    data = PackedDataset.load(source)
    chosen = [k for k, name in enumerate(data.id.tolist()) if name in names]
    return StructureSet.from_packed(data, source.stem, chosen)


def known_energies(tables: Sequence[Path]) -> dict[str, float]:
    """Energies per atom by identifier, of such tables."""
    known: dict[str, float] = {}
    for path in tables:
        with np.load(path, allow_pickle=False) as stored:
            pairs = zip(stored["id"].tolist(), stored["e"].tolist(), strict=True)
            known |= {name: value for name, value in pairs if np.isfinite(value)}
    return known


def save_energies(path: Path, values: dict[str, float]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        np.savez_compressed(stream, id=np.array(list(values)), e=np.array(list(values.values())))
    os.replace(part, path)


def elemental_crystals(
    elements: list[int], options: RelaxOptions, workers: int | None, only: set[str] | None
) -> tuple[list[str], list[NDArray[np.int64]], list[float], int]:
    """Names, atoms and energies of relaxed elemental crystals, and how many types were tried.

    With ``only``, those of these names.
    """
    types = elemental_types()
    trials = []  # (element, name, cells at several scales)
    for z in elements:
        for name, cell in types:
            lattice, frac, numbers = cell
            if len(numbers) > MOST_ATOMS and z not in numbers:
                continue
            if only is not None and f"{SYMBOLS[z]} as {name}" not in only:
                continue
            shortest = to_structure(cell).get_neighbor_list(6.0)[3].min()
            scales = [bond * covalent_radii[z] / shortest for bond in BONDS]
            own = np.full_like(numbers, z)
            cells = [(lattice * scale, frac, own) for scale in scales]
            trials.append(
                (z, f"{SYMBOLS[z]} as {name}", [*cells, cell] if z in numbers else cells)
            )
    points = parallel_map(
        partial(single_point, options=options),
        (cell for _, _, cells in trials for cell in cells),
        workers=workers,
    )
    best: dict[int, float] = {}
    starts = []
    for z, name, cells in trials:
        values = [next(points) for _ in cells]
        if np.isfinite(values).any():
            lowest = int(np.nanargmin(values))
            starts.append((z, name, cells[lowest], values[lowest]))
            best[z] = min(best.get(z, np.inf), values[lowest])
    starts = [start for start in starts if start[3] <= best[start[0]] + WINDOW]
    with tqdm(total=len(starts), disable=None) as bar:
        relaxed = relax(
            [cell for _, _, cell, _ in starts],
            options,
            workers=workers,
            progress=lambda done, _: (bar.update(done - bar.n), None)[1],
        )
    good = [(s, r) for s, r in zip(starts, relaxed, strict=True) if r.converged]
    return (
        [name for (_, name, _, _), _ in good],
        [result.cell[2] for _, result in good],
        [result.energy for _, result in good],
        len(types),
    )


def elemental_types() -> list[tuple[str, Cell]]:
    """Elemental crystals of the reference set, and alpha-boron."""
    known = StructureSet.from_packed(reference_dataset(), "reference set")
    types = [
        (known.ids[k], cell)
        for k, cell in enumerate(known.cells())
        if len(set(cell[2].tolist())) == 1
    ]
    a, c, sites = ALPHA_BORON
    boron = Structure.from_spacegroup(
        "R-3m", Lattice.hexagonal(a, c), ["B"] * len(sites), sites
    ).get_primitive_structure()
    numbers = np.array(boron.atomic_numbers, dtype=np.int64)
    return [*types, ("alpha-B", (boron.lattice.matrix, boron.frac_coords, numbers))]


@click.command(help=__doc__)
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--energies",
    "tables",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Energies that are known already; may be given several times.",
)
@click.option("--potential", default=DEFAULT_POTENTIAL, show_default=True)
@click.option("--published", type=float, help="Of each composition only the lowest, within this.")
@click.option("--most-atoms", type=int, help="In the primitive cell.")
@click.option("--types-of", help="Elements only in the types of this potential's shipped table.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: in the package]")
@click.option("--workers", type=int, help="Processes.  [default: one per CPU]")
def main(
    sources: tuple[Path, ...],
    tables: tuple[Path, ...],
    potential: str,
    published: float | None,
    most_atoms: int | None,
    types_of: str | None,
    out: Path | None,
    workers: int | None,
) -> None:
    compositions: list[NDArray[np.int64]] = []
    energy: list[float] = []
    ids: list[str] = []
    if out is None and potential not in SHIPPED:
        raise click.UsageError(f"no table of {potential} comes with the package: give --out")
    out = out or FOLDER / SHIPPED[potential][0]
    own = out.with_name(out.name + ".energies.npz")
    found = load_potential(potential)
    corrects = found.energies == UNCORRECTED
    lowest = None
    if published is not None:
        lowest = lowest_published(sources, published, most_atoms, set(known_energies(tables)))
    for source in sources:
        structures = StructureSet.read(source) if lowest is None else some_of(source, lowest)
        values = energies(structures, list(tables), own, potential, workers)
        if corrects:
            values = values + np.array([mp2020_correction(cell) for cell in structures.cells()])
        click.echo(f"{source.name}: {len(values)} crystals, {np.isnan(values).sum()} no energy")
        compositions += [numbers for _, _, numbers in structures.cells()]
        energy += values.tolist()
        ids += list(structures.ids)
    elements = set(np.concatenate(compositions).tolist()) & found.elements
    options = RelaxOptions(potential=potential)
    only = None if types_of is None else set(HullReferences.shipped(types_of).ids)
    names, atoms, relaxed, types = elemental_crystals(sorted(elements), options, workers, only)
    compositions += atoms
    energy += relaxed  # elements have no corrections
    ids += names
    table = HullReferences.build(
        compositions,
        np.array(energy),
        ids,
        potential=potential,
        version=found.version,
        statement=STATEMENT.format(count=types)
        + (", MP2020 corrections added" if corrects else ""),
        attribution=ATTRIBUTION,
        energies=CORRECTED if corrects else found.energies,
        keep=KEEP if published is None else math.inf,
    )
    table.save(out)
    click.echo(f"{out}: {table.describe()}; {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
