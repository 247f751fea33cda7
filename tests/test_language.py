"""Names and prose use the field's terms: words of a private language do not come back.

``docs/glossary.rst`` says what older files mean by them. Cards of shipped weights repeat what is
written within the files, and are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("langevin_xtal", "cpp_ext", "docs", "scripts", "examples", "tests")
SUFFIXES = (".py", ".pyi", ".rst", ".toml", ".html", ".css", ".js", ".cpp", ".hpp", ".inc")
PRIVATE = re.compile(
    r"(?<![a-z])(told|twins?|twinned|kin|strangers?|warmth|warmer|crowded|room(?:y|ier|iest)"
    r"|renamings?)(?![a-z])",
    re.IGNORECASE,
)
NAMES = re.compile(r"\b(ScoreModel|StartEpochs|fit_starts)\b")
OLD_WORDS = "Older words\n-----------"


def files(folder: str) -> list[Path]:
    return sorted(
        path
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES and "vendor" not in path.parts and path != Path(__file__)
    )


def uses(text: str) -> list[str]:
    """Lines with a private word."""
    lines = text.split(OLD_WORDS)[0].splitlines()
    return [line.strip() for line in lines if PRIVATE.search(line) or NAMES.search(line)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_private_words(folder: str) -> None:
    found = {str(path.relative_to(ROOT)): uses(path.read_text("utf-8")) for path in files(folder)}
    assert len(found) > 2
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "told = 1",
        "_told",
        "the twin of",
        "TWIN_VOLUME",
        "test_twins_of_it",
        "a renaming",
        "Told by",
    ],
)
def test_they_are_seen(line: str) -> None:
    assert uses(line) == [line]


@pytest.mark.parametrize("line", ["kinds of", "make room", "stolder", "renamed", "skin"])
def test_other_words_are_not(line: str) -> None:
    assert uses(line) == []
