"""Systems of a campaign beside each other: a map whose every system is a cell.

The last element of a system (in the order of atomic numbers) is its column, the others are its
row: pairs make a triangle of a matrix, ternaries a row for each pair of elements. A cell is
coloured by the lowest energy above the hull of known phases; its text says all that its colour
does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.files import save_figure

MOST_SYSTEMS = 3000
"""More make no picture that can be read."""
HIGHEST = 0.2
"""Energy above the hull where the colours end [eV/atom]."""
NEAR = 0.05
"""Phases up to so far above the hull are counted as found [eV/atom]."""
CELL = (1.25, 0.62)
"""Width and height of a cell [inch]."""
COLOURS = "cividis_r"
"""Its order is also one of brightness: the lower, the brighter."""


@dataclass(frozen=True)
class MapCell:
    """What the map says of a system."""

    elements: tuple[str, ...]  #: by atomic number
    energy: float  #: lowest above the hull of known phases [eV/atom]; NaN where not known
    lines: tuple[str, ...]
    unfinished: bool  #: or not begun, or failed


def map_cell(
    name: str,
    best: Sequence[Entry],
    *,
    begun: bool = True,
    finished: bool = True,
    left: int = 0,
    problem: str = "",
) -> MapCell:
    """The cell of a system.

    Parameters
    ----------
    name
        Such as ``"Cu-Si-K"``.
    best
        Its best candidates, best first.
    begun, finished
        Whether its search has begun, and come to its end.
    left
        Candidates neither rejected nor equal to another.
    problem
        Why its store cannot be read.
    """
    elements = tuple(sorted(name.split("-"), key=atomic_number))
    energies = [math.nan if e.e_above_hull is None else e.e_above_hull for e in best]
    known = [k for k, energy in enumerate(energies) if math.isfinite(energy)]
    lowest = min(known, key=lambda k: energies[k], default=None)
    energy = math.nan
    if problem:
        lines: tuple[str, ...] = ("failed",)
    elif not begun:
        lines = ("not begun",)
    elif lowest is None:
        lines = (best[0].formula, "no energy") if best else ("none left",)
        lines = (*lines, f"{left} left") if left else lines
    else:
        energy, formula = energies[lowest], best[lowest].formula
        near = {best[k].formula for k in known if energies[k] <= NEAR} - {formula}
        mark = " (known)" if best[lowest].properties.get("known") else ""
        more = (f"and {len(near)} more",) if near else ()
        lines = (formula, f"{1000 * energy:+.0f} meV{mark}", *more)
    return MapCell(elements, energy, lines, problem != "" or not finished)


def draw_systems(cells: Sequence[MapCell], path: Path) -> bool:
    """Draw the map, a panel for each number of elements; whether there were few enough.

    The format is that of the path's suffix.

    Raises
    ------
    InputError
        When the path is no regular file.
    """
    if not 0 < len(cells) <= MOST_SYSTEMS:
        return False
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels: dict[int, list[MapCell]] = {}
    for cell in cells:
        panels.setdefault(len(cell.elements), []).append(cell)
    grids = [_grid(panels[size]) for size in sorted(panels)]
    width = max(len(columns) for _, columns, _ in grids) * CELL[0] + 1.8
    heights = [len(rows) * CELL[1] + 0.9 for rows, _, _ in grids]
    figure = Figure(figsize=(max(width, 6.0), sum(heights) + 1.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(grids), 1, height_ratios=heights))
    for axis, (rows, columns, of) in zip(axes, grids, strict=True):
        _draw(axis, rows, columns, of)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1000 * HIGHEST), COLOURS)
    bar = figure.colorbar(
        scale, ax=list(axes), orientation="horizontal", extend="both", aspect=40, shrink=0.8
    )
    bar.set_label(
        "lowest energy above the hull of known phases [meV/atom]\n"
        "thick frame: on or below the hull; hatched: not finished; "
        f"more: other formulas up to {1000 * NEAR:.0f} meV/atom",
        fontsize=9,
    )
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "langevin-xtal"}):
        save_figure(figure, path, dpi=110)
    return True


Grid = tuple[list[tuple[str, ...]], list[str], Mapping[tuple[tuple[str, ...], str], MapCell]]
"""Rows (all elements of a system but the last), columns (the last), and what is where."""


def _grid(cells: Sequence[MapCell]) -> Grid:
    of = {(cell.elements[:-1], cell.elements[-1]): cell for cell in cells}
    rows = sorted({row for row, _ in of}, key=lambda row: [atomic_number(s) for s in row])
    columns = sorted({column for _, column in of}, key=atomic_number)
    return rows, columns, of


def _draw(
    axis: Any, rows: list[tuple[str, ...]], columns: list[str], of: Mapping[Any, Any]
) -> None:
    import matplotlib as mpl
    from matplotlib.patches import Rectangle

    colours = mpl.colormaps[COLOURS]
    for (row, column), cell in of.items():
        x, y = columns.index(column), rows.index(row)
        known = math.isfinite(cell.energy)
        face = colours(min(max(cell.energy / HIGHEST, 0.0), 1.0)) if known else (0.93,) * 3
        stable = known and cell.energy <= 0
        axis.add_patch(
            Rectangle(
                (x + 0.03, y + 0.04), 0.94, 0.92, facecolor=face,
                edgecolor="black" if stable else "0.6", linewidth=2.2 if stable else 0.6,
                hatch="///" if cell.unfinished and not known else None,
            )
        )  # fmt: skip
        if cell.unfinished and known:  # a hatch behind the text would hide it: a corner only
            axis.add_patch(
                Rectangle((x + 0.85, y + 0.04), 0.12, 0.92, facecolor=face, edgecolor="white",
                          linewidth=0, hatch="////")
            )  # fmt: skip
        light = np.dot(face[:3], (0.299, 0.587, 0.114)) > 0.5
        axis.text(
            x + 0.5, y + 0.5, "\n".join(cell.lines), ha="center", va="center", fontsize=8,
            color="black" if light else "white", linespacing=1.15,
            bbox={"facecolor": face, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axis.set_yticks(np.arange(len(rows)) + 0.5, ["-".join(row) or " " for row in rows])
    axis.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=10)
    size = len(rows[0]) + 1
    axis.xaxis.set_label_position("top")
    text = "elements alone" if size == 1 else f"systems of {size} elements"
    rest = "" if size == 1 else " (column: the last by atomic number; row: the others)"
    axis.set_xlabel(text + rest, labelpad=8)
    for side in axis.spines.values():
        side.set_visible(False)
