"""Empirical kernels against the contraction of one dense Jacobian, in float64."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import ntk
from jaxml.core.sharding import make_mesh
from tests.ntk import networks
from tests.ntk.networks import dense_jacobian, dense_kernel, mlp, normal

IMPLEMENTATIONS = ("jacobian", "vector_products", "structured")
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def traced(kernel):
    return np.einsum("ijaa->ij", kernel) / kernel.shape[-1]


EVERY = [(implementation, axes) for implementation in IMPLEMENTATIONS for axes in ((-1,), ())]
# Less to compile: how ours average does not depend on the network.
MOST = [(implementation, ()) for implementation in IMPLEMENTATIONS] + [("structured", (-1,))]


@pytest.mark.parametrize(
    ("network", "cases"),
    [
        pytest.param(networks.mlp, EVERY, id="mlp"),
        pytest.param(networks.cnn, EVERY, id="cnn"),
        pytest.param(networks.resnet, MOST, id="resnet"),
        pytest.param(networks.flax, MOST, id="flax"),
        pytest.param(networks.deeper_resnet, EVERY, id="deeper", marks=pytest.mark.heavy),
        pytest.param(networks.flax, EVERY, id="flax, all", marks=pytest.mark.heavy),
    ],
)
def test_every_implementation_contracts_the_jacobian(network, cases):
    apply, params, shape = network()
    x1, x2 = normal(5, 4, *shape), normal(6, 3, *shape)

    @jax.jit
    def kernels(params, x1, x2):
        return [
            ntk.empirical_ntk(apply, params, x1, x2, trace_axes=axes, implementation=implementation)
            for implementation, axes in cases
        ]

    want = dense_kernel(apply, params, x1, x2)
    scale = np.abs(want).max()
    for (_, axes), kernel in zip(cases, kernels(params, x1, x2), strict=True):
        assert kernel.dtype == jnp.float64
        expected = want if axes == () else traced(want)
        np.testing.assert_allclose(kernel / scale, expected / scale, atol=1e-10, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_blocks_and_devices_do_not_matter(implementation):
    apply, params, shape = mlp()
    x1, x2 = normal(5, 7, *shape), normal(6, 5, *shape)
    cases = [(3, None), (9, None), (2, make_mesh())]

    @jax.jit
    def kernels(params, x1, x2):
        of = functools.partial(ntk.empirical_ntk, apply, implementation=implementation)
        return [
            (
                of(params, x1, x2, batch_size=size, mesh=mesh),
                of(params, x1, batch_size=size, mesh=mesh, trace_axes=()),
            )
            for size, mesh in cases
        ]

    two, one = (dense_kernel(apply, params, x1, x) for x in (x2, x1))
    for rectangular, symmetric in kernels(params, x1, x2):
        np.testing.assert_allclose(rectangular, traced(two), **CLOSE)
        np.testing.assert_allclose(symmetric, one, **CLOSE)


def test_the_kernel_of_one_set_is_symmetric_and_positive():
    apply, params, shape = mlp()
    x = normal(5, 30, *shape)
    kernel = ntk.empirical_ntk(apply, params, x, batch_size=4)
    np.testing.assert_allclose(kernel, kernel.T, rtol=1e-13)
    eigenvalues = np.linalg.eigvalsh(kernel)
    assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]
    compiled = jax.jit(functools.partial(ntk.empirical_ntk, apply, batch_size=4))(params, x)
    np.testing.assert_allclose(compiled, kernel, rtol=1e-12)


@pytest.mark.parametrize("mesh", [None, 4])
def test_derivatives_are_those_of_the_dense_kernel(mesh):
    apply, params, shape = mlp()
    x1, x2, weights = normal(5, 5, *shape), normal(6, 3, *shape), normal(7, 5, 3)
    mesh = mesh and make_mesh(mesh)
    floating = {"hidden": params["hidden"], "head": params["head"]}

    def ours(floating, x1, x2, implementation):
        params = {**floating, "outputs": jnp.arange(3)}
        kernel = ntk.empirical_ntk(
            apply, params, x1, x2, batch_size=2, mesh=mesh, implementation=implementation
        )
        return (weights * kernel).sum()

    def dense(floating, x1, x2):
        params = {**floating, "outputs": jnp.arange(3)}
        j1, j2 = (dense_jacobian(apply, params, x) for x in (x1, x2))
        return (weights * jnp.einsum("iap,jap->ij", j1, j2) / 3).sum()

    want = jax.grad(dense, argnums=(0, 1, 2))(floating, x1, x2)
    for implementation in IMPLEMENTATIONS if mesh is None else ("jacobian",):
        gradient = jax.jit(jax.grad(ours, argnums=(0, 1, 2)), static_argnums=3)
        got = gradient(floating, x1, x2, implementation)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, want)


def test_networks_stack_and_close_over_traced_arrays():
    w, shift, x = normal(0, 2, 5, 6), normal(1, 2, 6), normal(5, 4, 5)

    @jax.jit
    def kernels(w, shift, x):
        def kernel(w, shift, mesh=None):
            return ntk.empirical_ntk(
                lambda w, x: jnp.tanh(x @ w + shift[None]), w, x, batch_size=1, mesh=mesh
            )

        return jax.vmap(kernel)(w, shift), kernel(w[0], shift[0], make_mesh())

    stacked, sharded = kernels(w, shift, x)
    for i in range(2):
        want = dense_kernel(lambda w, x, i=i: jnp.tanh(x @ w + shift[i][None]), w[i], x, x)
        np.testing.assert_allclose(stacked[i], traced(want), **CLOSE)
    np.testing.assert_allclose(sharded, stacked[0], **CLOSE)


def test_outputs_of_other_ranks():
    w = normal(0, 5, 6)
    x1, x2 = normal(5, 4, 5), normal(6, 3, 5)

    def scalar(w, x):
        return jnp.tanh(x @ w).sum(-1)

    def grid(w, x):
        return jnp.tanh(x @ w).reshape(-1, 2, 3)

    def flat(w, x):
        return grid(w, x).reshape(len(x), 6)

    want = dense_kernel(flat, w, x1, x2)
    each = want.reshape(4, 3, 2, 3, 2, 3)
    cases = [
        (scalar, (-1,), want.sum((2, 3))),
        (scalar, (), want.sum((2, 3))),
        (grid, (), each.transpose(0, 1, 2, 4, 3, 5)),
        (grid, (-1,), np.einsum("ijhakb,ab->ijhk", each, np.eye(3)) / 3),
        (grid, (1,), np.einsum("ijhahb->ijab", each) / 2),
        (grid, (1, -1), np.einsum("ijhaha->ij", each) / 6),
    ]

    @jax.jit
    def kernels(w, x1, x2):
        return [
            ntk.empirical_ntk(apply, w, x1, x2, trace_axes=axes, implementation=implementation)
            for implementation in IMPLEMENTATIONS
            for apply, axes, _ in cases
        ]

    for kernel, (*_, expected) in zip(kernels(w, x1, x2), 3 * cases, strict=True):
        np.testing.assert_allclose(kernel, expected, **CLOSE)


def test_memory_follows_the_block_and_not_the_data():
    w = normal(0, 8, 500), normal(1, 500, 40)
    n_params = 500 * 48

    def apply(w, x):
        return jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]).sum(-1)

    def temporary(fn, n):
        x = jax.ShapeDtypeStruct((n, 8), jnp.float64)
        return jax.jit(fn).lower(w, x, x).compile().memory_analysis().temp_size_in_bytes

    for implementation in ("jacobian", "vector_products"):
        kernel = functools.partial(
            ntk.empirical_ntk, apply, implementation=implementation, batch_size=4
        )
        slope = jax.grad(lambda *args, kernel=kernel: kernel(*args).sum(), argnums=1)
        for fn in (kernel, slope):
            growth = temporary(fn, 64) - temporary(fn, 16)
            assert growth < 0.1 * 48 * n_params * 8
    assert temporary(functools.partial(ntk.empirical_ntk, apply), 64) > 64 * n_params * 8


def test_products_and_diagonals_are_those_of_the_kernel():
    apply, params, shape = mlp()
    x1, x2, v = normal(5, 5, *shape), normal(6, 7, *shape), normal(7, 7, 3)
    want = np.einsum("ijab,jb->ia", dense_kernel(apply, params, x1, x2), v)
    diagonal = np.diagonal(traced(dense_kernel(apply, params, x1, x1)))

    @jax.jit
    def products(params, x1, x2, v):
        return [
            (
                ntk.ntk_vector_product(apply, params, x1, x2, v, batch_size=size),
                ntk.ntk_diagonal(apply, params, x1, batch_size=size),
            )
            for size in (None, 1, 3, 10)
        ]

    for product, found in products(params, x1, x2, v):
        np.testing.assert_allclose(product, want, **CLOSE)
        np.testing.assert_allclose(found, diagonal, **CLOSE)
    with pytest.raises(ValueError, match=r"v must be \(7, 3\).*got \(7,\)"):
        ntk.ntk_vector_product(apply, params, x1, x2, v[:, 0])
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be positive, got {size}"):
            ntk.ntk_diagonal(apply, params, x1, batch_size=size)


def test_linearize_is_the_tangent_plane():
    apply, params, shape = mlp()
    x = normal(5, 4, *shape)
    change = jax.tree.map(
        lambda leaf: normal(8, *leaf.shape) if leaf.dtype == jnp.float64 else 0 * leaf, params
    )
    moved = jax.tree.map(jnp.add, params, change)
    jacobian = dense_jacobian(apply, params, x)
    flat = jnp.concatenate([v.ravel() for v in jax.tree.leaves(change) if v.dtype == jnp.float64])
    f_lin = ntk.linearize(apply, params)
    np.testing.assert_allclose(f_lin(moved, x), apply(params, x) + jacobian @ flat, **CLOSE)
    np.testing.assert_allclose(f_lin(params, x), apply(params, x), rtol=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "auto"}, "implementation must be one of .*'auto'"),
        ({"trace_axes": (0,)}, r"trace_axes must be output axes of \[n, 3\].*\(0,\)"),
        ({"trace_axes": (2,)}, "trace_axes must be output axes"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"x2": jnp.zeros((3, 4))}, r"x2 must be \[n2, ...\] like x1 \(2, 5\).*\(3, 4\)"),
        ({"x2": jnp.zeros((0, 5))}, "n2 >= 1"),
        ({"x1": jnp.zeros((0, 5))}, r"inputs must be \[n, ...\] with n >= 1, got \(0, 5\)"),
        ({"params": {"outputs": jnp.arange(3)}}, "params has no floating-point leaf"),
        ({"apply_fn": lambda p, x: (x, x)}, r"apply_fn must return one array \[n, ...\] for n = 2"),
        ({"apply_fn": lambda p, x: x.sum()}, "apply_fn must return one array"),
    ],
)
def test_bad_arguments_are_named(options, message):
    apply, params, _ = mlp()
    arguments = {"apply_fn": apply, "params": params, "x1": jnp.zeros((2, 5))} | options
    with pytest.raises(ValueError, match=message):
        ntk.empirical_ntk(**arguments)


def test_importing_ntk_leaves_neural_tangents_alone():
    code = "import sys, jaxml.ntk; assert 'neural_tangents' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
