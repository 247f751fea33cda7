"""Chemical formulas as people write them: brackets, hydrates, subscripts.

>>> whole_counts("K(CuSi)2")
{'K': 1, 'Cu': 2, 'Si': 2}
>>> whole_counts("CuSO4·5H2O")
{'Cu': 1, 'S': 1, 'O': 9, 'H': 10}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.errors import RequestError

_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉․。", "0123456789..")
_DOTS = re.compile(r"[·•∙⋅‧*]")
_WATER = re.compile(r"\.(?=\d{0,3}[HD]2O$)|\.(?=[A-Z(\[])")
"""A full stop that stands for the raised dot of a hydrate or double salt."""
_TOKEN = re.compile(r"([A-Z][a-z]?)|([(\[{])|([)\]}])")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+", re.ASCII)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_LONGEST = 200
_ISOTOPES = {"D": "H", "T": "H"}


def amounts(formula: str, *, isotopes: bool = False) -> dict[str, Fraction]:
    """Amount of each element of a formula, elements in the order they first appear.

    Parameters
    ----------
    formula
        Symbols and numbers; brackets of any kind; parts joined by a raised dot, the later ones
        with a number in front; subscripts; blanks anywhere between.
    isotopes
        Count D and T as H.

    Raises
    ------
    RequestError
        For text that is no formula and unknown elements.
    """
    shown = formula if len(formula) <= 60 else formula[:60] + "…"
    text = re.sub(r"\s+", "", formula.translate(_SUBSCRIPTS))
    if not text or len(text) > _LONGEST:
        raise _unreadable(shown)
    total: dict[str, Fraction] = {}
    for place, part in enumerate(_DOTS.split(_WATER.sub("·", text))):
        front = _NUMBER.match(part) if place else None
        factor = Fraction(front[0]) if front else Fraction(1)
        for symbol, amount in _part(part[front.end() :] if front else part, shown, isotopes):
            total[symbol] = total.get(symbol, Fraction(0)) + factor * amount
    return total


def whole_counts(formula: str) -> dict[str, int]:
    """The same, of an ordered crystal: whole numbers.

    Raises
    ------
    RequestError
        For text that is no formula, and for fractions; the message gives the whole numbers.
    """
    found = amounts(formula)
    if all(value.denominator == 1 for value in found.values()):
        return {symbol: int(value) for symbol, value in found.items()}
    unit = math.lcm(*(value.denominator for value in found.values()))
    whole = {symbol: int(value * unit) for symbol, value in found.items()}
    shared = math.gcd(*whole.values())
    hint = formula_text({symbol: n // shared for symbol, n in whole.items()} if shared else whole)
    raise RequestError(
        f"formula {formula!r} has fractions, and crystals here are ordered: give whole numbers, "
        f"such as {hint}"
    )


def formula_text(counts: Mapping[str, int]) -> str:
    """``{"Na": 1, "Cl": 2}`` to ``"NaCl2"``."""
    return "".join(f"{symbol}{n if n != 1 else ''}" for symbol, n in counts.items())


def _part(text: str, shown: str, isotopes: bool) -> list[tuple[str, Fraction]]:
    """(symbol, amount) of every mention, brackets multiplied out."""
    stack: list[tuple[str, list[tuple[str, Fraction]]]] = [("", [])]
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise _unreadable(shown)
        place = token.end()
        if token[2]:
            if len(stack) > 20:
                raise _unreadable(shown)
            stack.append((_PAIRS[token[2]], []))
            continue
        amount = _NUMBER.match(text, place)
        times = Fraction(amount[0]) if amount else Fraction(1)
        place = amount.end() if amount else place
        if token[1]:
            symbol = _ISOTOPES.get(token[1], token[1]) if isotopes else token[1]
            if symbol not in SYMBOLS[1:]:
                atomic_number(symbol)
            stack[-1][1].append((symbol, times))
        else:
            closing, inside = stack.pop()
            if closing != token[3] or not inside:
                raise _unreadable(shown)
            stack[-1][1].extend((symbol, n * times) for symbol, n in inside)
    if len(stack) > 1 or not stack[0][1]:
        raise _unreadable(shown)
    return stack[0][1]


def _unreadable(shown: str) -> RequestError:
    return RequestError(
        f"formula {shown!r} cannot be read; write element symbols and whole numbers, such as "
        "Cu2KSi, Ca(OH)2 or CuSO4·5H2O"
    )
