"""Quantities of crystals that can be predicted, and windows that they may be wanted in.

>>> from langevin_xtal.crystal.properties import Window
>>> window = Window.parse("band_gap=1.1:1.7")
>>> window.probability(1.4, 0.3)                                      # doctest: +ELLIPSIS
0.68...
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langevin_xtal.errors import InputError

WINDOW_ENERGY = 0.05
"""What a candidate counts higher for a probability e times smaller [eV/atom]."""
LEAST_PROBABILITY = 1e-6
"""Smaller ones count as this."""


@dataclass(frozen=True)
class Property:
    """A quantity that can be predicted."""

    title: str
    unit: str
    least: float = -math.inf
    """Smallest value that it can have."""


PROPERTIES: Mapping[str, Property] = {
    "e_form": Property("formation energy", "eV/atom"),
    "e_hull": Property("energy above hull", "eV/atom", 0.0),
    "band_gap": Property("band gap", "eV", 0.0),
}
"""Properties by the names that packed data have for them."""


@dataclass(frozen=True)
class Window:
    """Values that a property is wanted to have, ends included.

    Raises
    ------
    InputError
        For an unknown property, a window upside down, or one that nothing can lie in.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.name not in PROPERTIES:
            raise InputError(
                f"property {self.name!r} is not known; give one of {', '.join(PROPERTIES)}"
            )
        if not self.low < self.high:
            raise InputError(
                f"the window {self} is empty or upside down; give the smaller value first, such "
                f"as {self.name}=1.1:1.7"
            )
        about = PROPERTIES[self.name]
        if self.high <= about.least:
            raise InputError(
                f"no crystal lies in the window {self}: the {about.title} is {about.least:g} "
                f"{about.unit} or more"
            )

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{self.low:g}"
        high = "" if self.high == math.inf else f"{self.high:g}"
        return f"{self.name}={low}:{high}"

    @classmethod
    def parse(cls, text: str) -> Window:
        """``NAME=LOW:HIGH``; one end may be left out.

        Raises
        ------
        InputError
            For another form, and as the class.
        """
        name, equals, values = text.partition("=")
        low, colon, high = (part.strip() for part in values.partition(":"))
        try:
            if not equals or not colon or not (low or high):
                raise ValueError
            ends = float(low) if low else -math.inf, float(high) if high else math.inf
        except ValueError:
            raise InputError(
                f"the target {text!r} should be like band_gap=1.1:1.7, band_gap=1.1: or "
                "e_form=:-0.5"
            ) from None
        return cls(name.strip(), *ends)

    def holds(self, value: float) -> bool:
        """Whether a value lies in the window."""
        return self.low <= value <= self.high

    def probability(self, value: float, error: float) -> float:
        """That a normally distributed property lies in the window.

        Where the window begins at the smallest value there is, all below counts as there.
        """
        least = PROPERTIES[self.name].least
        below = 0.0 if self.low <= least else _normal((self.low - value) / error)
        return max(0.0, _normal((self.high - value) / error) - below)


def _normal(z: float) -> float:
    """Cumulative normal distribution."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def windows_of(target: str | Sequence[str]) -> tuple[Window, ...]:
    """Windows from one text or several, each of another property.

    Raises
    ------
    InputError
        As :meth:`Window.parse`, and for two windows of one property.
    """
    found = tuple(Window.parse(t) for t in ([target] if isinstance(target, str) else target))
    names = [window.name for window in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"there are two windows of {name}; give one")
    return found


def window_energy(probability: float) -> float:
    """What a candidate counts higher [eV/atom] for the probability to lie in a window.

    This is ``-WINDOW_ENERGY · ln p``. Its sum with the energy above hull orders candidates as the
    product of p and a Boltzmann factor of the energy, at k_B T = :data:`WINDOW_ENERGY`, does.
    """
    return -WINDOW_ENERGY * math.log(min(1.0, max(probability, LEAST_PROBABILITY)))
