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

from langevin_xtal.extras import require
from langevin_xtal.screen.potentials.base import CORRECTED, TRAINED_ON_MPTRJ, Potential

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
    loaded.graph_converter.set_isolated_atom_response("error")
    return loaded


@cache
def _chgnet_class() -> type[Calculator]:
    """The calculator's class, made when it is needed: ASE and torch are slow to import.

    CHGNet's own calculator goes backward through the network twice (forces, then stress), each
    time building a graph for second derivatives, and predicts magnetic moments. One pass for both
    derivatives gives the same numbers in half the time.
    """
    import torch
    from ase.calculators.calculator import Calculator
    from ase.stress import full_3x3_to_voigt_6_stress

    batched = require("chgnet.model.model", "screen", "the potential chgnet").BatchedGraph

    class ChgnetCalculator(Calculator):
        """Energy [eV], forces [eV/Å] and stress [eV/Å³] of CHGNet."""

        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

        def __init__(self, model: Any, device: str) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.model = model
            self.device = device

        def calculate(
            self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = None
        ) -> None:
            """Everything at once, whatever is asked for."""
            super().calculate(atoms, properties or ["energy"], system_changes or [])  # type: ignore[no-untyped-call]
            now: Atoms = self.atoms  # type: ignore[assignment]
            model = self.model
            graph = _graph(now, model).to(self.device)
            batch = batched.from_graphs(
                [graph],
                bond_basis_expansion=model.bond_basis_expansion,
                angle_basis_expansion=model.angle_basis_expansion,
                compute_stress=True,
            )
            count = len(now)
            energy = model._compute(batch)["e"].sum() * count
            at_rest, strain = torch.autograd.grad(
                energy, [batch.atom_positions[0], batch.strains[0]]
            )
            total = float(energy.double() + count * model.composition_model([graph]).sum())
            stress = strain.double().cpu().numpy() / now.get_volume()
            self.results = {
                "energy": total,
                "free_energy": total,
                "forces": -at_rest.double().cpu().numpy(),
                "stress": full_3x3_to_voigt_6_stress((stress + stress.T) / 2),
            }

    return ChgnetCalculator


def _chgnet_energy(atoms: Atoms, device: str) -> float:
    """Energy of all atoms [eV], without what derivatives need."""
    import torch

    batched = require("chgnet.model.model", "screen", "the potential chgnet").BatchedGraph
    model = _chgnet(device)
    graph = _graph(atoms, model).to(device)
    with torch.no_grad():
        batch = batched.from_graphs(
            [graph],
            bond_basis_expansion=model.bond_basis_expansion,
            angle_basis_expansion=model.angle_basis_expansion,
        )
        energy = model._compute(batch)["e"].sum()
        own = model.composition_model([graph]).sum()
    return float(len(atoms) * (energy.double() + own))


def _graph(atoms: Atoms, model: Any) -> Any:
    """CHGNet's graph of a crystal."""
    from pymatgen.core import Lattice, Structure

    places = atoms.get_scaled_positions(wrap=False)
    return model.graph_converter(Structure(Lattice(atoms.cell.array), atoms.numbers, places))


def _chgnet_calculator(device: str) -> Calculator:
    factory: Any = _chgnet_class()
    made: Calculator = factory(_chgnet(device), device)
    return made
