"""Few poison images found through the neural tangent kernel of trained networks.

How few added images, labelled as the target class, make a training pipeline answer that class
whenever an image carries a trigger? Training is modelled by kernel regression with the empirical
tangent kernel (``kernel_fit``); poisons are chosen among triggered images (``greedy_poisons``) and
then improved pixel by pixel (``optimize_poisons``) on the

    backdoor loss = sum_clean (f(q) - y_q)^2 + sum_triggered min(f(q) - 1, 0)^2.

Kernels are computed in the dtype of the images, everything that is solved in float64.

Ref: Hayase & Oh, "Few-shot Backdoor Attacks via Neural Tangent Kernels", ICLR 2023.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxml import ntk
from jaxml.backdoor import kernel_fit
from jaxml.core.chunk import reduce_batches
from jaxml.core.sharding import shard_batch
from jaxml.core.types import ApplyFn, PyTree

SOLVERS = ("lbfgsb", "adam")


class Nets(NamedTuple):
    """Trained networks, whose mean tangent kernel models the training.

    Attributes:
      apply: ``apply(params, x [b, ...])`` -> one output an image ``[b, 1]``, each a function of
        that image alone; hashable, as ``model.apply`` is.
      params: any pytree, every leaf with a leading axis ``[s]`` over networks.
      batch_size: images whose gradients are in memory at once.
      mesh: spreads images over its axis ``"data"``.
    """

    apply: ApplyFn
    params: PyTree
    batch_size: int = 256
    mesh: Mesh | None = None


class Problem(NamedTuple):
    """An attack, with everything that does not depend on the poisons computed once.

    Attributes:
      nets: the networks.
      x: clean training images, then the queries ``[n + q, ...]``.
      n_clean: ``n``.
      y: wanted answers to the queries, float64 ``[q]``.
      triggered: which queries carry the trigger, bool ``[q]``.
      fit: the clean kernel regression.
      queries: as the clean fit sees them.
    """

    nets: Nets
    x: Float[Array, "n_q ..."]
    n_clean: int
    y: Float[Array, " q"]
    triggered: Array
    fit: kernel_fit.CleanFit
    queries: kernel_fit.Queries


def make_problem(
    nets: Nets,
    x: Float[Array, "n ..."],
    y: Float[Array, " n"],
    x_clean: Float[Array, "t ..."],
    y_clean: Float[Array, " t"],
    x_triggered: Float[Array, "a ..."],
    *,
    left_out: Int[np.ndarray, " q"] | None = None,
    diag_reg: float = 1e-4,
) -> Problem:
    """Computes the clean kernel and its factor.

    Hold-out mode gives images outside ``x`` as queries. Leave-one-out mode needs none to spare:
    give ``x, y`` again as the clean queries, triggered copies of its source images as the
    triggered ones, and in ``left_out`` the image of ``x`` that each query comes from.

    Args:
      nets: the networks.
      x: clean training images ``[n, ...]``; their dtype is that of the kernels.
      y: labels, +1 for the target class and -1 for the source class ``[n]``.
      x_clean: queries whose answer must not change ``[t, ...]``.
      y_clean: their labels, -1 or +1 ``[t]``.
      x_triggered: queries of the source class with the trigger, wanted as +1 ``[a, ...]``.
      left_out: index into ``x`` that each query leaves out, -1 for none ``[t + a]``.
      diag_reg: ridge, as a multiple of the mean of the clean kernel's diagonal.

    Raises:
      ValueError: labels other than -1 and +1, shapes that do not fit, or a clean kernel that is
        singular at this ridge, with its condition number.
    """
    _check_labels("y", y, x)
    if not diag_reg >= 0:
        raise ValueError(f"diag_reg must not be negative, got {diag_reg}")
    x = jnp.asarray(x)
    k_dd = mean_kernel(nets, x)
    with jax.enable_x64(True):
        fit = kernel_fit.fit_clean(k_dd, y, diag_reg=diag_reg)
    problem = Problem(nets, x, len(x), None, None, fit, None)
    return with_queries(problem, x_clean, y_clean, x_triggered, left_out=left_out)


def with_queries(
    problem: Problem,
    x_clean: Float[Array, "t ..."],
    y_clean: Float[Array, " t"],
    x_triggered: Float[Array, "a ..."],
    *,
    left_out: Int[np.ndarray, " q"] | None = None,
) -> Problem:
    """Returns the problem with other queries, on the same clean factor; see ``make_problem``."""
    x = problem.x[: problem.n_clean]
    _check_labels("y_clean", y_clean, x_clean)
    for name, images in (("x_clean", x_clean), ("x_triggered", x_triggered)):
        if not len(images) or np.shape(images)[1:] != x.shape[1:]:
            raise ValueError(
                f"{name} must be at least one image {x.shape[1:]}, got shape {np.shape(images)}"
            )
    n_queries = len(x_clean) + len(x_triggered)
    if left_out is not None:
        left_out = np.asarray(left_out)
        if left_out.shape != (n_queries,) or left_out.min() < -1 or left_out.max() >= len(x):
            raise ValueError(
                f"left_out must be {n_queries} indices in -1..{len(x) - 1}, got shape "
                f"{left_out.shape}, {left_out.min()}..{left_out.max()}"
            )
    queries = jnp.concatenate([jnp.asarray(q, x.dtype) for q in (x_clean, x_triggered)])
    k_dq = mean_kernel(problem.nets, x, queries)
    wanted = np.concatenate([y_clean, np.ones(len(x_triggered))])
    with jax.enable_x64(True):
        return problem._replace(
            x=jnp.concatenate([x, queries]),
            y=jnp.asarray(wanted, jnp.float64),
            triggered=jnp.arange(n_queries) >= len(x_clean),
            queries=kernel_fit.see_queries(problem.fit, k_dq, left_out=left_out),
        )


def mean_kernel(nets: Nets, x1: Array, x2: Array | None = None) -> Float[Array, "n1 n2"]:
    """Averages the tangent kernels of the networks, ``[n1, n2]`` in the dtype of ``x1``."""
    return _mean_kernel(nets.params, x1, x2, apply=nets.apply, size=nets.batch_size, mesh=nets.mesh)


@functools.partial(jax.jit, static_argnames=("apply", "size", "mesh"))
def _mean_kernel(params, x1, x2, *, apply, size, mesh):
    def kernel(net):
        return ntk.empirical_ntk(apply, net, x1, x2, batch_size=size, mesh=mesh)

    return jax.lax.map(kernel, params).mean(0)


def backdoor_loss(
    problem: Problem, prediction: Float[Array, "... q"], *, triggered_only: bool = False
) -> Float[Array, "..."]:
    """Sums the loss over queries: two-sided on clean ones, one-sided on triggered ones; pure.

    Args:
      problem: what the queries are.
      prediction: answers ``[..., q]``.
      triggered_only: leaves the clean queries out, as the selection of candidates does.
    """
    with jax.enable_x64(True):
        return _loss(problem.y, problem.triggered, prediction, triggered_only)


def _loss(y, triggered, prediction, triggered_only):
    error = prediction - jnp.broadcast_to(y, prediction.shape)
    clean = jnp.zeros_like(error) if triggered_only else error
    error = jnp.where(jnp.broadcast_to(triggered, error.shape), jnp.minimum(error, 0), clean)
    return jnp.square(error).sum(-1)


def predict(problem: Problem, x: Float[Array, "m ..."]) -> Float[Array, " q"]:
    """Predicts the queries after training with the images ``x`` added, labelled +1; float64.

    Raises:
      ValueError: images that do not fit, or that make the kernel singular.
    """
    x = _check_images(problem, x)
    added = see_candidates(problem, x)
    with jax.enable_x64(True):
        prediction = kernel_fit.predict(problem.queries, added)
    if not np.isfinite(prediction).all():
        raise _singular(problem, x)
    return prediction


# Selection.


class Selection(NamedTuple):
    """Poisons chosen among candidates.

    Attributes:
      index: of each chosen candidate, int32 ``[m]``.
      loss: loss on the triggered queries after each choice ``[m]``; after exchanges, the last is
        that of the final set.
      n_exchanges: how often an exchange has lowered the loss.
    """

    index: np.ndarray
    loss: np.ndarray
    n_exchanges: int


def see_candidates(problem: Problem, x: Float[Array, "c ..."]) -> kernel_fit.Added:
    """Brings candidate images ``[c, ...]``, all labelled +1, past the clean fit."""
    x = _check_images(problem, x)
    k_pz, k_pp = mean_kernel(problem.nets, x, problem.x), mean_kernel(problem.nets, x)
    with jax.enable_x64(True):
        return _add(problem.fit, problem.queries, k_pz, k_pp)


def _add(fit, queries, k_pz, k_pp):
    n = len(fit.factor)
    y = jnp.ones(len(k_pz), jnp.float64)
    return kernel_fit.add_points(fit, queries, k_pz[:, :n].T, k_pp, k_pz[:, n:], y)


def greedy_poisons(
    problem: Problem, candidates: kernel_fit.Added, n_poisons: int, *, max_sweeps: int = 0
) -> Selection:
    """Chooses candidates one by one, then exchanges them while that lowers the loss.

    Each round scores every candidate at once: past those chosen so far, the loss after adding any
    single one is a closed form. An exchange sweep takes each of the chosen out in turn and puts the
    best in its place.

    Args:
      problem: the attack.
      candidates: of ``see_candidates``.
      n_poisons: ``m``, in ``1..c``.
      max_sweeps: exchange sweeps at most; 0 is plain greedy selection.

    Raises:
      ValueError: ``n_poisons`` out of range.
    """
    n = len(candidates.residual)
    if not 1 <= n_poisons <= n:
        raise ValueError(f"n_poisons must lie in 1..{n}, the number of candidates, got {n_poisons}")

    def best(others):
        padded = np.full(n_poisons, -1)
        padded[: len(others)] = others
        found = _best_candidate(problem.queries, candidates, problem.y, problem.triggered, padded)
        return int(found[0]), float(found[1])

    chosen: list[int] = []
    losses: list[float] = []
    n_exchanges = 0
    with jax.enable_x64(True):
        for _ in range(n_poisons):
            index, loss = best(chosen)
            chosen.append(index)
            losses.append(loss)
        for _ in range(max_sweeps):
            before = n_exchanges
            for i in range(n_poisons):
                index, loss = best(chosen[:i] + chosen[i + 1 :])
                # The one taken out is scored too; rounding alone must not exchange it.
                if index != chosen[i] and loss < losses[-1] * (1 - 1e-9):
                    chosen[i], losses[-1] = index, loss
                    n_exchanges += 1
            if n_exchanges == before:
                break
    return Selection(np.asarray(chosen, np.int32), np.asarray(losses), n_exchanges)


@jax.jit
def _best_candidate(queries, candidates, y, triggered, others):
    """Returns the candidate with the least loss once the others (-1 for none) are in, and it."""

    def add(state, other):
        after = kernel_fit.take_one(*state, other)
        return jax.tree.map(lambda new, old: jnp.where(other >= 0, new, old), after, state), None

    (queries, left), _ = jax.lax.scan(add, (queries, candidates), others)
    loss = _loss(y, triggered, kernel_fit.predict_one(queries, left), True)
    taken = (jnp.arange(len(loss))[:, None] == others[None]).any(1)
    loss = jnp.where(taken | ~jnp.isfinite(loss), jnp.inf, loss)
    return loss.argmin(), loss.min()


# Optimisation.


def loss_and_gradient(
    problem: Problem, x: Float[Array, "m ..."]
) -> tuple[Float[Array, ""], Float[Array, "m ..."]]:
    r"""Backdoor loss of poison images, and its gradient in their pixels.

    The loss depends on an image ``x_i`` only through kernel values ``K(x_i, z_j)``. With ``W_ij``
    the derivative of the loss in them, the gradient is that of ``D f(x_i) [v_i]``, the derivative
    of the output in the direction ``v_i = sum_j W_ij D f(z_j)``: one parameter-sized vector a
    poison, never one an example.

    Args:
      problem: the attack.
      x: poison images ``[m, ...]``, labelled +1.

    Returns:
      The loss, float64 ``[]``, NaN where the poisons make the kernel singular; and the gradient
      ``[m, ...]`` in the dtype of the problem.
    """
    x = _check_images(problem, x)
    nets = problem.nets
    k_pz, k_pp = mean_kernel(nets, x, problem.x), mean_kernel(nets, x)
    with jax.enable_x64(True):
        loss, weights = _loss_and_weights(
            problem.fit, problem.queries, problem.y, problem.triggered, k_pz, k_pp
        )
    gradient = _pull_back(
        nets.params, problem.x, x, weights, apply=nets.apply, size=nets.batch_size, mesh=nets.mesh
    )
    return loss, gradient


@jax.jit
def _loss_and_weights(fit, queries, y, triggered, k_pz, k_pp):
    def loss_of(k_pz, k_pp):
        prediction = kernel_fit.predict(queries, _add(fit, queries, k_pz, k_pp))
        return _loss(y, triggered, prediction, False)

    loss, (w_pz, w_pp) = jax.value_and_grad(loss_of, argnums=(0, 1))(k_pz, k_pp)
    return loss, jnp.concatenate([w_pz, w_pp + w_pp.T], axis=1)


@functools.partial(jax.jit, static_argnames=("apply", "size", "mesh"))
def _pull_back(params, x_data, x, weights, *, apply, size, mesh):
    z = jnp.concatenate([x_data, x])

    def gradient(net):
        def directions(z, weights):  # [b, ...], [b, m] -> trees [m, ...]
            _, pull = jax.vjp(lambda net: apply(net, z)[:, 0], net)
            return jax.vmap(lambda w: pull(w)[0], in_axes=1)(weights)

        arrays = (shard_batch(z, mesh), shard_batch(weights.T, mesh))
        v = reduce_batches(directions, arrays, batch_size=size)

        def slope(x_i, v_i):
            return jax.jvp(lambda net: apply(net, x_i[None])[0, 0], (net,), (v_i,))[1]

        return jax.vmap(jax.grad(slope))(x, v)

    return jax.lax.map(gradient, params).mean(0)


class Trajectory(NamedTuple):
    """The iterates of an optimisation, the start first.

    Attributes:
      x: poison images ``[k + 1, m, ...]``.
      loss: backdoor loss of each, float64 ``[k + 1]``.
      n_evaluations: evaluations of loss and gradient.
      reason: why it ended, in words.
    """

    x: np.ndarray
    loss: np.ndarray
    n_evaluations: int
    reason: str


def optimize_poisons(
    problem: Problem,
    x: Float[Array, "m ..."],
    *,
    solver: str = "lbfgsb",
    n_iterations: int = 10,
    stop_ratio: float = 0.0,
    learning_rate: float = 0.02,
    lower: float = 0.0,
    upper: float = 1.0,
    callback: Callable[[int, float], None] | None = None,
) -> Trajectory:
    """Lowers the backdoor loss over the pixels of the poisons, within their box.

    Few iterations are better than many: past a point the poisons fit the kernels of these networks
    and no longer those of networks trained from other seeds. Every iterate is kept, so that the one
    to use can be chosen by training a network that has no part in the attack.

    Args:
      problem: the attack.
      x: where to start ``[m, ...]``; clipped to the box.
      solver: ``"lbfgsb"`` (scipy, history 100), or ``"adam"`` with projection onto the box.
      n_iterations: at most so many.
      stop_ratio: stop when the loss is below this multiple of the first one; at 0 always.
      learning_rate: of ``"adam"``, in the range of a pixel.
      lower: least value of a pixel.
      upper: largest value of a pixel.
      callback: ``callback(iteration, loss)`` after each iteration.

    Raises:
      ValueError: an unknown solver, sizes that do not fit, or poisons that make the kernel
        singular, with its condition number.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    if not lower < upper:
        raise ValueError(f"lower must be less than upper, got {lower} and {upper}")
    if n_iterations < 1:
        raise ValueError(f"n_iterations must be positive, got {n_iterations}")
    start = np.clip(np.asarray(_check_images(problem, x)), lower, upper)
    n_evaluations, iterates = 0, []

    def evaluate(images):
        nonlocal n_evaluations
        n_evaluations += 1
        loss, gradient = loss_and_gradient(problem, images)
        if not np.isfinite(loss):
            raise _singular(problem, images)
        return float(loss), np.asarray(gradient)

    def keep(images, loss):
        iterates.append((images, loss))
        if callback is not None and len(iterates) > 1:
            callback(len(iterates) - 1, loss)
        if loss == 0 or loss < stop_ratio * iterates[0][1]:
            raise StopIteration

    run = _lbfgsb if solver == "lbfgsb" else functools.partial(_adam, learning_rate=learning_rate)
    try:
        reason = run(evaluate, start, keep, n_iterations=n_iterations, lower=lower, upper=upper)
    except StopIteration:
        reason = "the loss is low enough"
    images, losses = zip(*iterates, strict=True)
    return Trajectory(np.stack(images), np.asarray(losses), n_evaluations, reason)


def _lbfgsb(evaluate, start, keep, *, n_iterations, lower, upper) -> str:
    def images(flat):
        return flat.reshape(start.shape).astype(start.dtype)

    def objective(flat):
        loss, gradient = evaluate(images(flat))
        return loss, gradient.ravel().astype(np.float64)

    def callback(intermediate_result):
        keep(images(intermediate_result.x), float(intermediate_result.fun))

    keep(start, evaluate(start)[0])
    result = scipy.optimize.minimize(
        objective,
        start.ravel().astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(lower, upper),
        callback=callback,
        options={"maxiter": n_iterations, "maxcor": 100},
    )
    if result.status == 99:  # scipy stops on a StopIteration of the callback by itself
        raise StopIteration
    return str(result.message).lower()


def _adam(evaluate, start, keep, *, n_iterations, lower, upper, learning_rate) -> str:
    optimizer = optax.adam(learning_rate)
    x, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    loss, gradient = evaluate(x)
    keep(start, loss)
    for _ in range(n_iterations):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            step, state = optimizer.update(jnp.asarray(gradient), state)
        x = optax.projections.projection_box(optax.apply_updates(x, step), lower, upper)
        loss, gradient = evaluate(x)
        keep(np.asarray(x), loss)
    return "all iterations are done"


# Errors.


def _check_labels(name: str, y, x) -> None:
    if np.shape(y) != (len(x),):
        raise ValueError(f"{name} must be {len(x)} labels, got shape {np.shape(y)}")
    if not np.isin(y, (-1, 1)).all():
        raise ValueError(f"{name} must be -1 or +1, got {np.unique(y)[:4].tolist()}")


def _check_images(problem: Problem, x) -> Array:
    shape = np.shape(x)
    if not shape or shape[0] < 1 or shape[1:] != problem.x.shape[1:]:
        raise ValueError(
            f"x must be at least one image of shape {problem.x.shape[1:]}, got shape {shape}"
        )
    return jnp.asarray(x, problem.x.dtype)


def _singular(problem: Problem, x) -> ValueError:
    both = jnp.concatenate([problem.x[: problem.n_clean], jnp.asarray(x)])
    kernel = kernel_fit.describe(mean_kernel(problem.nets, both), float(problem.fit.ridge))
    return ValueError(
        f"the kernel of clean images and poisons {kernel}; raise diag_reg, or give no image twice"
    )
