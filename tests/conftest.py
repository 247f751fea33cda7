"""What several test files share: a model that needs no training and no shipped checkpoint.

Tests that are repeated for each of the 230 space groups are slow together and seldom fail: a tenth
of the groups runs by default, another tenth for each test, ``--groups rest`` runs the others and
``--groups all`` all of them. Tests marked ``slow``, most often some of the parameters of a test,
run with the rest. ``.ci/run`` runs the default and the rest.
"""

from __future__ import annotations

import dataclasses
import signal
import zlib
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.model.checkpoint import CrystalModel, load_model, save_model
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from langevin_xtal.model.prior import WyckoffPrior
from langevin_xtal.model.proposal import Proposal, ProposalConfig
from langevin_xtal.model.settings import SettingConfig, SettingModel
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.train.settings import fit_settings

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a background job of a shell ignores it, and so would all that the tests start
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

TINY = NetworkConfig(
    width=32, triplet_width=32, blocks=1, radial=4, spherical=3, cutoff=4.0, k_min=4, k_max=12
)


SHARE = 10
"""One group in so many runs by default."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--groups",
        choices=["tenth", "rest", "all"],
        default="tenth",
        help="groups of the tests that are repeated for all 230; slow tests run with the rest",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that are repeated for all groups, and leave out what was not asked for."""
    every = set(range(1, 231))
    values: dict[tuple[str, str], set[object]] = defaultdict(set)
    for item in items:
        for name, value in _parameters(item).items():
            if type(value) is int:
                values[_test(item), name].add(value)
    asked = config.getoption("--groups")
    named = any("::" in argument for argument in config.args)
    kept, left_out = [], []
    for item in items:
        groups = [
            value
            for name, value in _parameters(item).items()
            if values.get((_test(item), name), set()) >= every
        ]
        # another tenth for each test, the same in every run and process
        first = zlib.crc32(_test(item).encode()) % SHARE
        slow = item.get_closest_marker("slow") is not None and not named
        sampled = not slow and all(group % SHARE == first for group in groups)
        if groups:
            item.add_marker(pytest.mark.all_groups)
        right = {"all": True, "tenth": sampled, "rest": not sampled}[asked]
        (kept if right else left_out).append(item)
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def _test(item: pytest.Item) -> str:
    return item.nodeid.split("[", 1)[0]


def _parameters(item: pytest.Item) -> dict[str, object]:
    call = getattr(item, "callspec", None)
    return {} if call is None else dict(call.params)


@pytest.fixture
def few_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each group, for tests to which it is no matter how many are ranked: it takes longest."""
    monkeypatch.setattr("langevin_xtal.sampling.spread.ENUMERATED", 20)
    monkeypatch.setattr("langevin_xtal.sampling.spread.BEAM", 4)


@pytest.fixture(scope="session")
def reference() -> PackedDataset:
    """The embedded structure types."""
    return reference_dataset()


@pytest.fixture(scope="session")
def tiny_model(reference: PackedDataset) -> CrystalModel:
    """See :func:`tiny_score_model`."""
    return tiny_score_model(reference)


def tiny_score_model(data: PackedDataset) -> CrystalModel:
    """A small network with random weights that moves atoms and cells, but not far."""
    torch.manual_seed(7)
    network = EdgeNetwork(TINY)
    torch.nn.init.normal_(network.output[-1].weight, std=0.05)
    network.eval().requires_grad_(False)
    statistics = Statistics.of(
        data.group, data.lattice, data.site_start, data.numbers, data.multiplicity
    )
    return CrystalModel("tiny", network, NoiseLevels(), statistics, {"licence": "CC0-1.0"})


@pytest.fixture(scope="session")
def assigning_model(tiny_model: CrystalModel) -> CrystalModel:
    """The same with a prior over Wyckoff positions, random too."""
    torch.manual_seed(8)
    prior = WyckoffPrior().eval().requires_grad_(False)
    return dataclasses.replace(tiny_model, name="assigning", prior=prior)


@pytest.fixture(scope="session")
def proposing_model(assigning_model: CrystalModel) -> CrystalModel:
    """The same with a proposal of positions and cells, random but for the size of its cells."""
    torch.manual_seed(9)
    proposal = Proposal(ProposalConfig(width=32, layers=1, heads=2)).eval().requires_grad_(False)
    proposal.lattice[-1].bias.zero_()
    return dataclasses.replace(assigning_model, name="proposing", proposal=proposal)


@pytest.fixture(scope="session")
def setting_model(reference: PackedDataset) -> SettingModel:
    """A distribution over settings, fitted for a moment to the embedded structure types."""
    ranker = load_model("small").ranker
    assert ranker is not None
    config = SettingConfig(width=32, layers=1, heads=2, neighbours=16, elsewhere=8)
    return fit_settings(reference, ranker.resemblance().detach(), epochs=2, config=config)


@pytest.fixture(scope="session")
def open_model(setting_model: SettingModel) -> CrystalModel:
    """A shipped model with that distribution: it answers requests without a group."""
    return dataclasses.replace(load_model("small"), name="open", settings=setting_model)


@pytest.fixture(scope="session")
def tiny_open_path(
    tiny_model: CrystalModel, setting_model: SettingModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small random network with that distribution, in a file."""
    path = tmp_path_factory.mktemp("model") / "tiny-open.safetensors"
    save_model(path, dataclasses.replace(tiny_model, name="tiny-open", settings=setting_model))
    return path


@pytest.fixture(scope="session")
def tiny_path(tiny_model: CrystalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in a file."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, tiny_model)
    return path


@pytest.fixture
def plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network goes the way it goes on a GPU, past the kernels of the CPU."""
    monkeypatch.setattr(EdgeNetwork, "fused", False)
