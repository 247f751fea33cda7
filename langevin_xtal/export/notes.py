"""Warnings of other packages, gathered into one sentence for each kind."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_IGNORED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)
_ADVICE = {
    "Relaxation of likely metal with ISMEAR": (
        "the input set keeps a tetrahedron or wide smearing for the relaxation of a likely metal; "
        "MPMetalRelaxSet and MP24RelaxSet suit metals better"
    ),
    "Too few KPOINTS for tetrahedron method": ("fewer than 4 k-points: ISMEAR is 0 instead of -5"),
    "Co without an oxidation state": (
        "Co starts with a low spin; set --incar MAGMOM=Co:5 where it should be high"
    ),
    "uses the Yb_2 PSP": "the input set gives Yb the pseudopotential Yb_2, which suits Yb2+ only",
}
_EXAMPLES = 3


class Notes:
    """Gathers warnings by kind: texts that differ in numbers only are one kind."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        self._general: list[str] = []

    def say(self, sentence: str) -> None:
        """One thing to know about the export as a whole."""
        self._general.append(sentence)

    def add(self, name: str, text: str) -> None:
        """One thing to know about the candidate ``name``."""
        text = " ".join(text.split())
        text = next((advice for sign, advice in _ADVICE.items() if sign in text), text)
        kind = re.sub(r"\d+(\.\d+)?", "#", text)
        self._texts.setdefault(kind, text.rstrip("."))
        names = self._names.setdefault(kind, [])
        if name not in names:
            names.append(name)

    @contextmanager
    def collect(self, name: str) -> Iterator[None]:
        """Warnings raised within are gathered instead of shown."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            finally:
                for warning in caught:
                    if not issubclass(warning.category, _IGNORED):
                        self.add(name, str(warning.message))

    def sentences(self, total: int) -> tuple[str, ...]:
        """One sentence per kind, with how many of ``total`` candidates it concerns and which."""
        lines = list(self._general)
        for kind, text in self._texts.items():
            names = self._names[kind]
            shown = ", ".join(names[:_EXAMPLES]) + (" …" if len(names) > _EXAMPLES else "")
            lines.append(f"{text} ({len(names)} of {total} candidates: {shown})")
        return tuple(lines)
