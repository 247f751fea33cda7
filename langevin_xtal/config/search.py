"""What a search does with its space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from langevin_xtal.config.fields import check, setting
from langevin_xtal.config.screening import DEFAULT_POTENTIAL, POTENTIAL_HELP
from langevin_xtal.errors import InputError

Way = Literal["likely", "even"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How many candidates a search samples, where they go, and which of them are relaxed.

    Raises
    ------
    InputError
        For values out of range, and those that need another.
    """

    allocate: Way = setting(
        "likely",
        "Candidates go to settings the model takes for likely, or evenly to groups and requests.",
        choices=("likely", "even"),
    )
    explore: float | None = setting(
        None,
        "Share spread evenly all the same, where others go to likely settings.  [default: 0.2]",
        low=0,
        high=1,
        metavar="SHARE",
    )
    subsystems: float | None = setting(
        None,
        "Share of likely settings that have some of the elements only.  [default: 0]",
        low=0,
        high=1,
        metavar="SHARE",
    )
    samples_per_request: int | None = setting(
        None,
        "Candidates for each request of an even spread; as many in all go to likely settings.  "
        "[default: 60]",
        low=1,
        metavar="N",
    )
    max_samples: int | None = setting(
        None,
        "Candidates in all, at most.  [default: 1000; spread evenly, those of all requests]",
        low=1,
        metavar="N",
    )
    max_hours: float | None = setting(
        None,
        "Begin nothing new after so long, and rank what is there.",
        above=0,
        metavar="HOURS",
    )
    seed: int = setting(0, "Random seed.", low=0)
    relax: bool = setting(False, "Relax, and rank by energy above hull.")
    relax_best: int | None = setting(
        None,
        "Relax only the N lowest above hull as sampled, so that many can be sampled.",
        low=1,
        metavar="N",
    )
    relax_within: float = setting(
        0.2,
        "End relaxations that cannot come so near to the hull [eV/atom], unless they may be among "
        "the 20 best.",
        low=0,
        metavar="EV",
    )
    release_within: float = setting(
        0.1,
        "Relax without symmetry what is up to so far above the hull [eV/atom]; losing its "
        "symmetry gains a crystal some hundredths.",
        low=0,
        metavar="EV",
    )
    potential: str = setting(DEFAULT_POTENTIAL, POTENTIAL_HELP, metavar="NAME")
    phonons: int = setting(0, "Compute phonons of the best N.", low=0, metavar="N")

    @property
    def ended_beyond(self) -> float:
        """Where relaxations end early [eV/atom above the hull]: farther than what is released."""
        return max(self.relax_within, self.release_within)

    def __post_init__(self) -> None:
        if self.allocate not in ("likely", "even"):
            raise InputError(f"allocate is {self.allocate!r}; give likely or even")
        check(self)
        if self.relax_best is not None and not self.relax:
            raise InputError("relax_best says how many to relax: ask for relaxation too")
        if self.phonons and not self.relax:
            raise InputError("phonons need relaxed candidates: ask for relaxation too")
        for name in ("explore", "subsystems"):
            if self.allocate == "even" and getattr(self, name) is not None:
                raise InputError(
                    f"{name} is a share of candidates that go to likely settings; leave it out of "
                    "an even spread"
                )
