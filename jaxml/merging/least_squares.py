"""Layer-wise least squares: weights that make a merged network compute what its sources compute.

Ref: Nasery, Hayase, Koh & Oh, "PLeaS: Merging Models with Permutations and Least Squares".
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jaxml.core.tree import from_paths, to_paths
from jaxml.core.types import ApplyFn, PyTree
from jaxml.core.validate import check_finite, check_same_structure
from jaxml.merging.layers import LinearLayer, read_layers, watch_layers
from jaxml.merging.partial_merge import FROM_A, FROM_B, MERGED, Blocks, KernelAxes, kernel_axes
from jaxml.merging.permutation import PermutationSpec

Mode = Literal["paper", "sequential"]


class Gram(NamedTuple):
    """Second moments of a linear regression ``Z W = Y``, summed over samples.

    Attributes:
      n: number of samples.
      gram: ``[p, p]`` float64, ``sum Z^T Z``; ``[c, p, p]`` for ``c`` separate regressions.
      cross: ``[p, q]`` float64, ``sum Z^T Y``; ``[c, p, 1]``.
      targets: ``[q]`` float64, ``sum Y^2``; ``[c]``.
    """

    n: int
    gram: np.ndarray
    cross: np.ndarray
    targets: np.ndarray


@jax.jit
def _device_moments(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    z, y = z.astype(jnp.float32), y.astype(jnp.float32)
    contract = "...np,...nq->...pq"
    high = jax.lax.Precision.HIGHEST
    return (
        jnp.einsum(contract, z, z, precision=high),
        jnp.einsum(contract, z, y, precision=high),
        jnp.square(y).sum(-2).reshape(-1),
    )


def _host_moments(z: jax.Array, y: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y = (np.asarray(v).astype(np.float64) for v in (z, y))
    transposed = np.swapaxes(z, -1, -2)
    # Of a matrix with itself numpy computes one triangle only, which XLA does not.
    return transposed @ z, transposed @ y, np.square(y).sum(-2).reshape(-1)


def accumulate_gram(total: Gram | None, z: jax.Array, y: jax.Array) -> Gram:
    """Adds one batch to the moments of a regression.

    On a CPU, and for float64 inputs, products are formed on the host in float64; on an accelerator
    in float32 at the highest precision. Sums over batches are in float64 either way.

    Args:
      total: moments so far, None for the first batch.
      z: inputs ``[n, p]``, or ``[c, n, p]`` for ``c`` separate regressions.
      y: targets ``[n, q]``, or ``[c, n, 1]``.

    Returns:
      Gram.
    """
    on_host = jax.default_backend() == "cpu" or z.dtype == np.float64
    moments = _host_moments(z, y) if on_host else _device_moments(z, y)
    parts = [np.asarray(part, np.float64) for part in moments]
    batch = Gram(z.shape[-2], *parts)
    return batch if total is None else Gram(*map(np.add, total, batch))


def solve_gram(
    moments: Gram,
    initial: np.ndarray,
    *,
    input_kinds: np.ndarray,
    output_kinds: np.ndarray,
    ridge: float,
) -> np.ndarray:
    """Minimises ``||Z W - Y||^2 + lam ||W - W_0||^2`` with the zero blocks of a merge held at 0.

    ``lam = ridge * mean(diag(Z^T Z))``; the anchor ``W_0`` is the assembled weight, so directions
    without data keep it. Solved for the change by Cholesky, once for each kind of output, on the
    inputs that may feed it (``lam`` is theirs).

    Args:
      moments: of the regression.
      initial: ``W_0`` ``[p, q]``, or ``[c, p, 1]``.
      input_kinds: ``[p]`` of MERGED, FROM_A, FROM_B (ignored for separate regressions).
      output_kinds: ``[q]`` of the same.
      ridge: positive.

    Returns:
      ``W``, float64, of the shape of ``initial``.
    """
    initial = np.asarray(initial, np.float64)
    if moments.gram.ndim == 3:
        return np.stack(
            [
                _solve(gram, cross, w, ridge)
                for gram, cross, w in zip(moments.gram, moments.cross, initial, strict=True)
            ]
        )
    solution = initial.copy()
    for kind, absent in ((MERGED, None), (FROM_A, FROM_B), (FROM_B, FROM_A)):
        columns = np.flatnonzero(output_kinds == kind)
        rows = np.flatnonzero(input_kinds != absent) if absent is not None else slice(None)
        if columns.size:
            gram = moments.gram[rows][:, rows]
            place = (rows, columns) if absent is None else np.ix_(rows, columns)
            solution[place] = _solve(gram, moments.cross[place], initial[place], ridge)
    return solution


def _solve(gram, cross, initial, ridge) -> np.ndarray:
    scale = np.trace(gram) / len(gram)
    if scale == 0:
        return initial
    damped = gram.copy()
    damped.flat[:: len(gram) + 1] += ridge * scale
    factor = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
    return initial + scipy.linalg.cho_solve(factor, cross - gram @ initial, check_finite=False)


def residual(moments: Gram, weights: np.ndarray) -> float:
    """Returns ``||Z W - Y||^2 / n``, summed over outputs, without a second pass over the data."""
    w = np.asarray(weights, np.float64)
    total = moments.targets.sum() - 2 * (w * moments.cross).sum() + (w * (moments.gram @ w)).sum()
    return float(max(total, 0.0) / moments.n)


class LeastSquaresResult(NamedTuple):
    """A merged network with solved layers.

    Attributes:
      variables: of the merged network.
      before: module path to the mean squared error of the assembled layer.
      after: module path to that of the solved layer.
      skipped: layers that were left as assembled, having no simple linear form.
    """

    variables: PyTree
    before: dict[str, float]
    after: dict[str, float]
    skipped: tuple[str, ...]


def permuted_least_squares(
    spec: PermutationSpec,
    apply: ApplyFn,
    a: PyTree,
    b: PyTree,
    blocks: Mapping[str, Blocks],
    merged: PyTree,
    batches: Sequence[jax.Array],
    *,
    mode: Mode = "paper",
    merged_apply: ApplyFn | None = None,
    ridge: float = 1e-2,
    max_bytes: float = 4e9,
) -> LeastSquaresResult:
    """Solves every dense and convolution layer of a merged network in closed form.

    The regression of a layer has the two sources' own outputs as targets, shared out in blocks like
    its units: ``(y_A + y_B) / 2`` for merged ones (and for a layer whose output is in no group,
    such as the head), ``y_A`` or ``y_B`` for separate ones. Its inputs are

    | mode | inputs |
    |---|---|
    | ``"paper"`` | the two sources' inputs, shared out likewise; layers are independent |
    | ``"sequential"`` | what the merged network, solved so far, feeds the layer; layers in order |

    Units of A still never feed units of B. The sources are only evaluated.

    Args:
      spec: permutation groups.
      apply: ``apply(variables, x)`` of the sources, in evaluation mode.
      a: variables of A.
      b: variables of B.
      blocks: from ``select_blocks``.
      merged: from ``partial_merge``; start and anchor.
      batches: calibration inputs ``[n, ...]``, walked over several times; no labels.
      mode: see the table.
      merged_apply: ``apply`` at the merged widths; needed by ``"sequential"``.
      ridge: weight of the anchor relative to the mean squared input.
      max_bytes: of the Gram matrices held at once; layers that do not fit together take more passes
        (``"paper"``; ``"sequential"`` holds one). What the layers read and return on one batch is
        held besides.

    Returns:
      LeastSquaresResult.

    Raises:
      ValueError: no batch, activations that are not finite (names the layer), a bad mode or ridge,
        or ``"sequential"`` without ``merged_apply``.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
    if mode == "sequential" and merged_apply is None:
        raise ValueError("mode 'sequential' needs merged_apply, the network at its merged widths")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    batches = list(batches)
    if not batches or any(len(x) == 0 for x in batches):
        raise ValueError("batches is empty: least squares needs calibration inputs")
    check_finite(merged, name="merged")
    ends = kernel_axes(spec, a)
    layers = _layers(apply, a, batches[0])
    leaves, before, after = to_paths(merged), {}, {}
    problems = {path: _Problem(layer, ends[path], blocks, leaves) for path, layer in layers.items()}
    chunks = [[path] for path in problems]
    if mode == "paper":
        chunks = _chunks(problems, max_bytes)
    for chunk in chunks:
        # In sequential mode one compiled program that reads all layers serves each in turn.
        paths = tuple(chunk if mode == "paper" else problems)
        variables = from_paths(merged, leaves)
        moments: dict[str, Gram | None] = dict.fromkeys(chunk)
        for x in batches:
            of_a, of_b = (read_layers(v, x, apply=apply, paths=paths) for v in (a, b))
            if mode == "sequential":
                of_merged = read_layers(variables, x, apply=merged_apply, paths=paths)
            for path in chunk:
                z = of_merged[path][0] if mode == "sequential" else None
                rows = problems[path].regression(of_a[path], of_b[path], z)
                moments[path] = accumulate_gram(moments[path], *rows)
        for path in chunk:
            problem, gram = problems[path], moments[path]
            if not (np.isfinite(gram.gram).all() and np.isfinite(gram.cross).all()):
                raise ValueError(f"the activations at layer {path!r} are not finite")
            start = problem.weights(leaves)
            solved = solve_gram(
                gram, start, input_kinds=problem.input_kinds, output_kinds=problem.output_kinds,
                ridge=ridge,
            )  # fmt: skip
            before[path], after[path] = residual(gram, start), residual(gram, solved)
            leaves |= problem.leaves(solved, leaves)
    return LeastSquaresResult(
        from_paths(merged, leaves), before, after, tuple(sorted(set(ends) - set(layers)))
    )


def _layers(apply: ApplyFn, variables: PyTree, x: jax.Array) -> dict[str, LinearLayer]:
    found: dict[str, LinearLayer] = {}

    def look(variables, x):
        return watch_layers(
            apply, variables, x, lambda layer, z, y: found.setdefault(layer.path, layer)
        )

    jax.eval_shape(look, variables, x)
    return found


class _Problem:
    """The regression of one layer: how arrays and weights map to it."""

    def __init__(self, layer: LinearLayer, ends: KernelAxes, blocks, leaves):
        # Without its path, so that layers of one shape share one compiled program.
        self.layer = layer._replace(path="")
        self._kernel = f"params/{layer.path}/kernel"
        self._bias = f"params/{layer.path}/bias"
        self._has_bias = self._bias in leaves
        self._depthwise = layer.groups > 1
        *space, _, outputs = leaves[self._kernel].shape
        self._n_taps = int(np.prod(space))
        self._out = blocks[ends.output] if ends.output else None
        self.output_kinds = self._out.kinds if self._out else np.full(outputs, MERGED)
        self._in = blocks[ends.input] if ends.input else None
        self._factors, self._factor = ends.input_factors, ends.input_index
        if self._depthwise:
            self._in, self._factors, self._factor = self._out, (layer.groups,), 0
            n_inputs = self._n_taps + self._has_bias
            self.input_kinds = np.full(n_inputs, MERGED)
            self.n_bytes = 8 * outputs * n_inputs**2
        else:
            kinds = self._in.kinds if self._in else np.full(self._factors[self._factor], MERGED)
            before = int(np.prod(self._factors[: self._factor]))
            after = int(np.prod(self._factors[self._factor + 1 :]))
            kinds = np.tile(np.repeat(kinds, after), self._n_taps * before)
            self.input_kinds = np.append(kinds, MERGED) if self._has_bias else kinds
            self.n_bytes = 8 * len(self.input_kinds) ** 2

    def regression(self, of_a, of_b, z: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Makes ``[n, p]`` inputs and ``[n, q]`` targets; depthwise ``[c, n, p]``, ``[c, n, 1]``.

        Args:
          of_a: (input, output) of the layer in A.
          of_b: the same in B.
          z: inputs at the merged width; None shares out those of A and B.
        """
        return _regression(
            of_a, of_b, z, _shares(self._in), _shares(self._out), layer=self.layer,
            has_bias=self._has_bias, factors=self._factors, factor=self._factor,
        )  # fmt: skip

    def weights(self, leaves) -> np.ndarray:
        """Reads kernel and bias as one matrix ``[p, q]``."""
        kernel = np.asarray(leaves[self._kernel], np.float64)
        outputs = kernel.shape[-1]
        if self._depthwise:
            w = kernel.reshape(self._n_taps, outputs).T[..., None]
            extra = (outputs, 1, 1)
        else:
            w = kernel.reshape(-1, outputs)
            extra = (1, outputs)
        if not self._has_bias:
            return w
        bias = np.asarray(leaves[self._bias], np.float64).reshape(extra)
        return np.concatenate([w, bias], axis=-2)

    def leaves(self, weights: np.ndarray, like) -> dict[str, jax.Array]:
        """Writes the matrix back to kernel and bias."""
        kernel = like[self._kernel]
        w = weights[..., :-1, :] if self._has_bias else weights
        if self._depthwise:
            w = w[..., 0].T
        found = {self._kernel: jnp.asarray(w.reshape(kernel.shape), kernel.dtype)}
        if self._has_bias:
            bias = like[self._bias]
            last = weights[..., -1, :].reshape(bias.shape)
            found[self._bias] = jnp.asarray(last, bias.dtype)
        return found


def _shares(block: Blocks | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the units of A and B behind each new unit, and how much of each: ``[2, width]``."""
    if block is None:
        return None
    index = np.stack([block.sources(which) for which in (FROM_A, FROM_B)])
    share = np.where(index < 0, 0, np.where(block.kinds == MERGED, 0.5, 1))
    return np.maximum(index, 0), share.astype(np.float32)


def _blend(za: jax.Array, zb: jax.Array, shares, axis: int) -> jax.Array:
    """Shares out one axis in the order ``[m | sA | sB]``; merged units are means."""
    if shares is None:
        return (za + zb) / 2
    shape = [-1 if d == axis else 1 for d in range(za.ndim)]
    from_a, from_b = (
        jnp.take(z, index, axis=axis) * share.astype(z.dtype).reshape(shape)
        for z, index, share in zip((za, zb), *shares, strict=True)
    )
    return from_a + from_b


@functools.partial(jax.jit, static_argnames=("layer", "has_bias", "factors", "factor"))
def _regression(of_a, of_b, z, in_shares, out_shares, *, layer, has_bias, factors, factor):
    (za, ya), (zb, yb) = of_a, of_b
    y = _blend(ya, yb, out_shares, ya.ndim - 1)
    if z is None:
        lead = za.shape[:-1]
        za, zb = za.reshape(*lead, *factors), zb.reshape(*lead, *factors)
        z = _blend(za, zb, in_shares, len(lead) + factor).reshape(*lead, -1)
    rows = layer.patches(z)
    rows, y = rows.reshape(-1, *rows.shape[-2:]), y.reshape(-1, y.shape[-1])
    if layer.groups > 1:
        rows, y = jnp.moveaxis(rows, -1, 0), y.T[..., None]
    else:
        rows = rows.reshape(len(rows), -1)
    if has_bias:
        rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], axis=-1)
    return rows, y


def _chunks(problems: Mapping[str, _Problem], max_bytes: float) -> list[list[str]]:
    """Splits the layers into runs whose Gram matrices fit in memory together."""
    chunks: list[list[str]] = []
    used = np.inf
    for path, problem in problems.items():
        if used + problem.n_bytes > max_bytes:
            chunks.append([])
            used = 0
        chunks[-1].append(path)
        used += problem.n_bytes
    return chunks


def regmean(
    apply: ApplyFn,
    a: PyTree,
    b: PyTree,
    batches: Sequence[jax.Array],
    *,
    alpha: float = 0.9,
) -> PyTree:
    """Merges two networks layer by layer without permuting them (RegMean [1]).

    ``W = (G_A + G_B)^-1 (G_A W_A + G_B W_B)`` with ``G_X`` the second moment of the layer's input
    in network ``X``, its off-diagonal entries shrunk by ``alpha``; everything else is averaged.

    Args:
      apply: ``apply(variables, x)``.
      a: variables of A.
      b: variables of B.
      batches: calibration inputs ``[n, ...]``.
      alpha: in ``[0, 1]``; 0 keeps the diagonal only.

    Returns:
      Variables of the merged network, of the size of each source.

    Raises:
      ValueError: no batch, models that differ, activations that are not finite (names the layer),
        or ``alpha`` outside ``[0, 1]``.

    [1] Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    check_same_structure(a, b)
    batches = list(batches)
    if not batches or any(len(x) == 0 for x in batches):
        raise ValueError("batches is empty: RegMean needs calibration inputs")
    ends, leaves = kernel_axes(PermutationSpec({}), a), (to_paths(a), to_paths(b))
    problems = {
        path: _Problem(layer, ends[path], {}, leaves[0])
        for path, layer in _layers(apply, a, batches[0]).items()
    }
    merged = {path: (leaf + leaves[1][path]) / 2 for path, leaf in leaves[0].items()}
    grams = [_input_grams(apply, variables, problems, batches, alpha) for variables in (a, b)]
    for path, problem in problems.items():
        (gram_a, gram_b), (w_a, w_b) = (g[path] for g in grams), map(problem.weights, leaves)
        mean, total = (w_a + w_b) / 2, gram_a + gram_b
        # As the change from the mean, a hair towards it, so that dead inputs are no trouble.
        size = np.trace(total, axis1=-2, axis2=-1)[..., None, None] / total.shape[-1]
        damping = (1e-6 * size + np.finfo(float).tiny) * np.eye(total.shape[-1])
        right = gram_a @ (w_a - mean) + gram_b @ (w_b - mean)
        merged |= problem.leaves(mean + np.linalg.solve(total + damping, right), merged)
    return from_paths(a, merged)


def _input_grams(apply, variables, problems, batches, alpha) -> dict[str, np.ndarray]:
    """Forms the second moment of every layer's input, off-diagonal entries times ``alpha``."""
    totals = dict.fromkeys(problems)
    for x in batches:
        for path, pair in read_layers(variables, x, apply=apply, paths=tuple(problems)).items():
            rows = problems[path].regression(pair, pair, pair[0])
            totals[path] = accumulate_gram(totals[path], *rows)
    grams = {}
    for path, total in totals.items():
        if not np.isfinite(total.gram).all():
            raise ValueError(f"the activations at layer {path!r} are not finite")
        grams[path] = total.gram * (alpha + (1 - alpha) * np.eye(total.gram.shape[-1]))
    return grams
