"""What an evaluation found: one column per set of structures, as table, JSON and numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import InputError
from langevin_xtal.files import unwritable, write_text


@dataclass(frozen=True)
class Metric:
    """How one number is shown."""

    key: str
    title: str
    form: str = ".3f"
    better: str = ""  #: ``"up"``, ``"down"`` or nothing


SECTIONS: tuple[tuple[str, tuple[Metric, ...]], ...] = (
    (
        "structures",
        (
            Metric("attempted", "asked for", "d"),
            Metric("missing", "missing", "d"),
            Metric("evaluations", "network evaluations each", "d"),
        ),
    ),
    (
        "validity, share of those asked for",
        (
            Metric("struct_valid", "structure (0.5 Å)", better="up"),
            Metric("comp_valid", "composition (SMACT)", better="up"),
            Metric("valid", "both", better="up"),
        ),
    ),
    (
        "crystal structure prediction, unfiltered unless said",
        (
            Metric("targets", "targets", "d"),
            Metric("predicted", "targets with a prediction", "d"),
            Metric("formula_right", "formula right, k = 1", better="up"),
            Metric("match_1", "match rate, k = 1", better="up"),
            Metric("rmse_1", "RMSE, k = 1", better="down"),
            Metric("match_1_free", "match rate, k = 1, with free coordinates", better="up"),
            Metric("match_1_filtered", "match rate, k = 1, filtered", better="up"),
            Metric("trials", "trials", "d"),
            Metric("match_k", "match rate, best of trials", better="up"),
            Metric("rmse_k", "RMSE, best of trials", better="down"),
            Metric("match_k_filtered", "match rate, best of trials, filtered", better="up"),
            Metric("metre", "METRe", better="up"),
            Metric("crmse", "cRMSE", better="down"),
        ),
    ),
    (
        "coverage and Fréchet distances",
        (
            Metric("cov_recall", "COV-R", better="up"),
            Metric("cov_precision", "COV-P", better="up"),
            Metric("cov_recall_joint", "COV-R, one neighbour for both", better="up"),
            Metric("cov_precision_joint", "COV-P, one neighbour for both", better="up"),
            Metric("fd_crystalnn", "FD CrystalNN", better="down"),
            Metric("fd_chgnet", "FD CHGNet features", better="down"),
        ),
    ),
    (
        "distances between distributions",
        (
            Metric("w_density", "density [g/cm³]", better="down"),
            Metric("w_energy", "energy per atom [eV]", better="down"),
            Metric("w_elements", "number of elements", better="down"),
            Metric("w_min_distance", "shortest distance [Å]", better="down"),
            Metric("w_max_distance", "longest distance [Å]", better="down"),
            Metric("w_lengths", "cell lengths a, b, c [Å], mean", better="down"),
            Metric("js_groups", "space groups (Jensen–Shannon)", better="down"),
            Metric("js_elements", "elements (Jensen–Shannon)", better="down"),
        ),
    ),
    (
        "symmetry, share of those asked for",
        (
            Metric("p1_share", "P1 at 0.1 Å", better="down"),
            Metric("kept_0.001", "group asked for, at 0.001 Å", better="up"),
            Metric("kept_0.01", "group asked for, at 0.01 Å", better="up"),
            Metric("kept_0.1", "group asked for, at 0.1 Å", better="up"),
            Metric("higher_0.1", "a higher group, at 0.1 Å"),
        ),
    ),
    (
        "as a set, share of those asked for",
        (
            Metric("unique", "unique", better="up"),
            Metric("novel", "novel", better="up"),
            Metric("formula_diversity", "different formulas", better="up"),
            Metric("fingerprint_diversity", "CrystalNN diversity (mean distance)", better="up"),
        ),
    ),
    (
        "stability",
        (
            Metric("relaxed_share", "relaxed", better="up"),
            Metric("converged", "converged", better="up"),
            Metric("rmsd_relaxed", "RMSD to the relaxed structure [Å], median", better="down"),
            Metric("relaxed_match", "matches its relaxed structure", better="up"),
            Metric("e_hull_median", "energy above hull, median [eV/atom]", better="down"),
            Metric("stable", "at most 0.1 eV/atom above hull", better="up"),
            Metric("sun", "S.U.N. at 0.1 eV/atom", better="up"),
        ),
    ),
)

BREAKDOWNS = (
    ("by_freedom", "free coordinates"),
    ("by_atoms", "atoms in the primitive cell"),
    ("by_system", "crystal system"),
)
"""Tables of match rates and what their bins are."""


@dataclass
class Column:
    """One set of structures."""

    label: str
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  #: rates by bin, plotted or printed
    structures: list[dict[str, Any]] = field(default_factory=list)  #: one entry per structure
    missing: list[dict[str, str]] = field(default_factory=list)  #: id and reason
    failures: dict[str, dict[str, str]] = field(default_factory=dict)  #: feature → id → reason


@dataclass
class Report:
    """What :func:`~langevin_xtal.evaluation.protocol.evaluate` returns."""

    columns: list[Column]
    settings: dict[str, object]
    notes: list[str]
    reference: Mapping[
        str, NDArray[np.float64] | NDArray[np.int64]
    ]  #: name to (R,) values of the reference crystals, for the plots

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """Label to metric to number."""
        return {column.label: column.summary for column in self.columns}

    def __getitem__(self, label: str) -> dict[str, Any]:
        return self.summary[label]

    def table(self) -> str:
        """Everything at one glance, as text."""
        lines: list[str] = []
        labels = [column.label for column in self.columns]
        width = max([10, *(len(label) for label in labels)])
        for title, metrics in SECTIONS:
            rows = [m for m in metrics if any(_known(c.summary.get(m.key)) for c in self.columns)]
            if not rows:
                continue
            lines += ["", f"{title:<50}" + "".join(f"  {label:>{width}}" for label in labels)]
            for metric in rows:
                cells = (_shown(column.summary.get(metric.key), metric) for column in self.columns)
                lines.append(f"  {metric.title:<48}" + "".join(f"  {c:>{width}}" for c in cells))
        for key, title in BREAKDOWNS:
            for trials in ("", "_k"):
                lines += self._rates(key, title, trials, width)
        return "\n".join([*lines[1:], "", *self.notes])

    def _rates(self, key: str, title: str, trials: str, width: int) -> list[str]:
        """Match rates by bin, of the first trials or (``_k``) the best of several."""
        key += trials
        columns = [column for column in self.columns if column.tables.get(key)]
        if trials and not any(column.summary.get("match_k") is not None for column in columns):
            return []
        if not columns:
            return []
        bins = list(columns[0].tables[key])
        head = f"match rate, {'best of trials' if trials else 'k = 1'}, by {title}"
        lines = [
            "",
            f"{head:<54}{'targets':>10}" + "".join(f"  {c.label:>{width}}" for c in columns),
        ]
        for name in bins:
            cells = [column.tables[key].get(name, {}) for column in columns]
            count = max((cell.get("targets", 0) for cell in cells), default=0)
            shown = (_shown(cell.get("rate"), Metric("", "")) for cell in cells)
            lines.append(f"  {name:<52}{count:>10}" + "".join(f"  {c:>{width}}" for c in shown))
        return lines

    def rst(self) -> str:
        """The numbers as reStructuredText tables."""
        blocks = []
        labels = [column.label for column in self.columns]
        for title, metrics in SECTIONS:
            rows = [
                [m.title, *(_shown(c.summary.get(m.key), m) for c in self.columns)]
                for m in metrics
                if any(_known(c.summary.get(m.key)) for c in self.columns)
            ]
            if rows:
                blocks.append(_rst([title, *labels], rows))
        return "\n\n".join(blocks) + "\n"

    def as_dict(self) -> dict[str, object]:
        """Everything, JSON-serialisable; what is not a number is ``None``."""
        columns = {
            column.label: {
                "summary": column.summary,
                "tables": column.tables,
                "structures": column.structures,
                "missing": column.missing,
                "failures": column.failures,
            }
            for column in self.columns
        }
        plain = {
            "settings": self.settings,
            "notes": self.notes,
            "columns": columns,
            "reference": self.reference,
        }
        return {key: _plain(value) for key, value in plain.items()}

    def save(self, folder: Path) -> list[Path]:
        """Write ``evaluation.json`` and ``evaluation.txt`` to ``folder``, which is made.

        Raises
        ------
        InputError
            When the folder cannot be written.
        """
        texts = {
            "evaluation.json": json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n",
            "evaluation.txt": self.table() + "\n",
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                write_text(folder / name, text)
        except OSError as error:
            raise unwritable(
                error.filename or folder, error, InputError, "give --out another folder"
            ) from None
        return [folder / name for name in texts]


def _known(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _shown(value: object, metric: Metric) -> str:
    return format(value, metric.form) if _known(value) else "–"


def _rst(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
             for row in [header, *rows]]  # fmt: skip
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def _plain(value: object) -> object:
    """JSON's types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
