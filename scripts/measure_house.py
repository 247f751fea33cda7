"""Sizes and repetitions of the package's code, as JSON.

    python scripts/measure_house.py --tree 0.5.0=../old-checkout --tree now=. \
        --out docs/results/house.json

Everything is counted in the syntax trees of ``langevin_xtal``, comments and layout aside.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langevin_xtal.version import __version__

LONG_FUNCTION = 60
"""Lines."""
MANY_PARAMETERS = 12
COPY = 4
"""Statements of a function in a row that count as a copy where they occur again, names aside.

Bodies of classes are left out: with the names aside, fields of one type look alike.
"""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    """From ``def`` to the last line, without decorators and the docstring."""
    first = function.body[0]
    text = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    docstring = (first.end_lineno or 0) - first.lineno + 1 if text else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def parameters_of(function: Function) -> int:
    """All of them, ``self`` included."""
    a = function.args
    named = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs)
    return named + (a.vararg is not None) + (a.kwarg is not None)


def option_names(tree: ast.AST) -> Iterator[str]:
    """Names given to ``click.option``, by each declaration; of a flag its first name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "click.option":
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield next((n for n in names if str(n).startswith("--")), str(names[:1]))


class _Nameless(ast.NodeTransformer):
    """The shape of code: names and constants are all alike."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Name("_", node.ctx), node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.copy_location(ast.Constant(0), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.copy_location(ast.arg("_", None), node)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def shapes(tree: ast.AST) -> Iterator[str]:
    """Every run of :data:`COPY` statements that follow one another in a block, texts aside."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if not isinstance(block, list) or isinstance(node, ast.Module | ast.ClassDef):
                continue
            done = [s for s in block if not _is_text(s)]
            texts = [ast.dump(_Nameless().visit(ast.parse(ast.unparse(s)))) for s in done]
            for start in range(len(texts) - COPY + 1):
                yield "\n".join(texts[start : start + COPY])


def measured(root: Path) -> dict[str, Any]:
    """All counts of one checkout."""
    files = sorted((root / "langevin_xtal").rglob("*.py"))
    sizes, long, many, options = {}, [], [], Counter[str]()
    places: dict[str, int] = defaultdict(int)
    any_count = function_count = 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        name = path.relative_to(root / "langevin_xtal").as_posix()
        sizes[name] = len(text.splitlines())
        for function in functions(tree):
            function_count += 1
            if lines_of(function) > LONG_FUNCTION:
                long.append((lines_of(function), f"{name}:{function.name}"))
            if parameters_of(function) > MANY_PARAMETERS:
                many.append((parameters_of(function), f"{name}:{function.name}"))
        options.update(option_names(tree))
        any_count += sum(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(tree))
        for shape in shapes(tree):
            places[shape] += 1
    repeated = [n for n in places.values() if n > 1]
    return {
        "lines": sum(sizes.values()),
        "modules": len(files),
        "modules of more than 500 lines": sum(n > 500 for n in sizes.values()),
        "longest module": max(sizes.values()),
        "functions": function_count,
        f"functions of more than {LONG_FUNCTION} lines": len(long),
        f"functions of more than {MANY_PARAMETERS} parameters": len(many),
        "options declared": sum(options.values()),
        "options declared more than once": sum(n > 1 for n in options.values()),
        "most declarations of one option": max(options.values(), default=0),
        f"runs of {COPY} statements of functions that occur again": sum(repeated) - len(repeated),
        "Any": any_count,
        "examples": {
            "long functions": [f"{place} ({n})" for n, place in sorted(long, reverse=True)[:10]],
            "many parameters": [f"{place} ({n})" for n, place in sorted(many, reverse=True)[:10]],
            "options": dict(options.most_common(10)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    trees = {name: Path(folder) for name, folder in (t.split("=", 1) for t in given.tree)}
    names = " ".join(f"--tree {name}=…" for name in trees)
    result = {
        "command": f"python scripts/measure_house.py {names} --out docs/results/house.json",
        "version": __version__,
        "machine": f"any; Python {platform.python_version()}",
        "trees": {name: measured(folder) for name, folder in trees.items()},
    }
    given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    counts = {name: tree | {"examples": ...} for name, tree in result["trees"].items()}
    for key in next(iter(counts.values())):
        print(f"{key:45s}", *(f"{tree.get(key)!s:>8s}" for tree in counts.values()))


if __name__ == "__main__":
    main()
