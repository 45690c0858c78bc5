"""neural-tangents is right on this jax, and leaves jax as it found it."""

import functools
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

from jaxml.compat import neural_tangents

NT = neural_tangents.load()


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True), neural_tangents.lenient():
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def run_python(source, *args):
    """Runs a script in a fresh interpreter, in which no neural-tangents has been imported."""
    script = [sys.executable, "-c", textwrap.dedent(source), *map(str, args)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_leaves_jax_alone_and_needs_no_tensorflow(tmp_path):
    run_python(
        """
        import sys, threading, warnings
        import jax, jax.core
        from jax.interpreters import ad
        from jaxml.compat import neural_tangents as door

        def seen():
            return set(dir(jax.core)), set(dir(ad)), "util" in dir(jax), "jax.util" in sys.modules

        before, loaded = seen(), []
        warnings.simplefilter("error")
        sys.pycache_prefix = sys.argv[1]  # compile it anew, to hear Python's warnings
        threads = [threading.Thread(target=lambda: loaded.append(door.load())) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(loaded) == 4 and len({*map(id, loaded)}) == 1
        assert loaded[0] is sys.modules["neural_tangents"] and loaded[0].__version__ == "0.6.5"
        assert seen() == before
        roots = {name.partition(".")[0] for name in sys.modules}
        assert not roots & {"tensorflow", "tf2jax"}
        assert not [name for name in sys.modules if "jax2tf" in name]
        assert "neural_tangents.experimental" not in sys.modules
        """,
        tmp_path,
    )


def test_a_failed_import_says_why_and_leaves_nothing_behind():
    run_python(
        """
        import sys
        import jax, jax.core, jax.extend.core
        from jax.interpreters import ad
        from jaxml.compat import neural_tangents as door

        def seen():
            return set(dir(jax.core)), set(dir(ad)), "jax.util" in sys.modules

        before = seen()

        def fails(*words):
            try:
                door.load()
            except ImportError as error:
                missing = [word for word in words if word not in str(error)]
                assert not missing, (missing, str(error))
            else:
                raise AssertionError("loaded")
            assert seen() == before
            assert not [name for name in sys.modules if name.startswith("neural_tangents")]

        class Absent:
            def find_spec(name, path=None, target=None):
                if name == "neural_tangents":
                    raise ModuleNotFoundError(name, name=name)

        sys.meta_path.insert(0, Absent)
        fails("neural_tangents is not installed", "pip install --no-deps neural-tangents")
        sys.meta_path.remove(Absent)

        sys.modules["frozendict"] = None  # as if it were not installed
        fails("frozendict is not installed", "pip install frozendict")
        del sys.modules["frozendict"]

        versions = ["0.6.5", f"jax {jax.__version__}", "0.10 to 0.12", "jacobian", "ntk"]
        primitive = jax.extend.core.Primitive
        del jax.extend.core.Primitive
        fails(*versions, "Primitive")
        jax.extend.core.Primitive = primitive

        # A name that nobody lends.
        zero = ad.Zero
        del ad.Zero
        before = seen()
        fails(*versions, "Zero")
        ad.Zero = zero

        assert door.load().stax
        """
    )


def test_an_attribute_that_is_not_there_to_be_replaced_is_an_error(monkeypatch):
    neural_tangents._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.delattr("neural_tangents._src.empirical._get_flops")
        with pytest.raises(ImportError, match=r"0\.10 to 0\.12.*has no _get_flops to replace"):
            neural_tangents.load()
    # What was imported before is kept.
    assert neural_tangents.load() is NT


def test_lenient_is_scoped():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        with neural_tangents.lenient():
            total = jnp.ones(3, jnp.float32) + jnp.ones((2, 3), jnp.float64)
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.ones(3) + jnp.ones((2, 3))
    assert total.dtype == jnp.float64


def mlp(params, x):
    h = x.reshape(x.shape[0], -1)
    for w, b in params[:-1]:
        h = jnp.tanh(h @ w + b)
    w, b = params[-1]
    return h @ w + b


def cnn(params, x):
    def conv(h, w, stride, padding):
        return jax.lax.conv_general_dilated(
            h, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    h = jax.nn.relu(conv(x, params["first"], 1, "SAME") + params["bias"])
    h = jax.nn.gelu(conv(h, params["second"], 2, "VALID"))
    return h.mean((1, 2)) @ params["head"]


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Conv(4, (3, 3), param_dtype=jnp.float64)(x)
        normal = nn.GroupNorm(2, param_dtype=jnp.float64)(h)
        h = h + nn.Conv(4, (3, 3), param_dtype=jnp.float64)(nn.relu(normal))
        return nn.Dense(3, param_dtype=jnp.float64)(h.reshape(h.shape[0], -1))


def recurrent(params, x):
    """Calls inside calls, loops, values that do not depend on the parameters, and unused ones."""

    @jax.checkpoint
    def step(h, w):
        unused = jnp.sin(h @ w)
        del unused
        scale = jax.lax.stop_gradient(jnp.exp(-h))
        return h + jax.jit(jnp.tanh)(h @ w) * scale, h[:, :3]

    h, seen = jax.lax.scan(step, x.reshape(x.shape[0], -1) @ params["in"], params["hidden"])
    return jnp.concatenate([h[:, :2], h[:, 5:]], 1) @ params["out"] + seen.sum(0)


def networks(rng):
    def normal(*shape):
        return rng.normal(size=shape) / np.sqrt(shape[0])

    x = normal(2, 4, 4, 2)
    residual = Residual()
    return {
        "mlp": (mlp, [(normal(32, 5), normal(5)), (normal(5, 3), normal(3))]),
        "cnn": (
            cnn,
            {
                "first": normal(3, 3, 2, 4),
                "bias": normal(4),
                "second": normal(2, 2, 4, 5),
                "head": normal(5, 3),
            },
        ),
        "flax_residual": (residual.apply, residual.init(jax.random.key(0), x)),
        "scan_checkpoint": (
            recurrent,
            {"in": normal(32, 6), "hidden": normal(2, 6, 6), "out": normal(3, 3)},
        ),
    }


def explicit(apply_fn, params, x1, x2):
    """J(x1) J(x2)^T, [n1, n2, c, c], from the whole Jacobians."""
    flat, unravel = ravel_pytree(params)
    j1, j2 = (jax.jacobian(lambda v, x=x: apply_fn(unravel(v), x))(flat) for x in (x1, x2))
    return jnp.einsum("nap,mbp->nmab", j1, j2)


def assert_close(got, expected, tolerance=1e-12):
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", ["mlp", "cnn", "flax_residual", "scan_checkpoint"])
def test_empirical_kernels_equal_the_explicit_contraction(name, rng):
    apply_fn, params = networks(rng)[name]
    x1, x2 = rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(2, 4, 4, 2))

    @jax.jit
    def compute(params, x1, x2):
        def kernel(implementation, trace_axes=()):
            return NT.empirical_ntk_fn(
                apply_fn, trace_axes, vmap_axes=0, implementation=implementation
            )(x1, x2, params)

        full = explicit(apply_fn, params, x1, x2)
        return full, [kernel(number) for number in (1, 2, 3)], kernel(3, (-1,))

    full, kernels, mean = compute(params, x1, x2)
    for kernel in kernels:
        assert_close(kernel, full)
    assert_close(mean, np.trace(full, axis1=2, axis2=3) / 3)


def test_structured_kernel_is_differentiable_in_the_inputs(rng):
    apply_fn, params = networks(rng)["mlp"]
    x1, x2, weights = (rng.normal(size=shape) for shape in ((3, 32), (2, 32), (3, 2)))
    structured = NT.empirical_ntk_fn(apply_fn, vmap_axes=0, implementation=3)

    @jax.jit
    def gradients(x1):
        def expected(x):
            return jnp.einsum("nm,nmaa->", weights / 3, explicit(apply_fn, params, x, x2))

        def got(x):
            return jnp.sum(weights * structured(x, x2, params))

        return jax.grad(got)(x1), jax.grad(expected)(x1)

    assert_close(*gradients(x1))


@pytest.mark.parametrize("number", [2, 3])
def test_out_of_jit_and_without_vmap_axes(number, rng):
    params, x = {"a": rng.normal(size=(4, 2))}, rng.normal(size=(3, 4))
    kernel_fn = NT.empirical_ntk_fn(lambda p, x: jnp.tanh(x @ p["a"]), implementation=number)
    slope = 1 - np.tanh(x @ params["a"]) ** 2
    expected = (x @ x.T) * (slope @ slope.T) / 2
    np.testing.assert_allclose(kernel_fn(x, None, params), expected, rtol=1e-12)


def test_automatic_choice_counts_operations(capsys, rng):
    params, x = rng.normal(size=(4, 2)), rng.normal(size=(3, 4))
    kernel = NT.empirical_ntk_fn(lambda p, x: x @ p, implementation=0)(x, None, params)
    np.testing.assert_allclose(kernel, x @ x.T, rtol=1e-12)
    assert capsys.readouterr().out.count("flops") == 3


def test_structured_refuses_split(rng):
    def fn(params, x):
        first, second = jnp.split(x @ params, 2, axis=1)
        return first * second

    kernel_fn = NT.empirical_ntk_fn(fn, implementation=3)
    with pytest.raises(NotImplementedError, match="multiple outputs"):
        kernel_fn(rng.normal(size=(2, 3)), None, rng.normal(size=(3, 4)))


def test_linearize_is_the_first_order_expansion(rng):
    params, change = ([(rng.normal(size=(3, 2)), rng.normal(size=2))] for _ in range(2))
    x = rng.normal(size=(4, 3))
    moved = jax.tree.map(jnp.add, params, change)
    value, slope = jax.jvp(lambda p: jnp.sin(mlp(p, x)), (params,), (change,))
    got = NT.linearize(lambda p, x: jnp.sin(mlp(p, x)), params)(moved, x)
    np.testing.assert_allclose(got, value + slope, rtol=1e-12)


def test_analytic_kernel_of_one_relu_layer(rng):
    x1, x2 = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    _, _, kernel_fn = NT.stax.serial(NT.stax.Dense(1), NT.stax.Relu(), NT.stax.Dense(1))
    kernel = jax.jit(lambda x1, x2: kernel_fn(x1, x2, ("nngp", "ntk")))(x1, x2)
    # The arc-cosine kernels (Cho and Saul, 2009).
    norms = np.linalg.norm(x1, axis=1)[:, None] * np.linalg.norm(x2, axis=1)
    angle = np.arccos((x1 @ x2.T) / norms)
    nngp = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi * 5)
    ntk = nngp + (x1 @ x2.T) / 5 * (np.pi - angle) / (2 * np.pi)
    np.testing.assert_allclose(kernel.nngp, nngp, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(kernel.ntk, ntk, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device_count", [0, 4])
def test_batch_equals_the_whole_of_a_convolutional_kernel(device_count, rng):
    stax = NT.stax
    _, _, kernel_fn = stax.serial(stax.Conv(1, (2, 2)), stax.Relu(), stax.GlobalAvgPool())
    kernel_fn = jax.jit(kernel_fn, static_argnames="get")
    x1, x2 = rng.normal(size=(8, 3, 3, 2)), rng.normal(size=(4, 3, 3, 2))
    batched = NT.batch(kernel_fn, batch_size=1, device_count=device_count)
    expected = kernel_fn(x1, x2, get="ntk")
    assert_close(batched(x1, x2, get="ntk"), expected)


def problem(rng):
    a = rng.normal(size=(6, 6))
    kernel = a @ a.T + np.eye(6)
    return kernel[:4, :4], kernel[4:, :4], rng.normal(size=(4, 2))


def predict(t, k_train_train, k_test_train, y):
    predict_fn = NT.predict.gradient_descent_mse(k_train_train, y)
    return predict_fn(t, 0.0, 0.0, k_test_train)[1]


@pytest.mark.parametrize("t", [None, 3.0])
def test_predictions_are_pure_in_the_kernel(t, rng):
    k_train_train, k_test_train, y = problem(rng)
    decay = np.zeros((4, 4)) if t is None else scipy.linalg.expm(-k_train_train * t / y.size)
    expected = k_test_train @ np.linalg.solve(k_train_train, y - decay @ y)
    many = jnp.stack([k_train_train, 2 * k_train_train])

    @jax.jit
    def compute(k_train_train, many):
        def at(k):
            return predict(t, k, k_test_train, y)

        return at(k_train_train), jax.vmap(at)(many), jax.jacobian(at)(k_train_train)

    one, both, slope = compute(k_train_train, many)
    np.testing.assert_allclose(one, expected, rtol=1e-10)
    for got, k in zip(both, many, strict=True):
        np.testing.assert_allclose(got, predict(t, k, k_test_train, y), rtol=1e-10)
    change = rng.normal(size=(4, 4)) * 1e-5
    change += change.T
    moved = [predict(t, k_train_train + s * change, k_test_train, y) for s in (1, -1)]
    along = jnp.tensordot(slope, 2 * change, 2)
    np.testing.assert_allclose(moved[0] - moved[1], along, rtol=1e-7, atol=1e-12)


def test_a_known_kernel_is_factorised_outside_the_program(rng):
    k_train_train, k_test_train, y = problem(rng)

    def at(k, y):
        return predict(3.0, k, k_test_train, y)

    known = functools.partial(at, jnp.asarray(k_train_train))
    assert "eigh" not in str(jax.make_jaxpr(known)(y))
    assert "eigh" in str(jax.make_jaxpr(at)(k_train_train, y))


def test_largest_learning_rate(rng):
    k_train_train, _, _ = problem(rng)
    top = np.linalg.eigvalsh(k_train_train)[-1]
    got = NT.predict.max_learning_rate(jnp.asarray(k_train_train), momentum=0.5, eps=0)
    np.testing.assert_allclose(got, 2 * 1.5 * 4 / top, rtol=1e-10)
