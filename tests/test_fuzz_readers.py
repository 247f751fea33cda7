"""Damaged files of every format: a structure or one sentence, never anything else.

A small seeded number; ``scripts/fuzz_readers.py`` does as many as one likes, with limits of time
and memory.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.mutations import FORMATS, mutate, outcome, seeds

TRIES = int(os.environ.get("LX_MUTATIONS", "40"))


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    originals = seeds(name, tmp_path)
    kinds: Counter[str] = Counter()
    for number in range(TRIES):
        path, _ = mutate(name, originals, number, 0, tmp_path)
        compare = name.startswith("cif") or name == "poscar"
        kind, detail = outcome(path, compare=compare)
        assert kind in ("read", "partly", "refused"), (number, detail)
        kinds[kind] += 1
        path.unlink()
    assert sum(kinds.values()) == TRIES


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_damaged_was_valid(name: str, tmp_path: Path) -> None:
    stem = "geometry" if name == "aims" else "a"
    for content in seeds(name, tmp_path):
        path = tmp_path / f"{stem}{FORMATS[name]}"
        path.write_bytes(content)
        assert outcome(path, compare=True) == ("read", "")
