"""Why a composition does not fit a space group, and what would, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langevin_xtal.symmetry.assignments import count_assignments
from langevin_xtal.symmetry.fitting import fits, smallest_z
from langevin_xtal.symmetry.groups import CRYSTAL_SYSTEMS, SpaceGroup
from langevin_xtal.symmetry.wyckoff import wyckoff_positions


def explain(number: int, formula: Mapping[str, int], z: int) -> str:
    """Why no assignment exists and what would fit, in one sentence.

    Parameters
    ----------
    number
        Space-group number.
    formula
        Element symbol to its number of atoms in one formula unit.
    z
        Formula units in the conventional cell.

    Returns
    -------
    str
        For instance "Cu3Si with Z = 2 (6 Cu and 2 Si) does not fit Pnma (62): its positions hold
        4 or 8 atoms, which cannot add up to 6 Cu and 2 Si; Z = 4 (12 Cu and 4 Si), 8 or 12 fits,
        and Z = 2 in Pmmn (59), Cmmm (65) or Pnnm (58)". Where assignments exist it says how many.
    """
    name, group = _formula(formula), SpaceGroup(number)
    per_unit = list(formula.values())
    counts = [z * n for n in per_unit]
    if fits(number, counts):
        ways = count_assignments(number, counts)
        return f"{name} with Z = {z} fits {group}, in {ways} way{'s' if ways > 1 else ''}"
    given = _atoms(formula, z)
    alone = [e for e, n in zip(formula, counts, strict=True) if not fits(number, [n])]
    if alone:
        sizes = sorted({w.multiplicity for w in wyckoff_positions(number)})
        lacking = _listed([f"{z * formula[e]} {e}" for e in alone], "and")
        why = f"its positions hold {_listed(sizes, 'or')} atoms, which cannot add up to {lacking}"
        why += _single_use(number, [z * formula[e] for e in alone])
    else:
        why = (
            "its positions without freedom hold one site over all elements, and there are too "
            "few of them"
        )
    units = smallest_z(number, per_unit, 24) or (_general_z(number, per_unit),)
    better = f"Z = {units[0]} ({_atoms(formula, units[0])})"
    if len(units) > 1:
        better = _listed([better, *map(str, units[1:3])], "or")
    elsewhere = ""
    near = _nearest_groups(number, counts)
    if near:
        elsewhere = f", and Z = {z} in {_listed(list(map(str, near)), 'or')}"
    return f"{name} with Z = {z} ({given}) does not fit {group}: {why}; {better} fits{elsewhere}"


def _single_use(number: int, counts: Sequence[int]) -> str:
    """A remark where multiplicities would add up if each position held many sites."""
    sizes = [w.multiplicity for w in wyckoff_positions(number)]
    reached = {0}
    for n in range(1, max(counts) + 1):
        if any(n - size in reached for size in sizes):
            reached.add(n)
    return ", as those without freedom hold one site" if reached.issuperset(counts) else ""


def _general_z(number: int, per_unit: Sequence[int]) -> int:
    """The smallest Z that fits; the general position alone makes one of at most its size fit."""
    most = wyckoff_positions(number)[-1].multiplicity
    return next(z for z in range(1, most + 1) if fits(number, [z * n for n in per_unit]))


def _nearest_groups(number: int, counts: Sequence[int], most: int = 3) -> list[SpaceGroup]:
    """Groups that the counts fit: of the same crystal system first, then by number."""

    def distance(other: int) -> tuple[bool, int]:
        return not first <= other <= last, abs(other - number)

    first, last = next((a, b) for _, a, b in CRYSTAL_SYSTEMS if a <= number <= b)
    near = sorted(range(1, 231), key=distance)
    fitting = (SpaceGroup(other) for other in near if fits(other, counts))
    return [group for group, _ in zip(fitting, range(most), strict=False)]


def _formula(formula: Mapping[str, int]) -> str:
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in formula.items())


def _atoms(formula: Mapping[str, int], z: int) -> str:
    return _listed([f"{z * n} {symbol}" for symbol, n in formula.items()], "and")


def _listed(items: Sequence[object], last: str) -> str:
    words = list(map(str, items))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
