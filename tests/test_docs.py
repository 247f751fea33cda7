"""The site: tutorials run, every module is on a page of the API, tables come from result files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = DOCS.parent / "langevin_xtal"
RESULTS = sorted((DOCS / "results").glob("*.json"))


def blocks(page: str) -> list[str]:
    """Python blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^\.\. code-block:: python\n\n((?: {4}.*\n|\n)+)", text, re.M)
    return [dedent(block) for block in found]


@pytest.mark.slow
def test_tutorials_run(tmp_path: Path) -> None:
    parts = blocks("tutorials.rst")
    assert len(parts) > 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "does not fit Pnma" in done.stdout


def test_every_module_is_on_a_page() -> None:
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.rst"))
    listed = re.findall(r"automodule:: (\S+)", pages)
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.stem not in ("__init__", "__main__", "version")
    }
    assert sorted(listed) == sorted(modules)


def test_every_page_is_reached() -> None:
    index = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("index.rst", "api.rst"))
    for path in DOCS.rglob("*.rst"):
        name = path.relative_to(DOCS).with_suffix("").as_posix()
        assert name == "index" or f"   {name}\n" in index, name


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_what_made_them(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    runs = data.get("runs")
    commands = [data.get("command")]
    if commands == [None] and isinstance(runs, dict):
        commands = [run["command"] for run in runs.values()]
    assert commands
    assert all(isinstance(command, str) and command for command in commands)
    assert data.get("version") or data["about"]["after"]["version"]


class TestResultsDirective:
    @pytest.fixture(scope="class")
    def module(self):
        pytest.importorskip("sphinx")
        path = DOCS / "extensions" / "results.py"
        spec = importlib.util.spec_from_file_location("results_directive", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def build(self, folder: Path, source: str) -> subprocess.CompletedProcess[str]:
        (folder / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(DOCS / 'extensions')!r})\n"
            "extensions = ['results']\n"
        )
        (folder / "index.rst").write_text("Page\n====\n\n" + source)
        return subprocess.run(
            [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", folder, folder / "out"],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_look_up(self, module) -> None:
        data = {"a": [{"b c": 1}], "d": None}
        assert module.look_up(data, "a/0/b c") == 1
        assert module.look_up(data, "d") is None
        with pytest.raises(KeyError, match="no 'e'"):
            module.look_up(data, "a/0/e")

    def test_a_table(self, module, tmp_path: Path) -> None:
        done = self.build(
            tmp_path,
            ".. results:: known_polymorphs.json\n   :rows: rows\n"
            "   :columns: formula = formula; first = at\n   :missing: never\n\n"
            ".. results:: cold_start.json\n   :columns: a; b; c\n   :format: .1f\n\n"
            '   *now* | seconds/now/least | "x"\n',
        )
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "out" / "index.html").read_text()
        cells = r"<td><p>{}</p></td>\s*<td><p>{}</p></td>"
        rows = json.loads((DOCS / "results/known_polymorphs.json").read_text())["rows"]
        for row in rows:
            first = "never" if row["at"] is None else str(row["at"])
            assert re.search(cells.format(row["formula"], first), text)
        seconds = json.loads((DOCS / "results/cold_start.json").read_text())["seconds"]["now"]
        assert re.search(cells.format("<em>now</em>", f"{seconds['least']:.1f}"), text)
        assert "scripts/known_polymorphs.py" in text

    def test_a_path_that_leads_nowhere_fails_the_build(self, module, tmp_path: Path) -> None:
        done = self.build(
            tmp_path, ".. results:: cold_start.json\n   :columns: a; b\n\n   now | seconds/then\n"
        )
        assert done.returncode != 0
        assert "there is no 'then'" in done.stderr
