"""What a new user meets: the shipped model, the README's code, the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import langevin_xtal as lx
from langevin_xtal.cli import run
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.model.checkpoint import shipped_models

ROOT = Path(__file__).parents[1]


def test_shipped_model_has_a_card():
    assert "small" in shipped_models()
    model = lx.load_model("small")
    assert model.name == "small"
    assert model.prior is not None
    for key in ("data", "licence", "attribution", "split", "command", "metrics", "weaknesses"):
        assert model.card.get(key), key
    assert model.card["weights"] == model.hash


def test_elements_and_group_are_what_was_asked_for(tmp_path, capsys):
    arguments = ["sample", "--elements", "Cu,Si,K", "--sg", "62", "--n", "6", "--seed", "1"]
    assert run([*arguments, "--out", str(tmp_path / "a"), "--levels", "30"]) == 0
    printed = capsys.readouterr().out
    assert "6 of 6 candidates" in printed or "given up" in printed
    files = sorted((tmp_path / "a").glob("*.cif"))
    assert files
    from pymatgen.core import Structure

    for file in files:
        structure = Structure.from_file(file)
        assert {e.symbol for e in structure.composition} == {"Cu", "Si", "K"}
        assert structure.is_valid(tol=0.7)


def test_candidates_by_api():
    requests = [lx.Request("Pm-3m", {"Sr": 1, "Ti": 1, "O": 1}), lx.Request(194, {"Mg": 1})]
    for candidate in lx.sample(requests, model="small", seed=3):
        wanted = sorted(candidate.request.numbers)
        assert sorted(candidate.numbers) == wanted
        assert {SYMBOLS[z] for z in candidate.numbers} == set(candidate.request.sites)
        assert candidate.min_distance >= 0.7
        assert candidate.provenance["weights"] == lx.load_model("small").hash


def test_readme_code_runs():
    blocks = re.findall(
        r"^\.\. code-block:: python\n\n((?: {4}.*\n|\n)+)", (ROOT / "README.rst").read_text(), re.M
    )
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(re.sub(r"^ {4}", "", block, flags=re.M), names)
        assert names["candidates"]


def test_readme_has_two_set_up_commands():
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "readme_commands.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2
    assert "langevin-xtal sample --elements Cu,Si,K --sg 62" in lines[0]
    assert lines[1].endswith("-m pytest")
