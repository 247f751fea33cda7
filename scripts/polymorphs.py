"""Which polymorph of well-known compounds each potential puts lowest.

    python scripts/polymorphs.py --out docs/results/polymorphs.json

Structures (space group, lattice parameters, independent sites, origin choice 1) are facts
of crystallography, rounded; those of high-pressure forms are as measured at pressure or scaled to
none. Every structure is relaxed, so only the type matters. The first form of each compound is the
one that is stable at ambient conditions; the source is for that, looked up as an abstract or in a
list of references. Each structure is checked before anything is computed: formula, space group by
spglib, shortest distance.

Relaxation keeps the symmetry. Differences of energy are to the stable form, in meV/atom, without
zero-point and thermal contributions. What is done is kept in --out: stop it, and the same command
goes on.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from ase.data import covalent_radii

import langevin_xtal as lx
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell, cell_from_parameters, expanded, reduced_formula
from langevin_xtal.crystal.distances import nearest_pair
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.files import write_text
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import relax_cell
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.detection import group_number

Sites = list[tuple[str, float, float, float]]
Form = tuple[str, int, tuple[float, ...], Sites]
"""Name, space group, a b c [Å] alpha beta gamma [degrees], sites."""

T = 1 / 3


def cubic(a: float) -> tuple[float, ...]:
    return (a, a, a, 90, 90, 90)


def tetragonal(a: float, c: float) -> tuple[float, ...]:
    return (a, a, c, 90, 90, 90)


def hexagonal(a: float, c: float) -> tuple[float, ...]:
    return (a, a, c, 90, 90, 120)


def rocksalt(m: str, x: str, a: float) -> Form:
    return "rocksalt", 225, cubic(a), [(m, 0, 0, 0), (x, 0.5, 0.5, 0.5)]


def cscl(m: str, x: str, a: float) -> Form:
    return "CsCl type", 221, cubic(a), [(m, 0, 0, 0), (x, 0.5, 0.5, 0.5)]


def blende(m: str, x: str, a: float) -> Form:
    return "zinc blende", 216, cubic(a), [(m, 0, 0, 0), (x, 0.25, 0.25, 0.25)]


def wurtzite(m: str, x: str, a: float, c: float) -> Form:
    return "wurtzite", 186, hexagonal(a, c), [(m, T, 2 * T, 0), (x, T, 2 * T, 0.378)]


def rutile(m: str, x: str, a: float, c: float, u: float, name: str = "rutile") -> Form:
    return name, 136, tetragonal(a, c), [(m, 0, 0, 0), (x, u, u, 0)]


def fluorite(m: str, x: str, a: float) -> Form:
    return "fluorite", 225, cubic(a), [(m, 0, 0, 0), (x, 0.25, 0.25, 0.25)]


def baddeleyite(m: str, a: float, b: float, c: float, beta: float) -> Form:
    sites = [(m, 0.2754, 0.0395, 0.2083), ("O", 0.0700, 0.3317, 0.3447)]
    return "baddeleyite", 14, (a, b, c, 90, beta, 90), [*sites, ("O", 0.4496, 0.7569, 0.4792)]


def corundum(m: str, a: float, c: float, z: float, x: float, name: str = "corundum") -> Form:
    return name, 167, hexagonal(a, c), [(m, 0, 0, z), ("O", x, 0, 0.25)]


def gallia(m: str, a: float, b: float, c: float, name: str) -> Form:
    sites = [(m, 0.0905, 0, 0.7946), (m, 0.3414, 0, 0.6857), ("O", 0.1674, 0, 0.1011)]
    more = [("O", 0.4957, 0, 0.2553), ("O", 0.8279, 0, 0.4365)]
    return name, 12, (a, b, c, 90, 103.8, 90), [*sites, *more]


def quartz(m: str, a: float, c: float, u: float, o: tuple[float, float, float]) -> Form:
    return "quartz", 152, hexagonal(a, c), [(m, u, 0, T), ("O", *o)]


COMPOUNDS: dict[str, tuple[str, list[Form]]] = {
    "TiO2": (
        "Ranade et al., Proc. Natl. Acad. Sci. USA 99, 6476 (2002)",
        [
            rutile("Ti", "O", 4.594, 2.959, 0.3053),
            ("anatase", 141, tetragonal(3.785, 9.514), [("Ti", 0, 0, 0), ("O", 0, 0, 0.2081)]),
            ("brookite", 61, (9.184, 5.447, 5.145, 90, 90, 90),
             [("Ti", 0.1289, 0.0972, 0.8628), ("O", 0.0095, 0.1491, 0.1835),
              ("O", 0.2314, 0.1110, 0.5366)]),
        ],
    ),
    "SiO2": (
        "Swamy, Saxena, Sundman and Zhang, J. Geophys. Res. 99, 11787 (1994)",
        [
            quartz("Si", 4.916, 5.405, 0.4697, (0.4135, 0.2669, 0.2142)),
            ("cristobalite", 92, tetragonal(4.971, 6.928),
             [("Si", 0.3003, 0.3003, 0), ("O", 0.2392, 0.1044, 0.1787)]),
            rutile("Si", "O", 4.179, 2.665, 0.3061, "stishovite"),
        ],
    ),
    "ZnS": (
        "Subramani et al., Geochim. Cosmochim. Acta 340, 99 (2023)",
        [blende("Zn", "S", 5.409), wurtzite("Zn", "S", 3.823, 6.261)],
    ),
    "C": (
        "Bundy et al., Carbon 34, 141 (1996)",
        [
            ("graphite", 194, hexagonal(2.461, 6.708), [("C", 0, 0, 0.25), ("C", T, 2 * T, 0.25)]),
            ("diamond", 227, cubic(3.567), [("C", 0, 0, 0)]),
        ],
    ),
    "BN": (
        "Will, Nover and von der Gönna, J. Solid State Chem. 154, 280 (2000)",
        [
            blende("B", "N", 3.615),
            ("hexagonal", 194, hexagonal(2.504, 6.661), [("B", T, 2 * T, 0.25),
             ("N", T, 2 * T, 0.75)]),
            wurtzite("B", "N", 2.553, 4.228),
        ],
    ),
    "CaCO3": (
        "Christ, Hostetler and Siebert, J. Res. U.S. Geol. Surv. 2, 175 (1974)",
        [
            ("calcite", 167, hexagonal(4.990, 17.061),
             [("Ca", 0, 0, 0), ("C", 0, 0, 0.25), ("O", 0.2573, 0, 0.25)]),
            ("aragonite", 62, (5.740, 4.961, 7.967, 90, 90, 90),
             [("Ca", 0.7597, 0.25, 0.4150), ("C", 0.9138, 0.25, 0.7622),
              ("O", 0.9038, 0.25, 0.9225), ("O", 0.9127, 0.4735, 0.6810)]),
        ],
    ),
    "Al2O3": (
        "McHale et al., Science 277, 788 (1997)",
        [corundum("Al", 4.759, 12.991, 0.3522, 0.3063),
         gallia("Al", 11.80, 2.911, 5.621, "theta")],
    ),
    "ZrO2": (
        "Al-Khatatbeh, Lee and Kiefer, Phys. Rev. B 81, 214102 (2010)",
        [
            baddeleyite("Zr", 5.151, 5.212, 5.317, 99.23),
            ("tetragonal", 137, tetragonal(3.596, 5.177),
             [("Zr", 0, 0, 0), ("O", 0, 0.5, 0.208)]),
            fluorite("Zr", "O", 5.09),
        ],
    ),
    "HfO2": (
        "Al-Khatatbeh, Lee and Kiefer, Phys. Rev. B 82, 144106 (2010)",
        [baddeleyite("Hf", 5.116, 5.172, 5.295, 99.18), fluorite("Hf", "O", 5.08)],
    ),
    "FeS2": (
        "Grønvold and Westrum, J. Chem. Thermodyn. 8, 1039 (1976)",
        [
            ("pyrite", 205, cubic(5.418), [("Fe", 0, 0, 0), ("S", 0.3851, 0.3851, 0.3851)]),
            ("marcasite", 58, (4.443, 5.425, 3.387, 90, 90, 90),
             [("Fe", 0, 0, 0), ("S", 0.2000, 0.3782, 0)]),
        ],
    ),
    "GaN": (
        "Trampert, Brandt, Yang and Ploog, J. Phys. III France 7, 2309 (1997)",
        [wurtzite("Ga", "N", 3.190, 5.189), blende("Ga", "N", 4.50)],
    ),
    "CdS": (
        "Xiao et al., Phys. Chem. Chem. Phys. 16, 14899 (2014)",
        [wurtzite("Cd", "S", 4.137, 6.714), blende("Cd", "S", 5.818)],
    ),
    "ZnO": (
        "Bates, White and Roy, Science 137, 993 (1962)",
        [wurtzite("Zn", "O", 3.250, 5.207), rocksalt("Zn", "O", 4.28)],
    ),
    "AlN": (
        "Van Camp, Van Doren and Devreese, Phys. Rev. B 44, 9056 (1991)",
        [wurtzite("Al", "N", 3.112, 4.982), rocksalt("Al", "N", 4.05)],
    ),
    "CsCl": (
        "Natarajan, Rao and Rao, Trans. Faraday Soc. 66, 2497 (1970)",
        [cscl("Cs", "Cl", 4.123), rocksalt("Cs", "Cl", 6.94)],
    ),
    "NaCl": (
        "Bassett et al., J. Appl. Phys. 39, 319 (1968)",
        [rocksalt("Na", "Cl", 5.640), cscl("Na", "Cl", 3.46)],
    ),
    "KCl": (
        "Zahn and Leoni, Z. Kristallogr. 219, 345 (2004)",
        [rocksalt("K", "Cl", 6.293), cscl("K", "Cl", 3.74)],
    ),
    "CaO": (
        "Jeanloz et al., Science 206, 829 (1979)",
        [rocksalt("Ca", "O", 4.811), cscl("Ca", "O", 2.91)],
    ),
    "PbO": (
        "White, Dachille and Roy, J. Am. Ceram. Soc. 44, 170 (1961)",
        [
            ("litharge", 129, tetragonal(3.975, 5.023),
             [("O", 0, 0, 0), ("Pb", 0, 0.5, 0.2345)]),
            ("massicot", 57, (5.893, 5.490, 4.753, 90, 90, 90),
             [("Pb", 0.2297, 0.9884, 0.25), ("O", 0.8653, 0.0917, 0.25)]),
        ],
    ),
    "AgI": (
        "Sowa, Z. Kristallogr., issue 2 of 2007, 89",
        [wurtzite("Ag", "I", 4.592, 7.510), blende("Ag", "I", 6.495)],
    ),
    "GeO2": (
        "Laubengayer and Morton, J. Am. Chem. Soc. 54, 2303 (1932)",
        [rutile("Ge", "O", 4.398, 2.863, 0.3059),
         quartz("Ge", 4.987, 5.652, 0.4513, (0.397, 0.302, 0.2424))],
    ),
    "MoS2": (
        "Wildervanck and Jellinek, Z. Anorg. Allg. Chem. 328, 309 (1964)",
        [
            ("2H", 194, hexagonal(3.160, 12.294),
             [("Mo", T, 2 * T, 0.25), ("S", T, 2 * T, 0.621)]),
            ("3R", 160, hexagonal(3.163, 18.37),
             [("Mo", 0, 0, 0), ("S", 0, 0, 0.2477), ("S", 0, 0, 0.4190)]),
        ],
    ),
    "Ga2O3": (
        "Roy et al., J. Am. Chem. Soc. 74, 719 (1952)",
        [gallia("Ga", 12.21, 3.037, 5.798, "beta"),
         corundum("Ga", 4.983, 13.433, 0.3554, 0.305, "alpha")],
    ),
    "HgS": (
        "Potter and Barnes, Am. Mineral. 63, 1143 (1978)",
        [
            ("cinnabar", 152, hexagonal(4.145, 9.496),
             [("Hg", 0.7198, 0, T), ("S", 0.4889, 0, 5 / 6)]),
            blende("Hg", "S", 5.852),
        ],
    ),
    "PbF2": (
        "Hull and Keen, Phys. Rev. B 58, issue 22 (1998)",
        [
            ("cotunnite", 62, (6.440, 3.899, 7.651, 90, 90, 90),
             [("Pb", 0.2527, 0.25, 0.1042), ("F", 0.8623, 0.25, 0.0631),
              ("F", 0.4662, 0.25, 0.8457)]),
            fluorite("Pb", "F", 5.93),
        ],
    ),
    "Mg2SiO4": (
        "Akaogi, Ito and Navrotsky, J. Geophys. Res. 94, 15671 (1989)",
        [
            ("forsterite", 62, (10.207, 5.980, 4.756, 90, 90, 90),
             [("Mg", 0, 0, 0), ("Mg", 0.2774, 0.25, 0.9915), ("Si", 0.0940, 0.25, 0.4262),
              ("O", 0.0913, 0.25, 0.7657), ("O", 0.4474, 0.25, 0.2215),
              ("O", 0.1628, 0.0331, 0.2777)]),
            ("ringwoodite", 227, cubic(8.065),
             [("Si", 0.25, 0.25, 0.25), ("Mg", 0.625, 0.625, 0.625),
              ("O", 0.3691, 0.3691, 0.3691)]),
        ],
    ),
}  # fmt: skip
NOT_SEEN = {
    "FeS2": "the second author",
    "ZnO": "the authors",
    "CaO": "the authors",
    "PbO": "volume and page",
    "GeO2": "the name of the journal",
    "MoS2": "the page",
}
"""What of a citation was not on the page where it was looked up, and is from memory."""
DISTANCES = (0.8, 1.3)
"""Shortest distance over the sum of two covalent radii must lie between these."""


def structure(formula: str, form: Form) -> Cell:
    """The primitive cell of a form, checked.

    Raises
    ------
    ValueError
        When formula, group or distances are not those of the compound.
    """
    name, number, parameters, sites = form
    numbers = np.array([atomic_number(symbol) for symbol, *_ in sites], dtype=np.int64)
    frac = np.array([place for _, *place in sites], dtype=float)
    cell = expanded(SpaceGroup(number), cell_from_parameters(parameters), frac, numbers)
    wanted = reduced_formula(np.array(formula_numbers(formula), dtype=np.int64))
    found = group_number(cell, 0.01)
    shortest = nearest_pair(cell[1], cell[0], radii=covalent_radii[cell[2]])[0]
    if reduced_formula(cell[2]) != wanted or found != number:
        raise ValueError(f"{formula}, {name}: {reduced_formula(cell[2])}, group {found}")
    if not DISTANCES[0] < shortest < DISTANCES[1]:
        raise ValueError(f"{formula}, {name}: shortest distance {shortest:.2f} of covalent radii")
    return cell


def formula_numbers(formula: str) -> list[int]:
    """Atomic numbers of a formula's atoms."""
    from pymatgen.core import Composition

    counts = Composition(formula)
    return [element.Z for element, count in counts.items() for _ in range(round(count))]


def summary(results: dict[str, Any], potentials: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each compound all of whose forms are relaxed by a potential; None for others."""
    rows = []
    for formula, (source, forms) in COMPOUNDS.items():
        names = [form[0] for form in forms]
        row: dict[str, Any] = {"formula": formula, "stable": names[0], "source": source}
        for potential in potentials:
            own = results.get(formula, {}).get(potential, {})
            if any(name not in own for name in names):
                row[potential] = {"lowest": None, "right": None, "differences": None}
                continue
            energy = [own[name]["energy"] for name in names]
            least = min(energy)
            row[potential] = {
                "lowest": names[energy.index(least)],
                "right": energy[0] == least,
                "differences": {
                    name: round(1000 * (e - energy[0]), 1)
                    for name, e in zip(names[1:], energy[1:], strict=True)
                },
            }
        if any(row[potential]["lowest"] is not None for potential in potentials):
            rows.append(row)
    return rows


def right(rows: list[dict[str, Any]], potential: str) -> str:
    """In how many of the compounds a potential puts the stable form lowest."""
    known = [row[potential]["right"] for row in rows if row[potential]["right"] is not None]
    return f"{sum(known)} of {len(known)}"


@click.command(help=__doc__)
@click.option("--potential", "potentials", multiple=True, default=("chgnet", "sevennet-0"))
@click.option("--steps", default=60, show_default=True)
@click.option("--fmax", default=0.02, show_default=True)
@click.option(
    "--out", default=Path("docs/results/polymorphs.json"), type=click.Path(path_type=Path)
)
def main(potentials: tuple[str, ...], steps: int, fmax: float, out: Path) -> None:
    cells = {
        (formula, form[0]): structure(formula, form)
        for formula, (_, forms) in COMPOUNDS.items()
        for form in forms
    }
    results = json.loads(out.read_text(encoding="utf-8"))["results"] if out.exists() else {}
    for potential in potentials:
        options = RelaxOptions(potential=potential, steps=steps, fmax=fmax)
        for (formula, name), cell in sorted(cells.items(), key=lambda item: len(item[1][2])):
            own = results.setdefault(formula, {}).setdefault(potential, {})
            if name in own:
                continue
            began = time.process_time()
            found = relax_cell(cell, options)
            own[name] = {
                "energy": round(found.energy, 6),
                "converged": found.converged,
                "steps": found.steps,
                "volume": round(abs(np.linalg.det(found.cell[0])) / len(cell[2]), 3),
                "seconds": round(time.process_time() - began, 2),
            }
            click.echo(f"{potential} {formula} {name}: {own[name]} {found.reason}")
            rows = summary(results, potentials)
            record = {
                "command": " ".join(["python", "scripts/polymorphs.py", *sys.argv[1:]]),
                "version": lx.__version__,
                "machine": f"{platform.machine()}, one thread, other work beside it",
                "potentials": {name: load_potential(name).version for name in potentials},
                "compounds": len(rows),
                "right": {p: right(rows, p) for p in potentials},
                "rows": rows,
                "results": results,
            }
            write_text(out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
