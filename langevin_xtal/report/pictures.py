"""Pictures: crystals drawn side by side, and the course of a training."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from langevin_xtal.files import save_figure

if TYPE_CHECKING:
    from langevin_xtal.crystal.candidate import Candidate


def draw_candidates(candidates: Sequence[Candidate], path: Path, columns: int = 4) -> None:
    """Draw the conventional cells of candidates in one picture, seen a little from above.

    Atoms on the faces of the cell are drawn on every face they belong to.
    """
    from ase.visualize.plot import plot_atoms
    from matplotlib.figure import Figure

    rows = -(-len(candidates) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, candidate in zip(axes, candidates, strict=False):
        atoms = _with_boundary(candidate)
        plot_atoms(atoms, axis, radii=0.35, rotation="-80x,-15y,5z", show_unit_cell=2)
        axis.set_title(
            f"{candidate.formula}  {candidate.space_group.symbol}\n"
            f"{candidate.volume / len(candidate.atom_site):.1f} Å³/atom",
            fontsize=10,
        )
    save_figure(figure, path, dpi=110)


def _with_boundary(candidate: Candidate):  # type: ignore[no-untyped-def]  # ase.Atoms
    """Atoms of the cell with copies on opposite faces, edges and corners."""
    from ase import Atoms

    shifts = np.stack(np.meshgrid(*[[0, 1]] * 3), axis=-1).reshape(-1, 3)
    frac = (candidate.atom_frac[:, None] + shifts).reshape(-1, 3)
    site = np.repeat(candidate.atom_site, len(shifts))
    inside = (frac <= 1 + 1e-6).all(axis=1)
    return Atoms(
        numbers=candidate.numbers[site[inside]],
        scaled_positions=frac[inside],
        cell=candidate.lattice,
        pbc=False,
    )


def plot_losses(log: Path, path: Path) -> None:
    """Training and validation losses of a ``log.csv``, and the last ones by noise level."""
    from matplotlib.figure import Figure

    with log.open(newline="") as handle:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(handle)]
    if not rows:
        return
    step = [row["step"] for row in rows]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, colour in (("position", "tab:blue"), ("lattice", "tab:orange")):
        left.plot(step, [row[kind] for row in rows], color=colour, alpha=0.35, lw=0.8)
        checked = [row for row in rows if np.isfinite(row[f"validation_{kind}"])]
        left.plot(
            [row["step"] for row in checked],
            [row[f"validation_{kind}"] for row in checked],
            "o-",
            color=colour,
            ms=3,
            label=f"{kind}, validation (averaged weights)",
        )
        levels = sorted(int(k.rsplit("_", 1)[1]) for k in rows[0] if k.startswith(f"{kind}_"))
        tail = rows[-max(1, len(rows) // 20) :]
        means = [_mean([row[f"{kind}_{k}"] for row in tail]) for k in levels]
        right.plot(levels, means, "o-", color=colour, label=kind)
    left.set(xlabel="step", ylabel="loss (1: predicts nothing)", ylim=(0, 1.2))
    right.set(xlabel="noise level, largest to smallest", ylabel="training loss", ylim=(0, 1.2))
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    save_figure(figure, path, dpi=110)


def _mean(values: list[float]) -> float:
    """Over the finite ones; NaN where there are none."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")
