"""The line between two networks: its loss, and statistics that are mended on it."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.merging import (
    apply_permutation,
    derive_permutation_spec,
    interpolate,
    loss_barrier,
    repair,
    reset_batch_stats,
)
from jaxml.nn import MLP, build

from .helpers import assert_trees_equal, flat, gaussian_like, plant, to_numpy

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 40).astype(np.int32)
IMAGES = np.random.default_rng(2).normal(size=(23, 8, 8, 2)).astype(np.float32)


# Interpolation.


def test_ends_are_exact_and_the_middle_is_the_mean():
    a, b = (gaussian_like(s, {"w": np.zeros((3, 4)), "v": np.zeros(2)}) for s in range(2))
    assert_trees_equal(interpolate(0.0, a, b), a)
    assert_trees_equal(interpolate(1.0, a, b), b)
    middle = interpolate(0.5, a, b)
    jax.tree.map(
        lambda m, x, y: np.testing.assert_allclose(m, (x + y) / 2, rtol=1e-6), middle, a, b
    )
    assert_trees_equal(interpolate(0.25, a, a), a)


def test_each_leaf_keeps_its_dtype_under_jit_and_vmap():
    a = {"w": jnp.ones(3, jnp.bfloat16), "v": jnp.zeros(3)}
    b = {"w": jnp.zeros(3, jnp.bfloat16), "v": jnp.ones(3)}
    lams = jnp.asarray([0.0, 0.25, 1.0])
    many = jax.jit(jax.vmap(interpolate, in_axes=(0, None, None)))(lams, a, b)
    assert many["w"].dtype == jnp.bfloat16 and many["v"].dtype == jnp.float32
    for i, lam in enumerate(lams):
        assert_trees_equal(jax.tree.map(lambda v, i=i: v[i], many), interpolate(lam, a, b))


# Barriers.


def paraboloid(variables, *_):
    w = variables["w"]
    return jnp.square(w).sum() - 3 * w.prod(), jnp.abs(w).mean()


MODEL = MLP((7, 6), 3)


def classify(variables, x, y):
    log_p = jax.nn.log_softmax(MODEL.apply(variables, x))
    hit = (log_p.argmax(-1) == y).mean(dtype=jnp.float32)
    return -(log_p * jax.nn.one_hot(y, 3)).sum(-1).mean(), hit


@pytest.fixture(scope="module")
def pair():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), X)
    return gaussian_like(0, shapes, scale=0.5), gaussian_like(1, shapes, scale=0.5)


def test_barrier_of_a_polynomial_equals_the_closed_form():
    a, b = {"w": np.float32([1, 2])}, {"w": np.float32([-1, 0.5])}
    result = loss_barrier(paraboloid, a, b, n=41)
    t = np.linspace(0, 1, 41)
    w = (1 - t)[:, None] * a["w"] + t[:, None] * b["w"]
    loss, accuracy = (w**2).sum(1) - 3 * w.prod(1), np.abs(w).mean(1)
    np.testing.assert_allclose(result.lams, t, atol=1e-7)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.accuracy, accuracy, rtol=1e-5)
    chord = (1 - t) * loss[0] + t * loss[-1]
    assert result.barrier == pytest.approx((loss - chord).max(), abs=1e-5)
    assert result.barrier_mean == pytest.approx(loss.max() - (loss[0] + loss[-1]) / 2, rel=1e-5)
    chord = (1 - t) * accuracy[0] + t * accuracy[-1]
    assert result.accuracy_barrier == pytest.approx((chord - accuracy).max(), rel=1e-5)


def test_network_with_itself_has_no_barrier(pair):
    result = loss_barrier(classify, pair[0], pair[0], X, Y)
    assert abs(result.barrier) <= 1e-6 and abs(result.barrier_mean) <= 1e-6
    assert result.accuracy_barrier == 0


def test_barrier_is_symmetric_and_its_ends_are_the_networks(pair):
    # Two orders of one confident network, on its own labels: low ends, a high middle.
    a = jax.tree.map(lambda v: 3 * v, pair[0])
    b, _ = plant(0, derive_permutation_spec(MODEL.apply, a, X), a)
    y = np.asarray(MODEL.apply(a, X).argmax(-1))
    there, back = loss_barrier(classify, a, b, X, y), loss_barrier(classify, b, a, X, y)
    assert there.barrier > 0.1
    assert there.barrier == pytest.approx(back.barrier, abs=1e-6)
    assert there.barrier_mean == pytest.approx(back.barrier_mean, abs=1e-6)
    assert there.accuracy_barrier == pytest.approx(back.accuracy_barrier, abs=1e-6)
    np.testing.assert_allclose(there.loss, back.loss[::-1], rtol=1e-5)
    for end, variables in ((0, a), (-1, b)):
        loss, accuracy = classify(variables, X, y)
        np.testing.assert_allclose(there.loss[end], loss, rtol=1e-5)
        np.testing.assert_allclose(there.accuracy[end], accuracy, rtol=1e-6)


@pytest.mark.parametrize(("n", "chunk"), [(25, 1), (25, 25), (25, 100), (7, 5), (2, 5)])
def test_number_of_points_at_once_does_not_matter(pair, n, chunk):
    result = loss_barrier(classify, *pair, X, Y, n=n, chunk=chunk)
    for i in range(0, n, max(1, n // 3)):
        loss, _ = classify(interpolate(result.lams[i], *pair), X, Y)
        np.testing.assert_allclose(result.loss[i], loss, rtol=1e-5)


def test_transform_is_given_the_network_and_its_place(pair):
    def bend(variables, lam, x, y):
        return jax.tree.map(lambda v: v * (1 - 4 * lam * (1 - lam)), variables)

    result = loss_barrier(classify, *pair, X, Y, n=3, transform=bend)
    np.testing.assert_allclose(result.loss[1], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(result.loss[0], classify(pair[0], X, Y)[0], rtol=1e-6)


def test_bad_lines_are_refused(pair):
    with pytest.raises(ValueError, match="n must be at least 2, the two ends, got 1"):
        loss_barrier(classify, *pair, X, Y, n=1)
    with pytest.raises(ValueError, match="chunk must be positive, got 0"):
        loss_barrier(classify, *pair, X, Y, chunk=0)
    with pytest.raises(ValueError, match="'params/Dense_0/bias' is in a and not in b"):
        loss_barrier(classify, pair[0], {"params": {}}, X, Y)


def test_no_permutation_connects_the_two_networks_of_the_counterexample():
    # Paper, sec. 4: y = [x1 < 0 and x2 > 0] by two hidden layers of two units. A looks at the
    # quadrant itself and takes a minimum; B looks at what lies outside of it.
    model = MLP((2, 2), 1)
    side = np.linspace(-1, 1, 20, dtype=np.float32)
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    y = (x[:, 0] < 0) & (x[:, 1] > 0)
    margin = side[side > 0].min() / 2

    def network(first, second, head, bias):
        layers = {"Dense_0": (first, [0, 0]), "Dense_1": (second, [0, 0]),
                  "Dense_2": (200 * np.float32(head), [200 * bias])}  # fmt: skip
        return {"params": {name: {"kernel": np.float32(k), "bias": np.float32(b)}
                           for name, (k, b) in layers.items()}}  # fmt: skip

    a = network([[-1, 0], [0, 1]], [[1, 1], [0, -1]], [[1], [-1]], -margin)
    b = network([[1, 0], [0, -1]], [[1, 0], [1, 0]], [[-1], [0]], margin)

    def logistic(variables, x, y):
        z = model.apply(variables, x)[:, 0]
        hit = ((z > 0) == y).mean(dtype=jnp.float32)
        return jnp.logaddexp(0.0, jnp.where(y, -z, z)).mean(), hit

    spec = derive_permutation_spec(model.apply, a, x)
    orders = [np.array(p, np.int32) for p in itertools.permutations(range(2))]
    assert [g.size for g in spec.groups.values()] == [2, 2]
    for p, q in itertools.product(orders, orders):
        moved = apply_permutation(spec, dict(zip(spec.groups, (p, q), strict=True)), b)
        result = loss_barrier(logistic, a, moved, x, y)
        assert result.accuracy[0] == result.accuracy[-1] == 1
        assert max(result.loss[0], result.loss[-1]) < 0.01
        assert result.barrier > 1 and result.accuracy_barrier > 0.2


# Batch statistics.


class NormedMLP(nn.Module):
    """Three hidden layers, each with its BatchNorm; the middle one in a module of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        class Inner(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.BatchNorm(use_running_average=not train, epsilon=1e-3)(nn.Dense(6)(x))

        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
        x = nn.relu(Inner()(x))
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, use_bias=False)(nn.Dense(4)(x)))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def normed():
    module = NormedMLP()
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    variables = gaussian_like(0, shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, gaussian_like(1, shapes["batch_stats"]))
    return module, variables


def test_statistics_equal_numpy_layer_after_layer(normed):
    module, variables = normed
    before = jax.tree.map(np.copy, variables)
    new = flat(jax.jit(lambda v: reset_batch_stats(module.apply, v, X, batch_size=7))(variables))
    assert_trees_equal(variables, before)

    w = {path: leaf.astype(np.float64) for path, leaf in flat(variables).items()}
    h = X.astype(np.float64)
    layers = (("Dense_0", "BatchNorm_0", 1e-5), ("Inner_0/Dense_0", "Inner_0/BatchNorm_0", 1e-3),
              ("Dense_1", "BatchNorm_1", 1e-5))  # fmt: skip
    for dense, norm, epsilon in layers:
        h = h @ w[f"params/{dense}/kernel"] + w[f"params/{dense}/bias"]
        mean, var = h.mean(0), h.var(0)
        np.testing.assert_allclose(new[f"batch_stats/{norm}/mean"], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new[f"batch_stats/{norm}/var"], var, rtol=1e-5, atol=1e-5)
        h = (h - mean) / np.sqrt(var + epsilon) * w[f"params/{norm}/scale"]
        h = np.maximum(h + w.get(f"params/{norm}/bias", 0.0), 0)
    for path, leaf in flat(variables).items():
        if path.startswith("params"):
            np.testing.assert_array_equal(new[path], leaf)


def test_statistics_do_not_depend_on_batch_size_or_on_what_they_were(normed):
    module, variables = normed
    whole = reset_batch_stats(module.apply, variables, X, batch_size=1000)
    other = {**variables, "batch_stats": jax.tree.map(np.ones_like, variables["batch_stats"])}
    for start, batch_size in ((variables, 1), (variables, 9), (variables, 40), (other, 13)):
        again = reset_batch_stats(module.apply, start, X, batch_size=batch_size)
        for path, leaf in flat(whole).items():
            np.testing.assert_allclose(flat(again)[path], leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", ["lax", "patches"])
def test_evaluation_then_equals_training_mode_on_the_calibration_set(conv):
    module = build("convnet", width=0.25, n_classes=3, norm="batch", conv=conv)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    new = jax.jit(lambda v: reset_batch_stats(module.apply, v, IMAGES, batch_size=5))(variables)
    expected, _ = module.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(module.apply(new, IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_statistics_can_be_reset_all_along_a_line(normed):
    module, a = normed
    b = gaussian_like(5, a)
    b["batch_stats"] = a["batch_stats"]

    def spread(variables, x):
        out = module.apply(variables, x)
        return out.var(), out.mean()

    def reset(variables, lam, x):
        return reset_batch_stats(module.apply, variables, x, batch_size=16)

    line = loss_barrier(spread, a, b, X, n=5, transform=reset)
    middle = reset_batch_stats(module.apply, interpolate(0.5, a, b), X)
    np.testing.assert_allclose(line.loss[2], spread(middle, X)[0], rtol=1e-4)


def test_resetting_names_bad_input(normed, pair):
    module, variables = normed
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        reset_batch_stats(MODEL.apply, pair[0], X)
    with pytest.raises(ValueError, match="calibration set is empty"):
        reset_batch_stats(module.apply, variables, X[:0])
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        reset_batch_stats(module.apply, variables, X, batch_size=0)


# REPAIR.


def pre_activations(module, variables, x):
    """Layer path to output ``[samples, units]`` in float64, of dense and convolution layers."""

    def is_linear(m, _):
        return "kernel" in m.variables.get("params", {})

    _, state = module.apply(variables, x, capture_intermediates=is_linear)
    found = {}
    for path, leaf in flat(state["intermediates"]).items():
        found[path.removesuffix("/__call__/0")] = leaf.reshape(-1, leaf.shape[-1]).astype(
            np.float64
        )
    return found


def networks(kind):
    if kind == "mlp":
        return MODEL, X
    return build("convnet", width=0.25, n_classes=3, norm="none"), IMAGES


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
@pytest.mark.parametrize("lam", [0.5, 0.3])
def test_repaired_units_have_the_interpolated_mean_and_spread(kind, lam):
    module, x = networks(kind)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    a, b = gaussian_like(0, shapes, scale=0.5), gaussian_like(1, shapes, scale=0.5)
    merged = interpolate(lam, a, b)
    mended = jax.jit(lambda m, a, b: repair(module.apply, m, a, b, x, lam=lam, batch_size=9))(
        merged, a, b
    )
    of_a, of_b, now = (pre_activations(module, v, x) for v in (a, b, mended))
    *hidden, last = of_a
    for layer in hidden:
        mean = (1 - lam) * of_a[layer].mean(0) + lam * of_b[layer].mean(0)
        std = (1 - lam) * of_a[layer].std(0) + lam * of_b[layer].std(0)
        np.testing.assert_allclose(now[layer].mean(0), mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(now[layer].std(0), std, rtol=1e-4, atol=1e-4)
    for name in ("kernel", "bias"):
        path = f"params/{last}/{name}"
        np.testing.assert_array_equal(flat(mended)[path], flat(merged)[path])


def test_nothing_to_repair_at_the_ends(pair):
    a, b = pair
    for lam, end in ((0.0, a), (1.0, b)):
        mended = repair(MODEL.apply, end, a, b, X, lam=lam)
        for path, leaf in flat(end).items():
            np.testing.assert_allclose(flat(mended)[path], leaf, rtol=1e-4, atol=1e-5)


def test_layers_without_bias_get_their_spread_and_dead_units_stay_finite():
    module = nn.Sequential(
        [nn.Dense(6, use_bias=False), nn.relu, nn.Dense(5), nn.relu, nn.Dense(2)]
    )
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    a, b = gaussian_like(0, shapes), gaussian_like(1, shapes)
    for model in (a, b):
        model["params"]["layers_2"]["kernel"][:, 0] = 0  # constant: the bias
    mended = repair(module.apply, interpolate(0.5, a, b), a, b, X)
    assert all(np.isfinite(leaf).all() for leaf in flat(mended).values())
    of_a, of_b, now = (pre_activations(module, v, X) for v in (a, b, mended))
    std = (of_a["layers_0"].std(0) + of_b["layers_0"].std(0)) / 2
    np.testing.assert_allclose(now["layers_0"].std(0), std, rtol=1e-4)
    constant = (of_a["layers_2"][:, 0] + of_b["layers_2"][:, 0]) / 2
    np.testing.assert_allclose(now["layers_2"][:, 0], constant, rtol=1e-4, atol=1e-5)


def test_a_line_can_be_repaired_point_by_point(pair):
    def mend(variables, lam, x, y, a, b):
        return repair(MODEL.apply, variables, a, b, x, lam=lam)

    line = loss_barrier(lambda v, x, y, *_: classify(v, x, y), *pair, X, Y, *pair, n=5,
                        transform=mend)  # fmt: skip
    for i, lam in enumerate((0.0, 0.25)):
        variables = repair(MODEL.apply, interpolate(lam, *pair), *pair, X, lam=lam)
        np.testing.assert_allclose(line.loss[i], classify(variables, X, Y)[0], rtol=1e-4)


def test_repair_names_bad_input(normed, pair):
    module, variables = normed
    a, b = pair
    with pytest.raises(ValueError, match="BatchNorm layers: use reset_batch_stats"):
        repair(module.apply, variables, variables, variables, X)
    with pytest.raises(ValueError, match="calibration set is empty"):
        repair(MODEL.apply, a, a, b, X[:0])
    with pytest.raises(ValueError, match="'params/Dense_0/bias' is in a and not in variables"):
        repair(MODEL.apply, {"params": {}}, a, b, X)
    linear = nn.Dense(3)
    shapes = jax.eval_shape(linear.init, jax.random.key(0), X)
    with pytest.raises(ValueError, match="no hidden dense or convolution layer"):
        repair(linear.apply, *[to_numpy(gaussian_like(0, shapes))] * 3, X)
