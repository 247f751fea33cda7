"""How structures are searched for by their powder patterns, and patterns simulated."""

from __future__ import annotations

from dataclasses import dataclass

from langevin_xtal.config.fields import check, setting
from langevin_xtal.errors import InputError

TUBE = "CuKa"
"""Radiation of patterns that do not say theirs."""


@dataclass(frozen=True, kw_only=True)
class SolveConfig:
    """How long to search, and how closely to look.

    :class:`langevin_xtal.diffraction.solve.SolveOptions` has how candidates are sampled besides.

    Raises
    ------
    InputError
        For values out of range.
    """

    samples: int = setting(
        100,
        "Candidates at most; fewer where one explains the pattern.",
        low=1,
        high=100_000,
        metavar="N",
        flag="--n",
    )
    round_size: int = setting(16, "Candidates sampled before the next look.", low=1)
    refined: int = setting(
        6, "Candidates of a round that are refined, those most like the pattern.", low=1
    )
    good_gof: float = setting(
        1.15,
        "Goodness of fit at which the search ends: 1 where nothing but noise is left.",
        above=0,
    )
    cell: tuple[float, ...] | None = setting(
        None,
        "Conventional cell where it is known: a,b,c or a,b,c,alpha,beta,gamma [Å, degrees]; "
        "settings that it does not fit are passed over.",
        metavar="CELL",
    )
    orientation: bool = setting(
        False, "Refine a March-Dollase parameter for preferred orientation along c."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class PatternConfig:
    """A simulated pattern.

    Raises
    ------
    InputError
        For values out of range.
    """

    limits: tuple[float, float] = setting(
        (5.0, 80.0), "2θ [degrees].", metavar="LOW HIGH", flag="--range"
    )
    width: float = setting(
        0.15, "Full width of peaks at half maximum [degrees].", low=0.01, high=2.0
    )

    def __post_init__(self) -> None:
        check(self)
        low, high = self.limits
        if not 0 < low < high <= 179:
            raise InputError(f"range {low:g} {high:g}: give 2θ as 0 < LOW < HIGH <= 179 degrees")
