"""A budget of flips chosen greedily through the tangent kernel: no learning rate, no iterations.

At points ``theta_k`` of experts, flipping the label of image ``i`` to the target changes the
gradient of the student's loss on all images by

    v_ik = grad (f_y(x_i; theta_k) - f_target(x_i; theta_k)) / n.

Flips are picked one at a time, each the one that brings the student's gradient ``g_s + sum v``
closest to the expert's, in ``sum_k ||g_e - g_s - sum v||^2 / ||g_e||^2``. With the residual ``r_k``
the gain of a candidate is ``sum_k (2 <v_ik, r_k> - ||v_ik||^2) / ||g_e||^2``: the first term is one
jvp over all images, the second the diagonal of a tangent kernel, computed once. The kernel itself,
``<v_i, v_j>``, is never formed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxml.backdoor.flip import Poisoned, check_labels
from jaxml.backdoor.flip_selection import Ranking
from jaxml.core.chunk import reduce_batches
from jaxml.core.types import ApplyFn, PyTree


class NtkFlips(NamedTuple):
    """Flips in the order in which they were picked.

    Attributes:
      ranking: the flips, all of them to the target.
      mismatch: mean over points of ``||residual||^2 / ||g_e||^2`` before each pick and after the
        last ``[m + 1]``; where it stops falling, more flips do not help.
    """

    ranking: Ranking
    mismatch: Float[Array, " m_1"]


def ntk_greedy_flips(
    apply: ApplyFn,
    points: PyTree,
    x: Float[Array, "n ..."],
    y: Int[Array, " n"],
    poisoned: Poisoned,
    *,
    target: int,
    budget: int,
    batch_size: int = 1024,
) -> NtkFlips:
    """Picks ``budget`` labels to flip to the target.

    One pick costs a forward-mode pass over all images and one backward pass at one image, for each
    point; memory is that of ``k`` gradients. Deterministic; ties go to the smaller index.

    Args:
      apply: ``apply(variables, x)`` -> logits ``[n, c]``, an image's logits a function of that
        image alone: BatchNorm by its running statistics. Static.
      points: Flax variables at ``k`` points of experts, leaves ``[k, ...]``.
      x: clean images ``[n, ...]``.
      y: their labels ``[n]``.
      poisoned: what the experts were trained on.
      target: class of the backdoor; images that have this label are no candidates.
      budget: flips, in ``1..`` the number of candidates.
      batch_size: images that go through the network at once, for each point.

    Raises:
      ValueError: labels, ``target`` or ``budget`` out of range.
    """
    n_classes = check_labels(y)
    n_candidates = int((np.asarray(y) != target).sum())
    if not 0 <= target < n_classes:
        raise ValueError(f"target must be a class 0..{n_classes - 1}, got {target}")
    if not 1 <= budget <= n_candidates:
        raise ValueError(
            f"budget must lie in 1..{n_candidates}, the labels of other classes, got {budget}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    arrays = (jnp.asarray(a) for a in (x, y, poisoned.x, poisoned.y))
    index, mismatch = _pick(
        points, *arrays, apply=apply, target=target, budget=budget, batch_size=batch_size
    )
    index = np.asarray(index)
    return NtkFlips(Ranking(index, np.full(budget, target)), mismatch)


@functools.partial(jax.jit, static_argnames=("apply", "budget", "batch_size"))
def _pick(points, x, y, expert_x, expert_y, *, apply, target, budget, batch_size):
    n, batch_size = len(x), min(batch_size, len(x))
    params = points["params"]
    fixed = {name: value for name, value in points.items() if name != "params"}

    def gain_of_logit(params, fixed, x, y):
        """``f_y - f_target`` of one image, over ``n``."""
        logits = apply({"params": params, **fixed}, x[None])[0]
        return (logits[y] - logits[target]) / n

    def mean_gradient(params, fixed, x, y):
        def total(x, y):
            def loss(params):
                logits = apply({"params": params, **fixed}, x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).sum()

            return jax.grad(loss)(params)

        return optax.tree.scale(1 / len(x), reduce_batches(total, (x, y), batch_size=batch_size))

    def along(params, fixed, residual):
        """``<v_i, residual>`` of all images."""

        def one(image):
            f = functools.partial(gain_of_logit, fixed=fixed, x=image[0], y=image[1])
            return jax.jvp(f, (params,), (residual,))[1]

        return jax.lax.map(one, (x, y), batch_size=batch_size)

    def squared_norms(params, fixed):
        def one(image):
            v = jax.grad(gain_of_logit)(params, fixed, *image)
            return optax.tree.norm(v, squared=True)

        return jax.lax.map(one, (x, y), batch_size=batch_size)

    expert = jax.lax.map(lambda p: mean_gradient(*p, expert_x, expert_y), (params, fixed))
    student = jax.lax.map(lambda p: mean_gradient(*p, x, y), (params, fixed))
    scale = jax.vmap(functools.partial(optax.tree.norm, squared=True))(expert)
    norms = jax.lax.map(lambda p: squared_norms(*p), (params, fixed))

    def mismatch(residual):
        return (jax.vmap(functools.partial(optax.tree.norm, squared=True))(residual) / scale).mean()

    def pick(carry, _):
        residual, free = carry
        inner = jax.lax.map(lambda p: along(*p), (params, fixed, residual))
        gains = ((2 * inner - norms) / scale[:, None]).sum(0)
        chosen = jnp.where(free, gains, -jnp.inf).argmax()
        step = jax.vmap(jax.grad(gain_of_logit), (0, 0, None, None))(
            params, fixed, x[chosen], y[chosen]
        )
        return (optax.tree.sub(residual, step), free.at[chosen].set(False)), (
            chosen.astype(jnp.int32),
            mismatch(residual),
        )

    start = optax.tree.sub(expert, student), y != target
    (residual, _), (index, history) = jax.lax.scan(pick, start, length=budget)
    return index, jnp.append(history, mismatch(residual))
