r"""Git Re-Basin: align independently trained networks and merge them.

Trains pairs of networks from different seeds (or loads two checkpoints), permutes the units of one
until they line up with the other's, and reports the loss along the straight line between them.

  python -m launch.git_rebasin --workdir=out/git_rebasin
  python -m launch.git_rebasin --config=digits --width=64,256 --method=weight --n_restarts=5
  python -m launch.git_rebasin --checkpoint_a=a.safetensors --checkpoint_b=b.safetensors \
      --module=my_package.models:MyNet --module_kwargs='{"width": 64}'

Checkpoints are safetensors files with names such as params/Dense_0/kernel; those that this script
writes need no --module. --dataset takes any bundled set or prepared tfds image set.
"""

import json
import pathlib

from launch import _app, _networks

METHODS = ("weight", "activation", "ste")
METRICS = ("inner", "corr", "sqdist")


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    _networks.check(config)
    if unknown := sorted(set(config.method) - set(METHODS)):
        raise ValueError(f"method must be of {', '.join(METHODS)}; got {unknown[0]!r}")
    if not config.method:
        raise ValueError(f"method is empty; choose of {', '.join(METHODS)}")
    if not config.width or min(config.width) <= 0:
        raise ValueError(f"width must be positive numbers, got {config.width}")
    if config.metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {config.metric!r}")
    sizes = ("n_pairs", "n_restarts", "calibration_size", "ste_steps", "ste_batch_size")
    for name in (*sizes, "lambda_chunk"):
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    if config.n_lambdas < 3 or config.n_lambdas % 2 == 0:
        raise ValueError(
            f"n_lambdas must be odd, for the midpoint, and at least 3, got {config.n_lambdas}"
        )
    if config.merge_many < 0 or config.merge_many == 1:
        raise ValueError(f"merge_many must be 0 (off) or at least 2, got {config.merge_many}")
    seeds = _seeds(config)
    if not config.checkpoint_a and len(set(seeds)) < len(seeds):
        raise ValueError(
            "seed_a and seed_b must differ by an odd number, or pairs share networks; got "
            f"{config.seed_a} and {config.seed_b}"
        )


def _seeds(config) -> list[int]:
    """Lists the seeds to train from: pair p is networks 2 p and 2 p + 1."""
    count = max(2 * config.n_pairs, config.merge_many)
    return [(config.seed_a, config.seed_b)[i % 2] + 2 * (i // 2) for i in range(count)]


if __name__ == "__main__":
    _app.start(__doc__, paper="git_rebasin", check=check)

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxml import data, merging, report, train
from jaxml.core.rng import named_key
from jaxml.core.sharding import replicate
from jaxml.data.batching import batches
from jaxml.io import MetricsWriter, artifacts
from launch._rows import select
from launch._workdir import file_name

CURVES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


class Family(NamedTuple):
    """Networks of one architecture, and all that is needed to compare them."""

    width: str
    model: nn.Module
    spec: merging.PermutationSpec
    models: list[dict]  # pair p is models[2 p], models[2 p + 1]
    folder: pathlib.Path | None


class Line(NamedTuple):
    """What was measured on the line between the two networks of one pair."""

    width: str
    pair: int
    method: str
    train: merging.Barrier
    test: merging.Barrier
    seconds: float  # of the matching, compilation included


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Trains or loads, matches, merges and measures.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/git_rebasin``.
      workdir: folder for artifacts and checkpoints, from which a second call goes on; None writes
        nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices that training and the points of a line are shared out over; None is the default
        device.

    Returns:
      Result with claims, tables and figures.
    """
    check(config)
    writer = writer or MetricsWriter()
    if mesh is not None and mesh.size == 1:
        mesh = None
    dataset = data.load(config.dataset)
    if not dataset.n_classes:
        raise ValueError(f"dataset {config.dataset!r} has no classes: it is for regression")
    dataset = data.standardize(dataset) if config.standardize else dataset
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"

    lines, families = [], []
    for family in _families(key, config, dataset, root, writer, mesh):
        families.append(family)
        lines += _measure_pairs(key, config, family, dataset, writer, mesh)
    widest = families[-1]
    many = _merge_many(key, config, widest, dataset, writer)
    planted = _planted(key, config, widest, writer)
    claims = [] if config.checkpoint_a else _claims(config, lines, many, planted)

    tables = {"barriers": _summary(lines), "pairs": [_row(line) for line in lines]}
    if many:
        tables["merging_many"] = many
    tables["curves"] = _curve_rows(lines, widest.width)
    figures = {f"line_at_width_{widest.width}": _plot_lines(lines, widest.width)}
    if len(families) > 1:
        figures["barrier_against_width"] = _plot_widths(lines)
    return _app.Result(claims, tables, figures, _notes(config))


def _families(key, config, dataset, root, writer, mesh):
    """Yields one Family a width, or the one whose checkpoints are given."""
    if config.checkpoint_a:
        folder = None if root is None else root / "given"
        yield _family("given", *_networks.load(config, dataset), dataset, folder)
        return
    for width in sorted(config.width):
        folder = None if root is None else root / f"width_{width:g}"
        trained = _networks.train(key, config, width, _seeds(config), dataset, folder, writer, mesh)
        yield _family(f"{width:g}", *trained, dataset, folder)


def _family(width, model, models, dataset, folder) -> Family:
    example = jax.ShapeDtypeStruct((2, *dataset.input_shape), jnp.float32)
    spec = merging.derive_permutation_spec(model.apply, models[0], example)
    if folder is not None and jax.process_index() == 0:
        artifacts.save_json(folder / "spec.json", json.loads(spec.to_json()))
    return Family(width, model, spec, models, folder)


# Matching and measuring.


def _measure_pairs(key, config, family, dataset, writer, mesh) -> list[Line]:
    x_cal = jnp.asarray(dataset.train_x[: config.calibration_size])
    sets = {
        "train": (jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)),
        "test": (jnp.asarray(dataset.test_x), jnp.asarray(dataset.test_y)),
    }
    apply, size = family.model.apply, config.eval_batch_size
    # Matching is each process's own; what lies on the mesh is for the lines.
    *spread, spread_cal = replicate((*sets.values(), x_cal), mesh)

    # What `loss_barrier` compiles is kept for these very functions, so all pairs share it.
    def metrics(variables, x, y, *_):
        return train.evaluate(apply, variables, x, y, batch_size=size)

    def reset(variables, lam, x, y, x_cal, *_):
        return merging.reset_batch_stats(apply, variables, x_cal, batch_size=size)

    def mend(variables, lam, x, y, x_cal, a, b):
        return merging.repair(apply, variables, a, b, x_cal, lam=lam, batch_size=size)

    has_batch_stats = "batch_stats" in family.models[0]
    n_pairs = min(config.n_pairs, len(family.models) // 2)
    methods = [m for m in config.method if m != "ste" or _ste_is_due(config, family)]
    runs = ["naive", *methods]
    if config.repair and methods and not has_batch_stats:
        runs.append(f"{methods[0]} + repair")
    lines = []
    writer.stage(f"width {family.width}: match and measure", n_pairs * len(runs))
    for pair in range(n_pairs):
        a, b = family.models[2 * pair : 2 * pair + 2]
        pair_key = jax.random.fold_in(named_key(key, "match"), pair)
        root = None if family.folder is None else family.folder / f"pair_{pair}"
        aligned = {}
        for name in runs:
            path = None if root is None else root / file_name(name) / "line.json"
            if path is not None and path.exists():
                lines.append(_load_line(path))
                continue
            method = name.removesuffix(" + repair")
            if method not in aligned:
                folder = None if root is None else root / method
                perms, seconds = _match(pair_key, config, family, method, a, b, sets, x_cal, folder)
                aligned[method] = merging.apply_permutation(family.spec, perms, b), seconds
                if folder is not None and pair == 0 and method != "naive":
                    _save_merged(folder, a, aligned[method][0])
            b_now, seconds = aligned[method]
            transform = reset if has_batch_stats else mend if name != method else None
            train_line, test_line = (
                merging.loss_barrier(
                    metrics, a, b_now, x, y, spread_cal, a, b_now,
                    n=config.n_lambdas, transform=transform, chunk=config.lambda_chunk, mesh=mesh,
                )
                for x, y in spread
            )  # fmt: skip
            lines.append(Line(family.width, pair, name, train_line, test_line, seconds))
            _save_measured(path, _to_dict(lines[-1]))
            writer.step(
                len(lines), train_barrier=train_line.barrier, test_barrier=test_line.barrier
            )
    return lines


def _to_dict(line: Line) -> dict[str, Any]:
    return line._asdict() | {"train": line.train._asdict(), "test": line.test._asdict()}


def _load_line(path) -> Line:
    saved = artifacts.load_json(path)
    for name in ("train", "test"):
        values = {k: np.array(v) if isinstance(v, list) else v for k, v in saved[name].items()}
        saved[name] = merging.Barrier(**values)
    return Line(**saved)


def _save_measured(path, value) -> None:
    if path is not None and jax.process_index() == 0:
        artifacts.save_json(path, value)


def _ste_is_due(config, family) -> bool:
    return family.width == "given" or float(family.width) <= config.ste_max_width


def _match(key, config, family, method, a, b, sets, x_cal, folder):
    """Returns permutations and seconds; from the artifacts if they are there."""
    if folder is not None and (folder / "match.json").exists():
        perms = artifacts.load_npz(folder / "permutation.npz")
        return perms, artifacts.load_json(folder / "match.json")["seconds"]
    apply, spec = family.model.apply, family.spec
    start = time.perf_counter()
    if method == "naive":
        return merging.identity_permutation(spec), 0.0
    if method == "weight":
        match = merging.weight_matching(key, spec, a, b, n_restarts=config.n_restarts)
    elif method == "activation":
        chunks = batches(x_cal, batch_size=config.eval_batch_size)
        match = merging.activation_matching(spec, apply, a, b, chunks, metric=config.metric)
    else:

        def loss(variables, x, y):
            return train.evaluate(apply, variables, x, y, batch_size=config.eval_batch_size).loss

        match = merging.ste_matching(
            key, spec, loss, a, b, *sets["train"],
            n_steps=config.ste_steps, batch_size=min(config.ste_batch_size, len(sets["train"][0])),
            optimizer=optax.sgd(config.ste_learning_rate, momentum=0.9),
        )  # fmt: skip
    seconds = time.perf_counter() - start
    if folder is not None and jax.process_index() == 0:
        artifacts.save_npz(folder / "permutation.npz", match.perms)
        facts = {"objective": match.objective, "n_iter": match.n_iter, "history": match.history}
        artifacts.save_json(folder / "match.json", {"seconds": seconds, **facts})
    return match.perms, seconds


def _save_merged(folder, a, aligned) -> None:
    if jax.process_index() != 0:
        return
    artifacts.save_tree(folder / "aligned.safetensors", aligned)
    artifacts.save_tree(folder / "merged.safetensors", merging.interpolate(0.5, a, aligned))


def _merge_many(key, config, family, dataset, writer) -> list[dict[str, Any]]:
    """Merges ``merge_many`` networks at once; returns a row for each way of combining them."""
    k = config.merge_many
    if not k or k > len(family.models):
        return []
    path = None if family.folder is None else family.folder / f"merged_{k}.json"
    if path is not None and path.exists():
        return artifacts.load_json(path)
    models, apply, size = family.models[:k], family.model.apply, config.eval_batch_size
    x, y = jnp.asarray(dataset.test_x), jnp.asarray(dataset.test_y)
    x_cal = jnp.asarray(dataset.train_x[: config.calibration_size])
    has_batch_stats = "batch_stats" in models[0]

    @jax.jit
    def measure(variables):
        if has_batch_stats:
            variables = merging.reset_batch_stats(apply, variables, x_cal, batch_size=size)
        return train.evaluate(apply, variables, x, y, batch_size=size)

    writer.stage(f"width {family.width}: merge {k} networks at once", None)
    result = merging.merge_many(
        named_key(key, "merge_many"), family.spec, models,
        callback=lambda sweep, distance: writer.step(sweep + 1, distance=distance),
    )  # fmt: skip
    if family.folder is not None and jax.process_index() == 0:
        artifacts.save_tree(family.folder / f"merged_{k}.safetensors", result.merged)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / np.float32(k), *models)
    ends = [measure(model) for model in models]
    measured = [
        ("each alone, mean", np.mean([m.loss for m in ends]), np.mean([m.accuracy for m in ends])),
        ("mean of parameters, naive", *measure(mean)),
        ("merge many", *measure(result.merged)),
    ]
    how = ", statistics reset" if has_batch_stats else ""
    rows = [
        {
            "networks": k,
            "combined by": name + how,
            "test loss": float(loss),
            "test accuracy": float(accuracy),
        }
        for name, loss, accuracy in measured
    ]
    _save_measured(path, rows)
    return rows


def _planted(key, config, family, writer) -> tuple[int, int] | None:
    """Hides permutations in noisy copies of one network; returns (recovered exactly, tried)."""
    if not config.n_planted or config.checkpoint_a:
        return None
    path = None if family.folder is None else family.folder / "planted.json"
    if path is not None and path.exists():
        return tuple(artifacts.load_json(path))
    model, spec = family.models[0], family.spec
    writer.stage(f"width {family.width}: planted permutations", config.n_planted)
    recovered = 0
    for i in range(config.n_planted):
        trial = jax.random.fold_in(named_key(key, "planted"), i)
        hidden = merging.random_permutation(trial, spec)
        leaves, tree = jax.tree.flatten(model)
        keys = jax.random.split(named_key(trial, "noise"), len(leaves))
        noisy = [
            v + v.std() * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)
        ]
        copy = merging.apply_permutation(spec, hidden, jax.tree.unflatten(tree, noisy))
        found = merging.weight_matching(trial, spec, model, copy).perms
        back = merging.invert_permutation(hidden)
        recovered += all(np.array_equal(found[name], back[name]) for name in back)
        writer.step(i + 1, recovered=recovered)
    _save_measured(path, (recovered, config.n_planted))
    return recovered, config.n_planted


# Tables, figures and claims.


def _row(line: Line) -> dict[str, Any]:
    middle = len(line.train.lams) // 2
    return {
        "width": line.width,
        "pair": line.pair,
        "method": line.method,
        "train barrier": line.train.barrier,
        "test barrier": line.test.barrier,
        "test barrier from mean of ends": line.test.barrier_mean,
        "test accuracy barrier": line.test.accuracy_barrier,
        "test accuracy of ends": float(np.mean(line.test.accuracy[[0, -1]])),
        "test accuracy at midpoint": float(line.test.accuracy[middle]),
        "matching seconds": line.seconds,
    }


def _ordered(lines, field) -> list[str]:
    return list(dict.fromkeys(getattr(line, field) for line in lines))


def _barriers(lines, **wanted) -> np.ndarray:
    return np.array([line.train.barrier for line in select(lines, **wanted)])


def _summary(lines) -> list[dict[str, Any]]:
    rows = []
    for width in _ordered(lines, "width"):
        naive = _barriers(lines, width=width, method="naive").mean()
        for method in _ordered(select(lines, width=width), "method"):
            chosen = [_row(line) for line in select(lines, width=width, method=method)]
            barrier = [row["train barrier"] for row in chosen]
            rows.append(
                {
                    "width": width,
                    "method": method,
                    "pairs": len(chosen),
                    "train barrier": np.mean(barrier),
                    "sd": np.std(barrier),
                    "of naive": np.mean(barrier) / naive,
                    **{
                        name: np.mean([row[name] for row in chosen]) for name in list(chosen[0])[4:]
                    },
                }
            )
    return rows


def _curve(line: Line, name: str) -> np.ndarray:
    which, quantity = name.split("_")
    return getattr(getattr(line, which), quantity)


def _curve_rows(lines, width) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "lambda": lam,
            **{
                name: np.mean(
                    [_curve(e, name)[i] for e in select(lines, width=width, method=method)]
                )
                for name in CURVES
            },
        }
        for method in _ordered(select(lines, width=width), "method")
        for i, lam in enumerate(lines[0].train.lams)
    ]


def _plot_lines(lines, width):
    frames = {}
    for name in CURVES:
        series = {}
        for method in _ordered(select(lines, width=width), "method"):
            curves = [_curve(e, name) for e in select(lines, width=width, method=method)]
            series[method] = (lines[0].train.lams, np.mean(curves, 0), np.std(curves, 0))
        frames[name.replace("_", " ")] = series
    return report.panels(
        frames,
        xlabel="lambda, from A (0) to B (1)",
        ylabel={title: "cross-entropy" if "loss" in title else "accuracy" for title in frames},
        title=f"On the line between two networks of width {width} (band: sd over pairs)",
    )


def _plot_widths(lines):
    series = {}
    for method in _ordered(lines, "method"):
        widths = _ordered(select(lines, method=method), "width")
        values = [_barriers(lines, width=width, method=method) for width in widths]
        # The mean can come close to 0 while the band would cross it: a log axis has no room there.
        series[method] = (
            [float(width) for width in widths],
            [max(v.mean(), 1e-4) for v in values],
            [min(v.std(), 0.9 * max(v.mean(), 1e-4)) for v in values],
        )
    return report.lines(
        series, xlabel="width", ylabel="train barrier (nats)", xlog=True, ylog=True,
        title="The barrier falls with width (band: sd over pairs)",
    )  # fmt: skip


def _claims(config, lines, many, planted) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    bounds = config.bounds
    widths = _ordered(lines, "width")
    widest, narrowest = widths[-1], widths[0]
    naive = _barriers(lines, width=widest, method="naive")
    claims = []

    def add(text, paper_value, values, against, against_name, bound, width, known=""):
        if values.size and against.size:
            claim = report.ratio_claim(
                f"{text}, width {width}", values, against, against_name=against_name, bound=bound,
                paper="Git Re-Basin", paper_value=paper_value, seeds=f"{values.size} pairs",
            )  # fmt: skip
            # Known to miss a bound, not to miss it by as much again.
            near = np.mean(values) <= 2 * bound * np.mean(against)
            claims.append(claim._replace(reason=known if near else ""))

    weight = _barriers(lines, width=widest, method="weight")
    add(
        "Train barrier after weight matching", "0 (MNIST MLP 3x512)",
        weight, naive, "naive", bounds.weight_of_naive, widest,
        "From the identity the search stalls in local optima at width 512, and so does a plain "
        "re-statement of the published algorithm; from the activation matching it does not."
        if float(widest) > 256 else "",
    )  # fmt: skip
    add(
        "Train barrier after activation matching", "0 (MNIST MLP 3x512)",
        _barriers(lines, width=widest, method="activation"), naive, "naive",
        bounds.activation_of_naive, widest,
    )  # fmt: skip
    if len(widths) > 1:
        add(
            "Train barrier after weight matching falls with width", "falls to 0 (VGG16, ResNet20)",
            weight, _barriers(lines, width=narrowest, method="weight"), f"width {narrowest}",
            bounds.widest_of_narrowest, widest,
        )  # fmt: skip
    if with_ste := _ordered(select(lines, method="ste"), "width"):
        add(
            "Train barrier after straight-through matching", "below both other methods",
            _barriers(lines, width=with_ste[-1], method="ste"),
            _barriers(lines, width=with_ste[-1], method="weight"), "weight matching",
            bounds.ste_of_weight, with_ste[-1],
        )  # fmt: skip
    if planted is not None:
        recovered, tried = planted
        claims.append(
            report.Claim(
                claim="A planted permutation is found again under noise of one standard deviation",
                paper="Git Re-Basin",
                paper_value="exactly, in 3-4 passes",
                value=f"{recovered} of {tried} exactly",
                baseline=f"{bounds.planted:.0%} of the trials",
                seeds=f"{tried} permutations",
                spread="",
                holds=recovered >= bounds.planted * tried,
            )
        )
    if many:
        alone, naive_mean, merged = (row["test loss"] for row in many[:3])
        claims.append(
            report.Claim(
                claim=f"Test loss of {many[0]['networks']} networks merged into one",
                paper="Git Re-Basin",
                paper_value="43 % below each alone (5 MNIST MLPs)",
                value=f"{merged:.3f}: {merged / naive_mean:.0%} of the naive mean, "
                f"{merged / alone:.1f} times each alone",
                baseline=f"{bounds.many_of_naive:.0%} of the naive mean, {naive_mean:.3f}",
                seeds=f"1 group of {many[0]['networks']}",
                spread="",
                holds=merged <= bounds.many_of_naive * naive_mean,
            )
        )
    return claims


def _notes(config) -> list[str]:
    notes = [
        "A barrier is the largest rise of the loss above the chord between the two ends, on "
        f"{config.n_lambdas} points; the ends are among them, so it is never negative.",
        "The permutation groups were derived from the network's jaxpr; see spec.json.",
    ]
    if config.checkpoint_a:
        notes.append("Networks that are given carry no claims: the bounds are for trained ones.")
    elif config.merge_many and config.dataset == "digits":
        notes.append(
            "That merging many networks beats each of them, as the paper reports for MNIST, does "
            "not hold on digits: networks of this width keep a barrier, and those of "
            f"{config.merge_many} add up. The claim is held against the naive mean alone."
        )
    if config.repair:
        notes.append("'+ repair' restores the mean and spread of every hidden unit (REPAIR).")
    return notes


if __name__ == "__main__":
    _app.main(run)
