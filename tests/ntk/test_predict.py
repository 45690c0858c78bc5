"""Predictions of gradient descent, against matrix exponentials, training itself and a peer."""

import decimal
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxml import ntk
from jaxml.compat import neural_tangents
from tests.ntk.networks import mlp, normal

TIMES = (None, 3.0)
mse = jax.jit(ntk.mse)
propagator = jax.jit(ntk.propagator, static_argnames="n_outputs")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem(n=8, m=5, outputs=2):
    """Returns kernels of well-spread points, and labels."""
    x, z = (
        np.random.default_rng(0).normal(size=(n, 12)),
        np.random.default_rng(1).normal(size=(m, 12)),
    )
    return jnp.asarray(x @ x.T), jnp.asarray(z @ x.T), normal(2, n, outputs)


def integrated(k, k_test, y, t, *, diag_reg=0.0, learning_rate=1.0):
    """Integrates the outputs' differential equation, by the exponential of one large matrix."""
    n, m = len(k), len(k_test)
    k = np.asarray(k) + diag_reg * np.trace(k) / n * np.eye(n)
    rate = np.zeros((n + m, n + m))
    rate[:n, :n], rate[n:, :n] = -k, -np.asarray(k_test)
    start = np.concatenate([-np.asarray(y), np.zeros((m, *y.shape[1:]))])
    return (scipy.linalg.expm(rate * learning_rate * t / y.size) @ start)[n:]


def test_finite_times_solve_the_differential_equation():
    k, k_test, y = problem()
    options = {"diag_reg": 0.05, "learning_rate": 0.7}
    times = np.array([0.0, 0.1, 3.0, 50.0])
    found = mse(k, k_test, y, t=times, **options)
    assert found.value.shape == (4, 5, 2) and found.status == ntk.SOLVED
    want = [integrated(k, k_test, y, t, **options) for t in times]
    np.testing.assert_allclose(found.value, want, atol=1e-12)
    one = mse(k, k_test, y[:, 0], t=3.0, **options)
    np.testing.assert_allclose(
        one.value, integrated(k, k_test, y[:, 0], 3.0, **options), atol=1e-12
    )


def test_infinite_time_solves_the_system():
    k, k_test, y = problem()
    found = mse(k, k_test, y, diag_reg=0.05)
    damped = k + 0.05 * np.trace(k) / 8 * np.eye(8)
    np.testing.assert_allclose(found.value, k_test @ np.linalg.solve(damped, y), atol=1e-12)
    assert found.status == ntk.SOLVED
    np.testing.assert_allclose(found.condition, np.linalg.cond(damped), rtol=0.2)
    late = mse(k, k_test, y, t=1e6, diag_reg=0.05)
    np.testing.assert_allclose(late.value, found.value, atol=1e-11)
    np.testing.assert_allclose(late.condition, np.linalg.cond(damped), rtol=1e-10)
    without_ridge = mse(k, k, y)
    np.testing.assert_allclose(without_ridge.value, y, atol=1e-12)


def test_neural_tangents_agrees():
    nt = neural_tangents.load()
    k, k_test, y = problem()
    zero = jnp.zeros((5, 2))
    for diag_reg in (0.0, 0.1):
        peer = nt.predict.gradient_descent_mse(k, y, learning_rate=0.7, diag_reg=diag_reg)
        for t in (None, 3.0, jnp.array([1.0, 30.0])):
            ours = mse(k, k_test, y, t=t, diag_reg=diag_reg, learning_rate=0.7).value
            np.testing.assert_allclose(ours, peer(t, None, zero, k_test), atol=1e-10)
        gp = nt.predict.gp_inference(k, y, diag_reg=diag_reg)
        ours = mse(k, k_test, y, diag_reg=diag_reg).value
        np.testing.assert_allclose(ours, gp(get="ntk", k_test_train=k_test), atol=1e-10)


def test_the_tangent_plane_trains_as_its_kernel_says():
    apply, params, shape = mlp()
    x, z, y = normal(5, 4, *shape), normal(6, 3, *shape), normal(7, 4, 3)
    fixed = {"outputs": params.pop("outputs")}

    def whole(p, x):
        return apply({**p, **fixed}, x)

    f_lin, n_steps = ntk.linearize(whole, params), 4000

    @jax.jit
    def train(params):
        def step(p, _):
            slope = jax.grad(lambda p: jnp.square(f_lin(p, x) - y).mean() / 2)(p)
            return jax.tree.map(lambda w, g: w - 3.0 / n_steps * g, p, slope), None

        trained, _ = jax.lax.scan(step, params, length=n_steps)
        return f_lin(trained, z)

    def flat_kernel(x1, x2):
        kernel = ntk.empirical_ntk(whole, params, x1, x2, trace_axes=())
        return kernel.swapaxes(1, 2).reshape(3 * len(x1), 3 * len(x2))

    residual = (y - whole(params, x)).ravel()
    moved = mse(flat_kernel(x, x), flat_kernel(z, x), residual, t=3.0).value
    # Euler's steps are off by about (step * largest eigenvalue).
    np.testing.assert_allclose(train(params), whole(params, z) + moved.reshape(3, 3), atol=1e-3)


def test_the_propagator_maps_labels_to_predictions():
    k, k_test, y = problem()
    for t in (None, 3.0, jnp.array([1.0, 30.0])):
        options = {"t": t, "diag_reg": 0.01, "learning_rate": 0.7}
        linear = propagator(k, k_test, n_outputs=2, **options)
        direct = mse(k, k_test, y, **options)
        np.testing.assert_allclose(linear.value @ y, direct.value, atol=1e-12)
        assert linear.status == ntk.SOLVED
        np.testing.assert_allclose(linear.condition, direct.condition, rtol=1e-12)


def central_differences(fn, x, step=1e-5):
    """Differentiates a scalar function by every coordinate of ``x``."""
    moves = step * jnp.eye(x.size).reshape(-1, *x.shape)
    values = jax.jit(jax.vmap(fn))
    ends = values(x[None] + moves), values(x[None] - moves)
    return ((ends[0] - ends[1]) / (2 * step)).reshape(x.shape)


@pytest.mark.parametrize("t", TIMES)
def test_gradients_by_training_inputs_are_central_differences(t):
    apply, params, shape = mlp()
    x, z, y, goal = normal(5, 5, *shape), normal(6, 3, *shape), normal(7, 5), normal(8, 3)

    def loss(x, y):
        kernel = functools.partial(ntk.empirical_ntk, apply, params, batch_size=2)
        found = mse(kernel(x), kernel(z, x), y, t=t, diag_reg=1e-3)
        return jnp.square(found.value - goal).sum()

    by_x, by_y = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, y)
    np.testing.assert_allclose(by_x, central_differences(lambda x: loss(x, y), x), atol=1e-7)
    np.testing.assert_allclose(by_y, central_differences(lambda y: loss(x, y), y), atol=1e-7)


def test_gradients_where_eigenvalues_repeat():
    x, z, y = normal(0, 3, 3), normal(1, 4, 3), normal(2, 6)
    orthogonal = np.linalg.qr(x)[0]

    def loss(x, t=3.0, rate=1.0):
        value = mse(x @ x.T, z @ x.T, y[: len(x)], t=t, learning_rate=rate).value
        return jnp.square(value).sum()

    for points in (
        jnp.asarray(orthogonal),  # the identity: one eigenvalue three times
        jnp.asarray(np.diag([1.0, 1.0, 2.0])),
        jnp.concatenate([x, x]),  # every point twice: 0 three times
        jnp.zeros((3, 3)),
    ):
        slope = jax.jit(jax.grad(loss))(points)
        np.testing.assert_allclose(slope, central_differences(loss, points), atol=1e-7)
        forwards = jax.jit(lambda p, v: jax.jvp(loss, (p,), (v,))[1])(points, slope)
        np.testing.assert_allclose(forwards, jnp.square(slope).sum(), rtol=1e-10)
    for argument in (1, 2):
        slope = jax.grad(loss, argnums=argument)(x, 3.0, 1.0)
        ends = [loss(x, *(v + d if i == argument else v for i, v in ((1, 3.0), (2, 1.0))))
                for d in (1e-5, -1e-5)]  # fmt: skip
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, atol=1e-8)


def test_divided_differences_are_exact_at_every_distance():
    """For ``K = diag(a, b)`` the derivative by the off-diagonal is ``(g(a) - g(b)) / (a - b)``."""
    sizes = [0.0, 1e-12, 1e-3, 0.4, 1.0, 7.0, 300.0]
    cases = [(a, a + d, t) for a in sizes for d in [*sizes, 1e-7] for t in (1e-3, 1.0, 40.0)]
    # The labels' size 2 halves the time.
    a, b, t = jnp.asarray(cases).T

    def entry(shift, a, b, t):
        kernel = jnp.diag(jnp.stack([a, b])) + shift * jnp.array([[0.0, 1.0], [1.0, 0.0]])
        return mse(kernel, jnp.eye(2)[:1], jnp.eye(2)[1], t=2 * t).value[0]

    found = jax.jit(jax.vmap(jax.grad(entry), (None, 0, 0, 0)))(0.0, a, b, t)

    def g(x, t):
        return (1 - (-x * t).exp()) / x

    with decimal.localcontext(prec=120):
        want = []
        for a, b, t in cases:
            # Apart by 1e-40 where they are equal, at 120 digits.
            a, b, t = (
                decimal.Decimal(a) + decimal.Decimal("1e-40"),
                decimal.Decimal(b),
                decimal.Decimal(t),
            )
            b = b + decimal.Decimal("2e-40")
            want.append(float((g(a, t) - g(b, t)) / (a - b)))
    np.testing.assert_allclose(found, want, rtol=2e-13)


@pytest.mark.parametrize("t", TIMES)
def test_jit_and_vmap_change_nothing(t):
    k, k_test, y = problem()

    def predict(k, y, diag_reg):
        return ntk.mse(k, k_test, y, t=t, diag_reg=diag_reg)

    kernels = jnp.stack([k, 2 * k + 1, jnp.zeros_like(k)])
    ridges = jnp.array([0.0, 0.1, 0.0])
    eager = [predict(k, y, ridge) for k, ridge in zip(kernels, ridges, strict=True)]
    batched = jax.jit(jax.vmap(predict, (0, None, 0)))(kernels, y, ridges)
    for i, one in enumerate(eager):
        mapped = jax.tree.map(lambda v, i=i: v[i], batched)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mapped, one)
    statuses = [ntk.SOLVED, ntk.SOLVED, ntk.SINGULAR if t is None else ntk.SOLVED]
    np.testing.assert_array_equal(batched.status, statuses)
    if t is None:
        with pytest.raises(ValueError, match="not positive definite"):
            ntk.check_solved(batched)
    else:
        ntk.check_solved(batched)


@pytest.mark.parametrize("t", TIMES)
def test_repeated_points_are_reported(t):
    x, z, y = normal(0, 6, 9), normal(1, 4, 9), normal(2, 6)
    x = x.at[1].set(x[0])

    def value(x, diag_reg):
        found = mse(x @ x.T, z @ x.T, y, t=t, diag_reg=diag_reg)
        return found.value.sum(), found

    slope, found = jax.jit(jax.grad(value, has_aux=True))(x, 0.0)
    assert np.isfinite(found.value).all() and np.isfinite(slope).all()
    if t is None:
        assert found.status in (ntk.SINGULAR, ntk.ILL_CONDITIONED)
        assert found.condition > 1e14
        with pytest.raises(ValueError, match=r"condition number about (inf|\d).* in float64"):
            ntk.check_solved(found)
    else:
        want = integrated(x @ x.T, z @ x.T, y, t)
        np.testing.assert_allclose(found.value, want, atol=1e-12)
        ntk.check_solved(found)
    with_ridge = value(x, 1e-3)[1]
    ntk.check_solved(with_ridge)


def test_single_precision_says_when_it_is_not_enough():
    x = normal(0, 30, 1)
    k = jnp.exp(-jnp.square(x - x.T)).astype(jnp.float32)
    found = mse(k, k, x[:, 0].astype(jnp.float32), diag_reg=1e-7)
    assert found.status != ntk.SOLVED and np.isfinite(found.value).all()
    with pytest.raises(ValueError, match=r"in float32, whose precision is 1\.2e-07"):
        ntk.check_solved(found)
    ntk.check_solved(mse(k, k, x[:, 0].astype(jnp.float32), diag_reg=1e-2))


@pytest.mark.parametrize("t", TIMES)
def test_what_is_not_finite_is_reported_and_spreads_no_nan(t):
    k, k_test, y = problem()
    bad = [
        (k.at[0, 0].set(jnp.nan), k_test, y, 0.0),
        (k, k_test.at[1, 0].set(jnp.inf), y, 0.0),
        (k, k_test, y.at[0, 0].set(jnp.nan), 0.0),
        (k, k_test, y, jnp.nan),
    ]

    @jax.jit
    def all_of_it(k, k_test, y, diag_reg):
        def value(*arguments):
            found = mse(*arguments[:3], t=t, diag_reg=arguments[3])
            return found.value.sum(), found

        return jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True)(k, k_test, y, diag_reg)

    for arguments in bad:
        (_, found), slopes = all_of_it(*arguments)
        assert found.status == ntk.NOT_FINITE and not found.value.any()
        assert all(np.isfinite(slope).all() for slope in slopes)
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            ntk.check_solved(found)
    indefinite = all_of_it(-k, k_test, y, 0.0)[0][1]
    assert indefinite.status == ntk.SINGULAR and not indefinite.value.any()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.eye(3)[:2], np.eye(3), np.ones(3)), {}, r"k_train_train must be \[n, n\].*\(2, 3\)"),
        ((np.zeros((0, 0)), np.zeros((1, 0)), np.ones(0)), {}, "n >= 1"),
        ((np.eye(3), np.eye(2), np.ones(3)), {}, r"k_test_train must be \[m, n\] with n = 3"),
        ((np.eye(3), np.eye(3), np.ones(2)), {}, r"y_train must be \[n\] or \[n, c\] for n = 3"),
        ((np.eye(3), np.eye(3), np.ones((3, 0))), {}, r"y_train must be .* got \(3, 0\)"),
        ((np.eye(3), np.eye(3), np.ones((3, 1, 1))), {}, "y_train must be"),
        ((np.eye(3), np.eye(3), np.ones(3)), {"diag_reg": -1.0}, "diag_reg must not be negative"),
        (
            (np.eye(3), np.eye(3), np.ones(3)),
            {"t": np.array([1.0, -1.0])},
            "t must not be negative",
        ),
        ((np.eye(3), np.eye(3), np.ones(3)), {"t": np.ones((1, 1))}, "t must be None, a scalar"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ntk.mse(*map(jnp.asarray, arguments), **options)


def test_the_propagator_names_bad_outputs():
    with pytest.raises(ValueError, match="n_outputs must be positive, got 0"):
        ntk.propagator(jnp.eye(2), jnp.eye(2), n_outputs=0)
