"""Empirical neural tangent kernels of any network, in blocks, and products with them.

Ref: Jacot, Gabriel & Hongler, "Neural Tangent Kernel: Convergence and Generalization in Neural
Networks"; Novak, Sohl-Dickstein & Schoenholz, "Fast Finite Width Neural Tangent Kernel".
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxml.compat import neural_tangents
from jaxml.core.chunk import reduce_batches
from jaxml.core.types import ApplyFn, PyTree

Implementation = Literal["jacobian", "vector_products", "structured"]

_HIGHEST = jax.lax.Precision.HIGHEST


def empirical_ntk(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: jax.Array,
    x2: jax.Array | None = None,
    *,
    trace_axes: Sequence[int] = (-1,),
    implementation: Implementation = "jacobian",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Forms ``K(x1, x2) = J(x1) J(x2)^T`` with ``J(x) = d apply_fn(params, x) / d params``.

    What ``neural_tangents.empirical_ntk_fn(apply_fn, trace_axes, vmap_axes=0)`` forms, block by
    block:

    | outputs | trace_axes | kernel |
    |---|---|---|
    | ``[n, c]`` | ``(-1,)`` | ``[n1, n2]``, the mean over the ``c`` pairs of equal outputs |
    | ``[n, c]`` | ``()`` | ``[n1, n2, c, c]`` |
    | ``[n, h, c]`` | ``()`` | ``[n1, n2, h, h, c, c]`` |
    | ``[n]`` | any of these | ``[n1, n2]`` |

    With ``b`` for ``batch_size``, ``P`` parameters, ``c`` outputs and ``A`` activations an example:

    | implementation | memory besides the kernel | when |
    |---|---|---|
    | ``"jacobian"`` | two blocks of Jacobians, ``2 b c P`` | few outputs |
    | ``"vector_products"`` | ``c P + b c A`` | many parameters; the slowest as a rule |
    | ``"structured"`` | ``b c A`` and less | most networks; by neural-tangents, which must load |

    Columns are formed anew for every block of rows: ``n1 / b`` times the Jacobians of ``x2``, the
    price for never holding ``n P`` numbers; the symmetric kernel (``x2=None``) forms each pair of
    blocks once. The kernel does not depend on ``batch_size``. Reverse-mode derivatives run through
    the same blocks and recompute them. On a CPU, XLA's convolutions are several times slower inside
    the loop over blocks than outside; those of ``jaxml.nn`` with ``conv="patches"`` are not.

    Pure: jit (all but ``params``, ``x1``, ``x2`` static), vmap and grad pass through. Call it under
    jit: out of it, its loops compile at every call.

    Args:
      apply_fn: ``apply_fn(params, x) -> [n, ...]``, an example's outputs a function of that example
        alone: it is called on one at a time. A network with BatchNorm in training mode is none.
      params: any pytree; all its floating-point leaves are differentiated. Hold others fixed in a
        closure: ``lambda p, x: model.apply({"params": p, "batch_stats": stats}, x)``.
      x1: ``[n1, ...]``.
      x2: ``[n2, ...]``; None means ``x1``.
      trace_axes: output axes to average over, counted as in the outputs with their axis ``n``.
      implementation: see the table; ``"structured"`` refuses some primitives, e.g. ``jnp.split``.
      batch_size: rows and columns of a block; None takes all at once.
      mesh: spreads the rows over its axis ``"data"``.

    Returns:
      The kernel, in the dtype of the parameters.

    Raises:
      ValueError: a bad ``implementation``, ``trace_axes`` or ``batch_size``, no example, inputs of
        different shape, no floating-point parameter, or outputs that are not ``[n, ...]``.
      ImportError: ``"structured"`` and neural-tangents does not load.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation must be one of {get_args(Implementation)}, got {implementation!r}"
        )
    f, weights, out = _single(apply_fn, params, x1)
    if x2 is not None and (x2.shape[1:] != x1.shape[1:] or not len(x2)):
        raise ValueError(f"x2 must be [n2, ...] like x1 {x1.shape} with n2 >= 1, got {x2.shape}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    traced = _traced_axes(trace_axes, out)
    prepare, combine = _IMPLEMENTATIONS[implementation](f, out, traced)

    n_devices = 1 if mesh is None else mesh.shape["data"]
    n1 = len(x1)
    rows = _blocks(x1, batch_size, multiple=n_devices)
    if x2 is None:
        n2, columns = n1, rows
        # Round the circle of blocks and half way: each pair is met once, as often by every row.
        steps = np.arange(len(rows) // 2 + 1)
        order = (np.arange(len(rows))[:, None] + steps) % len(rows)
    else:
        n2, columns = len(x2), _blocks(x2, batch_size)
        order = np.tile(np.arange(len(columns)), (len(rows), 1))

    def row_blocks(indices, order, rows, columns, weights):
        def row(index_and_order):
            index, order = index_and_order
            left = prepare(weights, rows[index])

            def block(j):
                return combine(weights, left, prepare(weights, columns[j]))

            if x2 is not None:
                return _map(block, order)
            own = combine(weights, left, left)[None]
            return jnp.concatenate([own, _map(block, order[1:])]) if order.size > 1 else own

        return _map(row, (indices, order))

    if mesh is not None:
        split, whole = PartitionSpec("data"), PartitionSpec()
        # Its checks would add the Jacobians of all devices up, as if of one replicated loss.
        row_blocks = jax.shard_map(
            row_blocks, mesh=mesh, in_specs=(split, split, whole, whole, whole), out_specs=split,
            check_vma=False,
        )  # fmt: skip
    blocks = row_blocks(jnp.arange(len(rows)), jnp.asarray(order), rows, columns, weights)
    if x2 is None:
        blocks = _complete(blocks)
    kernel = jnp.swapaxes(blocks, 1, 2)
    kernel = kernel.reshape(len(rows) * rows.shape[1], -1, *kernel.shape[4:])
    return kernel[:n1, :n2]


def _map(fn, xs):
    """Loops, keeping nothing of an iteration but its arguments for reverse-mode derivatives."""
    if len(jax.tree.leaves(xs)[0]) == 1:  # XLA is faster outside of a loop
        return jax.tree.map(lambda out: out[None], fn(jax.tree.map(lambda x: x[0], xs)))
    return jax.lax.map(jax.checkpoint(fn, prevent_cse=False), xs)


def _blocks(x: jax.Array, batch_size: int | None, *, multiple: int = 1) -> jax.Array:
    """Cuts ``[n, ...]`` into ``[blocks, b, ...]``, repeating the last example where it is short."""
    n = len(x)
    n_blocks = math.ceil(n / min(batch_size or n, n))
    n_blocks = multiple * math.ceil(n_blocks / multiple)
    size = math.ceil(n / n_blocks)
    padding = jnp.broadcast_to(x[-1:], (n_blocks * size - n, *x.shape[1:]))
    return jnp.concatenate([x, padding]).reshape(n_blocks, size, *x.shape[1:])


def _complete(half: jax.Array) -> jax.Array:
    """Lays out ``half[i, k] = K[i, (i + k) % n]``, all blocks ``[b, b, ...]``, as ``K[i, j]``."""
    n = len(half)
    i, j = np.indices((n, n))
    steps = (j - i) % n
    mirrored = (2 * steps > n) | ((2 * steps == n) & (i > j))
    blocks = half[np.where(mirrored, j, i), np.where(mirrored, n - steps, steps)]
    axes = list(range(blocks.ndim))
    for axis in range(2, blocks.ndim, 2):
        axes[axis : axis + 2] = axis + 1, axis
    return jnp.where(
        mirrored.reshape(n, n, *[1] * (blocks.ndim - 2)), blocks.transpose(axes), blocks
    )


def _single(apply_fn: ApplyFn, params: PyTree, x: jax.Array):
    """Returns ``f(weights, example) -> outputs``, the floating leaves and the output shape."""
    f, weights = _over_weights(apply_fn, params)
    if not x.ndim or not len(x):
        raise ValueError(f"inputs must be [n, ...] with n >= 1, got {x.shape}")
    outputs = jax.eval_shape(f, weights, x)
    if not isinstance(outputs, jax.ShapeDtypeStruct) or outputs.shape[:1] != x.shape[:1]:
        raise ValueError(f"apply_fn must return one array [n, ...] for n = {len(x)}, got {outputs}")

    def single(weights, example):
        return f(weights, example[None])[0]

    return single, weights, outputs.shape[1:]


def _over_weights(apply_fn: ApplyFn, params: PyTree):
    """Returns ``apply_fn`` as a function of the list of floating-point leaves, and that list."""
    leaves, treedef = jax.tree.flatten(params)
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    if not any(floating):
        raise ValueError("params has no floating-point leaf")

    def f(weights, x):
        weights = iter(weights)
        merged = [
            next(weights) if differentiated else leaf
            for leaf, differentiated in zip(leaves, floating, strict=True)
        ]
        return apply_fn(treedef.unflatten(merged), x)

    return f, [
        leaf for leaf, differentiated in zip(leaves, floating, strict=True) if differentiated
    ]


def _traced_axes(trace_axes: Sequence[int], out: tuple[int, ...]) -> frozenset[int]:
    """Returns the traced axes of one example's outputs, counted from 0."""
    rank = len(out) + 1
    if rank == 1 and tuple(trace_axes) == (-1,):
        return frozenset()
    if any(not -rank <= a < rank or a % rank == 0 for a in trace_axes):
        raise ValueError(
            f"trace_axes must be output axes of [n, {', '.join(map(str, out))}] other than n, "
            f"got {tuple(trace_axes)}"
        )
    return frozenset(a % rank - 1 for a in trace_axes)


def _labels(out: tuple[int, ...], traced: frozenset[int]):
    """Returns einsum labels of both sides' output axes and of the kernel's; 0, 1, 2 are free."""
    left = [3 + 2 * axis for axis in range(len(out))]
    right = [label if axis in traced else label + 1 for axis, label in enumerate(left)]
    kept = [axis for axis in range(len(out)) if axis not in traced]
    return left, right, [label for axis in kept for label in (left[axis], right[axis])]


def _jacobians(f, weights, x: jax.Array) -> list[jax.Array]:
    """Returns ``[b, ...outputs, ...leaf]`` for every leaf."""
    return jax.vmap(jax.jacrev(f), (None, 0))(weights, x)


def _jacobian(f, out, traced):
    left, right, kept = _labels(out, traced)
    size = math.prod(out[axis] for axis in traced)

    def prepare(weights, x):
        jacobians = _jacobians(f, weights, x)
        return [j.reshape(*j.shape[: 1 + len(out)], -1) for j in jacobians]

    def combine(weights, jacobians1, jacobians2):
        del weights
        parts = [
            jnp.einsum(j1, [0, *left, 2], j2, [1, *right, 2], [0, 1, *kept], precision=_HIGHEST)
            for j1, j2 in zip(jacobians1, jacobians2, strict=True)
        ]
        return sum(parts[1:], parts[0]) / size

    return prepare, combine


def _vector_products(f, out, traced):
    left, right, kept = _labels(out, traced)
    size = math.prod(out[axis] for axis in traced)

    def combine(weights, x1, x2):
        _, push = jax.linearize(lambda w: jax.vmap(f, (None, 0))(w, x1), weights)
        for _ in out:
            push = jax.vmap(push)

        def column(example):
            return push(jax.jacrev(f)(weights, example))

        columns = _map(column, x2)
        return jnp.einsum(columns, [1, *right, 0, *left], [0, 1, *kept]) / size

    return lambda weights, x: x, combine


def _structured(f, out, traced):
    nt = neural_tangents.load()

    def batch(weights, x):
        outputs = jax.vmap(f, (None, 0))(weights, x)
        return outputs if out else outputs[:, None]

    kernel_fn = nt.empirical_ntk_fn(
        batch,
        trace_axes=tuple(axis + 1 for axis in traced) if out else (-1,),
        vmap_axes=0,
        implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
    )

    def combine(weights, x1, x2):
        with neural_tangents.lenient():
            return kernel_fn(x1, x2, weights)

    return lambda weights, x: x, combine


_IMPLEMENTATIONS = {
    "jacobian": _jacobian,
    "vector_products": _vector_products,
    "structured": _structured,
}


def ntk_vector_product(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: jax.Array,
    x2: jax.Array,
    v: jax.Array,
    *,
    batch_size: int | None = None,
) -> jax.Array:
    """Multiplies ``J(x1) J(x2)^T v`` by a vjp and a jvp; no kernel and no Jacobian is formed.

    The kernel is that of ``trace_axes=()``: ``result[i, a] = sum_jb K[i, j, a, b] v[j, b]``.

    Args:
      apply_fn: as in ``empirical_ntk``, but called on whole batches.
      params: as in ``empirical_ntk``.
      x1: ``[n1, ...]``.
      x2: ``[n2, ...]``.
      v: as ``apply_fn(params, x2)``.
      batch_size: examples that go through the network at once, static; None means all.

    Returns:
      As ``apply_fn(params, x1)``.

    Raises:
      ValueError: ``v`` has another shape than the outputs at ``x2``, or a bad ``batch_size``.
    """
    f, weights = _over_weights(apply_fn, params)
    outputs = jax.eval_shape(f, weights, x2)
    if v.shape != outputs.shape:
        raise ValueError(f"v must be {outputs.shape} like the outputs at x2, got {v.shape}")

    def pull(x, v):
        _, vjp = jax.vjp(lambda w: f(w, x), weights)
        return vjp(v)[0]

    tangent = reduce_batches(
        pull, (x2, v), batch_size=len(x2) if batch_size is None else batch_size
    )

    def push(x):
        return jax.jvp(lambda w: f(w, x), (weights,), (tangent,))[1]

    if batch_size is None:
        return push(x1)
    return jax.lax.map(lambda example: push(example[None])[0], x1, batch_size=batch_size)


def ntk_diagonal(
    apply_fn: ApplyFn, params: PyTree, x: jax.Array, *, batch_size: int | None = None
) -> jax.Array:
    """Returns ``K(x_i, x_i) = ||J(x_i)||^2 / c``, the mean over all ``c`` outputs of an example.

    The diagonal of ``empirical_ntk(apply_fn, params, x)`` at its cost per row for one column.

    Args:
      apply_fn: as in ``empirical_ntk``.
      params: as in ``empirical_ntk``.
      x: ``[n, ...]``.
      batch_size: examples whose Jacobians are held at once, static; None means all.

    Returns:
      ``[n]``.

    Raises:
      ValueError: no example, no floating-point parameter, outputs that are not ``[n, ...]``, or
        ``batch_size < 1``.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    f, weights, out = _single(apply_fn, params, x)

    def squared_norm(example):
        jacobian = jax.jacrev(f)(weights, example)
        return sum(jnp.square(leaf).sum() for leaf in jacobian) / math.prod(out)

    return jax.lax.map(squared_norm, x, batch_size=min(batch_size or len(x), len(x)))


def linearize(apply_fn: ApplyFn, params0: PyTree) -> Callable[[PyTree, jax.Array], jax.Array]:
    """Returns ``f_lin(params, x) = f(params0, x) + J(x) (params - params0)``.

    The network that trains by gradient descent exactly as its tangent kernel at ``params0`` says.

    Args:
      apply_fn: ``apply_fn(params, x)``.
      params0: where to expand; leaves that are not floating-point stay as they are here.
    """
    f, weights0 = _over_weights(apply_fn, params0)

    def f_lin(params: PyTree, x: jax.Array) -> jax.Array:
        _, weights = _over_weights(apply_fn, params)
        tangents = jax.tree.map(jnp.subtract, weights, weights0)
        outputs, change = jax.jvp(lambda w: f(w, x), (weights0,), (tangents,))
        return outputs + change

    return f_lin
