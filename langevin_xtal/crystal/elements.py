"""Element symbols and atomic numbers, without importing a chemistry library."""

from __future__ import annotations

from langevin_xtal.errors import RequestError

_TEXT = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se
    Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb
    Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm
    Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""

SYMBOLS: tuple[str, ...] = ("X", *_TEXT.split())
"""Symbol of each atomic number; index 0 is no element."""

_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}


def atomic_number(symbol: str) -> int:
    """Atomic number of an element symbol.

    Raises
    ------
    RequestError
        When there is no such element.
    """
    if symbol not in _NUMBERS:
        guess = symbol.capitalize()
        hint = f"; did you mean {guess}?" if guess in _NUMBERS else ""
        raise RequestError(f"{symbol!r} is not an element symbol{hint or ', such as Cu or Si'}")
    return _NUMBERS[symbol]


def period_and_group(number: int) -> tuple[int, int]:
    """Row (1 to 7) and column (1 to 18) of an element; lanthanides and actinides count as 3.

    >>> period_and_group(29), period_and_group(64)
    ((4, 11), (6, 3))
    """
    period, first = 1, 1
    for length in (2, 8, 8, 18, 18, 32, 32):
        if number < first + length:
            break
        first += length
        period += 1
    place, length = number - first, (2, 8, 8, 18, 18, 32, 32)[period - 1]
    if place < (1 if period == 1 else 2):
        return period, place + 1
    from_end = first + length - 1 - number
    return period, max(3, 18 - from_end)
