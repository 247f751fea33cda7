"""Energy above the convex hull of known phases, without a network.

The hull energy of a composition is the least energy per atom of any mixture of reference phases
that has this composition: a linear programme over the phases whose elements all occur in it.

Energies are those of one potential throughout; the shipped table, ``hull_references.npz``, has
CHGNet's at the DFT geometries of the Materials Project (A. Jain et al., APL Materials 1, 011002
(2013), CC-BY 4.0), see ``scripts/make_hull_references.py`` for how it is made.

It holds MP-20's training and validation crystals, and phases of the 2025 release of up to 52 atoms
that lie within 0.01 eV/atom of its hull. Phases of the test splits of MP-20 and MPTS-52 and those
with more atoms are absent, so crystals look more stable than they are. Of 2,600 crystals of
MP-20's validation split whose published energy above hull is known, 98 % of those at most 0.001
eV/atom above the full hull come out within 0.025 of this one; of those more than 0.05 above it,
so do 36 % (41 % without the larger phases). The mean absolute difference is 0.010 eV/atom. These
crystals are among the references themselves.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from langevin_xtal.config.screening import DEFAULT_POTENTIAL
from langevin_xtal.crystal.cell import Cell, reduced_formula
from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.dataset.fetch import Client
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.files import replacing
from langevin_xtal.screen.corrections import mp2020_correction
from langevin_xtal.screen.fetch import materials_project_phases
from langevin_xtal.screen.potentials import (
    CORRECTED,
    UNCORRECTED,
    UNDECLARED,
    Potential,
    load_potential,
)
from langevin_xtal.screen.potentials.base import weights_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FILE = "hull_references.npz"
KEEP = 0.1
"""Phases farther above the hull than this are not worth keeping [eV/atom]."""
SHARE = 1e-6
"""Phases with a smaller share of the atoms do not compete."""

GAPS = (
    "phases of the test splits of MP-20 and MPTS-52 and those with more than 52 atoms in the "
    "primitive cell are absent, so energies above hull are rather too low than too high"
)
"""What CHGNet's shipped table lacks."""
SHIPPED = {
    "chgnet": (FILE, GAPS),
    "sevennet-0": (
        "hull_references_sevennet-0.npz",
        "it has the phases of at most 12 atoms that lie on the published hull and a quarter of "
        "those of 13 to 30, without those of the test splits of MP-20 and MPTS-52, so energies "
        "above hull are rather too low than too high",
    ),
}
"""Tables that come with the package, by potential: file, and what is not in it."""
LISTED = 5
"""Elements of a system whose subsystems are all named in a note."""
OWN = "given by the user"
"""Potential of a table of energies that a user gives."""

_FORMULA = re.compile(r"(?:[A-Z][a-z]?[0-9]+ ?)+")
_PART = re.compile(r"([A-Z][a-z]?)(\d+)")


@dataclass(frozen=True)
class HullResult:
    """Where a crystal lies against the hull of the reference phases."""

    e_above_hull: float | None
    """[eV/atom], negative below the hull, None when unknown."""
    missing: str = ""
    """Why it is unknown."""
    phases: dict[str, float] = field(default_factory=dict)
    """Competing phases (reduced formulas) and the share of the atoms in each."""


@dataclass(frozen=True, eq=False)
class HullReferences:
    """P reference phases, the lowest in energy of each composition.

    Raises
    ------
    DataError
        When the arrays do not fit each other.
    """

    formulas: tuple[str, ...]  #: (P,) such as ``"Cl1 Na1"``, each once
    energy: FloatArray  #: (P,) [eV/atom]
    ids: tuple[str, ...]  #: (P,) where each comes from
    potential: str  #: name of the potential
    version: str  #: of the potential
    statement: str = ""  #: what the energies are
    attribution: str = ""  #: of the structures
    gaps: str = ""  #: what is known to be missing
    energies: str = UNDECLARED  #: convention, as of :class:`~.potentials.Potential`
    _known: dict[str, tuple[float, dict[str, float]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not len(self.formulas) == len(self.energy) == len(self.ids):
            raise DataError(
                f"{len(self.formulas)} formulas, {len(self.energy)} energies and {len(self.ids)} "
                "identifiers of hull references do not fit each other"
            )
        if len(set(self.formulas)) < len(self.formulas):
            raise DataError("a formula occurs twice among the hull references")
        if self.energy.dtype.kind != "f" or not np.isfinite(self.energy).all():
            raise DataError("energies of hull references are not all finite")
        for formula in self.formulas:
            if not isinstance(formula, str) or not _FORMULA.fullmatch(formula):
                raise DataError(f"formula {formula!r} of the hull references is none")

    def __len__(self) -> int:
        return len(self.formulas)

    def __repr__(self) -> str:
        return f"HullReferences({len(self)} phases, {self.version})"

    def describe(self) -> str:
        """One line for reports."""
        said = [self.version] if self.energies == UNDECLARED else [self.version, self.energies]
        return f"hull of {len(self):,} phases, {', '.join(said)}; {self.statement}"

    @cached_property
    def fractions(self) -> FloatArray:
        """(P, 119) share of each element's atoms, by atomic number."""
        table = np.zeros((len(self), len(SYMBOLS)))
        for row, formula in enumerate(self.formulas):
            for symbol, count in _PART.findall(formula):
                table[row, atomic_number(symbol)] = float(count)
        return table / table.sum(axis=1, keepdims=True)

    @cached_property
    def _has(self) -> NDArray[np.bool_]:
        return self.fractions > 0

    @cached_property
    def _elements(self) -> IntArray:
        """(P,) distinct elements of each phase."""
        return self._has.sum(axis=1)

    # -- whose energies may be compared with it

    def check(self, potential: Potential) -> None:
        """Refuse a potential whose energies do not belong with these.

        Raises
        ------
        InputError
            When the table is of another potential, of other weights or of another convention.
        """
        dft = self.potential.startswith("DFT")
        if not dft and self.potential != potential.name:
            raise InputError(
                f"the hull references are of {self.potential!r}, the energies of "
                f"{potential.name!r}: energies of two potentials must not be compared; make a "
                f"table with langevin-xtal hull build --potential {potential.name}"
            )
        if not dft and weights_of(self.version) != potential.weights:
            raise InputError(
                f"the hull references are of {self.version!r}, the energies of "
                f"{potential.version!r}: make a table anew with langevin-xtal hull build"
            )
        if self.energies not in (UNDECLARED, potential.energies) and not self._corrects(potential):
            raise InputError(
                f"the hull references are {self.energies}, the energies of {potential.name!r} are "
                f"{potential.energies}: energies of two conventions must not be compared (behind "
                "a model's file, @corrected or @uncorrected declares its convention)"
            )

    def energy_for(self, cell: Cell, energy_per_atom: float, potential: Potential) -> float:
        """An energy of the potential [eV/atom] as it may be compared with these references.

        Where the references are MP2020-corrected and the potential's energies are not, the
        Materials Project's corrections are added; see :func:`~.corrections.mp2020_correction`.
        """
        if not math.isfinite(energy_per_atom) or not self._corrects(potential):
            return energy_per_atom
        return energy_per_atom + mp2020_correction(cell)

    def _corrects(self, potential: Potential) -> bool:
        return self.energies == CORRECTED and potential.energies == UNCORRECTED

    # -- what there is

    def coverage(self, elements: Sequence[str]) -> dict[tuple[str, ...], int]:
        """Number of phases of each subsystem, the elements first, in the order given.

        A phase counts for the subsystem of exactly its elements.

        Raises
        ------
        RequestError
            For an unknown element.
        """
        symbols = list(dict.fromkeys(elements))
        numbers = [atomic_number(symbol) for symbol in symbols]
        inside = self._has[:, numbers].sum(axis=1) == self._elements
        counts: dict[tuple[str, ...], int] = {
            subset: 0
            for size in range(1, len(symbols) + 1)
            for subset in combinations(symbols, size)
        }
        for row in self._has[np.ix_(inside, numbers)]:
            counts[tuple(s for s, has in zip(symbols, row, strict=True) if has)] += 1
        return counts

    def without(self, elements: Sequence[str]) -> HullReferences:
        """The references without the phases that contain all of ``elements`` and no others.

        Raises
        ------
        RequestError
            For an unknown element.
        """
        numbers = [atomic_number(symbol) for symbol in elements]
        own = self._has[:, numbers].all(axis=1) & (self._elements == len(set(numbers)))
        left = np.flatnonzero(~own)
        return replace(
            self,
            formulas=tuple(self.formulas[k] for k in left),
            energy=self.energy[left],
            ids=tuple(self.ids[k] for k in left),
            _known={},
        )

    # -- the hull

    def energy_above_hull(self, numbers: IntArray, energy_per_atom: float) -> HullResult:
        """How far a crystal lies above the hull of the references.

        Parameters
        ----------
        numbers
            (N,) atomic numbers.
        energy_per_atom
            Of the same potential [eV].
        """
        if not math.isfinite(energy_per_atom):
            return HullResult(None, "it has no energy")
        absent = [SYMBOLS[z] for z in np.unique(numbers) if not self._has[:, z].any()]
        if absent:
            return HullResult(None, f"no reference phase contains {', '.join(absent)}")
        hull, phases = self.hull_energy(numbers)
        if math.isnan(hull):
            return HullResult(None, "no mixture of reference phases has this composition")
        return HullResult(energy_per_atom - hull, "", phases)

    def above_all(self, compositions: Sequence[IntArray], energy: Sequence[float]) -> FloatArray:
        """How far crystals lie above the hull of the references and of all of them.

        The hull of the references alone sorts crystals by how stable their composition is, and
        all polymorphs of the best composition come first. Against this hull a crystal competes
        with the others too.

        Parameters
        ----------
        compositions
            (N,) arrays of atomic numbers of the atoms.
        energy
            (N,) of the same potential [eV/atom].

        Returns
        -------
        FloatArray
            (N,) at least 0 [eV/atom]; NaN where an element has no reference.
        """
        others = np.ones(len(SYMBOLS), dtype=bool)
        for numbers in compositions:
            others[numbers] = False
        inside = np.flatnonzero(~self._has[:, others].any(axis=1))
        lowest = {self.formulas[k]: float(self.energy[k]) for k in inside}
        named = [reduced_formula(numbers) for numbers in compositions]
        for name, own in zip(named, energy, strict=True):
            lowest[name] = min(own, lowest.get(name, math.inf))
        names = tuple(lowest)
        together = replace(
            self, formulas=names, energy=np.array(list(lowest.values())), ids=names, _known={}
        )
        known = np.asarray(self._has.any(axis=0))
        above = np.full(len(named), np.nan)
        for k, (numbers, own) in enumerate(zip(compositions, energy, strict=True)):
            if known[numbers].all():
                above[k] = max(0.0, own - together.hull_energy(numbers)[0])
        return above

    def hull_energy(self, numbers: IntArray) -> tuple[float, dict[str, float]]:
        """Energy of the hull [eV/atom] at a composition, and the phases that make it up.

        NaN and nothing where no mixture of references has the composition.
        """
        formula = reduced_formula(np.asarray(numbers))
        if formula not in self._known:
            self._known[formula] = self._mixture(numbers)
        return self._known[formula]

    def _mixture(self, numbers: IntArray) -> tuple[float, dict[str, float]]:
        elements, counts = np.unique(numbers, return_counts=True)
        rows = np.flatnonzero(self._has[:, elements].sum(axis=1) == self._elements)
        if not len(rows):
            return math.nan, {}
        found = linprog(
            self.energy[rows],
            A_eq=self.fractions[np.ix_(rows, elements)].T,
            b_eq=counts / counts.sum(),
            bounds=(0, None),
            method="highs",
        )
        if not found.success:
            return math.nan, {}
        used = rows[found.x > SHARE]
        shares = found.x[found.x > SHARE]
        order = np.argsort(-shares, kind="stable")
        return float(found.fun), {
            self.formulas[used[k]]: round(float(shares[k]), 6) for k in order
        }

    # -- making

    @classmethod
    def build(
        cls,
        compositions: Sequence[IntArray],
        energy: FloatArray,
        ids: Sequence[str],
        *,
        potential: str,
        version: str,
        statement: str = "",
        attribution: str = "",
        energies: str = UNDECLARED,
        keep: float = KEEP,
    ) -> HullReferences:
        """Of any number of crystals, those a hull needs.

        Parameters
        ----------
        compositions
            Atomic numbers of each crystal's atoms.
        energy
            Energy per atom [eV]; crystals where it is not finite are left out.
        energies
            Convention of the energies.
        keep
            Of each composition the lowest crystal is kept when it lies at most this far above the
            hull [eV/atom].
        """
        lowest: dict[str, int] = {}
        for k in np.flatnonzero(np.isfinite(energy)).tolist():
            formula = reduced_formula(compositions[k])
            if formula not in lowest or energy[k] < energy[lowest[formula]]:
                lowest[formula] = k
        names = sorted(lowest)

        def table(chosen: Sequence[str]) -> HullReferences:
            return cls(
                formulas=tuple(chosen),
                energy=np.array([energy[lowest[name]] for name in chosen], dtype=float),
                ids=tuple(str(ids[lowest[name]]) for name in chosen),
                potential=potential,
                version=version,
                statement=statement,
                attribution=attribution,
                energies=energies,
            )

        every = table(names)
        near = [
            name
            for name, own in zip(names, every.energy.tolist(), strict=True)
            if own - every.hull_energy(compositions[lowest[name]])[0] <= keep
        ]
        return table(near)

    # -- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path``, complete or not at all."""
        with replacing(path, binary=True) as stream:
            np.savez_compressed(
                stream,
                formulas=np.array(self.formulas, dtype=np.str_),
                energy=self.energy.astype(np.float32),
                ids=np.array(self.ids, dtype=np.str_),
                potential=np.array(self.potential),
                version=np.array(self.version),
                statement=np.array(self.statement),
                attribution=np.array(self.attribution),
                energies=np.array(self.energies),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HullReferences:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            When the file is missing, damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                potential = str(stored["potential"])
                # those of scripts/make_hull_references.py do not say
                before = CORRECTED if potential == DEFAULT_POTENTIAL else UNDECLARED
                return cls(
                    formulas=tuple(stored["formulas"].tolist()),
                    energy=stored["energy"].astype(np.float64),
                    ids=tuple(stored["ids"].tolist()),
                    potential=potential,
                    version=str(stored["version"]),
                    statement=str(stored["statement"]),
                    attribution=str(stored["attribution"]),
                    energies=str(stored["energies"]) if "energies" in stored else before,
                )
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{path} is not a table of hull references ({first_line(error)})"
            ) from None

    @classmethod
    def shipped(cls, potential: str = "chgnet") -> HullReferences:
        """The table that comes with the package.

        Raises
        ------
        InputError
            When there is none for that potential.
        """
        if potential not in SHIPPED:
            raise InputError(
                f"there are hull references for {' and '.join(map(repr, SHIPPED))} only, not for "
                f"{potential!r}: make some with langevin-xtal hull build --potential {potential}"
            )
        return _shipped(potential)

    @classmethod
    def from_materials_project(
        cls,
        elements: Sequence[str],
        key: str,
        *,
        potential: str = DEFAULT_POTENTIAL,
        client: Client | None = None,
    ) -> HullReferences:
        """All phases the Materials Project knows of these elements, with their DFT energies.

        They may be compared with CHGNet's, which predicts the same MP2020-corrected energies, and
        with uncorrected ones to which the corrections are added (:meth:`energy_for`), but the
        model's error, some 0.03 eV/atom (B. Deng et al. 2023), does not cancel: it goes into
        every energy above hull. Against the shipped table, whose energies are CHGNet's own, it
        cancels in part.

        Parameters
        ----------
        elements
            Symbols, up to nine.
        key
            The user's own.
        potential
            Whose energies will be compared.
        client
            See :func:`~langevin_xtal.screen.fetch.materials_project_phases`.

        Raises
        ------
        InputError
            When the key is refused, there are too many elements or no phases of them, or the
            potential's energies do not belong with these.
        MissingPackageError
            When mp-api is not installed.
        LangevinXtalError
            When the Materials Project cannot be reached.
        """
        energies = load_potential(potential).energies
        if energies not in (CORRECTED, UNCORRECTED):
            raise InputError(
                f"energies of potential {potential!r} are {energies!r}, those of the Materials "
                f"Project {CORRECTED!r}: they must not be compared (behind a model's file, "
                "@corrected or @uncorrected declares its convention)"
            )
        phases, version = materials_project_phases(elements, key, client=client)
        if not phases:
            raise InputError(
                f"the Materials Project has no phase of {', '.join(sorted(set(elements)))}"
            )
        return cls.build(
            [phase.numbers for phase in phases],
            np.array([phase.energy for phase in phases]),
            [phase.id for phase in phases],
            potential=f"DFT, {CORRECTED}",
            version=f"Materials Project {version}",
            statement=(
                "DFT energies (PBE and PBE+U, MP2020 corrections), so that the error of the "
                "potential, some 0.03 eV/atom, is in every energy above hull"
            ),
            attribution="Materials Project, CC-BY 4.0, A. Jain et al., APL Materials 1, 011002 "
            "(2013)",
            energies=CORRECTED,
            keep=math.inf,
        )


def coverage_note(elements: Sequence[str], references: HullReferences | None = None) -> str:
    """What the hull of a chemical system rests on, and what is missing, in a sentence or two.

    Parameters
    ----------
    elements
        Symbols of the system.
    references
        The shipped ones by default.

    Raises
    ------
    RequestError
        For an unknown element.
    """
    table = HullReferences.shipped() if references is None else references
    counts = table.coverage(elements)
    symbols = list(dict.fromkeys(elements))
    name = "-".join(symbols)
    known = {subset: count for subset, count in counts.items() if count}
    parts = [f"{'-'.join(subset)} {count}" for subset, count in known.items()]
    if len(symbols) > LISTED:
        sizes = range(1, len(symbols) + 1)
        by_size = {n: sum(c for subset, c in known.items() if len(subset) == n) for n in sizes}
        parts = [f"{count} of {n} elements" for n, count in by_size.items() if count]
    total = sum(counts.values())
    note = f"{total} reference phase{'' if total == 1 else 's'} in {name}"
    note += f" ({', '.join(parts)})" if parts else ""
    alone = [symbol for symbol in symbols if not counts[(symbol,)]]
    if alone:
        note += (
            f"; none of {', '.join(alone)} alone, so that energies above hull of crystals with "
            f"{'it' if len(alone) == 1 else 'them'} may be unknown"
        )
    empty = ["-".join(subset) for subset in counts if len(subset) > 1 and subset not in known]
    if empty and len(symbols) <= LISTED:
        note += f"; none of {', '.join(empty)}"
    elif empty:
        note += f"; {len(empty)} of {len(counts)} subsystems have none"
    return note + (f"; {table.gaps}" if table.gaps else "")


@cache
def _shipped(potential: str) -> HullReferences:
    name, gaps = SHIPPED[potential]
    with resources.as_file(resources.files("langevin_xtal.screen").joinpath(name)) as path:
        return replace(HullReferences.load(path), gaps=gaps)
