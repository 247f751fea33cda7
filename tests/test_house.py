"""``scripts/measure_house.py`` counts what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_house.py"

FIELDS = "\n".join(f"    {name}: int = {k}" for k, name in enumerate("abcdef"))
COPIED = "\n".join(f"    {name} = {name}0 + {k}" for k, name in enumerate("abcdef"))
MODULE = f'''
from typing import Any
import click

@click.option("--n", type=int)
@click.option("-s", "--seed", type=int)
def short(n: int, seed: Any) -> Any:
{COPIED}

def other(*p):
{COPIED.replace("a", "x").replace("b", "y")}

class One:
{FIELDS}

class Two:
{FIELDS}

@click.option("--n")
def many({", ".join("abcdefghijklm")}):
    """One
    two
    three
    """
    return 0
'''


@pytest.fixture
def house():
    spec = importlib.util.spec_from_file_location("measure_house", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts(house, tmp_path: Path) -> None:
    package = tmp_path / "langevin_xtal"
    (package / "part").mkdir(parents=True)
    (package / "part" / "one.py").write_text(MODULE)
    long = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 60
    (package / "two.py").write_text(long)
    found = house.measured(tmp_path)
    assert found["lines"] == len(MODULE.splitlines()) + 62
    assert found["modules"] == 2
    assert found["functions"] == 4
    assert found["functions of more than 60 lines"] == 1
    assert found["functions of more than 12 parameters"] == 1
    assert found["options declared"] == 3
    assert found["options declared more than once"] == 1
    assert found["most declarations of one option"] == 2
    assert found["Any"] == 2
    # the statements that are copied look alike: three runs of four in each function, five of them
    # again; of the 60 equal ones 57 runs, 56 again; not the fields of the classes
    assert found["runs of 4 statements of functions that occur again"] == 5 + 56
