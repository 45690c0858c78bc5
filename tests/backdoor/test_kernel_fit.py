"""Kernel regression past a kept factor, against solving everything anew with numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.backdoor import kernel_fit

N, Q, C = 30, 11, 8
DIAG_REG = 1e-3


def _case(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(N + Q + C, 40))
    kernel = features @ features.T / 40
    y = rng.choice([-1.0, 1.0], N)
    left_out = np.where(np.arange(Q) % 3 == 0, -1, rng.integers(0, N, Q))
    return kernel, y, left_out


def _solve_anew(kernel, y, added, left_out):
    """Predicts each query by a regression of its own on what it may see."""
    ridge = DIAG_REG * np.trace(kernel[:N, :N]) / N
    answers = []
    for q in range(Q):
        rows = np.array([i for i in range(N) if i != left_out[q]] + [N + Q + p for p in added])
        labels = np.array([y[i] if i < N else 1.0 for i in rows])
        inner = kernel[np.ix_(rows, rows)] + ridge * np.eye(len(rows))
        answers.append(kernel[N + q, rows] @ np.linalg.solve(inner, labels))
    return np.array(answers)


def _setup(kernel, y, left_out):
    fit = kernel_fit.fit_clean(kernel[:N, :N], y, diag_reg=DIAG_REG)
    queries = kernel_fit.see_queries(fit, kernel[:N, N : N + Q], left_out=left_out)
    pool = slice(N + Q, None)
    added = kernel_fit.add_points(
        fit, queries, kernel[:N, pool], kernel[pool, pool], kernel[pool, N : N + Q], np.ones(C)
    )
    return fit, queries, added


def _some(added, index):
    column = added.column[index] if added.column.ndim else added.column
    return added._replace(
        schur=added.schur[np.ix_(index, index)],
        residual=added.residual[index],
        cross=added.cross[index],
        column=column,
    )


@pytest.mark.parametrize("leaves_out", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_predictions_equal_solving_anew(seed, leaves_out):
    kernel, y, left_out = _case(seed)
    left_out = left_out if leaves_out else np.full(Q, -1)
    index = np.array([5, 0, 3])
    with jax.enable_x64(True):
        _, queries, added = _setup(kernel, y, left_out if leaves_out else None)
        alone = kernel_fit.predict_one(queries, added)
        together = kernel_fit.predict(queries, _some(added, index))
        state = queries, added
        for i in index[:2]:
            state = kernel_fit.take_one(*state, i)
        one_by_one = kernel_fit.predict_one(*state)[index[2]]
    np.testing.assert_allclose(together, _solve_anew(kernel, y, index, left_out), atol=1e-9)
    np.testing.assert_allclose(one_by_one, together, atol=1e-9)
    for c in range(C):
        np.testing.assert_allclose(alone[c], _solve_anew(kernel, y, [c], left_out), atol=1e-9)


def test_without_ridge_the_training_labels_come_back():
    kernel, y, _ = _case(2)
    with jax.enable_x64(True):
        fit = kernel_fit.fit_clean(kernel[:N, :N], y, diag_reg=0.0)
        queries = kernel_fit.see_queries(fit, kernel[:N, :N])
        np.testing.assert_allclose(queries.prediction, y, atol=1e-8)


@pytest.mark.parametrize("leaves_out", [False, True])
def test_a_point_that_makes_the_kernel_singular_has_no_prediction(leaves_out):
    kernel, y, left_out = _case(5)
    copy = N + Q + 2  # a candidate that is a clean point
    kernel[copy], kernel[:, copy] = kernel[4], kernel[:, 4]
    kernel[copy, copy] = kernel[4, 4]
    with jax.enable_x64(True):
        fit = kernel_fit.fit_clean(kernel[:N, :N], y, diag_reg=0.0)
        queries = kernel_fit.see_queries(
            fit, kernel[:N, N : N + Q], left_out=left_out if leaves_out else None
        )
        pool = slice(N + Q, None)
        added = kernel_fit.add_points(
            fit, queries, kernel[:N, pool], kernel[pool, pool], kernel[pool, N : N + Q], np.ones(C)
        )
        alone = np.asarray(kernel_fit.predict_one(queries, added))
    assert np.isnan(alone[2]).all() and np.isfinite(np.delete(alone, 2, axis=0)).all()


def test_gradients_equal_finite_differences():
    kernel, y, left_out = _case(3)
    index, pool = np.array([1, 6]), slice(N + Q, None)
    with jax.enable_x64(True):
        fit, queries, _ = _setup(kernel, y, left_out)

        @jax.jit
        def total(k_dp, k_pp, k_pq):
            added = kernel_fit.add_points(fit, queries, k_dp, k_pp, k_pq, jnp.ones(2))
            return jnp.sin(kernel_fit.predict(queries, added)).sum()

        blocks = (
            kernel[:N, pool][:, index],
            kernel[pool, pool][np.ix_(index, index)],
            kernel[pool, N : N + Q][index],
        )
        rng = np.random.default_rng(0)
        directions = tuple(rng.normal(size=b.shape) for b in blocks)
        directions = (directions[0], directions[1] + directions[1].T, directions[2])
        grads = jax.grad(total, argnums=(0, 1, 2))(*blocks)
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        step = 1e-5
        up, down = (
            total(*(b + s * d for b, d in zip(blocks, directions, strict=True)))
            for s in (step, -step)
        )
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-6)


def test_a_kernel_that_cannot_be_solved_is_named_with_its_condition():
    kernel, y, _ = _case(4)
    twice = kernel[:N, :N].copy()
    twice[1], twice[:, 1] = twice[0], twice[:, 0]
    twice[1, 1] = twice[0, 0]
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match=r"clean kernel .*(singular|condition number)"):
            kernel_fit.fit_clean(twice, y, diag_reg=0.0)
        with pytest.raises(ValueError, match="has 1 values that are not finite"):
            broken = kernel[:N, :N].copy()
            broken[2, 2] = np.nan
            kernel_fit.fit_clean(broken, y, diag_reg=1e-3)
    good = kernel_fit.describe(np.diag([4.0, 1.0]), 0.0)
    assert good == "has condition number 4.0e+00 at ridge 0.0e+00"
