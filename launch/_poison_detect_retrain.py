"""Poison a training set, look for the poisons by SPECTRE, retrain without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import data, nn, report, train
from jaxml.backdoor import detection, spectre
from jaxml.core.rng import named_key
from jaxml.data import triggers

POISONED = "poisoned"
FILTERED = "SPECTRE, every label"
NOTE = (
    "poison_detect_retrain: the defender knows a bound on the number of poisons, and not the "
    "trigger. Whoever does not know the label either looks under every label, which costs 1.5 "
    "times the bound of each label's examples, most of them clean; the label of the largest merit "
    "is no guide at this scale, as its column says. 'random' leaves out as many examples as "
    "'every label'."
)


def prepare(c, mesh):
    """Returns ``measure(key, seed) -> rows``."""
    dataset = data.load(c.dataset)
    model = nn.build("mlp", width=c.width, depth=c.depth, n_classes=dataset.n_classes)
    optimizer = train.make_optimizer("adam", learning_rate=c.learning_rate)
    trigger = triggers.make_trigger("patch", size=c.patch_size, position="top_left")
    fit = functools.partial(
        train.fit, n_epochs=c.epochs, batch_size=c.batch_size, epochs_per_call=c.epochs, mesh=mesh
    )

    def measure(key, seed):
        target = seed % dataset.n_classes
        x, y, poisoned = _poison(named_key(key, "poison"), dataset, trigger, target, c.n_poisons)
        others = dataset.test_x[dataset.test_y != target]
        tests = (dataset.test_x, dataset.test_y, trigger(others, None), target)
        key_fit = named_key(key, "fit")
        variables = fit(key_fit, model, optimizer, x, y).variables
        kept, suspected = _filters(
            named_key(key, "random"), c, _features(model, variables, x), y, dataset, target
        )
        rows = [(POISONED, variables, np.ones(len(y), bool))]
        for name, keep in kept.items():
            # A new network: the same initialisation, and another order of other examples.
            rows.append((name, fit(key_fit, model, optimizer, x[keep], y[keep]).variables, keep))
        found = []
        for name, variables, keep in rows:
            accuracy, success = _judge(model, variables, *tests)
            found.append(
                {
                    "seed": seed,
                    "network": name,
                    "attack success": float(success),
                    "clean accuracy": float(accuracy),
                    "poisons left": int((keep & poisoned).sum()),
                    "examples": int(keep.sum()),
                    "largest merit is its label's": int(suspected == target),
                }
            )
        return found

    return measure


def _poison(key, dataset, trigger, target, n_poisons):
    """Adds triggered copies of images of other classes, labelled as the target."""
    others = np.flatnonzero(dataset.train_y != target)
    chosen = others[np.asarray(jax.random.permutation(key, len(others)))[:n_poisons]]
    x = np.concatenate([dataset.train_x, np.asarray(trigger(dataset.train_x[chosen], None))])
    y = np.concatenate([dataset.train_y, np.full(n_poisons, target, np.int32)])
    return x, y, np.arange(len(y)) >= len(dataset.train_y)


def _filters(key, c, h, y, dataset, target):
    """Returns which examples each defence keeps, and the label of the largest merit."""
    n_classes = dataset.n_classes
    # Rows of each label, filled up to a size that does not depend on the target.
    size = np.bincount(dataset.train_y).max() + c.n_poisons
    rows, there = np.zeros((n_classes, size), np.int32), np.zeros((n_classes, size), bool)
    for label in range(n_classes):
        mine = np.flatnonzero(y == label)
        rows[label, : len(mine)], there[label, : len(mine)] = mine, True
    merits, by_spectre, by_signature = map(
        np.asarray,
        _keep(h[rows], there, jnp.float32(c.assumed_poisons), ks=tuple(c.directions)),
    )

    def of(keep, labels):
        kept = np.ones(len(y), bool)
        for label in labels:
            kept[rows[label][there[label] & ~keep[label]]] = False
        return kept

    every = of(by_spectre, range(n_classes))
    order = np.asarray(jax.random.permutation(key, len(y)))
    random = np.ones(len(y), bool)
    random[order[: (~every).sum()]] = False
    return {
        FILTERED: every,
        "SPECTRE, the label known": of(by_spectre, [target]),
        "spectral signature, every label": of(by_signature, range(n_classes)),
        "random": random,
    }, int(merits.argmax())


@functools.partial(jax.jit, static_argnames="ks")
def _keep(h, there, n_outliers, *, ks):
    """Returns merits ``[l]`` and what is kept by SPECTRE and the signature, of ``h [l, n, d]``."""
    removed = spectre.n_removed(n_outliers)

    def of_label(h, there):
        _, merits, scorer = spectre.choose_k(h, n_outliers, ks, mask=there)
        signature = spectre.fit_pca(h, mask=there)
        kept = (spectre.keep_lowest(s(h), removed, mask=there) for s in (scorer, signature))
        return merits.max(), *kept

    return jax.vmap(of_label)(h, there)


@functools.partial(jax.jit, static_argnames="model")
def _features(model, variables, x):
    return detection.features(model, variables, x)


@functools.partial(jax.jit, static_argnames="model")
def _judge(model, variables, x, y, triggered, target):
    accuracy = train.evaluate(model.apply, variables, x, y).accuracy
    return accuracy, (model.apply(variables, triggered).argmax(-1) == target).mean()


def claim(c, rows) -> report.Claim:
    """Sets the attack's success before retraining beside that after."""
    success = {
        name: [row["attack success"] for row in rows if row["network"] == name]
        for name in (POISONED, FILTERED)
    }
    return report.difference_claim(
        f"The backdoor is gone after retraining without what SPECTRE suspects: attack success "
        f"before, with {c.n_poisons} poisons ({c.dataset})",
        success[POISONED], success[FILTERED], against_name="the retrained network",
        bound=c.bounds.poisoned_over_retrained, paper="a composition", paper_value="none",
        seeds=f"{c.n_seeds} seeds",
    )  # fmt: skip


def plot(c, rows):
    """Draws the attack's success on every seed."""
    series = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        values = np.array([row["attack success"] for row in mine])
        series[name] = ([row["seed"] for row in mine], values)
    figure = report.lines(
        series, xlabel="seed", ylabel="attack success",
        title=f"{c.n_poisons} poisons of one label, before and after", size=(6.8, 3.6),
    )  # fmt: skip
    for line in figure.axes[0].lines:  # seeds are in no order
        line.set(linestyle="", markersize=6)
    figure.axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
