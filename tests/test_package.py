"""The package as a whole: light to import, layered, without code in data, and documented."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import langevin_xtal as lx
from langevin_xtal.screen.potentials.files import FAMILIES
from langevin_xtal.version import __version__

PACKAGE = Path(lx.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))

LAYERS = [
    ("errors", "version", "runtime", "text", "signals"),
    ("parallel", "extras", "files", "config"),
    ("cluster",),
    ("symmetry",),
    ("crystal", "graph"),
    ("structures",),
    ("dataset",),
    ("model",),
    ("diffusion",),
    ("sampling",),
    ("train", "screen", "diffraction"),
    ("evaluation",),
    ("baselines",),
    ("export",),
    ("search",),
    ("report",),
    ("cli",),
    ("__main__",),
]
"""Each layer imports those above it only, never its own neighbours."""

EXTRAS = ("baselines", "screen", "evaluate", "mp", "postgres", "pyg", "cluster", "sevennet")
"""Whose packages the code imports."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [
        (path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))) for path in MODULES
    ]


def part_of(module: str) -> str | None:
    """``langevin_xtal.graph.cpp`` to ``graph``; None for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all modules a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            assert node.module
            yield node.module
            if node.module == "langevin_xtal":
                yield from (f"langevin_xtal.{alias.name}" for alias in node.names)


def at_run_time(tree: ast.Module) -> Iterator[str]:
    """Names of all modules a file imports, those for type checkers alone left out."""
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in for_types:
            yield from imported(node)


def required(tree: ast.AST) -> Iterator[str]:
    """Names of the optional modules a file asks ``require`` for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
            assert isinstance(node.args[0], ast.Constant)
            yield str(node.args[0].value)


class TestImport:
    def test_is_light(self) -> None:
        heavy = {"torch", "pymatgen", "ase", "spglib", "numba", "matplotlib", "scipy", "numpy"}
        code = (
            "import time; t = time.perf_counter(); import langevin_xtal, sys;"
            f"print(time.perf_counter() - t, sorted({heavy!r} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds, loaded = done.stdout.split(maxsplit=1)
        assert float(seconds) < 2.0
        assert loaded.strip() == "[]"

    def test_public_names_resolve(self) -> None:
        assert "__version__" in lx.__all__
        assert sorted(lx.__all__) == lx.__all__ == dir(lx)
        for name in lx.__all__:
            assert getattr(lx, name) is not None

    def test_unknown_names(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
            lx.Sampler  # noqa: B018

    @pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
    def test_every_module_imports_and_says_what_it_is_for(self, path: Path) -> None:
        module = importlib.import_module(module_of(path))
        if path.stat().st_size:
            assert module.__doc__
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name)


class TestLayers:
    def test_every_part_has_a_layer(self) -> None:
        parts = {part_of(module_of(path)) for path in MODULES} - {None}
        assert parts - set(LEVEL) <= {"weights", "recipes"}

    def test_imports_run_one_way(self) -> None:
        wrong = []
        for path, tree in trees():
            mine = part_of(module_of(path))
            if mine is None or mine not in LEVEL:
                continue
            for name in imported(tree):
                other = part_of(name) if name.startswith("langevin_xtal.") else None
                if other is None or other == mine or other not in LEVEL:
                    continue
                if LEVEL[other] >= LEVEL[mine]:
                    wrong.append(f"{module_of(path)} imports {name}")
        assert wrong == []

    def test_symmetry_and_crystal_are_free_of_torch(self) -> None:
        for path, tree in trees():
            if part_of(module_of(path)) in ("errors", "symmetry", "crystal"):
                assert "torch" not in {name.split(".")[0] for name in imported(tree)}, path

    def test_spglib_is_called_in_one_place(self) -> None:
        asking = [
            module_of(path)
            for path, tree in trees()
            if "spglib" in {name.split(".")[0] for name in at_run_time(tree)}
        ]
        assert asking == ["langevin_xtal.symmetry.detection"]


class TestDataIsNeverCode:
    def test_no_pickle_no_eval(self) -> None:
        modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        names = {"eval", "exec", "__import__", "compile"}
        for path, tree in trees():
            assert not modules & {name.split(".")[0] for name in imported(tree)}, path
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                assert called not in names, (path, node.lineno)
                assert called not in ("torch.load", "yaml.load", "os.system"), (path, node.lineno)
                allowed = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if called in ("np.load", "numpy.load"):
                    assert allowed.get("allow_pickle") == "False", (path, node.lineno)
                assert allowed.get("allow_pickle", "False") == "False", (path, node.lineno)
                assert allowed.get("shell", "False") == "False", (path, node.lineno)

    def test_the_network_is_never_touched(self) -> None:
        modules = {"urllib", "requests", "http", "socket", "httpx", "aiohttp", "ftplib"}
        for path, tree in trees():
            if "fetch" not in path.name:
                names = set(imported(tree)) - {"urllib.parse"}  # quotes text, opens nothing
                assert not modules & {name.split(".")[0] for name in names}, path


class TestMetadata:
    @pytest.fixture(scope="class")
    def setup(self) -> configparser.ConfigParser:
        path = ROOT / "setup.cfg"
        if not path.exists():
            pytest.skip("not a source checkout")
        parser = configparser.ConfigParser()
        parser.read(path, encoding="utf-8")
        return parser

    def test_version_has_a_heading_in_the_changes(self, setup: configparser.ConfigParser) -> None:
        assert setup["metadata"]["version"] == "attr: langevin_xtal.version.__version__"
        assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
        lines = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8").splitlines()
        underlined = [a for a, b in pairwise(lines) if set(b) == {"-"}]
        assert __version__ in underlined
        assert underlined[0] == __version__

    def test_the_citation_names_the_version(self) -> None:
        path = ROOT / "CITATION.cff"
        if not path.exists():
            pytest.skip("not a source checkout")
        lines = path.read_text(encoding="utf-8").splitlines()
        assert f"version: {__version__}" in lines

    def test_types_are_shipped(self, setup: configparser.ConfigParser) -> None:
        assert (PACKAGE / "py.typed").exists()
        assert "py.typed" in setup["options.package_data"]["langevin_xtal"]

    def test_all_packages_are_installed(self, setup: configparser.ConfigParser) -> None:
        listed = set(setup["options"]["packages"].split())
        found = {module_of(p) for p in MODULES if p.name == "__init__.py"}
        assert found <= listed
        assert listed - found == {"langevin_xtal.reference_data"}

    def test_what_is_imported_is_declared(self, setup: configparser.ConfigParser) -> None:
        def names(text: str) -> set[str]:
            return {re.split(r"[ <>=]", line)[0] for line in text.split("\n") if line}

        declared = names(setup["options"]["install_requires"])
        options = setup["options.extras_require"]
        extras = {n for extra in (*EXTRAS, *FAMILIES) for n in names(options[extra])}
        extras = {n.replace("-", "_") for n in extras if "[" not in n}
        # named otherwise where they are imported
        extras = extras - {"psycopg2_binary", "mace_torch"} | {"psycopg2", "mace"}
        used = {name.split(".")[0] for _, tree in trees() for name in imported(tree)}
        used |= {name.split(".")[0] for _, tree in trees() for name in required(tree)}
        outside = used - set(sys.stdlib_module_names) - {"langevin_xtal"}
        assert outside - declared <= extras | {"triton"}
        assert declared | extras <= outside

    def test_the_command_exists(self, setup: configparser.ConfigParser) -> None:
        entry = setup["options.entry_points"]["console_scripts"].strip()
        name, target = (part.strip() for part in entry.split("="))
        module, function = target.split(":")
        assert name == "langevin-xtal"
        assert callable(getattr(importlib.import_module(module), function))
