"""What an evaluation samples and computes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from langevin_xtal.config.fields import check, setting
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.errors import InputError

Mode = Literal["sites", "formula", "letters", "composition"]
"""What a model is given of a target; see :data:`langevin_xtal.evaluation.targets.GIVEN`."""
FINGERPRINTS = ("crystalnn", "magpie", "chgnet")
DEFAULT_TARGETS = 1000
DEFAULT_DE_NOVO = 10_000


@dataclass(frozen=True, kw_only=True)
class SampledConfig:
    """What is sampled to be evaluated.

    Raises
    ------
    InputError
        For values out of range.
    """

    mode: Mode | Literal["de-novo"] = setting(
        "sites",
        "What a --model is given of a target. sites: space group, elements and numbers of sites, "
        "as the paper; formula: space group and exact composition of the cell; letters: space "
        "group and the Wyckoff position of every site; composition: reduced formula and atoms in "
        "the primitive cell alone, as the benchmarks. de-novo: nothing; there are no targets, the "
        "samples are compared with the reference as a whole.",
        choices=("sites", "formula", "letters", "composition", "de-novo"),
    )
    count: int | None = setting(
        None,
        f"Targets, drawn from the reference, or samples de novo.  [default: {DEFAULT_TARGETS} "
        f"or {DEFAULT_DE_NOVO}]",
        low=1,
        metavar="N",
        flag="--n",
    )
    trials: int = setting(
        1, "Trials for each target.", low=1, high=10_000, metavar="K", flag="--k"
    )
    control_trials: int | None = setting(
        None, "Trials of the controls.  [default: as --k]", low=1, metavar="K"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is computed, and with what.

    Raises
    ------
    InputError
        For a fingerprint that is not known, and values out of range.
    """

    features: tuple[str, ...] = FINGERPRINTS
    """Fingerprints: ``crystalnn``, ``magpie``, ``chgnet``; leave out what need not be known."""
    relax: Collection[str] = ()
    """Labels of the sets to relax; each gives a further column."""
    relax_trials: int = setting(1, "Trials of each target that are relaxed.", low=1, metavar="K")
    per_composition: bool = False
    """METRe with as many structures for each composition as there are trials: of targets with the
    same atoms in the primitive cell the predictions of the first alone count. Otherwise those of
    all."""
    relaxation: RelaxOptions = field(default_factory=RelaxOptions)
    workers: int | None = None
    """Processes; one per CPU by default."""
    cache: Path | None = None
    """Folder where fingerprints, matches and relaxations are kept; in memory by default."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.features) - set(FINGERPRINTS))
        if unknown:
            known = ", ".join(FINGERPRINTS)
            raise InputError(f"feature {unknown[0]!r} is not known; known: {known}")
        check(self)
