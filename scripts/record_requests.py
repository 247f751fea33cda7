"""Record what a fixed list of 300 requests gives, to see whether a change keeps the candidates.

    python scripts/record_requests.py --out before.json
    python scripts/record_requests.py --out after.json --against before.json
    python scripts/record_requests.py --checkouts OLD NEW

All ways of asking are among them: sites (Wyckoff positions drawn, or free), a formula with and
without Z, group and number of atoms, elements, nothing, fixed cells and sites, a structure to
vary, starts from noise, the reference sampler; groups of all crystal systems. For each request
the record holds 16 hexadecimal digits over the request that was answered, the attempt, and the
bytes of sites, cell and atoms; "none" where all attempts were rejected. Tables of some runs of
the command ``sample`` are recorded, too.

A record is of one machine: kernels for other instruction sets round otherwise. So none is kept in
the repository; --checkouts makes two, of the packages in two folders, and compares them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

SEED = 5

SITES = (
    (2, {"Na": 1, "Cl": 1, "O": 2}), (4, {"Mg": 1, "Si": 1, "O": 2}), (12, {"Fe": 2, "S": 2}),
    (14, {"Zr": 1, "O": 2}), (15, {"Ca": 1, "Ti": 1, "O": 3}), (36, {"Ge": 1, "S": 2}),
    (62, {"Cu": 2, "Si": 1, "K": 1}), (63, {"U": 1, "B": 1, "C": 1}), (71, {"La": 1, "Ni": 1}),
    (82, {"B": 1, "P": 1, "O": 1}), (99, {"Pb": 1, "Ti": 1, "O": 2}), (129, {"Li": 1, "Fe": 1}),
    (139, {"Ba": 1, "Zn": 1, "P": 1}), (148, {"Bi": 1, "I": 1}), (156, {"Cd": 1, "I": 2}),
    (166, {"Bi": 1, "Te": 2}), (186, {"Zn": 1, "O": 1}), (194, {"Mg": 2, "Ni": 2}),
    (198, {"Fe": 1, "Si": 1}), (216, {"Ga": 1, "As": 1}), (221, {"Sr": 1, "Ti": 1, "O": 1}),
    (225, {"K": 1, "Pt": 1, "Cl": 1}), (227, {"Mg": 1, "Al": 1, "O": 1}), (230, {"Al": 2, "O": 1}),
)  # fmt: skip
"""Group and sites of each element: triclinic to cubic."""

FORMULAS = (
    ("TiO2", 136, 2), ("TiO2", 141, 4), ("NaCl", 225, 4), ("CaTiO3", 62, 4), ("CaTiO3", 221, 1),
    ("MgAl2O4", 227, 8), ("Cu2KSi", 62, 4), ("FeS2", 205, 4), ("Al2O3", 167, 6), ("SiO2", 152, 3),
    ("ZrO2", 14, 4), ("LiFePO4", 62, 4), ("GaN", 186, 2), ("Bi2Te3", 166, 3), ("KNbO3", 38, 2),
    ("BaZn2P2", 139, 2), ("NaAlSi3O8", 2, 4), ("Mg2SiO4", 62, 4), ("CuFeS2", 122, 4),
    ("MoS2", 194, 2),
    ("WO3", 14, 8), ("CsPbI3", 221, 1), ("La2CuO4", 64, 4), ("Y3Al5O12", 230, 8), ("CdI2", 156, 1),
    ("PbTiO3", 99, 1), ("AgGaS2", 122, 4), ("BN", 194, 2), ("C", 227, 8), ("Ti3SiC2", 194, 2),
)  # fmt: skip
"""Formula, group and formula units of the conventional cell."""


def groups() -> list[tuple[str, dict[str, Any], list[Any]]]:
    """Title, options and requests, 300 in all; requests of one title are sampled in one call."""
    from ase.build import bulk

    from langevin_xtal import Request
    from langevin_xtal.sampling.from_structure import request_from_structure
    from langevin_xtal.sampling.samplers import Ancestral, AnnealedLangevin

    sites = [Request(group, counts) for group, counts in SITES]
    exact = [Request(group, formula=formula, z=z) for formula, group, z in FORMULAS]
    in_group = [Request(group, formula=formula) for formula, group, _ in FORMULAS]
    names = sorted({formula for formula, _, _ in FORMULAS})[:13]
    alone = [Request(formula=name) for name in names]
    sized = [Request(formula=r.formula, atoms=2 * sum(r.units.values())) for r in alone]
    of_elements = [
        Request(elements=elements)
        for elements in (["Cu", "Si", "K"], ["Li", "Fe", "O"], ["Mg", "O"], ["Ga", "As"])
    ]
    in_one = [
        Request(group, elements=elements)
        for group, elements in ((62, ["Cu", "Si", "K"]), (225, ["Mg", "O"]), (14, ["Ca", "S"]))
    ]
    cells = [
        Request(225, formula="NaCl", lattice=(5.64, 5.64, 5.64)),
        Request(14, formula="ZrO2", z=4, lattice=(5.15, 5.21, 5.32, 90.0, 99.2, 90.0)),
        Request(166, {"Bi": 1, "Te": 2}, lattice=(4.38, 4.38, 30.5)),
        Request(2, {"Mg": 1, "O": 2}, lattice=(4.0, 4.5, 5.0, 80.0, 95.0, 100.0)),
    ]
    kept = [
        Request(221, {"Sr": 1, "Ti": 1, "O": 1}, fixed=[("Ti", (0.0, 0.0, 0.0))]),
        Request(62, formula="Mg2SiO4", z=4, fixed=[("Mg", (0.0, 0.0, 0.0))]),
        Request(216, {"Ga": 1, "As": 1}, fixed=[("As", (0.25, 0.25, 0.25))]),
        Request(62, {"Cu": 2, "Si": 1, "K": 1}, positions=(2, 2, 2, 3)),
    ]
    varied = [
        request_from_structure(bulk(name, kind, a=a), None, noise)
        for name, kind, a, noise in (
            ("NaCl", "rocksalt", 5.64, 0.2), ("Si", "diamond", 5.43, 0.5),
            ("CsCl", "cesiumchloride", 4.12, 0.3), ("ZnS", "zincblende", 5.41, 1.0),
        )
    ]  # fmt: skip
    langevin = AnnealedLangevin(levels=3, steps=4)
    return [
        ("sites, positions drawn", {}, sites * 2),
        ("sites, positions free", {"positions": "free"}, sites),
        ("sites, from noise", {"start": "noise"}, sites),
        ("formula, Z and group", {}, exact * 2),
        ("formula and group", {}, in_group),
        ("formula, from noise", {"start": "noise", "assignment_temperature": 0.5}, exact[:12]),
        (
            "likeliest of four proposals",
            {"proposals": 4, "proposal_temperature": 0.7, "proposal_noise": 0.25},
            exact[:16],
        ),
        ("formula alone", {}, alone * 2),
        ("formula and atoms", {}, sized),
        ("elements", {}, of_elements * 3),
        ("elements in a group", {}, in_one * 2),
        ("nothing", {}, [Request()] * 8 + [Request(groups=[62, 225])] * 4),
        ("cell kept", {}, cells),
        ("sites kept", {}, kept),
        ("structure varied", {}, varied),
        ("ten levels", {"sampler": Ancestral(levels=10)}, exact[4:7]),
        ("reference sampler", {"sampler": langevin}, [sites[20], exact[0]]),
    ]


COMMANDS = (
    ("--sites", "Sr:1,Ti:1,O:1", "--sg", "Pm-3m,129", "--n", "4"),
    ("--formula", "Cu2KSi", "--z", "4", "--sg", "62", "--n", "4"),
    ("--formula", "TiO2", "--n", "4", "--seed", "2"),
    ("--elements", "Mg,O", "--sg", "225,194", "--n", "4"),
    ("--de-novo", "--n", "4"),
    ("--sites", "Zn:1,O:1", "--sg", "186", "--positions", "free", "--sampler", "langevin",
     "--levels", "2", "--steps", "3", "--n", "2"),
)  # fmt: skip
"""Runs of the command ``sample``, of which ``candidates.csv`` and ``rejects.csv`` are compared."""


def digest(*parts: bytes) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def answers(model: str) -> Iterator[tuple[str, str]]:
    """Name of each request, and the digits of its candidate."""
    from langevin_xtal import load_model, sample
    from langevin_xtal.sampling.sample import SampleOptions

    weights = load_model(model)
    for title, options, requests in groups():
        found = {
            c.index: c
            for c in sample(
                requests, weights, SEED, device="cpu", options=SampleOptions(**options)
            )
        }
        for k in range(len(requests)):
            c = found.get(k)
            recorded = "none"
            if c is not None:
                arrays = (c.numbers, c.frac, c.lattice, c.atom_site, c.atom_frac)
                recorded = digest(
                    f"{c.request} {c.attempt} {dict(c.detected)}".encode(),
                    *(a.tobytes() for a in arrays),
                )
            yield f"{title} {k}", recorded


def tables(model: str) -> Iterator[tuple[str, str]]:
    """Each command, and the digits of its tables."""
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "langevin_xtal", "sample", *command, "--model", model,
                 "--device", "cpu", "--out", folder],
                capture_output=True, check=False,
            )  # fmt: skip
            files = (Path(folder) / name for name in ("candidates.csv", "rejects.csv"))
            found = [file.read_bytes() if file.exists() else b"" for file in files]
            yield " ".join(("sample", *command)), digest(str(done.returncode).encode(), *found)


def record(checkout: Path, model: str, out: Path) -> dict[str, str]:
    """The record of the package in another folder, by another process."""
    here = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, __file__, "--out", str(out), "--model", model]
    subprocess.run(command, env=here, check=True)
    recorded: dict[str, str] = json.loads(out.read_text())
    return recorded


def differing(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Names under which the records say different things."""
    return sorted(k for k in first.keys() | second.keys() if first.get(k) != second.get(k))


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Record to write.")
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Record of before.")
@click.option(
    "--checkouts",
    nargs=2,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folders that hold a package langevin_xtal each.",
)
@click.option("--model", default="small", show_default=True)
def main(
    out: Path | None, against: Path | None, checkouts: tuple[Path, Path] | None, model: str
) -> None:
    """Record candidates of the package that is imported, or compare those of two folders."""
    if checkouts:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (
                record(path.resolve(), model, Path(folder) / f"{k}.json")
                for k, path in enumerate(checkouts)
            )
    else:
        second = dict([*answers(model), *tables(model)])
        if out is not None:
            out.write_text(json.dumps(second, indent=1) + "\n")
        first = json.loads(against.read_text()) if against else second
    changed = differing(first, second)
    for name in changed:
        click.echo(f"differs: {name}")
    none = sum(value == "none" for value in second.values())
    click.echo(f"{len(second)} answers, {none} without a candidate, {len(changed)} differ")
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
