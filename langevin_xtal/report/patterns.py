"""What a search for a pattern leaves: CIFs named by rank, a table, a picture of the best fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from langevin_xtal.config.tolerances import TIGHT
from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.cell import cell_parameters
from langevin_xtal.crystal.cif import sites_cif
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.diffraction.simulate import Crystal
from langevin_xtal.diffraction.solve import Solution, ranked
from langevin_xtal.files import replacing, save_figure, write_rows, write_text
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.detection import symmetry_dataset

TABLE = "solutions.csv"
PICTURE = "fit.png"
COLUMNS = (
    "rank",
    "file",
    "formula",
    "group",
    "symbol",
    "wyckoff",
    "r_wp",
    "gof",
    "likeness",
    "probability",
    "a",
    "b",
    "c",
    "alpha",
    "beta",
    "gamma",
    "volume",
    "zero_shift",
    "b_overall",
    "parameters",
    "index",
)


def write_solutions(
    folder: Path, solutions: Sequence[Solution], earlier: Iterable[str] = ()
) -> list[dict[str, str]]:
    """Write CIFs by rank, the best first, and the table; the table's rows.

    Of the ``earlier`` files, names that an earlier call for the same search wrote, those whose
    rank has gone to another structure are removed.
    """
    best = ranked(solutions)
    digits = max(2, len(str(len(best))))
    rows: list[dict[str, str]] = []
    for rank, solution in enumerate(best, start=1):
        name = f"{rank:0{digits}d}_{solution.candidate.formula}_{solution.crystal.group}.cif"
        text = solution_cif(solution, rank)
        if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text:
            write_text(folder / name, text)
        rows.append(_row(solution, rank) | {"file": name})
    names = {row["file"] for row in rows}
    for old in set(earlier) - names:
        (folder / old).unlink(missing_ok=True)
    with replacing(folder / TABLE) as stream:
        write_rows(stream, COLUMNS, rows)
    return rows


def solution_cif(solution: Solution, rank: int) -> str:
    """A CIF of the crystal as refined, with its fit as comments."""
    facts = {"rank": str(rank), "index": str(solution.candidate.index)}
    if solution.refined is not None:
        facts |= {
            "R_wp": f"{solution.refined.r_wp:.5f}",
            "goodness_of_fit": f"{solution.refined.gof:.4f}",
            "zero_shift": f"{solution.refined.profile.zero:.5f}",
            "B_overall": f"{solution.refined.profile.b:.4f}",
        }
    if not math.isnan(solution.probability):
        facts["probability"] = f"{solution.probability:.4g}"
    head = "".join(f"# {name}: {value}\n" for name, value in facts.items())
    crystal = solution.crystal
    sites = AsymmetricUnit(
        group=crystal.group,
        lattice=crystal.lattice,
        numbers=crystal.numbers,
        frac=crystal.frac,
        multiplicity=crystal.multiplicity,
        wyckoff=np.full(len(crystal.numbers), "", dtype="<U1"),
    )
    return head + sites_cif(sites, f"{rank:04d}_{solution.candidate.formula}_{crystal.group}")


def wyckoff_text(crystal: Crystal) -> str:
    """Positions of each element's sites, such as ``Na 4a Cl 4b``; multiplicities alone where
    spglib finds another group."""
    frac, site = crystal.atoms()
    letters = np.full(len(crystal.numbers), "", dtype="<U1")
    data = symmetry_dataset((crystal.lattice, frac, crystal.numbers[site]), TIGHT)
    if data is not None and data.number == crystal.group:
        _, first = np.unique(site, return_index=True)
        letters = np.array(data.wyckoffs)[first]
    parts: dict[int, Counter[str]] = {}
    for number, size, letter in zip(crystal.numbers, crystal.multiplicity, letters, strict=True):
        parts.setdefault(int(number), Counter())[f"{size}{letter}"] += 1
    return " ".join(
        f"{SYMBOLS[number]} " + "+".join(name for name in sorted(own.elements()))
        for number, own in parts.items()
    )


def draw_fits(solutions: Sequence[Solution], path: Path, most: int = 3) -> bool:
    """Draw measured, calculated and difference of the best; False where none was refined."""
    from matplotlib.figure import Figure

    best = [(s, s.refined) for s in ranked(solutions)[:most]]
    fits = [(solution, refined) for solution, refined in best if refined is not None]
    if not fits:
        return False
    figure = Figure(figsize=(10, 3.2 * len(fits)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(fits), 1))
    for rank, (axis, (solution, refined)) in enumerate(zip(axes, fits, strict=True), start=1):
        x, measured = refined.pattern.two_theta, refined.pattern.intensity
        difference = measured - refined.calculated
        top = float(measured.max())
        axis.plot(x, measured, ".", ms=2, color="0.35", label="measured")
        axis.plot(x, refined.calculated, lw=0.9, color="tab:red", label="calculated")
        axis.plot(x, refined.background, lw=0.7, ls="--", color="tab:green", label="background")
        axis.plot(x, difference - 0.12 * top, lw=0.7, color="tab:blue", label="difference")
        group = SpaceGroup(solution.crystal.group)
        axis.set_title(
            f"{rank}. {solution.candidate.formula}  {group}  R_wp = {refined.r_wp:.4f}, "
            f"goodness of fit {refined.gof:.2f}",
            fontsize=10,
        )
        axis.set_ylabel("intensity")
        axis.margins(x=0.01)
    axes[0].legend(fontsize=8, ncols=4)
    axes[-1].set_xlabel("2θ [degrees]")
    save_figure(figure, path, dpi=130)
    return True


def _row(solution: Solution, rank: int) -> dict[str, str]:
    crystal, refined = solution.crystal, solution.refined
    lengths = cell_parameters(crystal.lattice)
    row = {
        "rank": str(rank),
        "formula": solution.candidate.formula,
        "group": str(crystal.group),
        "symbol": SpaceGroup(crystal.group).symbol,
        "wyckoff": wyckoff_text(crystal),
        "likeness": f"{solution.likeness:.4f}",
        "probability": "" if math.isnan(solution.probability) else f"{solution.probability:.3g}",
        "volume": f"{abs(np.linalg.det(crystal.lattice)):.3f}",
        "index": str(solution.candidate.index),
    }
    row |= dict(zip(("a", "b", "c"), (f"{v:.5f}" for v in lengths[:3]), strict=True))
    row |= dict(zip(("alpha", "beta", "gamma"), (f"{v:.4f}" for v in lengths[3:]), strict=True))
    if refined is not None:
        row |= {
            "r_wp": f"{refined.r_wp:.5f}",
            "gof": f"{refined.gof:.3f}",
            "zero_shift": f"{refined.profile.zero:.4f}",
            "b_overall": f"{refined.profile.b:.3f}",
            "parameters": str(refined.parameters),
        }
    return row
