"""Model files: what was saved comes back; anything else is one CheckpointError."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import langevin_xtal as lx
from langevin_xtal.cli import run
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model import checkpoint
from langevin_xtal.model.checkpoint import (
    MODEL_FORMAT,
    CrystalModel,
    config_from_dict,
    load_model,
    save_model,
)
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import SIZES, EdgeNetwork, NetworkConfig
from langevin_xtal.model.properties import shipped_properties
from langevin_xtal.model.proposal import Proposal
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.model.tensor_file import (
    HEADER,
    HEADER_CHECKSUM,
    read_tensors,
    weights_hash,
    write_tensors,
)


def header_of(path: Path) -> dict[str, Any]:
    return read_tensors(path, MODEL_FORMAT)[1]


def rewrite(source: Path, target: Path, **changes: Any) -> Path:
    """The same tensors under a header with other entries, as versions before 0.6 wrote it."""
    header = header_of(source) | changes
    header.pop(HEADER_CHECKSUM)
    save_file(load_file(source), target, metadata={HEADER: json.dumps(header)})
    return target


def refusal(path: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_round_trip(tiny_model: CrystalModel, tiny_path: Path) -> None:
    loaded = load_model(tiny_path)
    assert loaded.name == "tiny"
    assert loaded.hash == tiny_model.hash
    assert loaded.levels == tiny_model.levels
    assert loaded.card == tiny_model.card
    assert loaded.network.config == tiny_model.network.config
    mine, theirs = tiny_model.network.state_dict(), loaded.network.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    for f in dataclasses.fields(Statistics):
        a, b = getattr(tiny_model.statistics, f.name), getattr(loaded.statistics, f.name)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert b.dtype == np.float64
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_saving_what_was_loaded_gives_the_same_file(tiny_path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(again, load_model(tiny_path))
    assert again.read_bytes() == tiny_path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.safetensors"]


def test_the_prior_comes_back(
    tiny_model: CrystalModel, assigning_model: CrystalModel, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, assigning_model)
    loaded = load_model(path)
    assert loaded.hash == assigning_model.hash != tiny_model.hash
    assert assigning_model.prior is not None
    assert loaded.prior is not None
    mine, theirs = assigning_model.prior.state_dict(), loaded.prior.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    tensors, header = read_tensors(path, MODEL_FORMAT)
    write_tensors(path, {k: v for k, v in tensors.items() if k != "prior.bias"}, header)
    assert "WyckoffPrior" in refusal(path)


def test_the_proposal_comes_back(
    proposing_model: CrystalModel, assigning_model: CrystalModel, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, proposing_model)
    loaded = load_model(path)
    assert loaded.hash == proposing_model.hash != assigning_model.hash
    assert set(loaded.parts()) == {"prior", "proposal"}
    assert proposing_model.proposal is not None
    assert loaded.proposal is not None
    assert loaded.proposal.config == proposing_model.proposal.config
    mine, theirs = proposing_model.proposal.state_dict(), loaded.proposal.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert not any(p.requires_grad for p in loaded.proposal.parameters())
    assert not loaded.proposal.training


def test_who_may_read_a_model(tiny_model: CrystalModel, tmp_path: Path) -> None:
    """As of any file the user writes."""
    save_model(tmp_path / "m.safetensors", tiny_model)
    (tmp_path / "other").write_text("")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_several_proposals_come_back_in_half_the_space(
    proposing_model: CrystalModel, tmp_path: Path
) -> None:
    """Where half precision holds their weights; to the last bit, and with the same hash."""
    one = proposing_model.proposal
    assert one is not None
    model = dataclasses.replace(proposing_model, proposal=Proposal.of_members([one, one]))
    sizes = []
    for halved in (False, True):
        assert model.proposal is not None
        if halved:
            for weights in model.proposal.parameters():
                weights.copy_(weights.half())
        save_model(tmp_path / "m.safetensors", model)
        sizes.append((tmp_path / "m.safetensors").stat().st_size)
        loaded = load_model(tmp_path / "m.safetensors")
        assert loaded.hash == model.hash
        assert loaded.proposal is not None
        assert loaded.proposal.config.members == 2
        mine, theirs = model.proposal.state_dict(), loaded.proposal.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(theirs[k].dtype == torch.float32 for k in theirs)
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    weights = sum(w.numel() for w in model.proposal.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "width 32 is not a multiple of 3 heads"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"width": "32"}, "width = '32'"),
        ({"layers": 0}, "layers is 0"),
        ({"layers": 2}, "does not fit its own configuration"),
        ({"width": 64}, "does not fit its own configuration"),
        ({"depth": 1}, "unknown keys ['depth']"),
    ],
)
def test_configuration_of_the_proposal(
    proposing_model: CrystalModel, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, proposing_model)
    parts = header_of(path)["parts"]
    parts["proposal"] |= changes
    assert words in refusal(rewrite(path, path, parts=parts))


def test_unknown_parts_are_refused(tiny_path: Path, tmp_path: Path) -> None:
    path = rewrite(tiny_path, tmp_path / "m.safetensors", parts={"oracle": {}})
    assert "its parts should be a table with some of" in refusal(path)


def test_parts_without_their_tensors_are_refused(tiny_path: Path, tmp_path: Path) -> None:
    for name in ("prior", "proposal"):
        path = rewrite(tiny_path, tmp_path / "m.safetensors", parts={name: {}})
        assert "does not fit its own configuration" in refusal(path)


def test_hash_is_of_names_and_values() -> None:
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    value = weights_hash(state)
    content = b"a" + np.ones(4, "f4").tobytes() + b"b" + np.arange(3, dtype="f4").tobytes()
    assert value == hashlib.sha256(content).hexdigest()[:16]
    assert value == weights_hash(dict(reversed(state.items())))
    assert value != weights_hash({"b": torch.arange(3.0), "c": torch.ones(2, 2)})
    assert value != weights_hash(state | {"a": torch.ones(2, 2).index_fill(0, torch.tensor(0), 2)})
    assert weights_hash({"a": torch.ones(2, 3).T}) == weights_hash({"a": torch.ones(3, 2)})


def test_loaded_and_kept_models_sample_alike(tiny_model: CrystalModel, tiny_path: Path) -> None:
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.sampling.samplers import Ancestral

    requests = [lx.Request(225, {"Na": 1, "Cl": 1})] * 6
    options = SampleOptions(sampler=Ancestral(levels=4), workers=1)
    # the cells start from statistics, which the file keeps in single precision
    kept = lx.sample(requests, load_model(tiny_path), 1, options=options)
    again = lx.sample(requests, load_model(tiny_path), 1, options=options)
    direct = {c.index: c for c in lx.sample(requests, tiny_model, 1, options=options)}
    assert kept
    for a, b in zip(kept, again, strict=True):
        assert np.array_equal(a.frac, b.frac)
        np.testing.assert_allclose(a.lattice, direct[a.index].lattice, atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_truncated(tiny_path: Path, tmp_path: Path, share: float) -> None:
    data = tiny_path.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    assert "truncated or not a safetensors file" in refusal(path)


def test_truncated_by_a_byte_or_grown(tiny_path: Path, tmp_path: Path) -> None:
    data = tiny_path.read_bytes()
    for k, damaged in enumerate((data[:-1], data + b"\0", data[:7], data[:8], data[1:])):
        path = tmp_path / f"{k}.safetensors"
        path.write_bytes(damaged)
        assert "truncated or not a safetensors file" in refusal(path)


def test_flipped_bytes_never_pass(
    tiny_model: CrystalModel, tiny_path: Path, tmp_path: Path
) -> None:
    """A damaged header is refused, or harmless; damaged numbers are always refused."""
    data = tiny_path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.safetensors"
    places = [*rng.integers(0, start, 250), *rng.integers(start, len(data), 60), *range(10)]
    loaded, refusals = 0, []
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            model = load_model(path)
        except CheckpointError as error:
            refusals.append(str(error))
        else:
            loaded += 1
            assert place < start
            assert model.hash == tiny_model.hash
    assert len(refusals) > loaded
    assert not any("\n" in text for text in refusals)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    assert "not written by langevin-xtal" in refusal(path)
    save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"})
    assert "not written by langevin-xtal" in refusal(path)
    for text in ("[1]", "{}", "null", '"x"', "{", "[" * 100_000):
        save_file({"weight": torch.ones(3)}, path, metadata={HEADER: text})
        assert refusal(path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    assert "not a safetensors file" in refusal(path)
    torch.save({"a": Trap()}, path)
    assert "not a safetensors file" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_other_format(tiny_path: Path, tmp_path: Path) -> None:
    for other in ("langevin-xtal model 1", "langevin-xtal model 4"):
        text = refusal(rewrite(tiny_path, tmp_path / "new.safetensors", format=other))
        assert f"has format {other!r}" in text
        assert f"reads {MODEL_FORMAT!r}" in text


@pytest.mark.parametrize(
    ("table", "changes", "words"),
    [
        ("network", {"heads": 3}, "unknown keys ['heads']"),
        ("network", {"width": "32"}, "width = '32'"),
        ("network", {"width": 32.0}, "width = 32.0"),
        ("network", {"width": True}, "width = True"),
        ("network", {"width": None}, "width = None"),
        ("network", {"width": 10**12}, "width is 1000000000000"),
        ("network", {"width": -1}, "width is -1"),
        ("network", {"blocks": 10**6}, "blocks is 1000000"),
        ("network", {"blocks": 2}, "does not fit its own configuration"),
        ("network", {"width": 64}, "does not fit its own configuration"),
        ("network", {"cutoff": float("nan")}, "cutoff is nan"),
        ("network", {"all_pairs": 1}, "all_pairs = 1"),
        ("levels", {"position_max": 0.0}, "position noise"),
        ("levels", {"position_min": 5.0}, "position noise"),
        ("levels", {"lattice_max": float("inf")}, "lattice noise"),
        ("levels", {"colour": 1}, "unknown keys ['colour']"),
    ],
)
def test_configuration(
    tiny_path: Path, tmp_path: Path, table: str, changes: dict[str, Any], words: str
) -> None:
    header = header_of(tiny_path)
    path = rewrite(tiny_path, tmp_path / "m.safetensors", **{table: header[table] | changes})
    assert words in refusal(path)


@pytest.mark.parametrize("table", ["network", "levels", "card", "parts"])
def test_a_table_must_be_one(tiny_path: Path, tmp_path: Path, table: str) -> None:
    assert "table" in refusal(rewrite(tiny_path, tmp_path / "m.safetensors", **{table: [1]}))


def test_whole_numbers_stand_for_reals(tiny_path: Path, tmp_path: Path) -> None:
    levels = header_of(tiny_path)["levels"] | {"lattice_max": 5}
    model = load_model(rewrite(tiny_path, tmp_path / "m.safetensors", levels=levels))
    assert model.levels == NoiseLevels(lattice_max=5.0)


def test_a_file_without_a_checksum_is_read(tiny_path: Path, tmp_path: Path) -> None:
    header, path = header_of(tiny_path), tmp_path / "m.safetensors"
    del header["checksum"]
    save_file(load_file(tiny_path), path, metadata={HEADER: json.dumps(header)})
    assert load_model(path).hash == load_model(tiny_path).hash


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sites", lambda t: t * 0.5),
        ("sites", lambda t: t[:-1]),
        ("sites_by_group", lambda t: -t),
        ("shape", lambda t: t * torch.nan),
        ("atomic_volume", lambda t: t * 0.0),
        ("site_multiplicity", lambda t: t.flatten()[:100]),
        ("group_weight", lambda t: t.reshape(1, -1)),
    ],
)
def test_statistics_are_checked(tiny_path: Path, tmp_path: Path, name: str, change: Any) -> None:
    tensors, header = read_tensors(tiny_path, MODEL_FORMAT)
    tensors[f"statistics.{name}"] = change(tensors[f"statistics.{name}"]).contiguous()
    path = tmp_path / "m.safetensors"
    write_tensors(path, tensors, header)
    assert name in refusal(path)


def test_missing_tensors(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for start in ("statistics.shape", "network.element"):
        tensors, header = read_tensors(tiny_path, MODEL_FORMAT)
        write_tensors(path, {k: v for k, v in tensors.items() if not k.startswith(start)}, header)
        assert "does not fit its own configuration" in refusal(path)


class TestWhatElseDecides:
    """Configurations, levels and statistics have a hash and a checksum of their own."""

    LEVELS = dataclasses.asdict(NoiseLevels(position_max=3.0))

    def test_the_header_has_a_checksum(self, tiny_path: Path, tmp_path: Path) -> None:
        header = header_of(tiny_path) | {"levels": self.LEVELS}
        path = tmp_path / "changed.safetensors"
        save_file(load_file(tiny_path), path, metadata={HEADER: json.dumps(header)})
        assert "the checksum of its header does not match" in refusal(path)

    def test_without_it_the_model_is_another(self, tiny_path: Path, tmp_path: Path) -> None:
        sound = load_model(tiny_path)
        path = rewrite(tiny_path, tmp_path / "changed.safetensors", levels=self.LEVELS)
        changed = load_model(path)
        assert changed.hash == sound.hash
        assert changed.settings_hash != sound.settings_hash

    def test_statistics_count(self, tiny_model: CrystalModel) -> None:
        tables = {k: np.array(v) for k, v in vars(tiny_model.statistics).items()}
        name = [*tables][-1]  # volumes per atom
        tables[name] = tables[name] * 0.75
        other = dataclasses.replace(tiny_model, statistics=Statistics(**tables))
        assert other.settings_hash != tiny_model.settings_hash

    def test_it_comes_back(self, proposing_model: CrystalModel, tmp_path: Path) -> None:
        save_model(tmp_path / "a.safetensors", proposing_model)
        assert (
            load_model(tmp_path / "a.safetensors").settings_hash == proposing_model.settings_hash
        )

    def test_hashes_of_shipped_models_stay(self) -> None:
        """Stores and folders of before name them."""
        assert load_model("small").hash == "b543ee9260fd3ac5"

    def test_a_folder_is_not_continued_with_another(
        self, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changed = rewrite(tiny_path, tmp_path / "changed.safetensors", levels=self.LEVELS)
        line = ["sample", "--sites", "Na:1,Cl:1", "--sg", "225", "--levels", "2", "--out"]
        out = tmp_path / "out"
        assert run([*line, str(out), "--model", str(tiny_path), "--n", "1"]) == 0
        assert run([*line, str(out), "--model", str(changed), "--n", "2"]) == 2
        assert "holds another run" in capsys.readouterr().err
        record = json.loads((out / "run.json").read_text())
        del record["model_settings"]  # as a version before 0.6 wrote it
        (out / "run.json").write_text(json.dumps(record))
        assert run([*line, str(out), "--model", str(tiny_path), "--n", "2"]) == 0
        assert "model_settings" in json.loads((out / "run.json").read_text())

    def test_a_store_is_not_continued_with_another(
        self, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        changed = rewrite(tiny_path, tmp_path / "changed.safetensors", levels=self.LEVELS)
        line = ["search", "--elements", "Na,Cl", "--sg", "225", "--max-samples", "1", "--levels",
                "2", "--workers", "1", "--out", str(tmp_path / "s.db"), "--model"]  # fmt: skip
        assert run([*line, str(tiny_path)]) == 0
        assert run([*line, str(changed)]) == 2
        assert "its model_settings is" in capsys.readouterr().err


class TestNames:
    def test_an_unknown_name_lists_the_shipped_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint, "shipped_models", lambda: ("mp20", "small"))
        with pytest.raises(CheckpointError, match=r"'huge' is neither shipped \(mp20, small\)"):
            load_model("huge")

    def test_shipped_models_are_files_of_the_package(self) -> None:
        folder = Path(lx.__file__).parent / "weights"
        models = {p.stem for p in folder.glob("*.safetensors")} - set(shipped_properties())
        assert set(checkpoint.shipped_models()) == models

    def test_shipped_models_load(self) -> None:
        cards = {name: load_model(name).card for name in checkpoint.shipped_models()}
        assert all(cards.values())
        assert all(len(load_model(name).hash) == 16 for name in cards)

    @pytest.mark.parametrize(
        "name", ["", "\0", "a" * 5000, "a" * 5000 + ".safetensors", "no/such.safetensors", "."]
    )
    def test_strange_paths(self, name: str) -> None:
        with pytest.raises(CheckpointError):
            load_model(name)


class TestConfigurations:
    def test_sizes_are_within_range(self) -> None:
        assert set(SIZES) == {"small", "base"}
        for config in SIZES.values():
            again = config_from_dict(NetworkConfig, dataclasses.asdict(config), "here")
            assert again == config
            assert config.width % 32 == config.triplet_width % 32 == 0
            assert sum(p.numel() for p in EdgeNetwork(config).parameters()) > 1e5

    def test_ranges(self) -> None:
        with pytest.raises(InputError, match="spherical is 0"):
            NetworkConfig(spherical=0)
        with pytest.raises(InputError, match="lattice noise runs"):
            NoiseLevels(lattice_max=1.0, lattice_min=2.0)
        assert NoiseLevels.paper().position_max == 6.0

    def test_levels_are_geometric_and_fall(self) -> None:
        """From where each chain starts to the end of the schedule."""
        levels = NoiseLevels()
        start = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
        position, lattice = levels.grid(7, start)
        for sigma, of_tau in ((position, levels.position), (lattice, levels.lattice)):
            assert sigma.shape == (7, 4)
            assert sigma.dtype == torch.float64
            ratio = sigma[1:] / sigma[:-1]
            torch.testing.assert_close(ratio, ratio[:1].expand(6, 4))
            assert (ratio[:, :3] < 1).all()
            torch.testing.assert_close(sigma[0], of_tau(start))
            torch.testing.assert_close(sigma[-1], of_tau(torch.ones(4).double()))
        assert position[:, 0][[0, -1]].tolist() == pytest.approx([2.0, 0.03])
        assert lattice[:, 0][[0, -1]].tolist() == pytest.approx([6.0, 0.2])

    @given(st.floats(0.0, 1.0))
    def test_places_on_the_schedule(self, tau: float) -> None:
        levels = NoiseLevels()
        sigma = float(levels.position(torch.tensor(tau, dtype=torch.float64)))
        assert levels.place(sigma) == pytest.approx(tau, abs=1e-12)

    def test_noise_beyond_the_schedule_is_held_within(self) -> None:
        levels = NoiseLevels()
        assert [levels.place(s) for s in (1e9, 2.0, 0.03, 1e-9)] == [0.0, 0.0, 1.0, 1.0]


class TestStatistics:
    def test_probabilities(self, tiny_model: CrystalModel) -> None:
        s = tiny_model.statistics
        for table in (s.sites_by_group, s.sites_by_element, s.sites[None]):
            np.testing.assert_allclose(table.sum(1), 1.0, atol=1e-12)
        np.testing.assert_allclose(s.group_weight.sum(), 1.0)
        for group in (1, 62, 225, 230):
            p = s.site_count_probabilities(group, 8)
            assert p.sum() == pytest.approx(1.0)
            assert (p > 0).all()

    def test_multiplicities_and_volumes(self, tiny_model: CrystalModel) -> None:
        from langevin_xtal.symmetry import SpaceGroup

        s = tiny_model.statistics
        orders = np.array([SpaceGroup(n).order for n in range(1, 231)])
        assert (s.site_multiplicity[1:] >= 1).all()
        assert (s.site_multiplicity[1:] <= orders + 1e-9).all()
        assert (s.atomic_volume > 0).all()
        product = np.exp(s.shape[1:].sum(1))
        assert (np.abs(s.shape[195:]).max(1) < 1e-9).all()
        assert (product > 0.5).all()
