"""Put a trained model into the package with its card: ``langevin_xtal/weights/NAME.safetensors``.

    python scripts/release_model.py run/model.safetensors --name small --command "…" \
        --validation validation.json

A model made by a recipe (langevin-xtal train --recipe) says itself what it was made of: give only
--name and --validation then. With --starts what says where chains start is another model's. With
--halve the weights of a part are rounded to half precision, which takes half the space. With
--beside weights that a shipped model holds are left out: release that model first.

The name of a property model (train --recipe mp20-properties) ends with -properties.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import click

from langevin_xtal.model.checkpoint import PROPERTIES_SUFFIX, SUFFIX, load_model, save_model
from langevin_xtal.model.properties import load_properties, save_properties
from langevin_xtal.train.card import page

NEEDED = ("command", "data", "split", "licence", "attribution", "revision", "weaknesses")
WEIGHTS = Path(__file__).parents[1] / "langevin_xtal" / "weights"


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--name", required=True)
@click.option("--command", help="The exact training command.")
@click.option("--data")
@click.option("--split")
@click.option("--licence")
@click.option("--attribution")
@click.option("--revision", help="Git revision of the code that trained it.")
@click.option("--weakness", "weaknesses", multiple=True)
@click.option(
    "--validation", type=click.Path(path_type=Path, exists=True), multiple=True, required=True
)
@click.option("--starts", help="Model whose prior, ranker and proposal to take.")
@click.option("--beside", help="Shipped model whose equal weights are left out.")
@click.option("--halve", type=click.Choice(["prior", "ranker", "proposal"]), multiple=True)
def main(
    run: Path,
    name: str,
    validation: tuple[Path, ...],
    weaknesses: tuple[str, ...],
    starts: str | None,
    beside: str | None,
    halve: tuple[str, ...],
    **facts: str | None,
) -> None:
    properties = f"{name}{SUFFIX}".endswith(PROPERTIES_SUFFIX)
    if properties and (starts or beside or halve):
        raise click.UsageError("--starts, --beside and --halve are not of property models")
    read = load_properties if properties else load_model
    write = save_properties if properties else partial(save_model, base=beside)
    model = dataclasses.replace(read(run), name=name)
    if starts is not None:
        model = model.with_parts(load_model(starts).parts())
    for part in halve:
        for weights in getattr(model, part).parameters():
            weights.copy_(weights.half())
    metrics = {path.stem: json.loads(path.read_text()) for path in validation}
    given = {key: value for key, value in facts.items() if value is not None}
    given |= {"weaknesses": list(weaknesses)} if weaknesses else {}
    card = model.card | given | {"metrics": metrics}
    missing = [key for key in NEEDED if key not in card]
    if missing:
        raise click.UsageError(f"the card lacks {', '.join(missing)}; give them as options")
    card["weights"] = model.hash
    write(WEIGHTS / f"{name}{SUFFIX}", dataclasses.replace(model, card=card))
    (WEIGHTS / f"{name}.md").write_text(page(name, card))


if __name__ == "__main__":
    main()
