"""Merge two networks, and certify the merged one beside its sources."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import data, merging, nn, report, train, verify
from jaxml.core.rng import named_key

SOURCES = ("A", "B")
MERGED = "PLeaS"
NOTE = (
    "merge_verify: an image counts as certified at a radius if ZonoDual proves, in float64 with "
    "outward rounding, that every image within it is given the right class; a network that is "
    "wrong on the image itself fails there too. All networks have the size of one source. Merging "
    "looks at the training images, not at their labels."
)


def prepare(c, mesh):
    """Returns ``measure(key, pair) -> rows``."""
    dataset = data.load(c.dataset)
    model = nn.build("mlp", width=c.width, depth=c.depth, n_classes=dataset.n_classes)
    optimizer = train.make_optimizer("adam", learning_rate=c.learning_rate)
    x, y = jnp.asarray(dataset.train_x), jnp.asarray(dataset.train_y)

    def measure(key, pair):
        both = train.fit(
            jax.random.split(named_key(key, "fit"), 2), model, optimizer, x, y,
            n_epochs=c.epochs, batch_size=c.batch_size, epochs_per_call=c.epochs, mesh=mesh,
        ).variables  # fmt: skip
        a, b = (jax.tree.map(operator.itemgetter(i), both) for i in (0, 1))
        networks = {"A": a, "B": b, **_merges(named_key(key, "merge"), model, a, b, x)}
        found = []
        for name, variables in networks.items():
            net = verify.from_flax(model, variables, dataset.input_shape)
            metrics = _evaluate(model, variables, dataset.test_x, dataset.test_y)
            row = {"seed": pair, "network": name, "accuracy": float(metrics.accuracy)}
            for eps in c.eps:
                row[_column(eps)] = _certified(c, net, dataset, eps)
            found.append(row)
        return found

    return measure


def _merges(key, model, a, b, x):
    spec = merging.derive_permutation_spec(model.apply, a, x[:2])
    match = merging.weight_matching(key, spec, a, b)
    aligned = merging.apply_permutation(spec, match.perms, b)
    pleas = merging.pleas_merge(key, spec, model.apply, a, b, [x], budget=1.0)
    return {
        "weight matching": merging.interpolate(0.5, a, aligned),
        MERGED: pleas.variables,
    }


def _certified(c, net, dataset, eps) -> float:
    """Returns the share of the first test images that are proved to keep their class."""
    lowest = []
    for x, y in zip(dataset.test_x[: c.n_images], dataset.test_y[: c.n_images], strict=True):
        margins = verify.margin_spec(int(y), dataset.n_classes)
        bound = verify.zonodual_bound(net, verify.linf_box(x, eps), margins, n_steps=c.steps)
        lowest.append(bound.lower.min())
    return float(np.mean(np.array(lowest) > 0))


@functools.partial(jax.jit, static_argnames="model")
def _evaluate(model, variables, x, y):
    return train.evaluate(model.apply, variables, x, y)


def _column(eps) -> str:
    return f"certified at {eps:g}"


def _middle(c) -> float:
    return sorted(c.eps)[len(c.eps) // 2]


def claim(c, rows) -> report.Claim:
    """Sets the merged network's certified accuracy beside the mean of its sources'."""
    column = _column(_middle(c))

    def values(*names):
        shares = [[row[column] for row in rows if row["network"] == name] for name in names]
        return np.mean(shares, axis=0)

    return report.difference_claim(
        f"Merged by PLeaS into the size of one, two networks are certified on more images, radius "
        f"{_middle(c):g} ({c.dataset})",
        values(MERGED), values(*SOURCES), against_name="the mean of both sources",
        bound=c.bounds.merged_over_sources, paper="a composition", paper_value="none",
        seeds=f"{c.n_pairs} pairs",
    )  # fmt: skip


def plot(c, rows):
    """Draws certified accuracy against the radius."""
    radii = sorted(c.eps)
    series = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        shares = [[row[_column(eps)] for eps in radii] for row in rows if row["network"] == name]
        series[name] = (radii, np.mean(shares, axis=0))
    return report.lines(
        series, xlabel="radius, of the range of a pixel", ylabel="certified accuracy",
        title=f"Means over {c.n_pairs} pairs, {c.n_images} images each", size=(6.0, 3.8),
    )  # fmt: skip
