"""How good predicted properties are, and what a search by them finds.

    python scripts/evaluate_properties.py errors --train mp20_train.lxd --validation mp20_val.lxd
    python scripts/evaluate_properties.py pictures --train mp20_train.lxd --validation mp20_val.lxd
    python scripts/evaluate_properties.py search --elements Zn,Sn,P --target band_gap=1.1:1.7

Results go to docs/results/properties.json. ``errors``: errors on crystals that were not learned,
whether error bars say how large they are, and the same errors of controls that know the
composition alone: the median of the training set, and a ridge regression on the shares of the
elements. ``pictures``: errors of a convolutional network on CrysTens pictures, learned from the
same crystals. ``search``: as many relaxations with and without a
target, and how many distinct candidates near the hull have the property predicted in the window;
what is predicted is judged by the same model, of the relaxed structure.
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from langevin_xtal.baselines.picture_regression import (
    PictureRegressionFit,
    PictureRegressionRecipe,
)
from langevin_xtal.crystal.properties import PROPERTIES, Window
from langevin_xtal.dataset.join import near_duplicates
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.properties import load_properties
from langevin_xtal.screen.properties import predict_packed
from langevin_xtal.search.campaign import Campaign
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.version import __version__

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "properties.json"
PUBLISHED = [
    {
        "of": "image-based network on CrysTens (Sood 2024)",
        "data": "another: Materials Project and Alexandria, at most 52 sites, stable, 83,906 and "
        "more",
        "mae": {"e_hull": 0.023, "direct_gap": 0.415, "indirect_gap": 0.341},
    },
    {
        "of": "ALIGNN (Choudhary & DeCost 2021)",
        "data": "another: Materials Project 2018.6.1, 60,000 for training, 4,239 for testing",
        "mae": {"e_form": 0.022, "band_gap": 0.218},
    },
]
"""Errors that others found on other crystals: no more than the size to compare with."""
TOP = 200
NEAR_HULL = 0.1
RIDGE = 1e-3


def shares(data: PackedDataset) -> np.ndarray:
    """(B, 119) share of each element in the atoms, and a constant."""
    owner = np.repeat(np.arange(len(data)), data.site_counts)
    table = np.zeros((len(data), 119))
    np.add.at(table, (owner, data.numbers), data.multiplicity)
    table /= table.sum(1, keepdims=True)
    table[:, 0] = 1.0
    return table


def linear(train: PackedDataset, data: PackedDataset, name: str) -> np.ndarray:
    """(B,) a ridge regression on the shares of the elements."""
    known = np.isfinite(train.properties[name])
    x, y = shares(train)[known], train.properties[name][known]
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return np.asarray(np.maximum(shares(data) @ weights, PROPERTIES[name].least))


def scores(true: np.ndarray, value: np.ndarray) -> dict[str, float]:
    off = value - true
    return {
        "mae": float(np.abs(off).mean()),
        "rmse": float(np.sqrt((off**2).mean())),
        "r2": float(1 - (off**2).sum() / ((true - true.mean()) ** 2).sum()),
    }


def of_property(
    name: str, train: PackedDataset, data: PackedDataset, value: Any, error: Any, new: np.ndarray
) -> dict[str, Any]:
    true = data.properties[name]
    known = np.isfinite(true)
    ratio = np.abs(value - true)[known] / error[known]
    found: dict[str, Any] = {
        "crystals": int(known.sum()),
        "unit": PROPERTIES[name].unit,
        "model": scores(true[known], value[known]),
        "without_near_duplicates_of_training": {
            "crystals": int((known & new).sum()),
            **scores(true[known & new], value[known & new]),
        },
        "median_of_training": scores(
            true[known], np.full(known.sum(), np.nanmedian(train.properties[name]))
        ),
        "linear_in_composition": scores(true[known], linear(train, data, name)[known]),
        "error_bars": {
            "within_1": float((ratio < 1).mean()),
            "within_2": float((ratio < 2).mean()),
            "of_a_normal_distribution": [0.683, 0.954],
            "by_quarter_of_the_error_bar": [
                {
                    "mean_error_bar": float(error[known][part].mean()),
                    "mae": float(np.abs(value - true)[known][part].mean()),
                    "within_1": float((ratio[part] < 1).mean()),
                }
                for part in np.array_split(np.argsort(error[known]), 4)
            ],
        },
    }
    if name == "band_gap":
        gapped = known & (true > 0)
        found["of_crystals_with_a_gap"] = {
            "crystals": int(gapped.sum()),
            **scores(true[gapped], value[gapped]),
        }
        found["metal_or_not_right"] = float(((value > 0.1) == (true > 0))[known].mean())
    return found


def enrichment(data: PackedDataset, window: Window, value: Any, error: Any) -> dict[str, Any]:
    """Crystals whose property is in a window, of all and of those likeliest to be there."""
    true = data.properties[window.name]
    inside = (true >= window.low) & (true <= window.high)
    pairs = zip(value.tolist(), error.tolist(), strict=True)
    p = np.array([window.probability(v, e) for v, e in pairs])
    best = np.argsort(-p, kind="stable")[:TOP]
    bins = [(0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1.01)]
    return {
        "window": str(window),
        "share_of_all": float(inside.mean()),
        f"share_of_the_{TOP}_likeliest": float(inside[best].mean()),
        "by_probability": [
            {
                "from": low,
                "crystals": int(((p >= low) & (p < high)).sum()),
                "mean_probability": float(p[(p >= low) & (p < high)].mean()),
                "share_inside": float(inside[(p >= low) & (p < high)].mean()),
            }
            for low, high in bins
            if ((p >= low) & (p < high)).any()
        ],
    }


def put(results: Path, **found: Any) -> None:
    whole = json.loads(results.read_text()) if results.exists() else {}
    made = {
        "command": f"python scripts/evaluate_properties.py {' '.join(sys.argv[1:])}",
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    results.write_text(json.dumps(made | whole | found, indent=1) + "\n")


@click.group()
def main() -> None:
    torch.set_num_threads(1)


packed = click.Path(exists=True, path_type=Path)
out = click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
chosen = click.option("--model", default="mp20-properties")


@main.command()
@click.option("--train", type=packed, required=True)
@click.option("--validation", type=packed, required=True)
@chosen
@out
def errors(train: Path, validation: Path, model: str, out: Path) -> None:
    """Errors of values and error bars on crystals that were not learned."""
    weights = load_properties(model)
    known, data = PackedDataset.load(train), PackedDataset.load(validation)
    start = time.perf_counter()
    found = predict_packed(data, weights)
    seconds = time.perf_counter() - start
    new = ~near_duplicates(data, known)
    each = {
        name: of_property(name, known, data, *found.column(name), new) for name in weights.names
    }
    window = Window("band_gap", 1.1, 1.7)
    put(
        out,
        model={"name": weights.name, "weights": weights.hash},
        data={"validation": data.content_hash[:16], "training": known.content_hash[:16]},
        crystals_per_second=len(data) / seconds,
        properties=each,
        window=enrichment(data, window, *found.column(window.name)),
        published=PUBLISHED,
    )
    for name, own in each.items():
        click.echo(f"{name}: {own['model']}, linear {own['linear_in_composition']['mae']:.4f}")


@main.command()
@click.option("--train", type=packed, required=True)
@click.option("--validation", type=packed, required=True)
@click.option("--epochs", default=PictureRegressionRecipe.epochs, show_default=True)
@click.option("--run", type=click.Path(path_type=Path), help="Folder to save to and go on from.")
@out
def pictures(train: Path, validation: Path, epochs: int, run: Path | None, out: Path) -> None:
    """Fit the network on pictures to the training crystals, and its errors on the others."""
    known, data = PackedDataset.load(train), PackedDataset.load(validation)
    names = [name for name in PROPERTIES if name in known.properties]
    fit = PictureRegressionFit(known, names, PictureRegressionRecipe(epochs=epochs), run)
    fit.finish(lambda epoch, loss: click.echo(f"epoch {epoch}: {loss:.4f}"))
    found = fit.predict(data)
    drawn = np.isfinite(found[:, 0])
    each = {}
    for column, name in enumerate(names):
        value, true = np.maximum(found[:, column], PROPERTIES[name].least), data.properties[name]
        both = drawn & np.isfinite(true)
        each[name] = {"crystals": int(both.sum()), **scores(true[both], value[both])}
        click.echo(f"{name}: {each[name]}")
    put(
        out,
        pictures={
            "command": f"python scripts/evaluate_properties.py {' '.join(sys.argv[1:])}",
            "learned_from": len(fit.pictures.places),
            "weights": sum(p.numel() for p in fit.network.parameters()),
            "epochs": epochs,
            "seconds_of_fit": round(fit.seconds),
            "without_a_picture": int((~drawn).sum()),
            "properties": each,
        },
    )


@main.command()
@click.option("--elements", required=True)
@click.option("--target", required=True)
@click.option("--samples", default=150)
@click.option("--relaxed", default=24)
@click.option("--seed", default=0)
@chosen
@out
def search(
    elements: str, target: str, samples: int, relaxed: int, seed: int, model: str, out: Path
) -> None:
    """The same samples and as many relaxations with and without a target."""
    window, counts = Window.parse(target), {}
    for name, own in (("with_target", target), ("without", None)):
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(
                Path(folder) / "s.db",
                SearchSpace(elements.split(",")),
                seed=seed,
                max_samples=samples,
                relax=True,
                relax_best=relaxed,
                target=own,
                properties=model,
                workers=1,
            )
            campaign.run()
            entries = [e for e in campaign.entries() if e.energy is not None]
        inside = [
            e for e in entries if window.holds(float(e.properties[f"predicted_{window.name}"]))
        ]
        near = [e for e in inside if float(e.properties.get("e_above_all", 9.0)) <= NEAR_HULL]
        counts[name] = {
            "relaxed_and_distinct": len(entries),
            "in_window": len(inside),
            "in_window_and_near_hull": len(near),
            "best": [
                [e.formula, e.found_group, e.properties.get("e_above_all"),
                 e.properties[f"predicted_{window.name}"]]
                for e in near[:5]
            ],
        }  # fmt: skip
        click.echo(f"{name}: {counts[name]}")
    whole = json.loads(out.read_text()) if out.exists() else {}
    searches = [s for s in whole.get("searches", []) if s["elements"] != elements]
    about = {"elements": elements, "target": target, "samples": samples, "relaxations": relaxed,
             "seed": seed, "near_hull": NEAR_HULL}  # fmt: skip
    put(out, searches=[*searches, about | counts])


if __name__ == "__main__":
    main()
