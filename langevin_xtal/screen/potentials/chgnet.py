"""CHGNet 0.3.0, whose weights come with its package.

B. Deng et al., Nature Machine Intelligence 5, 1031 (2023); BSD-3. Trained on MPtrj with
MP2020-corrected energies.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache, partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.extras import require
from langevin_xtal.screen.potentials.base import CORRECTED, TRAINED_ON_MPTRJ, Potential
from langevin_xtal.screen.potentials.bonds import BondFinder, Operations
from langevin_xtal.screen.potentials.chgnet_network import Network

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

CHGNET_WEIGHTS = "0.3.0"
CHGNET_ELEMENTS = TRAINED_ON_MPTRJ
"""Atomic numbers CHGNet 0.3.0 was trained on.

It has an embedding for 1 to 94, but those of Po, At, Rn, Fr and Ra still have the length of their
random start (7.5 to 8.8, where the others have 11.7 to 32.4): MPtrj has 89 elements.
"""


def chgnet(name: str, device: str) -> Potential:
    """CHGNet 0.3.0.

    Raises
    ------
    MissingPackageError
        When its package is not installed.
    """
    require("chgnet", "screen", "the potential chgnet")
    return Potential(
        name=name,
        version=f"chgnet {metadata.version('chgnet')}, weights {CHGNET_WEIGHTS}",
        energies=CORRECTED,
        elements=CHGNET_ELEMENTS,
        calculator=lambda: _chgnet_calculator(device),
        licence="BSD-3-Clause",
        energy=partial(_chgnet_energy, device=device),
    )


@cache
def _chgnet(device: str) -> Any:
    """The model, without gradients of its weights."""
    model = require("chgnet.model", "screen", "the potential chgnet").CHGNet
    with contextlib.redirect_stdout(io.StringIO()):  # it says how many weights it has
        loaded = model.load(model_name=CHGNET_WEIGHTS, use_device=device, verbose=False)
    loaded.eval()
    for weight in loaded.parameters():
        weight.requires_grad_(False)
    return loaded


@cache
def _network(device: str) -> Network:
    return Network(_chgnet(device), device)


@cache
def _chgnet_class() -> type[Calculator]:
    """The calculator's class, made when it is needed: ASE is slow to import."""
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from ase.stress import full_3x3_to_voigt_6_stress

    class ChgnetCalculator(Calculator):
        """Energy [eV], forces [eV/Å] and stress [eV/Å³] of CHGNet.

        Of atoms whose symmetry a constraint keeps
        (:func:`~langevin_xtal.screen.fixing.kept_symmetry`), one bond of each orbit is computed.
        """

        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

        def __init__(self, network: Network) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.network = network
            self._finder: BondFinder | None = None
            self._of: tuple[bytes, Operations | None] | None = None

        def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
            """What has changed since the last calculation; ASE's own way takes longer than a
            small network."""
            last = self.atoms
            if last is None:
                return ["positions", "numbers", "cell"]
            old = last.cell.array, last.positions, last.numbers
            new = atoms.cell.array, atoms.positions, atoms.numbers
            names = "cell", "positions", "numbers"
            return [n for n, a, b in zip(names, old, new, strict=True) if not np.array_equal(a, b)]

        def calculate(
            self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = None
        ) -> None:
            """Everything at once, whatever is asked for."""
            now: Atoms = self.atoms if atoms is None else atoms  # type: ignore[assignment]
            found = self.network.evaluate(self._finder_of(now), *_arrays(now))
            self.atoms = Atoms(now.numbers, now.positions, cell=now.cell, pbc=True)
            self.results = {
                "energy": found.energy,
                "free_energy": found.energy,
                "forces": found.forces,
                "stress": full_3x3_to_voigt_6_stress(found.stress),
            }

        def _finder_of(self, atoms: Atoms) -> BondFinder:
            """The one used before, unless these are other atoms or of other symmetry."""
            found = (getattr(c, "operations", None) for c in atoms.constraints)
            operations = next((o for o in found if isinstance(o, Operations)), None)
            numbers = atoms.numbers.tobytes()
            if self._finder is None or self._of != (numbers, operations):
                self._finder = self.network.finder(operations)
                self._of = numbers, operations
            return self._finder

    return ChgnetCalculator


def _chgnet_energy(atoms: Atoms, device: str) -> float:
    """Energy of all atoms [eV], without what derivatives need."""
    network = _network(device)
    return network.evaluate(network.finder(), *_arrays(atoms), derivatives=False).energy


def _arrays(atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Lattice, fractional coordinates and atomic numbers."""
    return atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers


def _chgnet_calculator(device: str) -> Calculator:
    factory: Any = _chgnet_class()
    made: Calculator = factory(_network(device))
    return made
