"""Git Re-Basin: permute the units of one network until they line up with another's.

Ref: Ainsworth, Hayase & Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries",
ICLR 2023: weight matching, activation matching, the straight-through estimator, merging many.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxml.core.rng import named_key, numpy_generator
from jaxml.core.tree import path_str, to_paths
from jaxml.core.types import ApplyFn, Key, PyTree
from jaxml.core.validate import check_finite, check_same_structure
from jaxml.merging.activations import FeatureMoments, feature_moments
from jaxml.merging.coordinate_ascent import HostPermutations, Term, coordinate_ascent
from jaxml.merging.interpolation import interpolate
from jaxml.merging.permutation import (
    Permutations,
    PermutationSpec,
    apply_permutation,
    check_permutations,
    random_permutation,
)

Metric = Literal["inner", "corr", "sqdist"]

# Running statistics are permuted with the units and say nothing about which units match.
_STATISTICS = ("batch_stats",)


class MatchResult(NamedTuple):
    """A matching of model B to model A.

    Attributes:
      perms: group name to permutation ``[size]`` int32, for ``apply_permutation(spec, perms, b)``.
      objective: value at ``perms`` of what the method optimises: the inner product of the aligned
        parameters or activations (maximised), or the midpoint loss (minimised).
      history: the objective at the start and after each pass or step.
      n_iter: passes taken, or matchings judged.
      n_assignments: assignment problems solved.
    """

    perms: dict[str, np.ndarray]
    objective: float
    history: tuple[float, ...]
    n_iter: int
    n_assignments: int


def _on_host(perms: Permutations) -> HostPermutations:
    return {name: np.asarray(p, np.int32) for name, p in perms.items()}


def _start(spec: PermutationSpec, init: Permutations | None) -> HostPermutations:
    identity = {name: np.arange(g.size, dtype=np.int32) for name, g in spec.groups.items()}
    if init is None:
        return identity
    check_permutations(spec, init)
    return identity | _on_host(init)


def _check_models(a: PyTree, b: PyTree) -> None:
    check_same_structure(a, b)
    check_finite(a, name="a")
    check_finite(b, name="b")


@jax.jit
def _device_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # x^T y of two [k, n]. Below a few hundred MFLOP the trip to an accelerator costs more.
    if jax.default_backend() == "cpu" or x.shape[1] * x.size < 10**8:
        return x.T @ y
    return np.asarray(_device_product(x, y))


def _swapped_last(x: np.ndarray, dim: int) -> np.ndarray:
    return np.ascontiguousarray(x.swapaxes(dim, -1))


class _ParameterTerm:
    """The inner product of one parameter of A with the permuted one of B."""

    def __init__(self, a: np.ndarray, b: np.ndarray, slots: Sequence[tuple[int, str]]):
        self.groups = tuple(name for _, name in slots)
        self._slots = slots
        self._a, self._b = a, b
        # With the slot's dimension last, permuting the others moves whole rows.
        self._last = [(_swapped_last(a, dim), _swapped_last(b, dim)) for dim, _ in slots]
        self._others = [
            [(dim if d == a.ndim - 1 else d, name) for d, name in slots if d != dim]
            for dim, _ in slots
        ]
        self._cache: list[tuple[list[np.ndarray], np.ndarray] | None] = [None] * len(slots)

    def linear(self, slot, perms):
        others = [perms[name] for _, name in self._others[slot]]
        cached = self._cache[slot]
        # Permutations are replaced, never changed in place, so identity tells whether one moved.
        if cached is None or any(x is not y for x, y in zip(cached[0], others, strict=True)):
            self._cache[slot] = cached = (others, self._table(slot, others, cached))
        return cached[1]

    def _table(self, slot, others, cached) -> np.ndarray:
        a, b = self._last[slot]
        n = a.shape[-1]
        axes = [axis for axis, _ in self._others[slot]]
        if cached is not None and len(axes) == 1:
            (axis,), (old,), (new,) = axes, cached[0], others
            moved = np.flatnonzero(old != new)
            # Late in a search few units move: add what they change to the table that was.
            if 2 * moved.size < new.size:
                change = b.take(new[moved], axis) - b.take(old[moved], axis)
                rows = a.take(moved, axis)
                return cached[1] + _product(rows.reshape(-1, n), change.reshape(-1, n))
        for axis, perm in zip(axes, others, strict=True):
            b = b.take(perm, axis)
        return _product(a.reshape(-1, n), b.reshape(-1, n))

    def value(self, perms):
        b = self._b
        for dim, name in self._slots:
            b = b.take(perms[name], axis=dim)
        return float(np.vdot(self._a.astype(np.float64), b.astype(np.float64)))


def _parameter_terms(
    spec: PermutationSpec, a: PyTree, b: PyTree, exclude: Sequence[str]
) -> list[Term]:
    leaves_a, leaves_b = to_paths(a), to_paths(b)
    terms, alone = [], {}
    for path, view in spec.leaf_views(a).items():
        if path.split("/")[0] in exclude:
            continue
        pair = [_as_float(leaves[path]).reshape(view.shape) for leaves in (leaves_a, leaves_b)]
        if len(view.slots) > 1:
            terms.append(_ParameterTerm(*pair, view.slots))
        else:
            ((dim, name),) = view.slots
            rows = [_swapped_last(x, dim).reshape(-1, view.shape[dim]) for x in pair]
            alone.setdefault(name, []).append(rows)
    # Leaves that only one group moves (biases, norms, the first kernel) are one term a group.
    for name, rows in alone.items():
        a_rows, b_rows = (np.concatenate(side) for side in zip(*rows, strict=True))
        terms.append(_ParameterTerm(a_rows, b_rows, ((1, name),)))
    return terms


def _as_float(leaf) -> np.ndarray:
    array = np.asarray(leaf)
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _search(key, spec, terms, *, init, n_restarts, max_iter, rtol, callback=None) -> MatchResult:
    starts = [_start(spec, init)]
    for i in range(1, n_restarts):
        starts.append(_on_host(random_permutation(jax.random.fold_in(key, i), spec)))
    ascent = coordinate_ascent(
        numpy_generator(key),
        terms,
        {name: group.size for name, group in spec.groups.items()},
        max_iter=max_iter,
        rtol=rtol,
        inits=starts,
        callback=callback,
    )
    return MatchResult(
        ascent.perms,
        ascent.objective,
        tuple(ascent.history),
        len(ascent.history) - 1,
        ascent.n_assignments,
    )


def _check_search(max_iter: int, n_restarts: int, rtol: float) -> None:
    if max_iter < 1 or n_restarts < 1:
        raise ValueError(
            f"max_iter and n_restarts must be positive, got {max_iter} and {n_restarts}"
        )
    if not rtol >= 0:
        raise ValueError(f"rtol must not be negative, got {rtol}")


def weight_matching(
    key: Key,
    spec: PermutationSpec,
    a: PyTree,
    b: PyTree,
    *,
    max_iter: int = 100,
    init: Permutations | None = None,
    n_restarts: int = 1,
    rtol: float = 1e-6,
    exclude: Sequence[str] = _STATISTICS,
    callback: Callable[[int, HostPermutations, float], None] | None = None,
) -> MatchResult:
    """Maximises ``sum_leaf <A_leaf, (P B)_leaf>`` over the permutations ``P`` of the spec.

    Coordinate ascent (the paper's Algorithm 1): one group at a time solves the assignment problem
    of ``M = sum over its (leaf, axis) of A_axis B'_axis^T``, ``B'`` permuted on every other axis.
    The products that depend on no permutation are formed once, the others only when a neighbouring
    group has moved. Where a group sits on two axes of one leaf the problem is quadratic, the
    assignment only a proposal, and a proposal that lowers the true objective is dropped.

    Host code: numpy products (on an accelerator for large layers) and scipy assignments.

    Args:
      key: order of visits and random restarts.
      spec: see ``derive_permutation_spec``.
      a: variables of the fixed model.
      b: variables of the model to permute, same structure and shapes.
      max_iter: passes over all groups, per start.
      init: first start; the identity by default. Wide networks have many local optima: where data
        are at hand, the result of ``activation_matching`` is the better start.
      n_restarts: number of starts; those after the first are uniformly random. Residual networks
        have many local optima: ten starts recover a planted permutation where one often fails.
      rtol: smallest rise of the objective that counts as progress, relative to the share of the
        group that is re-assigned.
      exclude: collections that are permuted and not compared.
      callback: ``callback(n_pass, perms, objective)`` after each pass.

    Returns:
      MatchResult; ``objective`` in float64.

    Raises:
      ValueError: different structures or shapes, a NaN, a bad ``init`` or spec; the message names
        the path or group.
    """
    _check_search(max_iter, n_restarts, rtol)
    _check_models(a, b)
    terms = _parameter_terms(spec, a, b, exclude)
    return _search(
        key, spec, terms, init=init, n_restarts=n_restarts, max_iter=max_iter, rtol=rtol,
        callback=callback,
    )  # fmt: skip


class _MomentTerm:
    """The similarity of one feature tensor of A and the permuted one of B."""

    def __init__(self, table: np.ndarray, moments: FeatureMoments):
        self.groups = moments.groups
        self._table = table  # [d, d]
        self._index = np.arange(table.shape[0]).reshape(moments.shape)

    def _columns(self, perms, *, skip: int | None = None) -> np.ndarray:
        index = self._index
        for slot, name in enumerate(self.groups):
            if slot != skip:
                index = index.take(perms[name], axis=slot)
        return index

    def linear(self, slot, perms):
        # M[i, j] sums table[(i, r), (j, permuted r)] over the positions r of the other factors.
        size = self._index.shape[slot]
        rows = np.moveaxis(self._index, slot, 0).reshape(size, -1)
        columns = np.moveaxis(self._columns(perms, skip=slot), slot, 0).reshape(size, -1)
        return self._table[rows[:, None], columns[None]].sum(-1)

    def value(self, perms):
        return float(self._table[self._index.ravel(), self._columns(perms).ravel()].sum())


def _similarity(m: FeatureMoments, metric: Metric) -> np.ndarray:
    if metric == "inner":
        return m.cross
    if metric == "sqdist":
        return 2 * m.cross - m.squares[0][:, None] - m.squares[1][None]
    mean, second = m.sums / m.n, m.squares / m.n
    variance = second - mean**2
    # A dead or constant unit correlates with nothing; its variance is rounding, or zero.
    alive = variance > 1e-6 * second
    scale = np.where(alive, 1 / np.sqrt(np.where(alive, variance, 1)), 0)
    return (m.cross / m.n - mean[0][:, None] * mean[1]) * scale[0][:, None] * scale[1]


def activation_matching(
    spec: PermutationSpec,
    apply: ApplyFn,
    a: PyTree,
    b: PyTree,
    batches: Iterable,
    *,
    metric: Metric = "inner",
    max_iter: int = 100,
    rtol: float = 1e-6,
) -> MatchResult:
    """Matches units by what they compute on calibration inputs.

    For each group, maximises ``sum_i C[i, p[i]]``, ``C`` summed over all features of the group (a
    residual stream has one wherever a layer reads it). Groups that are factors of one axis, such
    as heads and their channels, are found together by coordinate ascent; all others need one
    assignment.

    | metric | ``C[i, j]`` |
    |---|---|
    | ``"inner"`` | sum of ``z_a[i] z_b[j]``: the paper's, an uncentred moment |
    | ``"corr"`` | Pearson correlation; 0 where a unit is dead or constant |
    | ``"sqdist"`` | minus the sum of ``(z_a[i] - z_b[j])^2``: the same matching as ``"inner"`` |

    Args:
      spec: see ``derive_permutation_spec``.
      apply: ``apply(variables, *inputs)``, the function the spec was derived from.
      a: variables of the fixed model.
      b: variables of the model to permute.
      batches: calibration inputs, each an array ``[n, ...]`` or a tuple of arrays.
      metric: see the table.
      max_iter: passes over groups that share a feature.
      rtol: as in ``weight_matching``.

    Returns:
      MatchResult; ``objective`` is the total similarity, in float64.

    Raises:
      ValueError: models that differ, a NaN in weights or activations, no batch, a bad metric.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
    _check_search(max_iter, 1, rtol)
    _check_models(a, b)
    moments = feature_moments(spec, apply, a, b, batches)
    terms = [_MomentTerm(_similarity(m, metric), m) for m in moments]
    # Visiting order matters only between factors of one axis, so any fixed key will do.
    return _search(
        jax.random.key(0), spec, terms, init=None, n_restarts=1, max_iter=max_iter, rtol=rtol
    )


def _is_trained(key_path, exclude: Sequence[str]) -> bool:
    return path_str(key_path).split("/")[0] not in exclude


def ste_matching(
    key: Key,
    spec: PermutationSpec,
    loss_fn: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
    a: PyTree,
    b: PyTree,
    x: jax.Array,
    y: jax.Array,
    *,
    n_steps: int = 100,
    batch_size: int = 200,
    optimizer: optax.GradientTransformation | None = None,
    eval_size: int = 2000,
    exclude: Sequence[str] = _STATISTICS,
    callback: Callable[[int, float], None] | None = None,
) -> MatchResult:
    """Learns a matching through the loss at the midpoint.

    Free weights ``W`` start at A. Each step projects them on the permutations of B, by weight
    matching of B to ``W`` from the last matching, evaluates the loss at ``(A + P B) / 2`` and
    passes its gradient straight through the projection to ``W``. The matching with the lowest loss
    on one fixed subset is returned, not the last one; the first is plain weight matching.

    Args:
      key: batches, evaluation subset and visiting order.
      spec: see ``derive_permutation_spec``.
      loss_fn: ``loss_fn(variables, x, y)``, the mean loss of a batch.
      a: variables of the fixed model.
      b: variables of the model to permute.
      x: training inputs ``[n, ...]``.
      y: training targets ``[n, ...]``.
      n_steps: matchings that are judged; a gradient step lies between each and the next.
      batch_size: examples a step, at most ``n``.
      optimizer: of ``W``; SGD with learning rate 0.1 and momentum 0.9 by default. (The paper's code
        uses 1e-2 and many more steps.)
      eval_size: size of the fixed subset that judges a matching (at most ``n``).
      exclude: collections that are permuted, and neither compared nor trained.
      callback: ``callback(step, loss)`` with the midpoint loss on the fixed subset.

    Returns:
      MatchResult; ``objective`` and ``history`` hold the midpoint loss on the fixed subset.

    Raises:
      ValueError: models that differ, a NaN in a model or in the loss, bad sizes.
    """
    _check_models(a, b)
    n = x.shape[0]
    if not (n_steps >= 1 and 1 <= batch_size <= n and eval_size >= 1):
        raise ValueError(
            f"need n_steps >= 1, 1 <= batch_size <= {n} and eval_size >= 1, "
            f"got {n_steps}, {batch_size} and {eval_size}"
        )
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    subset = jax.random.permutation(named_key(key, "eval"), n)[:eval_size]

    # On the device once, and arguments below: a closure would compile the weights in.
    a, b = jax.tree.map(jnp.asarray, (a, b))

    @jax.jit
    def midpoint_loss(a, b_permuted, x, y):
        return loss_fn(interpolate(0.5, a, b_permuted), x, y)

    @jax.jit
    def step(w, opt_state, a, b_permuted, x, y):
        def loss(w):
            through = jax.tree.map(lambda w, b: w + jax.lax.stop_gradient(b - w), w, b_permuted)
            return loss_fn(interpolate(0.5, a, through), x, y)

        grads = jax.tree_util.tree_map_with_path(
            lambda kp, g: g if _is_trained(kp, exclude) else jnp.zeros_like(g), jax.grad(loss)(w)
        )
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            updates, opt_state = optimizer.update(grads, opt_state, w)
        return optax.apply_updates(w, updates), opt_state

    w, opt_state = a, optimizer.init(a)
    perms: Permutations | None = None
    history: list[float] = []
    best: tuple[float, HostPermutations] = (np.inf, {})
    n_assignments = 0
    for i in range(n_steps):
        match = weight_matching(jax.random.fold_in(key, i), spec, w, b, init=perms, exclude=exclude)
        perms = match.perms
        n_assignments += match.n_assignments
        b_permuted = apply_permutation(spec, perms, b)
        loss = float(midpoint_loss(a, b_permuted, x[subset], y[subset]))
        if not np.isfinite(loss):
            raise ValueError(f"the midpoint loss is {loss} at step {i}")
        history.append(loss)
        best = min(best, (loss, perms), key=lambda pair: pair[0])
        if callback is not None:
            callback(i, loss)
        if i == n_steps - 1:
            break
        rows = jax.random.permutation(named_key(jax.random.fold_in(key, i), "batch"), n)
        rows = rows[:batch_size]
        w, opt_state = step(w, opt_state, a, b_permuted, x[rows], y[rows])
    return MatchResult(best[1], best[0], tuple(history), n_steps, n_assignments)


class MergeManyResult(NamedTuple):
    """Several models brought into one basin.

    Attributes:
      merged: mean of the aligned models.
      perms: for each model, the permutation that was applied to it.
      history: sum over models of the squared distance to the mean of the others, at the start and
        after each sweep.
      n_sweeps: sweeps taken.
    """

    merged: PyTree
    perms: tuple[dict[str, np.ndarray], ...]
    history: tuple[float, ...]
    n_sweeps: int


def merge_many(
    key: Key,
    spec: PermutationSpec,
    models: Sequence[PyTree],
    *,
    max_sweeps: int = 100,
    rtol: float = 1e-6,
    exclude: Sequence[str] = _STATISTICS,
    callback: Callable[[int, float], None] | None = None,
) -> MergeManyResult:
    """Aligns ``k`` models with each other and averages them.

    Sweeps over the models in random order, weight-matching each to the mean of the other ``k - 1``,
    until a sweep changes nothing.

    Args:
      key: order of visits.
      spec: see ``derive_permutation_spec``.
      models: variables of at least 2 models, same structure and shapes.
      max_sweeps: sweeps over all models.
      rtol: as in ``weight_matching``.
      exclude: collections that are permuted and averaged, and not compared.
      callback: ``callback(sweep, distance)`` after each sweep.

    Returns:
      MergeManyResult.

    Raises:
      ValueError: fewer than 2 models, models that differ, or a NaN; the message names the path.
    """
    if len(models) < 2:
        raise ValueError(f"merge_many needs at least 2 models, got {len(models)}")
    for i, model in enumerate(models):
        check_same_structure(models[0], model, names=("model 0", f"model {i}"))
        check_finite(model, name=f"model {i}")
    originals = [jax.tree.map(np.asarray, model) for model in models]

    def mean(trees):
        return jax.tree.map(lambda *leaves: sum(leaves) / np.float32(len(leaves)), *trees)

    def match(step, i, others, init):
        result = weight_matching(
            jax.random.fold_in(key, step), spec, mean(others), originals[i],
            init=init, rtol=rtol, exclude=exclude,
        )  # fmt: skip
        aligned = apply_permutation(spec, result.perms, originals[i])
        return result.perms, jax.tree.map(np.asarray, aligned)

    def distance(trees):
        flat = [{p: x for p, x in to_paths(t).items() if p.split("/")[0] not in exclude}
                for t in trees]  # fmt: skip
        total = mean(flat)
        k = len(flat)
        # x - mean of the others = k / (k - 1) (x - mean of all).
        return (k / (k - 1)) ** 2 * sum(
            float(np.square((f[p] - total[p]).astype(np.float64)).sum()) for f in flat for p in f
        )

    perms, aligned = [_start(spec, None)] * len(models), list(originals)
    history = [distance(aligned)]
    rng = numpy_generator(key)
    n_sweeps = 0
    for sweep in range(max_sweeps):
        moved = False
        for i in map(int, rng.permutation(len(models))):
            others = aligned[:i] + aligned[i + 1 :]
            step = sweep * len(models) + i
            p, tree = match(step, i, others, perms[i])
            if any((p[name] != perms[i][name]).any() for name in p):
                perms[i], aligned[i], moved = p, tree, True
        n_sweeps += 1
        history.append(distance(aligned))
        if callback is not None:
            callback(sweep, history[-1])
        if not moved:
            break
    merged = jax.tree.map(lambda m, x: jnp.asarray(m, x.dtype), mean(aligned), originals[0])
    return MergeManyResult(merged, tuple(perms), tuple(history), n_sweeps)
