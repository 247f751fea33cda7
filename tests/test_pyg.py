"""Multigraphs and packed files in torch-geometric."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, InputError, MissingPackageError
from langevin_xtal.graph import CrystalArrays, GraphSettings, build_multigraph, triplets
from langevin_xtal.graph.contract import edge_rotations

pyg_nn = pytest.importorskip("torch_geometric.nn")
DataLoader = pytest.importorskip("torch_geometric.loader").DataLoader

SETTINGS = GraphSettings(cutoff=5.0)


def some_crystals(count: int) -> tuple[CrystalArrays, np.ndarray]:
    data = reference_dataset().select(range(count))
    crystals = CrystalArrays.of_groups(data.lattice, data.frac, data.site_start, data.group)
    return crystals, data.numbers


class TestToPyg:
    def test_a_batch_is_the_multigraph_of_all(self) -> None:
        crystals, numbers = some_crystals(6)
        graph = build_multigraph(crystals, SETTINGS)
        found = graph.to_pyg(crystals, numbers, dtype=torch.float64)
        assert [data.num_nodes for data in found] == np.diff(crystals.site_start).tolist()
        batch = next(iter(DataLoader(found, batch_size=len(found))))
        pairs, cosines = triplets(graph, crystals)
        assert np.array_equal(batch.edge_index, graph.edge_index)
        assert np.array_equal(batch.triplet_index, pairs)
        assert np.array_equal(batch.triplet_cosine, cosines)
        assert np.array_equal(batch.edge_vec, graph.edge_vec)
        assert np.array_equal(batch.edge_is_long_range, graph.edge_is_long_range)
        assert np.array_equal(batch.z, numbers)
        assert np.array_equal(batch.cell, crystals.lattice)
        assert np.array_equal(batch.multiplicity, graph.multiplicity)

    def test_edges_lead_where_positions_say(self) -> None:
        """From the fields of one crystal alone: operation, shift and cell give the vector."""
        crystals, numbers = some_crystals(8)
        graph = build_multigraph(crystals, SETTINGS)
        for b, data in enumerate(graph.to_pyg(crystals, numbers, dtype=torch.float64)):
            rotations, translations = crystals.operations(b)
            source, target = data.edge_index.numpy()
            op, frac = data.edge_op.numpy(), data.frac.numpy()
            image = np.einsum("eij,ej->ei", rotations[op], frac[target]) + translations[op]
            image = image + data.edge_shift.numpy()
            vec = (image - frac[source]) @ data.cell[0].numpy()
            np.testing.assert_allclose(data.edge_vec.numpy(), vec, atol=1e-9)
            np.testing.assert_allclose(data.edge_dist.numpy(), np.linalg.norm(vec, axis=1))
            np.testing.assert_allclose(data.pos.numpy(), frac @ crystals.lattice[b])

    def test_cosines_are_those_of_turned_edges(self) -> None:
        crystals, numbers = some_crystals(3)
        graph = build_multigraph(crystals, SETTINGS)
        turn = edge_rotations(graph, crystals)
        edges = 0
        for data in graph.to_pyg(crystals, numbers, dtype=torch.float64):
            e, f = data.triplet_index.numpy()
            assert np.array_equal(data.edge_index[1, e], data.edge_index[0, f])
            vec, length = data.edge_vec.numpy(), data.edge_dist.numpy()
            turned = np.einsum("tij,tj->ti", turn[edges + e], vec[f])
            cosine = -(vec[e] * turned).sum(1) / (length[e] * length[f])
            np.testing.assert_allclose(data.triplet_cosine.numpy(), cosine, atol=1e-9)
            edges += data.num_edges

    def test_without_numbers_and_triplets(self) -> None:
        crystals, _ = some_crystals(2)
        found = build_multigraph(crystals, SETTINGS).to_pyg(crystals, with_triplets=False)
        assert not {"z", "triplet_index", "triplet_cosine"} & set(found[0].keys())
        assert found[0].pos.dtype == torch.get_default_dtype()

    def test_other_crystals_are_refused(self) -> None:
        crystals, numbers = some_crystals(3)
        graph = build_multigraph(crystals, SETTINGS)
        with pytest.raises(InputError, match="built from"):
            graph.to_pyg(some_crystals(2)[0])
        with pytest.raises(InputError, match="2 atomic numbers were given"):
            graph.to_pyg(crystals, numbers[:2])

    def test_the_extra_is_named_where_it_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        crystals, _ = some_crystals(1)
        graph = build_multigraph(crystals, SETTINGS)
        monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
        monkeypatch.delitem(sys.modules, "langevin_xtal.graph.pyg", raising=False)
        with pytest.raises(MissingPackageError, match=r"pip install 'langevin-xtal\[pyg\]'"):
            graph.to_pyg(crystals)


def with_volumes(data: PackedDataset) -> PackedDataset:
    """A property that geometry decides: the volume per atom."""
    values = data.volumes / data.atom_counts
    values = np.where(np.arange(len(data)) % 10 == 9, np.nan, values)
    return PackedDataset(
        data.group, data.lattice, data.site_start, data.numbers, data.frac, data.multiplicity,
        data.wyckoff, data.id, {"volume_per_atom": values},
    )  # fmt: skip


class TestDataset:
    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        data = with_volumes(reference_dataset().select(range(60)))
        return data.save(tmp_path_factory.mktemp("pyg") / "small.lxd")

    def test_every_crystal_is_there(self, path: Path) -> None:
        from langevin_xtal.dataset.pyg import PackedGraphs

        graphs, packed = PackedGraphs(path, SETTINGS), PackedDataset.load(path)
        assert len(graphs) == len(packed)
        for k in (0, 17, len(packed) - 1):
            assert graphs[k].id == packed.id[k]
            assert graphs[k].z.tolist() == packed.numbers[packed.sites_of(k)].tolist()
            assert int(graphs[k].group) == packed.group[k]
            assert (
                graphs[k].multiplicity.tolist() == packed.multiplicity[packed.sites_of(k)].tolist()
            )

    def test_crystals_without_the_target_are_left_out(self, path: Path) -> None:
        from langevin_xtal.dataset.pyg import PackedGraphs

        graphs, packed = PackedGraphs(path, target="volume_per_atom"), PackedDataset.load(path)
        known = np.isfinite(packed.properties["volume_per_atom"])
        assert len(graphs) == known.sum() < len(packed)
        values = [float(graphs[k].y) for k in range(len(graphs))]
        np.testing.assert_allclose(values, packed.properties["volume_per_atom"][known], rtol=1e-6)

    def test_unknown_targets_are_refused(self, path: Path) -> None:
        from langevin_xtal.dataset.pyg import PackedGraphs

        with pytest.raises(DataError, match="no property 'band_gap'; it has volume_per_atom"):
            PackedGraphs(path, target="band_gap")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_model_of_torch_geometric_learns(self, path: Path, workers: int) -> None:
        """The loss of a small message-passing network falls far below that of the mean."""
        from langevin_xtal.dataset.pyg import PackedGraphs

        torch.manual_seed(0)
        graphs = PackedGraphs(path, SETTINGS, target="volume_per_atom", with_triplets=False)
        loader = DataLoader(graphs, batch_size=len(graphs), num_workers=workers)
        model = Network()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        batches = list(loader)
        y = torch.cat([batch.y for batch in batches])
        losses = []
        for _ in range(60):
            for batch in batches:
                loss = nn.functional.mse_loss(model(batch), batch.y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert losses[-1] < 0.3 * float(y.var())


class Network(nn.Module):
    """Two convolutions over edges, weighted by distance, and a mean over the atoms of the cell."""

    def __init__(self) -> None:
        super().__init__()
        self.element = nn.Embedding(119, 32)
        self.convolutions = nn.ModuleList(
            pyg_nn.GMMConv(32, 32, dim=1, kernel_size=4, flow="target_to_source") for _ in range(2)
        )
        self.out = nn.Linear(32, 1)

    def forward(self, batch):
        x = self.element(batch.z)
        for convolution in self.convolutions:
            x = x + convolution(x, batch.edge_index, batch.edge_dist[:, None] / 3.0).relu()
        weight = batch.multiplicity[:, None].to(x.dtype)
        total = pyg_nn.global_add_pool(torch.cat([x * weight, weight], 1), batch.batch)
        return 20.0 + 10.0 * self.out(total[:, :-1] / total[:, -1:])[:, 0]
