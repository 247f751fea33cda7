"""Put a trained model into the package with its card: ``langevin_xtal/weights/NAME.safetensors``.

    python scripts/release_model.py run/model.safetensors --name small --command "…" \
        --validation validation.json

With --starts what says where chains start is another model's. With --halve the weights of a part
are rounded to half precision, which takes half the space.
"""

import dataclasses
import json
from pathlib import Path

import click

from langevin_xtal.model.checkpoint import load_model, save_model

WEIGHTS = Path(__file__).parents[1] / "langevin_xtal" / "weights"


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--name", required=True)
@click.option("--command", required=True, help="The exact training command.")
@click.option("--data", required=True)
@click.option("--split", required=True)
@click.option("--licence", required=True)
@click.option("--attribution", required=True)
@click.option("--revision", required=True, help="Git revision of the code that trained it.")
@click.option("--weakness", "weaknesses", multiple=True, required=True)
@click.option(
    "--validation", type=click.Path(path_type=Path, exists=True), multiple=True, required=True
)
@click.option("--starts", help="Model whose prior, ranker and proposal to take.")
@click.option("--halve", type=click.Choice(["prior", "ranker", "proposal"]), multiple=True)
def main(
    run: Path,
    name: str,
    validation: tuple[Path, ...],
    weaknesses: tuple[str, ...],
    starts: str | None,
    halve: tuple[str, ...],
    **facts: str,
) -> None:
    model = dataclasses.replace(load_model(run), name=name)
    if starts is not None:
        model = dataclasses.replace(model, **load_model(starts).parts())
    for part in halve:
        for weights in getattr(model, part).parameters():
            weights.copy_(weights.half())
    metrics = {path.stem: json.loads(path.read_text()) for path in validation}
    card = model.card | facts | {"weaknesses": list(weaknesses), "metrics": metrics}
    card["weights"] = model.hash
    save_model(WEIGHTS / f"{name}.safetensors", dataclasses.replace(model, card=card))
    (WEIGHTS / f"{name}.md").write_text(page(name, card))


def page(name: str, card: dict[str, object]) -> str:
    """The model card as a page."""
    lines = [f"# Model card: {name}", ""]
    for key in ("data", "split", "licence", "attribution", "command", "revision", "weights"):
        lines.append(f"- **{key}**: {card[key]}")
    for key in ("steps", "crystals_seen", "training_seconds", "data_hash"):
        lines.append(f"- **{key.replace('_', ' ')}**: {card[key]}")
    lines += ["", "## Known weaknesses", ""]
    lines += [f"- {text}" for text in card["weaknesses"]]  # type: ignore[union-attr]
    lines += ["", "## Validation", "", "```json", json.dumps(card["metrics"], indent=1), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
