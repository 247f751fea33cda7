"""Model cards as pages: what a model was made of and how, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

FACTS = ("data", "split", "licence", "attribution", "command", "recipe", "revision",
         "started_from", "weights", "steps", "crystals_seen",
         "training_seconds", "data_hash")  # fmt: skip
"""Entries of a card that are a line each, in this order."""


def page(name: str, card: Mapping[str, object]) -> str:
    """The card of a model as Markdown; entries that are not there are left out."""
    lines = [f"# Model card: {name}", ""]
    lines += [f"- **{key.replace('_', ' ')}**: {card[key]}" for key in FACTS if key in card]
    lines += ["", "## Known weaknesses", ""]
    lines += [f"- {text}" for text in _listed(card, "weaknesses")]
    if card.get("fits"):
        lines += ["", "## Fits, in their order", ""]
        fits = enumerate(_listed(card, "fits"), start=1)
        lines += [f"{k}. `{json.dumps(fit)}`" for k, fit in fits]
    lines += ["", "## Validation", ""]
    if card.get("metrics"):
        lines += ["```json", json.dumps(card["metrics"], indent=1), "```"]
    else:
        lines += ["Not evaluated; `langevin-xtal evaluate --model` does."]
    return "\n".join(lines) + "\n"


def _listed(card: Mapping[str, object], name: str) -> Sequence[object]:
    values = card.get(name, ())
    return values if isinstance(values, list | tuple) else [values]
