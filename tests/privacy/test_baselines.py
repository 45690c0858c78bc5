"""The peers: right with little noise, and without the defects of published code."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import laplace

from jaxml import privacy
from jaxml.privacy import baselines, mechanisms
from tests.privacy import reference

N, D = 1200, 2
METHODS = {
    "adassp": (privacy.adassp, {"x_bound": 6.0, "y_bound": 8.0}),
    "tukey_em": (privacy.tukey_em, {"n_models": 200}),
    "dp_gd": (privacy.dp_gd, {"clip": 50.0, "learning_rate": 0.5, "n_steps": 60}),
}


@pytest.fixture(scope="module")
def small():
    X, y, *_ = reference.make_data(np.random.default_rng(0), N, D)
    return X, y, np.linalg.lstsq(X, y, rcond=None)[0]


def test_ols_is_numpys(small):
    X, y, expected = small
    answer = privacy.ols(X, y)
    assert answer.status == privacy.PASS
    np.testing.assert_allclose(answer.coef, expected, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_with_a_huge_budget_they_come_near_to_least_squares(small, method):
    X, y, expected = small
    fn, kwargs = METHODS[method]
    kwargs = kwargs | {"epsilon": 300.0, "delta": 1e-3}
    answers = [fn(jax.random.key(i), X, y, **kwargs) for i in range(2)]
    for answer in answers:
        assert answer.status == privacy.PASS
        np.testing.assert_allclose(answer.coef, expected, atol=0.15)
    assert (answers[0].coef != answers[1].coef).all()
    again = fn(jax.random.key(0), X, y, **kwargs)
    np.testing.assert_array_equal(answers[0].coef, again.coef)


def test_adassp_reads_no_bound_off_the_data(small):
    # Published code has them as the largest norms of the data, which is not private.
    parameters = inspect.signature(privacy.adassp).parameters
    assert all(parameters[b].default is inspect.Parameter.empty for b in ("x_bound", "y_bound"))
    X, y, _ = small
    far_X, far_y = X.copy(), y.copy()
    far_X[0], far_y[0] = 1e9, 1e9
    near_X, near_y = X.copy(), y.copy()
    near_X[0], near_y[0] = 6 / np.sqrt(2), 8.0
    kwargs = {"epsilon": 1.0, "delta": 1e-6, "x_bound": 6.0, "y_bound": 8.0}
    answers = [
        privacy.adassp(jax.random.key(0), *data, **kwargs)
        for data in ((far_X, far_y), (near_X, near_y))
    ]
    np.testing.assert_allclose(answers[0].coef, answers[1].coef, rtol=1e-9)


@pytest.mark.parametrize("method", ["adassp", "dp_gd"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_a_row_of_zeros(small, method, value):
    X, y, _ = small
    fn, kwargs = METHODS[method]
    kwargs = kwargs | {"epsilon": 1.0, "delta": 1e-6}
    zero_X, zero_y = X.copy(), y.copy()
    zero_X[3], zero_y[3] = 0.0, 0.0
    expected = fn(jax.random.key(0), zero_X, zero_y, **kwargs).coef
    assert np.isfinite(expected).all()
    for of_x, of_y in ((value, y[3]), (1.7e308, y[3]), (X[3, 1], value)):
        bad_X, bad_y = X.copy(), y.copy()
        bad_X[3, 1], bad_y[3] = of_x, of_y
        answer = fn(jax.random.key(0), bad_X, bad_y, **kwargs)
        assert answer.status == privacy.PASS
        np.testing.assert_array_equal(answer.coef, expected)


def test_the_noise_of_adassp_hides_the_replacement_of_any_row(monkeypatch):
    """Sensitivities, by the worst of many pairs of rows of length one, and noise of that size."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 2000, 3))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    y = rng.choice([-1.0, 1.0], (2, 2000, 1))
    outer = np.einsum("snd,sne->snde", x, x)
    gram = np.linalg.norm(outer[0] - outer[1], axis=(1, 2))
    cross = np.linalg.norm(x[0] * y[0] - x[1] * y[1], axis=1)
    assert 1.4 < gram.max() <= np.sqrt(2) + 1e-12 and 1.9 < cross.max() <= 2 + 1e-12

    draws = {}

    def recorded(key, shape):
        draws[shape] = np.asarray(mechanisms.standard_normal(key, shape))
        return draws[shape]

    monkeypatch.setattr(baselines, "standard_normal", recorded)
    monkeypatch.setattr(baselines, "_adassp", baselines._adassp.__wrapped__)  # not compiled
    n, d, x_bound, y_bound, failure, delta = 20, 3, 1.5, 2.5, 0.05, 1e-3
    x = rng.normal(size=(n, d))
    x *= x_bound / np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.uniform(-y_bound, y_bound, n)
    answer = privacy.adassp(
        jax.random.key(0), x, y, epsilon=20.0, delta=delta, x_bound=x_bound, y_bound=y_bound,
        failure=failure,
    )  # fmt: skip
    scale = mechanisms.gaussian_scale(20.0 / 3, delta / 3)
    of_gram, of_cross = np.sqrt(2) * x_bound**2 * scale, 2 * x_bound * y_bound * scale
    noise = np.triu(draws[d, d]) + np.triu(draws[d, d], 1).T
    least = np.linalg.eigvalsh(x.T @ x)[0] + x_bound**2 * scale * (
        draws[()] - np.sqrt(2 * np.log(6 / delta))
    )
    ridge = of_gram * np.sqrt(d * np.log(2 * d**2 / failure)) - least
    assert least > 0 and ridge > 0
    expected = np.linalg.solve(
        x.T @ x + of_gram * noise + ridge * np.eye(d), x.T @ y + of_cross * draws[d,]
    )
    np.testing.assert_allclose(answer.coef, expected, rtol=1e-9)


def test_the_noise_of_dp_gd_is_that_of_all_its_steps():
    # Nothing but noise is left of data that are 0, and every coordinate draws its own.
    n, clip, learning_rate, n_steps = 5, 3.0, 0.2, 4
    answer = privacy.dp_gd(
        jax.random.key(0), np.zeros((n, 40_000)), np.zeros(n), epsilon=1.5, delta=1e-5, clip=clip,
        learning_rate=learning_rate, n_steps=n_steps,
    )  # fmt: skip
    scale = mechanisms.gaussian_scale(1.5, 1e-5)
    # A row's gradient turns over at most, by 2 clip, in each step.
    expected = learning_rate / n * 2 * clip * n_steps * scale
    assert np.std(answer.coef) == pytest.approx(expected, rel=0.02)


def deep_points(models, epsilon, delta, n_draws):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), n_draws)
        draw = jax.vmap(lambda key, m: baselines._deep_point(key, m, epsilon, delta), (0, None))
        return jax.tree.map(np.asarray, jax.jit(draw)(keys, jnp.asarray(models)))


def test_tukey_em_draws_from_its_density_and_tests_with_noise_of_the_right_scale():
    # 20 models at 0..19: a point between j and j + 1 has depth j + 1 from the left.
    models = np.random.default_rng(3).permutation(np.arange(20.0))[:, None]
    epsilon, delta, n_draws = 1.5, 0.02, 40_000
    points, passed = deep_points(models, epsilon, delta, n_draws)
    depth = np.minimum(np.arange(1, 20), np.arange(19, 0, -1))
    density = np.where(depth >= 5, np.exp(epsilon * depth / 2), 0)
    counts = np.histogram(points[:, 0], np.arange(20.0))[0]
    np.testing.assert_allclose(counts / n_draws, density / density.sum(), atol=0.01)
    # Published code draws the test's noise with scale epsilon where 1 / epsilon is due.
    depths = np.arange(1, 11)
    log_volume = np.log(19.0 - 2 * (depths - 1))
    with jax.enable_x64(True):
        distance = float(baselines.tukey_distance(jnp.asarray(log_volume), epsilon, delta, 5))
    threshold = np.log(1 / (2 * delta)) / epsilon
    rates = [laplace.sf(threshold - distance, scale=scale) for scale in (1 / epsilon, epsilon)]
    assert passed.mean() == pytest.approx(rates[0], abs=0.01)
    assert abs(rates[0] - rates[1]) > 0.05


def test_the_distance_of_tukey_em_is_that_of_its_lemma():
    rng = np.random.default_rng(3)
    for _ in range(5):
        log_volume = -np.sort(rng.exponential(3.0, 20))
        log_volume = np.sort(log_volume)[::-1]
        epsilon, delta, t = 2.0, 0.05, 10
        found = -1
        for k in range(t - 1):
            for g in range(1, 20):
                if t + k + g + 1 > 20:
                    break
                ratio = log_volume[t - k - 2] - log_volume[t + k + g]  # V(i) is log_volume[i - 1]
                if ratio - epsilon * g / 2 <= np.log(delta / (4 * np.exp(epsilon))):
                    found = k
        with jax.enable_x64(True):
            assert baselines.tukey_distance(jnp.asarray(log_volume), epsilon, delta, t) == found


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("adassp", {"epsilon": 0.0}, "epsilon must be positive"),
        ("adassp", {"x_bound": 0.0}, "x_bound must be positive and finite, got 0.0"),
        ("adassp", {"y_bound": np.inf}, "y_bound must be positive"),
        ("adassp", {"failure": 1.0}, r"failure must lie in \(0, 1\), got 1.0"),
        ("tukey_em", {"delta": 1.0}, "delta must lie"),
        ("tukey_em", {"n_models": 601}, r"n_models must lie in 8..n / d = 600, got 601"),
        ("dp_gd", {"clip": -1.0}, "clip must be positive"),
        ("dp_gd", {"n_steps": 0}, "n_steps must be positive"),
    ],
)
def test_bad_arguments_are_one_sentence(small, method, changes, message):
    X, y, _ = small
    fn, kwargs = METHODS[method]
    with pytest.raises(ValueError, match=message):
        fn(jax.random.key(0), X, y, **({"epsilon": 1.0, "delta": 1e-6} | kwargs | changes))


def test_bad_data_shapes_are_one_sentence(small):
    X, y, _ = small
    with pytest.raises(ValueError, match="must be float64"):
        privacy.ols(X.astype(np.float32), y)
    with pytest.raises(ValueError, match=r"must be \[n, d\] and \[n\]"):
        privacy.ols(X, y[:-1])
