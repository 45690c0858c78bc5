r"""PLeaS: merge networks with permutations and least squares, at any size from one to two.

Trains pairs of networks that have learnt different things (or loads two checkpoints), merges each
pair in several ways at each compute budget, and reports accuracy against multiply-adds.

  python -m launch.pleas --workdir=out/pleas
  python -m launch.pleas --config=digits:disjoint --workdir=out/pleas_disjoint
  python -m launch.pleas --checkpoint_a=a.safetensors --checkpoint_b=b.safetensors \
      --module=my_package.models:MyNet --module_kwargs='{"width": 64}' --budget=1

What tells the two apart is --label_split (unequal shares of the classes), --labels=disjoint (half
of the classes each) or --dataset_b (another data set). Checkpoints are as for git_rebasin. A merged
network that is kept in the artifacts fits nn.with_widths(model, variables).
"""

import functools
import json
import pathlib
import time
from typing import NamedTuple

from launch import _app, _networks

CHOICES = {
    "labels": ("shared", "disjoint"),
    "matching": ("activation", "weight"),
    "ratios": ("qp", "uniform", "zip"),
    "calibration": ("target", "public", "noise"),
}

# The starts of the names of models that nn.with_widths cannot rebuild.
FIXED_WIDTH = ("resnet32_preact", "wide_resnet", "convnext", "vit")


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    from jaxml import data

    _networks.check(config)
    for name, legal in CHOICES.items():
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    for name in ("dataset_b", "calibration_dataset"):
        if config[name]:
            data.check(config[name])
    if (config.calibration == "public") != bool(config.calibration_dataset):
        raise ValueError("calibration 'public' and a calibration_dataset go together")
    if not config.budget or not all(1 <= budget <= 2 for budget in config.budget):
        raise ValueError(f"budget must be numbers in [1, 2], got {config.budget}")
    if max(config.budget) > 1 and _has_fixed_width(config):
        raise ValueError(
            f"budget must be 1 for model {config.model!r}, which cannot be rebuilt at the widths "
            f"of a larger merge; got {config.budget}"
        )
    if not 0.5 <= config.label_split <= 1:
        raise ValueError(f"label_split must lie in [0.5, 1], got {config.label_split}")
    if config.width <= 0:
        raise ValueError(f"width must be positive, got {config.width}")
    for name in ("n_pairs", "calibration_size"):
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    if not config.ridge > 0:
        raise ValueError(f"ridge must be positive, got {config.ridge}")


def _has_fixed_width(config) -> bool:
    return not config.checkpoint_a and config.model.startswith(FIXED_WIDTH)


if __name__ == "__main__":
    _app.start(__doc__, paper="pleas", check=check)

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxml import merging, train
from jaxml.core.rng import named_key
from jaxml.data.batching import batches
from jaxml.io import MetricsWriter, artifacts
from jaxml.merging.pleas import group_weights
from jaxml.nn import MLP, with_widths
from launch import _pleas_report, _tasks
from launch._pleas_report import Outcome
from launch._workdir import file_name


class Setting(NamedTuple):
    """What the merges of all pairs have in common."""

    model: nn.Module
    spec: merging.PermutationSpec
    costs: list[merging.LayerCost]
    tasks: list[_tasks.Task]
    x_cal: jax.Array
    probed: bool
    batch_size: int

    @property
    def batches(self) -> list[jax.Array]:
        """The calibration inputs, in batches."""
        return [x for (x,) in batches(self.x_cal, batch_size=self.batch_size)]

    def at_widths(self, variables) -> nn.Module:
        """Returns the module at the widths that the variables have."""
        x = jax.ShapeDtypeStruct((2, *self.x_cal.shape[1:]), jnp.float32)
        like = jax.eval_shape(self.model.init, jax.random.key(0), x)
        same = jax.tree.map(lambda u, v: u.shape == v.shape, like, variables)
        return self.model if all(jax.tree.leaves(same)) else with_widths(self.model, variables)


class Matching(NamedTuple):
    """A matching of B to A, and what is lost by merging the units that it pairs."""

    perms: merging.permutation.Permutations
    distances: dict[str, np.ndarray]
    weights: dict[str, float]
    seconds: float


class Merge(NamedTuple):
    """A merged network and how it came about."""

    method: str
    variables: dict
    ratios: dict[str, float]
    blocks: dict[str, merging.Blocks]
    seconds: float  # of the matching too, compilation included
    before: dict[str, float]
    after: dict[str, float]


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Trains or loads, merges and measures.

    Args:
      key: typed key; with the config it determines every number but the seconds.
      config: see ``configs/pleas``.
      workdir: folder for artifacts and checkpoints, from which a second call goes on; None writes
        nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices to train on; None is the default device.

    Returns:
      Result with claims, tables and figures.
    """
    check(config)
    writer = writer or MetricsWriter()
    sources = _tasks.load_sources(config)
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    model, pairs = _networks_of(key, config, sources, root, writer, mesh)
    setting = _setting(key, config, sources, model, pairs[0][0])
    if root is not None and jax.process_index() == 0:
        artifacts.save_json(root / "spec.json", json.loads(setting.spec.to_json()))
    outcomes, errors = [], []
    for index, (a, b) in enumerate(pairs):
        outcomes += _merge_pair(key, config, setting, index, a, b, root, writer)
        errors.append(_separate_error(config, setting, a, b))
    return _app.Result(
        [] if config.checkpoint_a else _pleas_report.claims(config, outcomes, errors),
        _pleas_report.tables(outcomes),
        {"accuracy_against_compute": _pleas_report.plot(outcomes)},
        _pleas_report.notes(config, outcomes),
    )


# Networks.


def _networks_of(key, config, sources, root, writer, mesh):
    """Returns a module with the head of all tasks, and the variables of each pair."""
    if config.checkpoint_a:
        model, given = _networks.load(config, sources[0])
        x = jax.ShapeDtypeStruct((2, *sources[0].input_shape), jnp.float32)
        n_outputs = jax.eval_shape(model.apply, given[0], x).shape[-1]
        for dataset in sources:
            if dataset.n_classes != n_outputs:
                raise ValueError(
                    f"the checkpoints have {n_outputs} outputs, {dataset.name!r} has "
                    f"{dataset.n_classes} classes"
                )
        if max(config.budget) > 1:
            with_widths(model, given[0])  # a module that it does not know ends here
        pairs = [given]
    else:
        pairs = []
        for index in range(config.n_pairs):
            parts = sources
            if len(sources) == 1:
                split_key = jax.random.fold_in(named_key(key, "split"), index)
                parts = _tasks.split(split_key, sources[0], config.label_split)
            pair = []
            # A and B of one seed learn from different data, so each side has its own folder.
            for side, part in zip("ab", parts, strict=True):
                seeds = [config[f"seed_{side}"] + 2 * index]
                folder = None if root is None else root / side
                model, (variables,) = _networks.train(
                    key, config, config.width, seeds, part, folder, writer, mesh
                )
                pair.append(variables)
            pairs.append(pair)
    # XLA's own convolution is the faster one outside training loops.
    model = model.clone(conv="lax") if hasattr(model, "conv") else model
    if config.labels == "disjoint":
        x = jax.ShapeDtypeStruct((2, *sources[0].input_shape), jnp.float32)
        head = merging.layer_costs(merging.PermutationSpec({}), model.apply, pairs[0][1], x)[-1]
        if not hasattr(model, "n_classes"):
            raise ValueError("labels 'disjoint' need a module with an attribute n_classes")
        model = model.clone(n_classes=sum(d.n_classes for d in sources))
        pairs = [merging.join_heads(a, b, head.layer) for a, b in pairs]
    return model, pairs


def _setting(key, config, sources, model, variables) -> Setting:
    x_cal = _tasks.calibration(named_key(key, "calibration"), config, sources)
    # Two examples, so that the batch is not taken for an axis of size 1.
    example = jax.ShapeDtypeStruct((2, *x_cal.shape[1:]), x_cal.dtype)
    spec = merging.derive_permutation_spec(model.apply, variables, example)
    return Setting(
        model=model,
        spec=spec,
        costs=merging.layer_costs(spec, model.apply, variables, example),
        tasks=_tasks.list_tasks(config, sources),
        x_cal=x_cal,
        probed=config.labels == "disjoint",
        batch_size=config.eval_batch_size,
    )


# Merging and measuring.


def _merge_pair(key, config, setting, index, a, b, root, writer) -> list[Outcome]:
    """Measures the two sources, their ensemble, and every merge at every budget."""
    folder = None if root is None else root / f"pair_{index}"

    @functools.cache
    def matching() -> Matching:
        return _match(jax.random.fold_in(named_key(key, "match"), index), config, setting, a, b)

    units = {"sources": lambda: _measure_sources(key, setting, index, a, b)}
    for budget in config.budget:
        units[f"{budget:g}x"] = functools.partial(
            _measure_merges, key, config, setting, index, budget, a, b, matching, folder
        )
    outcomes = []
    n_steps = 3 + sum(8 if budget == 1 else 4 for budget in config.budget)
    writer.stage(f"pair {index}: merge and measure", n_steps)
    for name, measure in units.items():
        path = None if folder is None else folder / name / "outcomes.json"
        if path is not None and path.exists():
            outcomes += [Outcome(**saved) for saved in artifacts.load_json(path)]
            continue
        found = []
        for outcome in measure():
            found.append(outcome)
            writer.step(len(outcomes) + len(found), accuracy=outcome.accuracies[-1])
        outcomes += found
        if path is not None and jax.process_index() == 0:
            artifacts.save_json(path, [outcome._asdict() for outcome in found])
    return outcomes


def _match(key, config, setting, a, b) -> Matching:
    start = time.perf_counter()
    spec, apply = setting.spec, setting.model.apply
    if config.matching == "weight":
        perms = merging.weight_matching(key, spec, a, b).perms
        distances, moments = merging.weight_distances(spec, perms, a, b), None
    else:
        perms = merging.activation_matching(spec, apply, a, b, setting.batches).perms
        moments = merging.feature_moments(spec, apply, a, b, setting.batches)
        distances = merging.matched_distances(spec, perms, moments)
    weights = group_weights(distances, moments)
    return Matching(perms, distances, weights, time.perf_counter() - start)


def _merges(config, setting, a, b, matching, budget):
    """Yields a Merge for every method that has a meaning at this budget."""
    if budget == 1:  # these know no other size, and no matching
        average = _assemble(setting, a, b, "average", _unmatched(setting), 0.0)
        yield average
        start = time.perf_counter()
        regmean = merging.regmean(setting.model.apply, a, b, setting.batches)
        seconds = time.perf_counter() - start
        yield average._replace(method="RegMean", variables=regmean, seconds=seconds)
        yield _solve(config, setting, a, b, "least squares, not permuted", average, "paper")
        yield _solve(config, setting, a, b, "sequential, not permuted", average, "sequential")
    costs, found = setting.costs, matching()
    zip_ratios = merging.zip_ratios(costs, budget)
    ratios = {
        "qp": lambda: merging.solve_ratios(costs, found.weights, budget),
        "uniform": lambda: merging.uniform_ratios(costs, budget),
        "zip": lambda: zip_ratios,
    }[config.ratios]()
    yield _assemble(setting, a, b, "partial zip", found, zip_ratios)
    permuted = _assemble(setting, a, b, "permutation", found, ratios)
    yield permuted
    yield _solve(config, setting, a, b, "PLeaS", permuted, "paper")
    yield _solve(config, setting, a, b, "PLeaS sequential", permuted, "sequential")


def _unmatched(setting) -> Matching:
    """Leaves the units of B where they are."""
    perms = merging.identity_permutation(setting.spec)
    perms = {name: np.asarray(p) for name, p in perms.items()}
    nothing = {name: np.zeros(len(p)) for name, p in perms.items()}
    return Matching(perms, nothing, {}, 0.0)


def _assemble(setting, a, b, method, matching, ratios) -> Merge:
    start = time.perf_counter()
    if isinstance(ratios, float):
        ratios = dict.fromkeys(setting.spec.groups, ratios)
    blocks = merging.select_blocks(setting.spec, matching.perms, matching.distances, ratios)
    variables = jax.block_until_ready(merging.partial_merge(setting.spec, a, b, blocks))
    seconds = matching.seconds + time.perf_counter() - start
    return Merge(method, variables, ratios, blocks, seconds, {}, {})


def _solve(config, setting, a, b, method, start: Merge, mode) -> Merge:
    clock = time.perf_counter()
    result = merging.permuted_least_squares(
        setting.spec, setting.model.apply, a, b, start.blocks, start.variables, setting.batches,
        mode=mode, ridge=config.ridge, merged_apply=setting.at_widths(start.variables).apply,
    )  # fmt: skip
    return start._replace(
        method=method,
        variables=result.variables,
        seconds=start.seconds + time.perf_counter() - clock,
        before=result.before,
        after=result.after,
    )


def _measure_sources(key, setting, index, a, b):
    """Yields the outcomes of the two networks and of the mean of their logits."""
    for method, networks in (("source A", (a,)), ("source B", (b,)), ("ensemble", (a, b))):
        accuracy = _accuracies(setting, setting.model, networks)
        probe = _probe(key, setting, setting.model, networks)
        size = float(len(networks))
        yield Outcome(index, size, method, accuracy, None, probe, size, size, 0.0, {}, {})


def _measure_merges(key, config, setting, index, budget, a, b, matching, folder):
    """Yields the outcomes of all merges at one budget; keeps those of the first pair."""
    for merge in _merges(config, setting, a, b, matching, budget):
        model, reset, probe = setting.at_widths(merge.variables), None, None
        networks = {"merged": merge.variables}
        if "batch_stats" in merge.variables:
            networks["merged_reset"] = _reset(
                model, merge.variables, setting.x_cal, batch_size=setting.batch_size
            )
            reset = _accuracies(setting, model, (networks["merged_reset"],))
        if budget == 1:
            probe = _probe(key, setting, model, (list(networks.values())[-1],))
        if folder is not None and index == 0 and jax.process_index() == 0:
            _save(folder / f"{budget:g}x" / file_name(merge.method), merge, networks)
        # What the blocks come to: a group has whole units only.
        real = {name: block.separate_fraction for name, block in merge.blocks.items()}
        yield Outcome(
            index,
            budget,
            merge.method,
            _accuracies(setting, model, (merge.variables,)),
            reset,
            probe,
            merging.merge_flops(setting.costs, real),
            merging.merge_flops(setting.costs, real, dense=True),
            merge.seconds,
            merge.before,
            merge.after,
        )


def _save(folder, merge, networks) -> None:
    for name, variables in networks.items():
        artifacts.save_tree(folder / f"{name}.safetensors", variables)
    artifacts.save_json(folder / "ratios.json", merge.ratios)
    units = {
        f"{name}/{field}": of_field
        for name, block in merge.blocks.items()
        for field, of_field in block._asdict().items()
    }
    artifacts.save_npz(folder / "blocks.npz", units)


@functools.partial(jax.jit, static_argnames=("model", "columns", "batch_size"))
def _accuracy(model, networks, x, y, *, columns, batch_size):
    def logits(networks, x):
        total = sum(model.apply(variables, x) for variables in networks)
        return total[:, columns[0] : columns[1]]

    return train.evaluate(logits, networks, x, y, batch_size=batch_size).accuracy


def _accuracies(setting, model, networks) -> dict[str, float]:
    """Measures each task within its own classes, by the sum of the networks' logits."""
    return {
        task.name: float(
            _accuracy(
                model, networks, task.data.test_x, task.data.test_y,
                columns=task.columns, batch_size=setting.batch_size,
            )
        )
        for task in setting.tasks
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def _reset(model, variables, x, *, batch_size):
    return merging.reset_batch_stats(model.apply, variables, x, batch_size=batch_size)


def _probe(key, setting, model, networks) -> dict[str, float] | None:
    """Trains a linear classifier for each task on the last features of all networks together."""
    if not setting.probed:
        return None
    head = setting.costs[-1].layer
    accuracies = {}
    for task in setting.tasks:
        features = []
        for x in (task.data.train_x, task.data.test_x):
            chunks = [chunk for (chunk,) in batches(x, batch_size=setting.batch_size)]
            features.append(
                jnp.concatenate(
                    [merging.layer_inputs(model.apply, v, chunks, head) for v in networks], axis=-1
                )
            )
        train_y = jnp.asarray(task.data.train_y)
        n_classes, size = task.data.n_classes, min(64, len(train_y))
        state = merging.linear_probe(
            named_key(key, "probe"), features[0], train_y, n_classes=n_classes, batch_size=size
        )
        metrics = train.evaluate(
            MLP((), n_classes).apply, state.variables, features[1], jnp.asarray(task.data.test_y)
        )
        accuracies[task.name] = float(metrics.accuracy)
    return accuracies


def _separate_error(config, setting, a, b) -> float | None:
    """Compares the merge that keeps all units apart with the mean of both networks' outputs."""
    if config.checkpoint_a or _has_fixed_width(config):
        return None  # without a claim, or without a module at twice the width
    if getattr(setting.model, "norm", "none") not in ("batch", "none"):
        return None  # a norm over channels would mix the two
    merge = _assemble(setting, a, b, "separate", _unmatched(setting), 1.0)
    x = setting.batches[0]
    merged = setting.at_widths(merge.variables).apply(merge.variables, x)
    mean = (setting.model.apply(a, x) + setting.model.apply(b, x)) / 2
    return float(jnp.abs(merged - mean).max())


if __name__ == "__main__":
    _app.main(run)
