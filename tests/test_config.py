"""Settings: written once, checked, and the same in Python and on the command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import click
import pytest

from langevin_xtal.cli.evaluate import evaluate
from langevin_xtal.cli.sample import sample
from langevin_xtal.cli.search import search
from langevin_xtal.cli.solve import solve, xrd
from langevin_xtal.cli.train import EPOCHS, train
from langevin_xtal.config.sampling import PRESETS, SamplingConfig
from langevin_xtal.config.solving import PatternConfig, SolveConfig
from langevin_xtal.config.training import TRAINING_PRESETS, EpochsConfig, TrainingConfig
from langevin_xtal.diffraction.solve import SolveOptions
from langevin_xtal.errors import InputError
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.samplers import Ancestral, AnnealedLangevin
from langevin_xtal.train.loop import TrainConfig
from langevin_xtal.train.parts import PARTS


def parsed(command: click.Command, *arguments: str) -> dict[str, Any]:
    """Values of all options of a command."""
    with command.make_context("x", list(arguments)) as context:
        return context.params


def test_options_are_the_fields() -> None:
    values = parsed(sample, "--formula", "NaCl")
    for field in dataclasses.fields(SamplingConfig):
        assert values[field.name] == field.default
    values = parsed(train)
    for field in dataclasses.fields(TrainingConfig):
        assert values[field.name] == field.default
    for name, flag in EPOCHS.items():
        assert values[flag[2:].replace("-", "_")] == getattr(EpochsConfig(), name)
    values = parsed(solve, "--formula", "NaCl", "--pattern", "a.xy")
    for name in ("samples", "cell", "orientation"):
        assert values[name] == getattr(SolveConfig(), name)
    values = parsed(xrd, "setup.cfg")
    for field in dataclasses.fields(PatternConfig):
        assert values[field.name] == field.default
    assert set(EPOCHS) == {*PARTS, "members", "settings_members"}


def test_defaults_are_those_of_python() -> None:
    assert SampleOptions.of(SamplingConfig()) == SampleOptions()
    assert SampleOptions.preset("default") == SampleOptions()
    assert SolveOptions.of(SolveConfig()) == SolveOptions()
    made = TrainConfig.of(TrainingConfig())
    assert made == TrainConfig()


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_of_sampling(name: str) -> None:
    values = parsed(sample, "--preset", name, "--formula", "NaCl")
    given = SamplingConfig(**{f.name: values[f.name] for f in dataclasses.fields(SamplingConfig)})
    assert given == SamplingConfig.preset(name)
    values = parsed(evaluate, "--preset", name, "--reference", "a.lxd")
    for key, value in PRESETS[name].items():
        assert str(values[key]) == str(value)  # evaluate takes several levels, as text
    assert parsed(search, "--preset", name, "--elements", "Na,Cl")["preset"] == name


def test_an_option_overrides_the_preset() -> None:
    values = parsed(sample, "--proposal-noise", "0.3", "--preset", "accurate", "--formula", "C")
    assert values["proposal_noise"] == 0.3
    assert values["proposal_temperature"] == PRESETS["accurate"]["proposal_temperature"]


def test_paper() -> None:
    options = SampleOptions.preset("paper", levels=3)
    assert options.sampler == AnnealedLangevin(levels=3, lattice_estimate="mean")
    assert (options.positions, options.start) == ("free", "noise")
    config = TrainConfig.of(TrainingConfig.preset("paper"))
    assert config.levels == NoiseLevels.paper()
    assert config.noising.target == "plain"
    assert config.lattice_estimate == "mean"
    assert set(TRAINING_PRESETS) == {"default", "paper"}


def test_representations_of_before() -> None:
    """Run folders and stores record them."""
    assert repr(Ancestral()) == "Ancestral(levels=20, temperature=0.7, lattice_temperature=0.3)"
    assert "lattice_estimate='mean'" in repr(Ancestral(lattice_estimate="mean"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attempts": 0}, "attempts is 0; it must be at least 1"),
        ({"proposal_noise": float("nan")}, "proposal_noise is nan; it must be positive"),
        ({"start": "end"}, "start 'end' is not known; give one of proposal, noise"),
    ],
)
def test_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SamplingConfig(**changes)
    with pytest.raises(InputError, match="samples is 0; it must be at least 1"):
        SolveOptions(samples=0)
    with pytest.raises(InputError, match="range 80 5: give 2θ as 0 < LOW < HIGH <= 179 degrees"):
        PatternConfig(limits=(80.0, 5.0))
    with pytest.raises(InputError, match="preset 'best' is not known"):
        SamplingConfig.preset("best")


def test_settings_are_light() -> None:
    code = (
        "import sys, langevin_xtal.config.sampling, langevin_xtal.config.solving;"
        "import langevin_xtal.config.training;"
        "print(sorted({'torch', 'numpy', 'spglib', 'pymatgen'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
