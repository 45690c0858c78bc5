"""Recipes across domains: what the papers give together, from public functions alone.

poison_detect_retrain puts a backdoor into a training set, looks for it by SPECTRE under every label
and retrains without what it suspects. merge_verify merges two networks and certifies the merged one
beside its sources. filter_train_extract drops duplicates from a pool of text, trains a language
model on it and counts what can be extracted from the model.

  python -m launch.compose --workdir=out/compose
  python -m launch.compose --config=merge_verify --workdir=out/merge --merge_verify.n_pairs=8

A config holds the fields of one recipe or of several, under their names.
"""

import importlib
import pathlib

from launch import _app

RECIPES = ("poison_detect_retrain", "merge_verify", "filter_train_extract")


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    from jaxml import data

    for recipe, fields in config.items():
        if recipe not in RECIPES:
            raise ValueError(f"recipes are {', '.join(RECIPES)}; got {recipe!r}")
        if "dataset" in fields:
            data.check(fields.dataset)
        for name, value in fields.items():
            if name in ("dataset", "bounds"):
                continue
            values = value if isinstance(value, tuple) else (value,)
            if not values or not min(values) > 0:
                raise ValueError(f"{recipe}.{name} must be positive, got {value}")


if __name__ == "__main__":
    _app.start(__doc__, paper="compose", check=check)

import jax
import numpy as np

from jaxml.core.rng import named_key
from jaxml.io import MetricsWriter, artifacts


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Runs the recipes of a config, each on several seeds.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/compose``.
      workdir: folder for what was measured, from which a second call goes on; None writes nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices to train on; None is the default device.

    Returns:
      Result with a claim, two tables and a figure for each recipe.
    """
    check(config)
    writer = writer or MetricsWriter()
    result = _app.Result([], {}, {}, [])
    for name in filter(config.__contains__, RECIPES):
        fields = config[name]
        recipe = importlib.import_module(f"launch._{name}")
        folder = None if workdir is None else pathlib.Path(workdir) / "artifacts" / name
        rows = _measure(named_key(key, name), recipe, name, fields, folder, writer, mesh)
        result.claims.append(recipe.claim(fields, rows))
        result.tables[f"{name}: means"] = _means(rows)
        result.tables[f"{name}: every seed"] = rows
        result.figures[name] = recipe.plot(fields, rows)
        result.notes.append(recipe.NOTE)
    return result


def _measure(key, recipe, name, fields, folder, writer, mesh) -> list[dict]:
    """Lists the rows of all seeds; those of an earlier run are read."""
    n_seeds = fields.get("n_seeds", fields.get("n_pairs"))
    measure = recipe.prepare(fields, mesh)
    writer.stage(name.replace("_", ", "), n_seeds)
    rows = []
    for seed in range(n_seeds):
        path = None if folder is None else folder / f"{seed}.json"
        if path is not None and path.exists():
            rows += artifacts.load_json(path)
            continue
        found = measure(jax.random.fold_in(key, seed), seed)
        if path is not None and jax.process_index() == 0:
            artifacts.save_json(path, found)
        rows += found
        writer.step(seed + 1)
    return rows


def _means(rows) -> list[dict]:
    """Averages over seeds what was measured on networks of one kind."""
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        of_kind = [row for row in rows if row["network"] == network]
        means = {k: np.mean([row[k] for row in of_kind]) for k in list(of_kind[0])[2:]}
        found.append({"network": network, "seeds": len(of_kind), **means})
    return found


if __name__ == "__main__":
    _app.main(run)
