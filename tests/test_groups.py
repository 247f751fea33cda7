"""What runs by default: a tenth of the space groups for each test, and no slow test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
@pytest.mark.parametrize("number", range(1, 231))
def test_one(number): pass
@pytest.mark.parametrize("number", range(1, 231))
@pytest.mark.parametrize("which", ["a", "b"])
def test_two(number, which): pass
@pytest.mark.parametrize("number", [1, 62, 225])
def test_some(number): pass
def test_plain(): pass
@pytest.mark.slow
def test_slow(): pass
"""


def names(folder: Path, *arguments: str) -> set[str]:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider",
            "-n", "0", "--collect-only", "-q", "-c", "/dev/null", f"--rootdir={folder}",
            *arguments,
        ],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, 5), done.stdout + done.stderr
    return {line.split("::")[1] for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.slow
def test_the_two_parts_are_all(tmp_path: Path) -> None:
    path = tmp_path / "test_made.py"
    path.write_text(TESTS)
    tenth, rest, every = (
        names(tmp_path, "--groups", which, str(path)) for which in ("tenth", "rest", "all")
    )
    assert not tenth & rest
    assert tenth | rest == every
    assert len(every) == 3 * 230 + 3 + 2
    assert "test_slow" in rest
    assert len([n for n in tenth if n.startswith("test_one")]) == 23
    assert len([n for n in tenth if n.startswith("test_two")]) == 46
    assert {n for n in tenth if n.startswith(("test_some", "test_plain"))} == {
        "test_some[1]", "test_some[62]", "test_some[225]", "test_plain",
    }  # fmt: skip
    default = names(tmp_path, str(path))
    assert default == tenth
    assert names(tmp_path, f"{path}::test_one[17]") == {"test_one[17]"}
    assert names(tmp_path, f"{path}::test_slow") == {"test_slow"}
