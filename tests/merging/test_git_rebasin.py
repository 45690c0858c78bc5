"""Weight matching, straight-through matching and merging many: recovery, objectives, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml import data, train
from jaxml.merging import (
    apply_permutation,
    derive_permutation_spec,
    identity_permutation,
    interpolate,
    merge_many,
    ste_matching,
    weight_matching,
)
from jaxml.nn import build

from . import reference
from .helpers import (
    assert_trees_equal,
    assert_valid,
    flat,
    gaussian_like,
    plant,
    recovered,
    tables,
    to_numpy,
)
from .networks import BottleneckResidual, make


def shapes_and_spec(module, x_shape):
    x = jax.ShapeDtypeStruct(x_shape, jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return shapes, derive_permutation_spec(module.apply, shapes, x)


@pytest.fixture(scope="module")
def wide_mlp():
    return shapes_and_spec(build("mlp", width=256, n_classes=10, depth=3), (2, 64))


@pytest.fixture(scope="module")
def resnet():
    return shapes_and_spec(build("resnet20", width=1, n_classes=10), (2, 16, 16, 3))


def bottleneck(anchored):
    return shapes_and_spec(BottleneckResidual(anchored), (2, 30 if anchored else 5))


def zoo_pair(name, seed=0):
    """Two independent weightings of a network of the zoo, and its spec."""
    module, variables, x = make(name, randomise=False)
    spec = derive_permutation_spec(module.apply, variables, x)
    a, b = (to_numpy(gaussian_like(seed + i, variables)) for i in range(2))
    return spec, a, b


def exact_objective(spec, perms, a, b):
    """In float64, by the reference; factored axes are not its business."""
    return reference.objective(tables(spec)[0], perms, flat(a), flat(b))


# Weight matching.


def test_planted_permutation_of_a_wide_mlp_is_recovered_under_noise(wide_mlp):
    shapes, spec = wide_mlp
    hits = 0
    for seed in range(10):
        a = gaussian_like(seed, shapes)
        b, undo = plant(100 + seed, spec, a, noise=1.0)
        result = weight_matching(jax.random.key(seed), spec, a, b)
        assert_valid(spec, result.perms)
        hits += recovered(result.perms, undo)
    assert hits >= 9


def count_recovered(anchored, noise, *, n_trials, n_restarts):
    shapes, spec = bottleneck(anchored)
    hits = 0
    for seed in range(n_trials):
        a = gaussian_like(seed, shapes)
        b, undo = plant(1000 + seed, spec, a, noise=noise)
        result = weight_matching(jax.random.key(seed), spec, a, b, n_restarts=n_restarts)
        hits += recovered(result.perms, undo)
    return hits


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_permutation_of_an_anchored_residual_net_is_always_recovered(noise):
    assert count_recovered(True, noise, n_trials=20, n_restarts=10) == 20


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_permutation_of_a_free_residual_stream_needs_restarts(noise):
    assert count_recovered(False, noise, n_trials=40, n_restarts=10) >= 30
    assert count_recovered(False, noise, n_trials=20, n_restarts=1) < 15


def at_initialisation(seed, shapes):
    """Kernels with variance 1 / fan-in, zero biases, unit scales."""
    rng = np.random.default_rng(seed)

    def draw(path, s):
        if len(s.shape) == 1:
            return np.full(s.shape, "scale" in jax.tree_util.keystr(path), np.float32)
        std = np.prod(s.shape[:-1]) ** -0.5
        return (std * rng.normal(size=s.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("net", ["wide_mlp", "resnet"])
def test_objective_is_as_good_as_that_of_the_published_algorithm(net, request):
    shapes, spec = request.getfixturevalue(net)
    groups, sizes = tables(spec)
    a, b = at_initialisation(0, shapes), at_initialisation(1, shapes)
    ours, theirs = [], []
    # Both end in local optima that depend on the visiting order: compare means.
    for seed in range(3):
        result = weight_matching(jax.random.key(seed), spec, a, b)
        np.testing.assert_allclose(result.objective, exact_objective(spec, result.perms, a, b))
        ours.append(result.objective)
        perms, _ = reference.weight_matching(groups, flat(a), flat(b), sizes, seed=seed)
        theirs.append(exact_objective(spec, perms, a, b))
    assert np.mean(ours) >= 0.99 * np.mean(theirs)


@pytest.mark.parametrize("name", ["mlp", "square_residual", "bottleneck_residual", "lstm"])
@pytest.mark.parametrize("seed", range(3))
def test_objective_in_float64_never_falls_from_pass_to_pass(name, seed):
    spec, a, b = zoo_pair(name, seed)
    passes = []
    result = weight_matching(
        jax.random.key(seed), spec, a, b, callback=lambda *args: passes.append(args)
    )
    start = exact_objective(spec, identity_permutation(spec), a, b)
    values = [start, *(exact_objective(spec, perms, a, b) for _, perms, _ in passes)]
    assert (np.diff(values) >= 0).all()
    assert result.objective >= start
    np.testing.assert_allclose(result.objective, values[-1], rtol=1e-12)
    np.testing.assert_allclose(result.history, values, rtol=1e-5)
    assert [n for n, *_ in passes] == list(range(result.n_iter))


def test_objective_never_falls_on_a_wide_net_in_single_precision(wide_mlp):
    # Late steps add to tables instead of forming them anew: rounding must not pile up.
    shapes, spec = wide_mlp
    a, b = gaussian_like(0, shapes), gaussian_like(1, shapes)
    passes = []
    result = weight_matching(
        jax.random.key(0), spec, a, b, rtol=1e-9, callback=lambda *args: passes.append(args)
    )
    values = [exact_objective(spec, perms, a, b) for _, perms, _ in passes]
    assert np.diff(values).min() >= -1e-9 * values[-1]
    np.testing.assert_allclose([value for *_, value in passes], values, rtol=1e-6)
    assert result.n_iter < 100


@pytest.mark.parametrize("name", ["cnn_groupnorm4", "vit", "tied_lm", "grouped", "gated"])
def test_factored_axes_give_valid_permutations_and_a_rising_objective(name):
    spec, a, b = zoo_pair(name)
    result = weight_matching(jax.random.key(0), spec, a, b)
    assert_valid(spec, result.perms)
    assert (np.diff(result.history) >= 0).all() and result.objective > result.history[0]
    aligned = flat(apply_permutation(spec, result.perms, b))
    inner = sum(
        np.vdot(x.astype(np.float64), aligned[path].astype(np.float64))
        for path, x in flat(a).items() if path in spec.leaf_views(a)
    )  # fmt: skip
    np.testing.assert_allclose(result.objective, inner, rtol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn_groupnorm4", "lstm", "depthwise"])
def test_planted_permutation_without_noise_is_recovered(name):
    module, variables, x = make(name, randomise=False)
    spec = derive_permutation_spec(module.apply, variables, x)
    a = gaussian_like(5, variables)
    b, undo = plant(7, spec, a)
    result = weight_matching(jax.random.key(0), spec, a, b, n_restarts=5)
    assert recovered(result.perms, undo)
    assert_trees_equal(apply_permutation(spec, result.perms, b), a)


def test_running_statistics_are_permuted_and_not_compared():
    module, variables, x = make("cnn_batchnorm")
    spec = derive_permutation_spec(module.apply, variables, x)
    a = to_numpy(variables)
    b, _ = plant(1, spec, a, noise=0.3)
    plain = weight_matching(jax.random.key(0), spec, a, b)
    b["batch_stats"] = gaussian_like(9, b["batch_stats"], scale=1e3)
    assert_trees_equal(weight_matching(jax.random.key(0), spec, a, b).perms, plain.perms)
    compared = weight_matching(jax.random.key(0), spec, a, b, exclude=())
    assert any((compared.perms[g] != plain.perms[g]).any() for g in plain.perms)


def test_same_key_same_answer_and_containers_do_not_matter(wide_mlp):
    spec, a, b = zoo_pair("bottleneck_residual")
    one = weight_matching(jax.random.key(3), spec, a, b, n_restarts=3)
    before = jax.tree.map(np.copy, (a, b))
    two = weight_matching(
        jax.random.key(3), spec, jax.tree.map(jnp.asarray, a), jax.tree.map(jnp.asarray, b),
        n_restarts=3,
    )  # fmt: skip
    assert_trees_equal(one.perms, two.perms)
    assert one[1:] == two[1:]
    assert_trees_equal((a, b), before)


def test_more_restarts_are_never_worse():
    spec, a, b = zoo_pair("bottleneck_residual")
    values = [
        weight_matching(jax.random.key(0), spec, a, b, n_restarts=n).objective for n in (1, 2, 5)
    ]
    assert values == sorted(values)


def test_search_starts_where_it_is_told():
    shapes, spec = bottleneck(False)
    a = gaussian_like(0, shapes)
    b, undo = plant(1, spec, a)
    result = weight_matching(jax.random.key(0), spec, a, b, init=undo)
    assert recovered(result.perms, undo) and result.n_iter == 1
    name = next(iter(undo))
    part = weight_matching(jax.random.key(0), spec, a, b, init={name: undo[name]}, max_iter=1)
    assert part.history[0] == pytest.approx(
        exact_objective(spec, identity_permutation(spec) | {name: undo[name]}, a, b)
    )


def test_half_precision_and_double_precision_models():
    spec, a, b = zoo_pair("mlp")
    single = weight_matching(jax.random.key(0), spec, a, b)
    double = weight_matching(
        jax.random.key(0), spec, *(jax.tree.map(np.float64, t) for t in (a, b))
    )
    np.testing.assert_allclose(single.objective, double.objective, rtol=1e-6)
    half = [jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), t) for t in (a, b)]
    result = weight_matching(jax.random.key(0), spec, *half)
    np.testing.assert_allclose(result.objective, single.objective, rtol=0.02)


def test_bad_input_is_named():
    spec, a, b = zoo_pair("mlp")
    key = jax.random.key(0)

    def broken(path, value):
        tree = jax.tree.map(np.copy, b)
        tree["params"][path[0]][path[1]] = value
        return tree

    nan = np.full(8, np.nan, np.float32)
    with pytest.raises(ValueError, match="b has 8 non-finite values at 'params/Dense_0/bias'"):
        weight_matching(key, spec, a, broken(("Dense_0", "bias"), nan))
    with pytest.raises(ValueError, match=r"'params/Dense_0/bias': shape \(8,\) in a, \(9,\) in b"):
        weight_matching(key, spec, a, broken(("Dense_0", "bias"), np.zeros(9, np.float32)))
    with pytest.raises(ValueError, match="'params/Dense_0/extra' is in b and not in a"):
        weight_matching(key, spec, a, broken(("Dense_0", "extra"), np.zeros(9, np.float32)))
    with pytest.raises(ValueError, match=r"'Dense_1' is no bijection of 0..11"):
        weight_matching(key, spec, a, b, init={"Dense_1": np.zeros(12, np.int32)})
    with pytest.raises(ValueError, match="unknown group 'Dense_7'"):
        weight_matching(key, spec, a, b, init={"Dense_7": np.zeros(12, np.int32)})
    with pytest.raises(ValueError, match="max_iter and n_restarts must be positive, got 0 and 1"):
        weight_matching(key, spec, a, b, max_iter=0)
    with pytest.raises(ValueError, match="got 100 and 0"):
        weight_matching(key, spec, a, b, n_restarts=0)
    with pytest.raises(ValueError, match="rtol must not be negative, got nan"):
        weight_matching(key, spec, a, b, rtol=float("nan"))
    other, *_ = zoo_pair("square_residual")
    with pytest.raises(
        ValueError, match="group 'Dense_0' needs 24 entries on axis 0 of 'params/Dense_0/bias'"
    ):
        weight_matching(key, other, a, b)


# The straight-through estimator.


class Digits:
    """Three pairs of trained networks, and what they were trained on."""

    def __init__(self):
        dataset = data.load("digits")
        self.x, self.y = dataset.train_x, dataset.train_y
        model = build("mlp", width=32, n_classes=10, depth=3)
        keys = jnp.stack([jax.random.key(seed) for seed in range(6)])
        state = train.fit(
            keys, model, optax.adam(3e-3), self.x, self.y, n_epochs=40, batch_size=100,
            epochs_per_call=40,
        )  # fmt: skip
        stacked = to_numpy(state.variables)
        self.models = [jax.tree.map(lambda v, i=i: v[i], stacked) for i in range(6)]
        self.spec = derive_permutation_spec(model.apply, self.models[0], self.x[:2])
        self.apply = model.apply

    def loss(self, variables, x, y):
        return train.evaluate(self.apply, variables, x, y, batch_size=2000).loss

    def ste(self, seed=0, pair=0, loss=None, **kwargs):
        a, b = self.models[2 * pair : 2 * pair + 2]
        key = jax.random.key(seed)
        return ste_matching(key, self.spec, loss or self.loss, a, b, self.x, self.y, **kwargs)


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_straight_through_matching_lowers_the_barrier_at_the_midpoint(digits):
    @jax.jit
    def middle(a, b, perms):
        b = apply_permutation(digits.spec, perms, b)
        return digits.loss(interpolate(0.5, a, b), digits.x, digits.y)

    before = jax.tree.map(np.copy, digits.models)
    identity = identity_permutation(digits.spec)
    learnt, plain = [], []
    for pair in range(3):
        a, b = digits.models[2 * pair : 2 * pair + 2]
        seen = []
        result = digits.ste(pair=pair, n_steps=100, callback=lambda *args, s=seen: s.append(args))
        assert_valid(digits.spec, result.perms)
        assert seen == list(enumerate(result.history)) and result.n_iter == 100
        assert result.objective == min(result.history)
        # All data fit in the evaluation subset; the first matching is plain weight matching.
        np.testing.assert_allclose(result.objective, middle(a, b, result.perms), rtol=1e-4)
        first = weight_matching(jax.random.fold_in(jax.random.key(0), 0), digits.spec, a, b)
        np.testing.assert_allclose(result.history[0], middle(a, b, first.perms), rtol=1e-4)
        ends = float(middle(a, a, identity) + middle(b, b, identity)) / 2
        learnt.append(result.objective - ends)
        plain.append(result.history[0] - ends)
    assert_trees_equal(digits.models, before)
    assert np.mean(learnt) <= 0.5 * np.mean(plain)


def test_straight_through_matching_is_reproducible(digits):
    one, two = (
        digits.ste(1, n_steps=3, batch_size=50, eval_size=100, optimizer=optax.adam(1e-2))
        for _ in range(2)
    )
    assert one.history == two.history
    assert_trees_equal(one.perms, two.perms)


def test_no_gradient_step_follows_the_last_matching(digits):
    def update(*_):
        raise AssertionError("a step that nothing judges")

    result = digits.ste(n_steps=1, optimizer=optax.GradientTransformation(lambda w: (), update))
    assert result.n_iter == len(result.history) == 1


def test_straight_through_matching_names_bad_input(digits):
    with pytest.raises(ValueError, match=r"1 <= batch_size <= 1437 .* got 100, 1438 and 2000"):
        digits.ste(batch_size=1438)
    with pytest.raises(ValueError, match="got 0, 200 and 2000"):
        digits.ste(n_steps=0)
    with pytest.raises(ValueError, match="got 100, 200 and 0"):
        digits.ste(eval_size=0)
    with pytest.raises(ValueError, match="the midpoint loss is nan at step 0"):
        digits.ste(loss=lambda v, x, y: jnp.float32(jnp.nan) * jax.tree.leaves(v)[0].sum())


# Merging many.


def distances(models):
    """Sum over models of the squared distance to the mean of the others."""
    total = 0.0
    for i, model in enumerate(models):
        others = models[:i] + models[i + 1 :]
        for path, leaf in flat(model).items():
            mean = np.mean([flat(other)[path].astype(np.float64) for other in others], 0)
            total += np.square(leaf - mean).sum()
    return total


@pytest.mark.parametrize("seed", range(3))
def test_permuted_copies_of_one_net_merge_into_that_net(seed):
    # Wide enough that a matching to the mean of unaligned models finds its way.
    shapes, spec = shapes_and_spec(build("mlp", width=64, n_classes=10, depth=3), (2, 64))
    net = gaussian_like(seed, shapes)
    copies = [plant(100 * seed + i, spec, net)[0] for i in range(4)]
    result = merge_many(jax.random.key(seed), spec, copies)
    for perms in result.perms:
        assert_valid(spec, perms)
    assert result.history[-1] <= 1e-9 * result.history[0]
    back = weight_matching(jax.random.key(1), spec, net, result.merged)
    merged = flat(apply_permutation(spec, back.perms, result.merged))
    for path, leaf in flat(net).items():
        np.testing.assert_allclose(merged[path], leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "square_residual"])
def test_distances_of_different_nets_never_grow(name):
    spec, *_ = zoo_pair(name)
    _, variables, _ = make(name, randomise=False)
    models = [gaussian_like(seed, variables) for seed in range(5)]
    before = jax.tree.map(np.copy, models)
    seen = []
    result = merge_many(
        jax.random.key(0), spec, models, callback=lambda sweep, value: seen.append((sweep, value))
    )
    assert_trees_equal(models, before)
    assert (np.diff(result.history) <= 1e-6 * result.history[0]).all()
    assert seen == list(enumerate(result.history[1:])) and result.n_sweeps == len(seen)
    aligned = [
        to_numpy(apply_permutation(spec, p, m)) for p, m in zip(result.perms, models, strict=True)
    ]
    np.testing.assert_allclose(result.history[-1], distances(aligned), rtol=1e-5)
    assert result.history[-1] < distances(models)
    mean = {path: np.mean([flat(t)[path] for t in aligned], 0) for path in flat(models[0])}
    for path, leaf in flat(result.merged).items():
        np.testing.assert_allclose(leaf, mean[path], rtol=1e-5, atol=1e-6)


def test_merging_many_names_bad_input():
    spec, a, b = zoo_pair("mlp")
    with pytest.raises(ValueError, match="at least 2 models, got 1"):
        merge_many(jax.random.key(0), spec, [a])
    bad = jax.tree.map(np.copy, b)
    bad["params"]["Dense_2"]["bias"][3] = np.inf
    with pytest.raises(
        ValueError, match="model 2 has 1 non-finite values at 'params/Dense_2/bias'"
    ):
        merge_many(jax.random.key(0), spec, [a, b, bad])
    with pytest.raises(ValueError, match="'params/Dense_3/bias' is in model 0 and not in model 1"):
        merge_many(jax.random.key(0), spec, [a, {"params": {
            k: v for k, v in b["params"].items() if k != "Dense_3"}}])  # fmt: skip


def test_merged_leaves_keep_their_dtype():
    spec, a, b = zoo_pair("mlp")
    models = [jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), t) for t in (a, b)]
    merged = merge_many(jax.random.key(0), spec, models, max_sweeps=2).merged
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
