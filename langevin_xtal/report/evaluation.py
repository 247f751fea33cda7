"""Plots of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.files import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from langevin_xtal.evaluation.report import Column, Report

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")
REFERENCE_COLOUR = "0.35"
PANELS = (
    ("density", "density [g/cm³]"),
    ("volume_per_atom", "volume per atom [Å³]"),
    ("min_distance", "shortest distance [Å]"),
    ("energy", "energy per atom, CHGNet [eV]"),
)


def plot_evaluation(report: Report, folder: Path) -> list[Path]:
    """Draw what the report holds: match rates, parity of lengths, distributions.

    Returns the pictures written to ``folder``.
    """
    written = []
    for name, draw in (
        ("match_rate.png", _match_rate),
        ("evaluations.png", _evaluations),
        ("lengths.png", _lengths),
        ("distributions.png", _distributions),
    ):
        figure = draw(report)
        if figure is not None:
            save_figure(figure, folder / name, dpi=110)
            written.append(folder / name)
    return written


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _match_rate(report: Report) -> Figure | None:
    """Bars by free coordinates, one colour per set."""
    columns = [c for c in report.columns if c.tables.get("by_freedom")]
    if not columns:
        return None
    bins = list(columns[0].tables["by_freedom"])
    figure = _figure(1.6 + 0.35 * len(bins) * (1 + len(columns)), 3.8)
    axis = figure.subplots()
    width = 0.8 / len(columns)
    for k, column in enumerate(columns):
        place = np.arange(len(bins)) - 0.4 + (k + 0.5) * width
        colour = COLOURS[k % len(COLOURS)]
        cells = column.tables["by_freedom"]
        axis.bar(place, [cells[b]["rate"] for b in bins], width, color=colour, label=column.label)
        best = column.tables.get("by_freedom_k")
        if column.summary.get("trials") and best:
            label = f"{column.label}, best of {column.summary['trials']}"
            heights = [best[b]["rate"] for b in bins]
            axis.plot(place, heights, "v", color=colour, mec="black", ms=6, label=label)
    counts = [columns[0].tables["by_freedom"][b]["targets"] for b in bins]
    axis.set_xticks(range(len(bins)), [f"{b}\n({n})" for b, n in zip(bins, counts, strict=True)])
    axis.set(xlabel="free coordinates (targets)", ylabel="match rate", ylim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def _evaluations(report: Report) -> Figure | None:
    """Match rate against network evaluations, where several sets differ in them."""
    columns = [
        c for c in report.columns if c.summary.get("evaluations") and "match_1" in c.summary
    ]
    if len({c.summary["evaluations"] for c in columns}) < 2:
        return None
    figure = _figure(5.2, 3.8)
    axis = figure.subplots()
    for column in columns:
        low, high = column.summary["match_1_interval"]
        rate = column.summary["match_1"]
        axis.errorbar(
            column.summary["evaluations"], rate, [[rate - low], [high - rate]], fmt="o", capsize=3,
            label=column.label,
        )  # fmt: skip
    axis.set(xscale="log", xlabel="network evaluations per structure", ylabel="match rate, k = 1")
    axis.legend(fontsize=8)
    return figure


def _lengths(report: Report) -> Figure | None:
    """Cell lengths of matching structures against those of their targets."""
    columns = [(c, *_parity(c)) for c in report.columns]
    columns = [entry for entry in columns if len(entry[1])]
    if not columns:
        return None
    figure = _figure(3.4 * len(columns), 3.6)
    axes = np.atleast_1d(figure.subplots(1, len(columns), sharex=True, sharey=True))
    for axis, (column, true, found) in zip(axes, columns, strict=True):
        axis.axline((5, 5), (10, 10), color="0.7", lw=1)
        for k, name in enumerate("abc"):
            axis.plot(true[:, k], found[:, k], ".", ms=3, color=COLOURS[k], label=name)
        error = np.median(np.abs(found / true - 1))
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="target [Å]",
            title=f"{column.label}\nmedian error {error:.1%}",
        )
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("conventional cell lengths [Å]")
    axes[0].legend(fontsize=8)
    return figure


def _parity(column: Column) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(M, 3) true and found lengths of structures that match and show the same group."""
    rows = [
        entry
        for entry in column.structures
        if "target_lengths" in entry and "lengths" in entry and np.isfinite(entry["rms"])
    ]
    true = np.array([entry["target_lengths"] for entry in rows], dtype=float).reshape(-1, 3)
    found = np.array([entry["lengths"] for entry in rows], dtype=float).reshape(-1, 3)
    sound = np.isfinite(true).all(axis=1) & np.isfinite(found).all(axis=1)
    return true[sound], found[sound]


def _distributions(report: Report) -> Figure:
    """Histograms of the sets over the reference's."""
    panels = [(key, title) for key, title in PANELS if key in report.reference]
    figure = _figure(3.5 * len(panels), 3.4)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (key, title) in zip(axes, panels, strict=True):
        true = _finite(report.reference[key])
        low, high = np.quantile(true, [0.002, 0.998]).tolist()
        edges = np.linspace(low, high, 41)
        axis.hist(
            true, edges, density=True, color=REFERENCE_COLOUR,
            alpha=0.35, label="reference",
        )  # fmt: skip
        for k, column in enumerate(report.columns):
            values = _finite([entry.get(key, np.nan) for entry in column.structures])
            values = values[(values >= low) & (values <= high)]
            if len(values):
                axis.hist(
                    values, edges, density=True, histtype="step",
                    color=COLOURS[k % len(COLOURS)], lw=1.4, label=column.label,
                )  # fmt: skip
        axis.set_xlabel(title)
        axis.set_yticks([])
    axes[0].legend(fontsize=7)
    return figure


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.array(values, dtype=float)
    return array[np.isfinite(array)]
