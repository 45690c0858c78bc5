"""Private least squares: constants, levels, the released estimate, and data of every bad kind."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxml import privacy
from jaxml.core.sharding import make_mesh
from tests.privacy import reference

module = importlib.import_module("jaxml.privacy.private_ols")
N, D = 2048, 2


@pytest.fixture(scope="module")
def small():
    """Data of 2048 rows, and constants that allow an answer at a generous budget."""
    X, y, *_ = reference.make_data(np.random.default_rng(0), N, D, condition=10)
    constants = privacy.issp_constants(
        N, epsilon=8.0, delta=1e-4, **privacy.gaussian_bounds(N, D)._asdict()
    )
    assert constants.feasible and constants.k >= 4
    return X, y, constants


def diagnostics(X, y, constants, key=0):
    return privacy.private_ols(jax.random.key(key), X, y, constants, unsafe_diagnostics=True)


# Constants.


def gaussian_constants(n, d, epsilon=1.0, delta=1e-6):
    bounds = privacy.gaussian_bounds(n, d)
    return privacy.issp_constants(n, epsilon=epsilon, delta=delta, **bounds._asdict())


def simpler_noise_scale(n, d, epsilon_test):
    """The constants that the proof gives without its sharper steps, at one split of the budget."""
    level_0, r0, sigma0 = privacy.gaussian_bounds(n, d)
    k = len(privacy.ptr_pass_probs(epsilon_test, 2e-7, 1e-3)) - 1
    limit = level_0 / (1 - 3 * k * level_0)
    rho = 1 / (1 - 2 * limit)
    ref = math.sqrt(limit * n * rho**k) * sigma0
    step = 3 * limit / (1 - 2 * limit) * ref
    residual = r0 + 2 * k * step + k * limit * ref
    x = privacy.chi_square_bound(0.2e-6 / math.e)
    covariance = 0.5 * (limit / (1 - limit) + 2 * limit * x / (1 - 2 * limit))
    scale = privacy.gaussian_scale(1 - epsilon_test - covariance, 6e-7)
    return k, 3 * math.sqrt(limit) * residual / (1 - 2 * limit) * scale


def test_the_noise_is_less_than_half_of_what_the_plain_inequalities_give():
    n, d = 100_000, 10
    k, plain = simpler_noise_scale(n, d, 0.3)
    assert k == 67 and plain == pytest.approx(3.86, rel=0.01)
    c = gaussian_constants(n, d)
    assert c.feasible and c.noise_scale < plain / 2
    assert privacy.predicted_error(c, d) == pytest.approx(c.noise_scale * 0.01)


@pytest.mark.parametrize(("d", "n"), [(5, 8_000), (10, 10_400), (20, 14_500), (50, 25_000)])
def test_where_it_starts_to_answer(d, n):
    assert gaussian_constants(n, d).feasible
    before = gaussian_constants(int(n * 0.9), d)
    assert not before.feasible
    assert math.isinf(before.noise_scale) and math.isinf(privacy.predicted_error(before, d))


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
@pytest.mark.parametrize("n", [1, 300, 30_000, 10**7])
def test_no_budget_is_overspent_and_no_constant_is_nan(epsilon, delta, n):
    c = gaussian_constants(n, 3, epsilon, delta)
    ledger = privacy.budget_ledger(c)
    assert json.loads(json.dumps(ledger))["neighbouring"] == "replace_one"
    numbers = [v for v in c if isinstance(v, float)]
    assert not np.isnan(numbers).any() and min(numbers) >= 0
    assert c.feasible == np.isfinite(c.noise_scale)
    if c.feasible:
        assert ledger["total"]["epsilon"] == pytest.approx(epsilon, rel=1e-12)
        assert ledger["total"]["delta"] <= delta * (1 + 1e-12)
        assert min(c.epsilon_test, c.epsilon_mean, c.epsilon_covariance) > 0
        assert 1 / c.leverage_limit > 4 and c.gram_ratio < 2
        excess = privacy.pass_table_excess(c.pass_probs, epsilon=c.epsilon_test, delta=c.delta_test)
        assert excess <= 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"delta": 1.0}, r"delta must lie in \(0, 1\), got 1.0"),
        ({"delta": -1e-6}, "delta must lie"),
        ({"leverage_bound": 0.0}, r"leverage_bound must lie in \(0, 1\), got 0.0"),
        ({"leverage_bound": 1.0}, "leverage_bound must lie"),
        ({"leverage_bound": math.nan}, "leverage_bound must lie"),
        ({"residual_bound": 0.5}, r"at least residual_scale \(1.1\), got 0.5"),
        ({"residual_scale": 0.0}, "residual_scale must be positive"),
        ({"fail_rate": 1.0}, "fail_rate must lie"),
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"n": 10.0}, "n must be a positive integer"),
    ],
)
def test_bad_public_arguments_are_one_sentence(changes, message):
    n = changes.pop("n", 100)
    with pytest.raises(ValueError, match=message):
        reference.wide_constants(n, **changes)


def test_bounds_that_are_read_off_the_data_come_with_a_warning():
    X, y, *_ = reference.make_data(np.random.default_rng(1), 500, 3, condition=1e6)
    with pytest.warns(UserWarning, match="not differentially private"):
        found = privacy.bounds_nonprivate(X, y)
    Z = np.column_stack([X, y])
    leverage = np.diag(Z @ np.linalg.pinv(Z))
    assert found.leverage_bound == pytest.approx(leverage.max(), rel=1e-6)
    assert found.residual_scale <= found.residual_bound
    public = privacy.gaussian_bounds(500, 3)
    assert found.leverage_bound < public.leverage_bound
    assert found.residual_bound < public.residual_bound


# Levels.


def in_float64(fn, *args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, fn(*map(jnp.asarray, args)))


@pytest.mark.parametrize(
    ("shape", "bound", "k", "ramp", "good"),
    [
        ((8, 8, 2), 0.25, 2, 1, reference.union_of_good_sets),  # looks at every subset
        ((40, 60, 3), 0.08, 4, 3, reference.largest_good_set),
    ],
)
def test_levels_are_those_of_the_largest_good_sets(shape, bound, k, ramp, good):
    rng = np.random.default_rng(2)
    Z = rng.normal(size=shape)
    Z *= np.sqrt(shape[-1]) / np.linalg.norm(Z, axis=-1, keepdims=True)
    Z[:, :k] *= rng.uniform(0.5, 2, (len(Z), k, 1))

    def find(Z):
        levels = module.leverage_levels(Z, leverage_bound=bound, k=k, ramp=ramp).levels
        weights = privacy.level_weights(levels, k=k, ramp=ramp)
        return levels, privacy.level_score(levels, k), weights

    found = in_float64(jax.vmap(find), Z)
    n_exact = 0
    for z, levels, score, weights in zip(Z, *found, strict=True):
        wanted = reference.levels(z, bound, k, ramp, good)
        assert score == reference.score(wanted, k)
        if (wanted > k).sum() < k:  # else the search may end early, with the score k
            n_exact += 1
            np.testing.assert_array_equal(levels, wanted)
            share = [(wanted[:, None] <= np.arange(k + 1, k + ramp + 1)).mean(1)]
            np.testing.assert_allclose(weights, share[0], atol=1e-15)
    assert n_exact >= 5 and len(np.unique(found[0])) > k


def test_levels_are_the_same_in_any_basis(small):
    X, y, c = small
    Z = np.column_stack([X, y])
    leverage = np.einsum("ij,jk,ik->i", Z, np.linalg.inv(Z.T @ Z), Z)
    wanted = np.linspace(1.05, 1.3, 4) * c.leverage_bound
    Z[:4] *= np.sqrt(wanted / leverage[:4])[:, None]
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    A = np.diag(np.geomspace(1, 1e6, 3)) @ rotation

    def find(Z):
        return module.leverage_levels(Z, leverage_bound=c.leverage_bound, k=c.k, ramp=c.ramp)

    own, other, turned = in_float64(jax.vmap(find), np.stack([Z, Z @ A, Z @ A.T])).levels
    assert len(np.unique(own)) > 2
    np.testing.assert_array_equal(own, other)
    np.testing.assert_array_equal(own, turned)


def test_weighted_least_squares_is_least_squares_of_scaled_rows():
    rng = np.random.default_rng(4)
    Z, w = rng.normal(size=(50, 4)), rng.uniform(size=50)
    Z[3], w[3] = np.nan, 0
    fit = in_float64(privacy.weighted_ols, Z, w)
    Z, w = np.delete(Z, 3, 0), np.delete(w, 3)
    root = np.sqrt(w)
    coef, rss, *_ = np.linalg.lstsq(Z[:, :3] * root[:, None], Z[:, 3] * root, rcond=None)
    np.testing.assert_allclose(fit.coef, coef, rtol=1e-10)
    assert fit.rss == pytest.approx(rss[0], rel=1e-10)
    gram = (Z * w[:, None]).T @ Z
    np.testing.assert_allclose(fit.root @ fit.root.T, np.linalg.inv(gram[:3, :3]), rtol=1e-9)
    scaled = gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
    assert fit.smallest == pytest.approx(np.linalg.eigvalsh(scaled)[0], rel=1e-9)


# The mechanism.


def test_clean_data_take_one_pass_and_give_least_squares(small):
    X, y, c = small
    result, private = diagnostics(X, y, c)
    assert private.n_passes == 1 and private.score <= 2
    np.testing.assert_array_equal(private.weights, 1)
    expected = np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(private.coef, expected, rtol=1e-10)
    assert result.status == privacy.PASS and result.noise_scale == c.noise_scale
    # One of the published implementations gives every row the weight 0 here, and answers 0.
    assert np.linalg.norm(result.coef - expected) < np.linalg.norm(expected)


def test_the_same_key_gives_the_same_bits_and_one_program_serves_all_keys(small):
    X, y, c = small
    first = privacy.private_ols(jax.random.key(1), X, y, c)
    before = module._fit._cache_size()
    again = privacy.private_ols(jax.random.key(1), X, y, c)
    other = privacy.private_ols(jax.random.key(2), X, y, c._replace(k=c.k, noise_scale=1.0))
    assert module._fit._cache_size() == before
    np.testing.assert_array_equal(first.coef, again.coef)
    assert (np.asarray(first.coef) != np.asarray(other.coef)).all()


def test_what_is_released_has_no_private_field(small):
    X, y, c = small
    result = privacy.private_ols(jax.random.key(1), X, y, c)
    assert result._fields == ("status", "coef", "noise_scale")
    assert set(privacy.budget_ledger(c)) == {
        "neighbouring", "guarantee", "epsilon", "delta", "feasible", "spent", "total", "assumed",
        "derived",
    }  # fmt: skip
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda k: privacy.private_ols(k, X, y, c), jax.random.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(), (D,), ()]


def test_the_noise_has_its_covariance_and_failures_their_rate(small):
    X, y, c = small
    c = c._replace(pass_probs=np.append(0.9, c.pass_probs[1:]))
    _, private = diagnostics(X, y, c)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(5), 100_000)
        results = jax.vmap(lambda key: privacy.private_ols(key, X, y, c))(keys)
    passed = np.asarray(results.status) == privacy.PASS
    assert passed.mean() == pytest.approx(0.9, abs=0.005)
    coef = np.asarray(results.coef)
    assert np.isnan(coef[~passed]).all() and np.isfinite(coef[passed]).all()
    noise = (coef[passed] - np.asarray(private.coef)) / c.noise_scale
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.05 * noise.std(0).max())
    factor = np.linalg.cholesky(X.T @ X)
    np.testing.assert_allclose(
        factor.T @ np.cov(noise, rowvar=False) @ factor, np.eye(D), atol=0.03
    )
    # Whether it passes says nothing about the noise: their keys are not the same.
    first = privacy.private_ols(jax.random.key(7), X, y, c._replace(noise_scale=1.0))
    _, key_noise = jax.random.split(jax.random.key(7))
    with jax.enable_x64(True):
        drawn = np.asarray(private.root @ module.standard_normal(key_noise, (D,)))
    np.testing.assert_allclose(first.coef, private.coef + drawn, rtol=1e-12)


def test_the_fit_does_not_depend_on_the_basis(small):
    X, y, c = small
    A = np.diag([1, 1e6]) @ np.linalg.qr(np.random.default_rng(6).normal(size=(2, 2)))[0]
    (own, private), (other, turned) = diagnostics(X, y, c), diagnostics(X @ A, y, c)
    assert private.score == turned.score
    np.testing.assert_array_equal(private.levels, turned.levels)
    fitted = X @ np.asarray(private.coef)
    np.testing.assert_allclose(X @ A @ turned.coef, fitted, rtol=1e-6, atol=1e-6 * fitted.std())
    # So is the noise, of the same key.
    for answer in (own, other):
        assert answer.status == privacy.PASS
    released = X @ own.coef
    np.testing.assert_allclose(X @ A @ other.coef, released, rtol=1e-6, atol=1e-6 * released.std())


def test_data_sets_map():
    rng = np.random.default_rng(7)
    Z = rng.normal(size=(3, 80, 3))
    Z *= np.sqrt(3) / np.linalg.norm(Z, axis=-1, keepdims=True)
    Z[1, 0] *= 1e3
    Z[2, :, 1] = 0
    c = reference.wide_constants(80, leverage_bound=0.06, epsilon=40.0)
    assert c.feasible

    def one(X, y):
        return privacy.private_ols(jax.random.key(0), X, y, c, unsafe_diagnostics=True)

    X, y = Z[..., :2], Z[..., 2]
    mapped = in_float64(jax.vmap(one), X, y)
    for i in range(3):
        alone = jax.tree.map(np.asarray, one(X[i], y[i]))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-9), alone, mapped
        )
    assert mapped[1].score.tolist() == [0, 1, c.k]


@pytest.mark.heavy  # operation by operation, every one is compiled
def test_jit_is_eager():
    X = np.random.default_rng(7).normal(size=(80, 2))
    y = X.sum(1)
    y[::2] += 1
    X[0] *= 100
    c = reference.wide_constants(80, leverage_bound=0.1, epsilon=40.0)
    compiled = diagnostics(X, y, c)
    with jax.disable_jit():
        eager = diagnostics(X, y, c)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_rows_may_be_sharded(small):
    X, y, c = small
    mesh = make_mesh(4)
    with jax.enable_x64(True):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        sharded = diagnostics(jax.device_put(X, rows), jax.device_put(y, rows), c)
    alone = diagnostics(X, y, c)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


# Data of every kind.


def spoiled(X, y, how):
    X, y = X.copy(), y.copy()
    huge = {"rows x 1e6": 1e6, "rows x 1e60": 1e60, "rows x 1e200": 1e200}
    if how in huge:
        X[:3] *= huge[how]
    elif how == "y x 1e6":
        y[:3] *= 1e6
    elif how == "rows and y":
        X[:3], y[:3] = 1e250, -1e300
    elif how == "NaN":
        X[0, 0], y[1], X[2, 1] = np.nan, np.inf, -np.inf
    return X, y


@pytest.mark.parametrize(
    "how", ["rows x 1e6", "rows x 1e60", "rows x 1e200", "y x 1e6", "rows and y", "NaN"]
)
def test_a_few_outliers_of_any_size_have_no_say(small, how):
    X, y, c = small
    result, private = diagnostics(*spoiled(X, y, how), c._replace(pass_probs=np.ones(c.k + 1)))
    assert private.score == 3 and result.status == privacy.PASS
    np.testing.assert_array_equal(private.weights[:3], 0)
    np.testing.assert_array_equal(private.weights[3:], 1)
    expected = np.linalg.lstsq(X[3:], y[3:], rcond=None)[0]
    np.testing.assert_allclose(private.coef, expected, rtol=1e-9)


def test_a_row_that_is_not_a_number_is_one_row(small):
    # To fail for certain because of one row would give that row away: neighbouring data pass.
    X, y, c = small
    _, clean = diagnostics(X, y, c)
    X = X.copy()
    X[7] = np.nan
    _, private = diagnostics(X, y, c)
    assert clean.score == 0 and private.score == 1
    assert np.abs(np.delete(private.levels - clean.levels, 7)).max() <= 1
    passes = privacy.ptr_pass_probs(1.0, 1e-6, 1e-3)[0]
    one_row_fails = np.array([passes, 0.0])
    assert privacy.pass_table_excess(one_row_fails, epsilon=1.0, delta=1e-6) > 0.99


def bad_data(X, y):
    """Data that fail for certain."""
    copies = {name: (X.copy(), y.copy()) for name in (
        "k outliers", "constant zero", "collinear", "nearly collinear", "y in the span", "all NaN",
        "a NaN column", "all zero", "all rows the same", "two kinds of rows", "large residuals",
    )}  # fmt: skip
    k = 40
    copies["k outliers"][0][:k] *= np.geomspace(1e2, 1e8, k)[:, None]
    copies["constant zero"][0][:, 0] = 0
    copies["collinear"][0][:, 1] = 3 * X[:, 0]
    copies["nearly collinear"][0][:, 1] = 3 * X[:, 0] + 1e-13 * X[:, 1]
    copies["y in the span"][1][:] = X @ [1.0, 2.0]
    copies["all NaN"][0][:] = np.nan
    copies["a NaN column"][0][:, 1] = np.nan
    copies["all zero"][0][:] = 0
    copies["all rows the same"][0][:] = 1
    copies["two kinds of rows"][0][:] = X[np.arange(len(X)) % 2]
    copies["large residuals"][1][:] = X @ [1.0, 2.0] + 3 * (y - X @ [1.0, 2.0])
    return copies


def test_data_that_no_bound_fits_fail_for_certain(small):
    X, y, c = small
    assert c.k <= 40
    for name, (bad_X, bad_y) in bad_data(X, y).items():
        result, private = diagnostics(bad_X, bad_y, c)
        assert private.score == c.k, name
        assert result.status == privacy.FAIL and np.isnan(result.coef).all()
    assert c.pass_probs[c.k] == 0


def test_numerical_rank_is_a_score_and_not_a_cliff():
    n = 2048
    X, y, *_ = reference.make_data(np.random.default_rng(8), n, 2)
    y -= X @ np.linalg.lstsq(X, y, rcond=None)[0]
    c = privacy.issp_constants(
        n, epsilon=8.0, delta=1e-4, **privacy.gaussian_bounds(n, 2)._asdict()
    )
    q = np.linalg.qr(X)[0]
    # The least eigenvalue of the scaled Gram matrix is 1 - cos(angle), about angle^2 / 2.
    limit = np.sqrt(2) / module.MAX_CONDITION
    scores = []
    for steps in np.arange(-4, c.k + 4):
        angle = limit * c.gram_ratio ** (-steps + 0.5)
        close = np.column_stack([q[:, 0], q[:, 0] + angle * q[:, 1]])
        scores.append(int(diagnostics(close, y, c)[1].score))
    assert scores[0] == 0 and scores[-1] == c.k
    assert set(np.diff(scores)) <= {0, 1} and len(set(scores)) == c.k + 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_rows_than_columns_fail(n):
    c = reference.wide_constants(n, leverage_bound=0.02)
    result, _ = diagnostics(np.ones((n, 3)), np.ones(n), c)
    assert result.status == privacy.FAIL


def test_infeasible_constants_fail_whatever_the_data(small):
    X, y, _ = small
    c = gaussian_constants(N, D, epsilon=0.1)
    assert not c.feasible
    result = privacy.private_ols(jax.random.key(0), X, y, c)
    assert result.status == privacy.FAIL
    assert np.isnan(result.coef).all() and np.isinf(result.noise_scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X.astype(np.float32), y), "X must be float64, got float32"),
        (lambda X, y: (X, y.astype(int)), "y must be float64, got int64"),
        (lambda X, y: (X[:-1], y), "2048 rows that constants are for, got 2047 and 2048"),
        (lambda X, y: (X[:-1], y[:-1]), "2048 rows"),
        (lambda X, y: (X[:, 0], y), "X must have 2 axes"),
        (lambda X, y: (X, X), "y must have 1 axes"),
        (lambda X, y: (X[:, :0], y), "at least one column"),
    ],
)
def test_bad_shapes_and_dtypes_are_one_sentence(small, change, message):
    X, y, c = small
    with pytest.raises(ValueError, match=message):
        privacy.private_ols(jax.random.key(0), *change(X, y), c)


# The estimator.


def test_the_estimator_is_the_function(small):
    X, y, c = small
    bounds = privacy.gaussian_bounds(N, D)._asdict()
    model = privacy.PrivateLinearRegression(epsilon=8.0, delta=1e-4, **bounds, fit_intercept=False)
    model.fit(X, y, key=jax.random.key(3))
    result = privacy.private_ols(jax.random.key(3), X, y, c)
    np.testing.assert_array_equal(model.coef_, result.coef)
    assert model.answered_ and model.intercept_ == 0
    np.testing.assert_allclose(model.predict(X[:4]), X[:4] @ np.asarray(result.coef))
    assert set(vars(model)) == {
        *model.get_params(), "constants_", "answered_", "coef_", "intercept_",
    }  # fmt: skip
    # Keys are from the operating system where none is given.
    model.set_params(fit_intercept=True, residual_scale=None, epsilon=20.0)
    drawn = [model.fit(X, y + 5).intercept_ for _ in range(2)]
    assert drawn[0] != drawn[1] and np.allclose(drawn, 5, atol=2)
    with pytest.raises(ValueError, match="there is no parameter 'eps'"):
        model.set_params(eps=1.0)


# What it is for.


def errors(n, d, condition, n_seeds, epsilon=1.0):
    """Returns errors ``[n_seeds]`` of prediction by method."""
    constants = gaussian_constants(n, d, epsilon)
    found = {"private": [], "adassp": [], "ols": []}
    for seed in range(n_seeds):
        X, y, half, coef = reference.make_data(np.random.default_rng(seed), n, d, condition)
        key = jax.random.key(seed)
        answers = {
            "private": privacy.private_ols(key, X, y, constants),
            "adassp": privacy.adassp(
                key, X, y, epsilon=epsilon, delta=1e-6,
                x_bound=np.linalg.norm(X, axis=1).max(), y_bound=np.abs(y).max(),
            ),
            "ols": privacy.ols(X, y),
        }  # fmt: skip
        for name, answer in answers.items():
            assert answer.status == privacy.PASS
            found[name].append(np.linalg.norm(half @ (np.asarray(answer.coef) - coef)))
    return {name: np.mean(e) for name, e in found.items()}


@pytest.mark.heavy
def test_the_error_is_small_at_any_condition_number():
    found = {c: errors(100_000, 10, c, 10) for c in (1.0, 1e3, 1e6)}
    for e in found.values():
        assert e["private"] <= 0.045
        assert e["private"] == pytest.approx(found[1.0]["private"], rel=1e-4)
    assert found[1e6]["adassp"] >= 10 * found[1e6]["private"]
    e = errors(300_000, 5, 1.0, 5)
    assert e["private"] <= 2 * e["ols"]


def test_the_error_is_small_at_a_high_condition_number():
    e = errors(100_000, 10, 1e6, 3)
    assert e["private"] <= 0.045 and e["adassp"] >= 10 * e["private"]
