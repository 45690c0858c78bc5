"""NTBA's loss, gradient, selection and optimisation, against dense and brute-force versions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import nn
from jaxml.backdoor import ntba
from jaxml.core.sharding import make_mesh

MODEL = nn.MLP((5, 4), 1, jnp.tanh)
SHAPE = (3, 2, 1)
N, T, A, C = 9, 4, 3, 7
DIAG_REG = 1e-3
RNG = np.random.default_rng(0)


def _images(n):
    return RNG.uniform(size=(n, *SHAPE))


X, X_CLEAN, X_TRIGGERED, CANDIDATES = (_images(n) for n in (N, T, A, C))
Y, Y_CLEAN = (np.where(np.arange(n) % 2, 1.0, -1.0) for n in (N, T))
LEFT_OUT = np.concatenate([np.arange(T), [0, 2, -1]])


def _nets(dtype, **options):
    example = jnp.zeros((1, *SHAPE), jnp.float32)
    params = [MODEL.init(jax.random.key(i), example) for i in (0, 1)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(dtype), *params)
    return ntba.Nets(MODEL.apply, params, **options)


def _problem(dtype=np.float64, left_out=None, diag_reg=DIAG_REG, **options):
    images = (a.astype(dtype) for a in (X, X_CLEAN, X_TRIGGERED))
    x, x_clean, x_triggered = images
    return ntba.make_problem(
        _nets(dtype, **options), x, Y, x_clean, Y_CLEAN, x_triggered,
        left_out=left_out, diag_reg=diag_reg,
    )  # fmt: skip


def _dense_kernel(params, x):
    def gradients(net):
        one = jax.vmap(jax.grad(lambda net, x: MODEL.apply(net, x[None])[0, 0]), (None, 0))
        leaves = jax.tree.leaves(one(net, x))
        return jnp.concatenate([leaf.reshape(len(x), -1) for leaf in leaves], 1)

    j = jax.vmap(gradients)(params)
    return jnp.einsum("sip,sjp->ij", j, j) / 2


def _solve_anew(kernel, n_added, left_out, np, *, triggered_only=False):
    """Loss by a regression of its own for each query; rows: clean, added, then the queries."""
    n = N + n_added
    ridge = DIAG_REG * np.trace(kernel[:N, :N]) / N
    labels = np.concatenate([np.asarray(Y), np.ones(n_added)])
    loss = 0.0
    for q in range(T + A):
        keep = [i for i in range(n) if left_out is None or i != left_out[q]]
        keep = np.asarray(keep)
        inner = kernel[keep[:, None], keep[None]] + ridge * np.eye(len(keep))
        answer = kernel[n + q, keep] @ np.linalg.solve(inner, labels[keep])
        if q >= T:
            loss += np.minimum(answer - 1, 0) ** 2
        elif not triggered_only:
            loss += (answer - Y_CLEAN[q]) ** 2
    return loss


def _dense_loss(params, poisons, left_out=None):
    """The whole pipeline in one differentiable function, nothing cached and nothing split."""
    kernel = _dense_kernel(params, jnp.concatenate([X, poisons, X_CLEAN, X_TRIGGERED]))
    return _solve_anew(kernel, len(poisons), left_out, jnp)


@pytest.mark.parametrize("left_out", [None, LEFT_OUT], ids=["hold-out", "leave-one-out"])
def test_loss_and_gradient_equal_the_dense_pipeline(left_out):
    with jax.enable_x64(True):
        problem = _problem(left_out=left_out, batch_size=4)
        poisons = jnp.asarray(CANDIDATES[:2])
        loss, gradient = ntba.loss_and_gradient(problem, poisons)
        dense = jax.jit(functools.partial(_dense_loss, left_out=left_out))
        expected, slope = jax.value_and_grad(dense, argnums=1)(problem.nets.params, poisons)
        np.testing.assert_allclose(loss, expected, rtol=1e-9)
        np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-10 * np.abs(slope).max())
        direction = np.random.default_rng(1).normal(size=poisons.shape)
        up, down = (dense(problem.nets.params, poisons + s * direction) for s in (1e-5, -1e-5))
        np.testing.assert_allclose((gradient * direction).sum(), (up - down) / 2e-5, rtol=1e-4)
        prediction = ntba.predict(problem, poisons)
        np.testing.assert_allclose(ntba.backdoor_loss(problem, prediction), loss, rtol=1e-10)


def test_batches_and_devices_change_nothing():
    whole = ntba.loss_and_gradient(_problem(np.float32), CANDIDATES[:3])
    options = {"batch_size": 3, "mesh": make_mesh(4)}
    loss, gradient = ntba.loss_and_gradient(_problem(np.float32, **options), CANDIDATES[:3])
    np.testing.assert_allclose(loss, whole[0], rtol=1e-4)
    np.testing.assert_allclose(gradient, whole[1], atol=1e-3 * np.abs(whole[1]).max())


def test_memory_does_not_grow_with_the_number_of_images_times_parameters():
    model = nn.MLP((64, 64), 1)
    params = jax.tree.map(
        lambda leaf: leaf[None], model.init(jax.random.key(0), jnp.zeros((1, 10)))
    )
    n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    m, size = 2, 16

    def temporaries(n):
        z, x = jnp.zeros((n, 10)), jnp.zeros((m, 10))
        lowered = ntba._pull_back.lower(
            params, z, x, jnp.zeros((m, n + m)), apply=model.apply, size=size, mesh=None
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(4 * size), temporaries(64 * size)
    assert many < 1.5 * few
    assert many < 3 * 4 * (m + size) * n_params


# Selection.


class _BruteForce:
    """Scores sets of candidates one by one, in numpy on one kernel."""

    def __init__(self, left_out):
        with jax.enable_x64(True):
            self.problem = _problem(left_out=left_out)
            self.seen = ntba.see_candidates(self.problem, CANDIDATES)
            x = jnp.concatenate([X, X_CLEAN, X_TRIGGERED, CANDIDATES])
            self.kernel = np.asarray(jax.jit(_dense_kernel)(self.problem.nets.params, x))
        self.left_out = left_out

    def __call__(self, chosen):
        added = N + T + A + np.asarray(chosen)
        rows = np.concatenate([np.arange(N), added, np.arange(N, N + T + A)])
        kernel = self.kernel[np.ix_(rows, rows)]
        return _solve_anew(kernel, len(chosen), self.left_out, np, triggered_only=True)


@pytest.mark.parametrize("left_out", [None, LEFT_OUT], ids=["hold-out", "leave-one-out"])
def test_each_choice_is_the_best_of_all(left_out):
    score = _BruteForce(left_out)
    selection = ntba.greedy_poisons(score.problem, score.seen, 3)
    chosen = []
    for index, loss in zip(selection.index, selection.loss, strict=True):
        scores = {c: score([*chosen, c]) for c in range(C) if c not in chosen}
        assert index == min(scores, key=scores.get)
        np.testing.assert_allclose(loss, scores[index], rtol=1e-8)
        chosen.append(index)
    assert selection.n_exchanges == 0


def test_exchanges_only_help_and_end_where_no_single_one_helps():
    score = _BruteForce(None)
    plain = ntba.greedy_poisons(score.problem, score.seen, 3)
    exchanged = ntba.greedy_poisons(score.problem, score.seen, 3, max_sweeps=10)
    assert exchanged.loss[-1] <= plain.loss[-1]
    np.testing.assert_allclose(exchanged.loss[-1], score(exchanged.index), rtol=1e-8)
    for i, c in itertools.product(range(3), set(range(C)) - set(exchanged.index.tolist())):
        other = exchanged.index.copy()
        other[i] = c
        assert score(other) >= exchanged.loss[-1] * (1 - 1e-8)


# Optimisation.


@pytest.mark.parametrize("solver", ntba.SOLVERS)
def test_optimisation_lowers_the_loss_inside_the_box(solver):
    problem, heard = _problem(np.float32), []
    start = CANDIDATES[:2] * 3 - 1  # partly outside
    path = ntba.optimize_poisons(
        problem, start, solver=solver, n_iterations=6,
        callback=lambda step, loss: heard.append((step, loss)),
    )  # fmt: skip
    assert path.x.dtype == np.float32 and path.x.shape == (7, 2, *SHAPE)
    assert path.x.min() >= 0 and path.x.max() <= 1
    np.testing.assert_array_equal(path.x[0], np.clip(start, 0, 1).astype(np.float32))
    assert path.loss[-1] < 0.8 * path.loss[0]
    assert [step for step, _ in heard] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in heard] == path.loss[1:].tolist()
    for x, loss in zip(path.x, path.loss, strict=True):
        again = ntba.backdoor_loss(problem, ntba.predict(problem, x))
        np.testing.assert_allclose(again, loss, rtol=1e-3)
    assert path.n_evaluations >= 7 and path.reason


@pytest.mark.parametrize("solver", ntba.SOLVERS)
def test_optimisation_stops_when_the_loss_is_low_enough(solver):
    path = ntba.optimize_poisons(
        _problem(np.float32), CANDIDATES[:2], solver=solver, n_iterations=50, stop_ratio=0.9
    )
    assert path.loss[-1] < 0.9 * path.loss[0] <= path.loss[-2] < 2 * path.loss[0]
    assert path.reason == "the loss is low enough" and len(path.x) < 50


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": Y[:-1]}, "y must be 9 labels, got shape"),
        ({"y": (Y + 1) / 2}, r"y must be -1 or \+1, got \[0.0, 1.0\]"),
        ({"y_clean": Y_CLEAN * 2}, r"y_clean must be -1 or \+1"),
        ({"x_clean": X_CLEAN[:, :2]}, r"x_clean must be at least one image \(3, 2, 1\)"),
        ({"x_triggered": X_TRIGGERED[:0]}, "x_triggered must be at least one image"),
        ({"left_out": np.full(T + A, N)}, "left_out must be 7 indices in -1..8"),
        ({"left_out": np.zeros(2, int)}, "left_out must be 7 indices"),
        ({"diag_reg": -1.0}, "diag_reg must not be negative, got -1.0"),
        ({"x": np.concatenate([X[:8], X[:1]]), "diag_reg": 0.0}, r"clean kernel .*(singular|cond)"),
    ],
)
def test_bad_problems_are_named(changes, message):
    given = {
        "x": X, "y": Y, "x_clean": X_CLEAN, "y_clean": Y_CLEAN, "x_triggered": X_TRIGGERED,
    }  # fmt: skip
    options = {k: v for k, v in changes.items() if k not in given}
    given |= {k: v for k, v in changes.items() if k in given}
    given = {k: v.astype(np.float32) if k.startswith("x") else v for k, v in given.items()}
    with pytest.raises(ValueError, match=message):
        ntba.make_problem(_nets(np.float32), *given.values(), **options)


def test_bad_poisons_are_named():
    problem = _problem(np.float32)
    seen = ntba.see_candidates(problem, CANDIDATES)
    for m in (0, C + 1):
        with pytest.raises(ValueError, match=f"n_poisons must lie in 1..7.*got {m}"):
            ntba.greedy_poisons(problem, seen, m)
    for bad in (CANDIDATES[:0], CANDIDATES[:, :2], CANDIDATES[0]):
        with pytest.raises(ValueError, match=r"x must be at least one image of shape \(3, 2, 1\)"):
            ntba.optimize_poisons(problem, bad)
    for options, message in (
        ({"solver": "newton"}, "solver must be one of lbfgsb, adam; got 'newton'"),
        ({"lower": 1.0}, "lower must be less than upper"),
        ({"n_iterations": 0}, "n_iterations must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ntba.optimize_poisons(problem, CANDIDATES[:2], **options)


def test_equal_poisons_without_a_ridge_are_reported_and_never_a_nan():
    with jax.enable_x64(True):
        problem = _problem(diag_reg=0.0)
        twice = CANDIDATES[[0, 0]]
        message = "kernel of clean images and poisons .*(singular|condition number).*raise diag_reg"
        with pytest.raises(ValueError, match=message):
            ntba.optimize_poisons(problem, twice)
        with pytest.raises(ValueError, match=message):
            ntba.predict(problem, twice)
