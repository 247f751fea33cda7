"""Put a trained model into the package with its card: ``langevin_xtal/weights/NAME.safetensors``.

    python scripts/release_model.py run/model.safetensors --name small --validation formula.json

A model made by a recipe (langevin-xtal train --recipe) says itself what it was made of; here its
validation is added. The name of a property model ends with -properties.
"""

import dataclasses
import json
from pathlib import Path

import click

from langevin_xtal.model.checkpoint import PROPERTIES_SUFFIX, SUFFIX, load_model, save_model
from langevin_xtal.model.properties import load_properties, save_properties
from langevin_xtal.train.card import page

NEEDED = ("command", "recipe", "data", "split", "licence", "attribution", "revision", "weaknesses")
WEIGHTS = Path(__file__).parents[1] / "langevin_xtal" / "weights"


def checked(card: dict[str, object]) -> dict[str, object]:
    """The card, if it says what it must."""
    missing = [key for key in NEEDED if key not in card]
    if missing:
        raise click.UsageError(f"the card lacks {', '.join(missing)}; make the model by a recipe")
    return card


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--name", required=True)
@click.option(
    "--validation", type=click.Path(path_type=Path, exists=True), multiple=True, required=True
)
def main(run: Path, name: str, validation: tuple[Path, ...]) -> None:
    metrics = {path.stem: json.loads(path.read_text()) for path in validation}
    target = WEIGHTS / f"{name}{SUFFIX}"
    if target.name.endswith(PROPERTIES_SUFFIX):
        fitted = load_properties(run)
        card = checked({**fitted.card, "metrics": metrics})
        save_properties(target, dataclasses.replace(fitted, name=name, card=card))
    else:
        model = load_model(run)
        card = checked({**model.card, "metrics": metrics})
        save_model(target, dataclasses.replace(model, name=name, card=card))
    (WEIGHTS / f"{name}.md").write_text(page(name, card))


if __name__ == "__main__":
    main()
