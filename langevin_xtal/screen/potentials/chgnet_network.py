"""CHGNet's network on one bond of each kind, with fewer multiplications.

The same function as CHGNet's own, to rounding, with its weights:

* atoms, bonds and angles that symmetry makes equal are computed once
  (:mod:`~langevin_xtal.screen.potentials.bonds`);
* the first layer of a message is linear in the features of its atoms, bonds and angle, so each
  feature is multiplied once, and not once for every message it is part of;
* features of angles after the last use of them are left out;
* one pass backward gives the derivatives by bond vectors, from which forces and stress follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.screen.potentials.bonds import BondFinder, Bonds, Operations

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Of a whole cell; without derivatives those are None."""

    energy: float  #: [eV]
    forces: FloatArray | None = None  #: (N, 3) [eV/Å]
    stress: FloatArray | None = None  #: (3, 3) [eV/Å³]


class Network:
    """CHGNet 0.3.0.

    Parameters
    ----------
    model
        ``chgnet.model.CHGNet``, whose weights are shared.
    device
        Of torch.
    """

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device
        self.to_atoms = [_Gated(layer.twoBody_atom, parts=3) for layer in model.atom_conv_layers]
        self.to_bonds = [_Gated(layer.twoBody_bond, parts=4) for layer in model.bond_conv_layers]
        self.to_angles = [_Gated(layer.twoBody_bond, parts=4) for layer in model.angle_layers]

    def finder(self, operations: Operations | None = None) -> BondFinder:
        """What finds the bonds of a crystal that this network needs."""
        converter = self.model.graph_converter
        return BondFinder(converter.atom_graph_cutoff, converter.bond_graph_cutoff, operations)

    def evaluate(
        self,
        finder: BondFinder,
        lattice: FloatArray,
        frac: FloatArray,
        numbers: NDArray[np.int64],
        *,
        derivatives: bool = True,
    ) -> Evaluation:
        """Energy of a cell, and on request its derivatives.

        Raises
        ------
        ValueError
            For an atom without neighbours.
        """
        import torch

        bonds, operations = finder.bonds(lattice, frac)
        places = bonds.vectors(lattice, frac)
        vectors = torch.tensor(
            places, dtype=torch.float32, device=self.device, requires_grad=derivatives
        )
        with torch.set_grad_enabled(derivatives):
            share = torch.as_tensor(bonds.share, device=self.device)
            energies = self._atoms(bonds, numbers, vectors)
            energy = (energies * share).sum()
        total = float(energy.detach().double()) + self._of_elements(numbers)
        if not derivatives:
            return Evaluation(total)
        pull = torch.autograd.grad(energy, vectors)[0].double().cpu().numpy()
        forces = np.zeros_like(frac)
        np.add.at(forces, bonds.ends[:, 0], pull)
        np.subtract.at(forces, bonds.ends[:, 1], pull)
        stress = places.T @ pull / abs(np.linalg.det(lattice))
        return Evaluation(
            total,
            operations.mean_vectors(forces, lattice),
            operations.mean_tensor((stress + stress.T) / 2, lattice),
        )

    def _of_elements(self, numbers: NDArray[np.int64]) -> float:
        """What the elements contribute whatever the structure [eV]."""
        import torch

        own = self.model.composition_model
        present = torch.as_tensor(numbers - 1, device=self.device)
        share = torch.bincount(present, minlength=own.max_num_elements) / len(numbers)
        with torch.no_grad():
            return len(numbers) * float(own.fc(share))

    def _atoms(self, bonds: Bonds, numbers: NDArray[np.int64], vectors: Tensor) -> Tensor:
        """(A,) energies of atoms [eV]."""
        import torch

        def index(values: NDArray[np.int64]) -> Tensor:
            return torch.as_tensor(values, device=self.device)

        def pick(values: Tensor, rows: Tensor) -> Tensor:
            # indexing by brackets is slow to go backward through
            return values.index_select(0, rows)

        model = self.model
        to, by, along = index(bonds.to), index(bonds.by), index(bonds.along)
        short, apex = index(bonds.short), index(bonds.apex)
        bond, other = index(bonds.bond), index(bonds.other)
        has_angles = len(bonds.apex) > 0

        length = vectors.norm(dim=1)
        of_bond = pick(length, index(bonds.of_bond))
        expansion = model.bond_basis_expansion
        radial = expansion.rbf_expansion_ag(of_bond)
        weight = pick(model.bond_weights_ag(radial), along) * index(bonds.times)[:, None]
        atom_features = model.atom_embedding(index(numbers[bonds.atoms]) - 1)
        bond_features = model.bond_embedding(radial)
        if has_angles:
            angular = expansion.rbf_expansion_bg(pick(of_bond, short))
            short_weight = model.bond_weights_bg(angular)
            angle_weight = pick(short_weight, bond) * pick(short_weight, other)
            angle_weight = angle_weight * index(bonds.angle_times)[:, None]
            unit = vectors / length[:, None]
            sides = index(bonds.sides)
            angle_features = model.angle_embedding(
                model.angle_basis_expansion(pick(unit, sides[:, 0]), pick(unit, sides[:, 1]))
            )
        last = len(self.to_atoms) - 1
        for step, layer in enumerate(model.atom_conv_layers):
            gate = self.to_atoms[step]
            first = pick(gate.part(0, atom_features), to) + pick(
                gate.part(1, bond_features), along
            )
            message = gate.rest(first + pick(gate.part(2, atom_features), by)) * weight
            total = torch.zeros_like(atom_features).index_add(0, to, message)
            atom_features = layer.mlp_out(total) + atom_features
            if step == last or not has_angles:
                continue
            gate, near = self.to_bonds[step], pick(bond_features, short)
            first = pick(gate.part(0, near), bond) + pick(gate.part(1, near), other)
            first = first + gate.part(2, angle_features) + pick(gate.part(3, atom_features), apex)
            message = gate.rest(first) * angle_weight
            total = torch.zeros_like(near).index_add(0, bond, message)
            near = near + model.bond_conv_layers[step].mlp_out(total)
            bond_features = bond_features.index_copy(0, short, near)
            if step == last - 1:
                continue
            gate = self.to_angles[step]
            first = pick(gate.part(0, near), bond) + pick(gate.part(1, near), other)
            first = first + gate.part(2, angle_features) + pick(gate.part(3, atom_features), apex)
            angle_features = gate.rest(first) + angle_features
        return model.mlp(model.readout_norm(atom_features)).view(-1)


class _Gated:
    """CHGNet's GatedMLP whose first layer is applied to each part of the input alone."""

    def __init__(self, layer: Any, parts: int) -> None:
        import torch
        from torch import nn

        core, gate = (
            [m for m in mlp.layers if isinstance(m, nn.Linear)]
            for mlp in (layer.mlp_core, layer.mlp_gate)
        )
        weight = torch.cat([core[0].weight, gate[0].weight]).detach()
        self.parts = [part.contiguous() for part in weight.chunk(parts, dim=1)]
        self.bias = torch.cat([core[0].bias, gate[0].bias]).detach()
        self.second = (core[1], gate[1]) if len(core) > 1 else None
        self.norms = layer.bn1, layer.bn2

    def part(self, k: int, features: Tensor) -> Tensor:
        """The share of part ``k`` of the input in the first layer; the bias is in the first."""
        from torch.nn import functional

        return functional.linear(features, self.parts[k], None if k else self.bias)

    def rest(self, first: Tensor) -> Tensor:
        """Everything after the first layer."""
        from torch.nn import functional

        if self.second is None:
            core, gate = first.chunk(2, dim=1)
        else:
            core, gate = functional.silu(first).chunk(2, dim=1)
            core, gate = self.second[0](core), self.second[1](gate)
        core, gate = self.norms[0](core), self.norms[1](gate)
        return functional.silu(core) * gate.sigmoid()
