"""VASP's POSCAR and CONTCAR, of versions 4 to 6.

Written here because the readers at hand leave the coordinates of a Cartesian file with a negative
scale unscaled, know one scale factor only, or make elements up where the file names none.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import RejectError
from langevin_xtal.structures.record import MOST_ATOMS, ReadStructure

FloatArray = NDArray[np.float64]
_FLOAT = re.compile(r"[+-]?(?:\d{1,20}\.?\d{0,30}|\.\d{1,30})(?:[eEdD][+-]?\d{1,3})?")
_SPECIES = re.compile(r"([A-Za-z]{1,3})(?:_[A-Za-z0-9_.]*)?(?:/[0-9a-fA-F]*)?(?:\d*[+-]\d*)?")
_WORD = re.compile(r"[A-Za-z]{1,2}\b|[A-Z][a-z]?")


def looks_like_poscar(text: str) -> bool:
    """Whether the first lines are those of a POSCAR: a scale and three rows of a cell."""
    lines = text.split("\n", 9)
    if len(lines) < 7:
        return False
    scale = _numbers(lines[1])
    return len(scale) in (1, 3) and all(len(_numbers(line)) == 3 for line in lines[2:5])


def parse_poscar(text: str) -> ReadStructure:
    """The crystal of a POSCAR.

    Raises
    ------
    RejectError
        When it is none, does not name its elements, or breaks off.
    """
    lines = text.splitlines()
    if len(lines) < 7:
        raise RejectError("not a POSCAR", "it has fewer than 7 lines")
    rows = np.array([_three(lines, k, "a row of the cell") for k in (2, 3, 4)])
    lattice, factors = _scaled(rows, lines[1])
    place, symbols, counts, notes = _species(lines)
    total = sum(counts)
    if total > MOST_ATOMS:
        raise RejectError(f"more than {MOST_ATOMS} atoms", str(total))
    if not total:
        raise RejectError("there are no atoms")
    selective = _at(lines, place)[:1] in ("s", "S")
    place += selective
    cartesian = _at(lines, place)[:1] in ("c", "C", "k", "K")
    if not _at(lines, place):
        raise RejectError("not a POSCAR", f"line {place + 1} should be Direct or Cartesian")
    place += 1
    given = [line for line in lines[place : place + total] if len(_numbers(line)) == 3]
    if len(given) < total:
        first = next(
            (k for k in range(total) if len(_numbers(_at(lines, place + k))) < 3), len(given)
        )
        raise RejectError(
            "the number of atoms and of positions differ",
            f"{total} atoms are announced, {first} positions are given",
        )
    more = place + total
    while len(_numbers(_at(lines, more))) == 3:  # velocities come after an empty line
        more += 1
    if more > place + total:
        raise RejectError(
            "the number of atoms and of positions differ",
            f"{total} atoms are announced, {more - place} positions are given",
        )
    points = np.array([_three(lines, place + k, "a position") for k in range(total)])
    frac: FloatArray = points
    if cartesian and _sound(lattice):
        frac = (points * factors) @ np.linalg.inv(lattice)
    if symbols is None:
        symbols = _trailing(lines[place : place + total], selective, counts)
        notes = []
    numbers = np.repeat([_number(symbol) for symbol in symbols], counts)
    fixed = _fixed(lines[place : place + total]) if selective else None
    rest = [line for line in lines[place + total :] if line.strip()]
    if any(_numbers(line) and any(_numbers(line)) for line in rest):
        notes.append("what follows the positions (velocities) is not used")
    return ReadStructure(
        id="",
        cell=(lattice, frac, numbers.astype(np.int64)),
        fixed=fixed if fixed is not None and fixed.any() else None,
        notes=tuple(notes),
    )


def _numbers(line: str) -> list[float]:
    """Up to three numbers at the beginning of a line."""
    found = []
    for word in line.split()[:3]:
        if not _FLOAT.fullmatch(word):
            break
        found.append(float(word.lower().replace("d", "e")))
    return found


def _three(lines: list[str], k: int, what: str) -> list[float]:
    found = _numbers(_at(lines, k))
    if len(found) < 3:
        raise RejectError("not a POSCAR", f"line {k + 1} should be {what}, three numbers")
    return found


def _at(lines: list[str], k: int) -> str:
    return lines[k].strip() if k < len(lines) else ""


def _sound(lattice: FloatArray) -> bool:
    return bool(np.isfinite(lattice).all()) and abs(float(np.linalg.det(lattice))) > 1e-9


def _scaled(rows: FloatArray, line: str) -> tuple[FloatArray, FloatArray]:
    """The cell, and the factors of Cartesian positions."""
    scale = _numbers(line)
    if len(scale) == 3:
        if min(scale) <= 0:
            raise RejectError("not a POSCAR", "three scale factors must all be positive")
        factors = np.array(scale)
    elif not scale or not scale[0]:
        raise RejectError("not a POSCAR", "line 2 should be a scale factor")
    elif scale[0] < 0:  # the volume
        volume = abs(float(np.linalg.det(rows)))
        if not volume > 0:
            raise RejectError("the cell is flat", "its volume is 0")
        factors = np.full(3, (-scale[0] / volume) ** (1 / 3))
    else:
        factors = np.full(3, scale[0])
    return rows * factors, factors


def _species(lines: list[str]) -> tuple[int, list[str] | None, list[int], list[str]]:
    """Place of the line after the counts, symbols (None without any), counts, and notes."""
    words = lines[5].split()
    if words and not words[0].isdigit():
        symbols = []
        for word in words:
            found = _SPECIES.fullmatch(word)
            if not found:
                _check_comment(word, 6)
                break
            symbols.append(found[1])
        counts = _counts(_at(lines, 6), 7)
        if len(symbols) < len(counts) or not symbols:
            raise RejectError(
                "symbols and counts of elements differ in number",
                f"{' '.join(words)[:60]} and {' '.join(map(str, counts))[:60]}",
            )
        if len(symbols) > len(counts):
            raise RejectError(
                "symbols and counts of elements differ in number",
                f"{' '.join(symbols)[:60]} and {' '.join(map(str, counts))[:60]}",
            )
        return 7, symbols, counts, []
    counts = _counts(lines[5], 6)
    title = lines[0].split()
    if len(title) == len(counts) and all(word in SYMBOLS[1:] for word in title):
        return 6, title, counts, ["the elements are taken from the first line"]
    return 6, None, counts, []


def _check_comment(word: str, number: int) -> None:
    """
    Raises
    ------
    RejectError
        When a word that is neither symbol nor count does not begin a comment.
    """
    if word[0] not in "!#%;(":
        raise RejectError("not a POSCAR", f"line {number} holds {word[:40]!r}")


def _counts(line: str, number: int) -> list[int]:
    counts: list[int] = []
    for word in line.split():
        if not re.fullmatch(r"\d{1,9}", word):
            if counts:
                _check_comment(word, number)
            break
        counts.append(int(word))
    if not counts:
        raise RejectError("not a POSCAR", f"line {number} should be the counts of the elements")
    return counts


def _trailing(lines: list[str], selective: bool, counts: list[int]) -> list[str]:
    """Symbols behind the positions, one for each count."""
    symbols: list[str] = []
    at = 0
    for count in counts:
        names = set()
        for line in lines[at : at + count]:
            words = line.split()[6 if selective else 3 :]
            names.add(words[0] if words else "")
        at += count
        name = names.pop() if len(names) == 1 else ("" if count else "H")
        found = _SPECIES.fullmatch(name)
        if not found:
            raise RejectError(
                "the POSCAR does not name its elements",
                "add a line of symbols above the counts",
            )
        symbols.append(found[1])
    return symbols


def _number(symbol: str) -> int:
    symbol = {"D": "H", "T": "H"}.get(symbol, symbol)
    if symbol in SYMBOLS[1:]:
        return SYMBOLS.index(symbol)
    guess = symbol.capitalize()
    hint = f"; did you mean {guess}?" if guess in SYMBOLS[1:] else ""
    raise RejectError("unknown element", f"{symbol} is no element symbol{hint}")


def _fixed(lines: list[str]) -> NDArray[np.bool_]:
    """(N, 3) True where selective dynamics has F."""
    rows = []
    for line in lines:
        flags = [word.strip(".").upper()[:1] for word in line.split()[3:6]]
        rows.append([flag == "F" for flag in [*flags, "T", "T", "T"][:3]])
    return np.array(rows)
