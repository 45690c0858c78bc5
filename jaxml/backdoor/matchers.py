"""How far labels are from making a network step as an expert did, and the gradient by the labels.

Three interchangeable matchers measure, for images ``x_s`` with label distributions ``y_s`` and the
expert's images ``x_e`` with labels ``y_e``, both from the expert's point ``theta``,

    loss = ||theta_s - theta_e||^2 / ||theta - theta_e||^2.

| matcher | theta_s, theta_e | gradient |
|---|---|---|
| ``"jvp"`` | after one step | exact: one forward-mode pass |
| ``"unroll"`` | after ``t`` steps | reverse mode through the steps |
| ``"linearized"`` | after a time of gradient flow, linearised at ``theta`` | closed form |

The first needs no derivative of a derivative, because cross-entropy is linear in the label
distribution: ``g_s = -(1/b) sum_i J_i^T y_i`` with ``J_i`` the Jacobian of the log-probabilities
of image ``i``. Whatever the optimiser makes of ``g_s``,
``d loss / d y_i = -(1/b) J_i d loss / d g_s``, and ``J d`` is a jvp. For the family of SGD,
momentum and weight decay cancel in ``theta_s - theta_e``, and the loss is a quadratic in the labels
whose Hessian is a multiple of ``J J^T``: the empirical neural tangent kernel of the
log-probabilities.

Ref: Jha, Hayase & Oh, "Label Poisoning is All You Need", NeurIPS 2023.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from jaxml import ntk
from jaxml.core.types import PyTree

MATCHERS = ("jvp", "unroll", "linearized")


class Point(NamedTuple):
    """Where an expert stood: parameters, and the state of its optimiser."""

    params: PyTree
    opt_state: optax.OptState


class Batches(NamedTuple):
    """What the student and the expert see in ``t`` steps of ``b`` images.

    Attributes:
      x: the student's images ``[t, b, ...]``.
      expert_x: the expert's ``[t, b, ...]``, some of them with the trigger.
      expert_y: the expert's label distributions ``[t, b, c]``.
    """

    x: Float[Array, "t b ..."]
    expert_x: Float[Array, "t b ..."]
    expert_y: Float[Array, "t b c"]


class Match(NamedTuple):
    """A matching loss ``[]`` and its gradient by the label distributions ``[t, b, c]``.

    The loss is 0, and so is its gradient, where the expert does not move.
    """

    loss: Float[Array, ""]
    gradient: Float[Array, "t b c"]


def match_jvp(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    point: Point,
    batches: Batches,
    labels: Float[Array, "1 b c"],
) -> Match:
    """Matches one step, exactly, for any optimiser and with BatchNorm in training mode.

    Two gradients of the network, an update of the optimiser and its transpose, one jvp: the memory
    of one training step.

    Args:
      model: a Flax module with ``__call__(x, train)`` -> logits; static, as ``optimizer``.
      optimizer: the expert's.
      point: where both start.
      batches: of ``t = 1`` step.
      labels: the student's label distributions ``[1, b, c]``.

    Raises:
      ValueError: ``batches`` of more than one step.
    """
    if len(labels) != 1:
        raise ValueError(f"matcher 'jvp' matches one step, got {len(labels)}; 'unroll' takes any")
    (x,), (expert_x,), (expert_y,), (y,) = *batches, labels
    log_probs = _log_probs(model, x)
    update = _update(optimizer, point)
    expert_step = update(jax.grad(_cross_entropy)(point.params, model, expert_x, expert_y))
    _, pull = jax.vjp(log_probs, point.params)
    (gradient,) = pull(-y / len(y))
    loss, direction = jax.value_and_grad(
        lambda g: _relative(optax.tree.sub(update(g), expert_step), expert_step)
    )(gradient)
    _, change = jax.jvp(log_probs, (point.params,), (direction,))
    return Match(loss, -change[None] / len(y))


def match_unroll(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    point: Point,
    batches: Batches,
    labels: Float[Array, "t b c"],
    *,
    checkpoint: bool = True,
) -> Match:
    """Matches the end of ``t`` steps by differentiating through all of them.

    Args:
      model: as for ``match_jvp``.
      optimizer: the expert's.
      point: where both start.
      batches: of ``t`` steps.
      labels: the student's ``[t, b, c]``.
      checkpoint: keeps parameters and optimiser state of each step only and computes the step
        again on the way back, in place of keeping all that it computed; static.
    """

    def end(x, y):
        def step(point, batch):
            gradient = jax.grad(_cross_entropy)(point.params, model, *batch)
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
                updates, opt_state = optimizer.update(gradient, point.opt_state, point.params)
            return Point(optax.apply_updates(point.params, updates), opt_state), None

        body = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
        return jax.lax.scan(body, point, (x, y))[0].params

    expert_end = end(batches.expert_x, batches.expert_y)
    expert_way = optax.tree.sub(expert_end, point.params)

    def loss(labels):
        return _relative(optax.tree.sub(end(batches.x, labels), expert_end), expert_way)

    return Match(*jax.value_and_grad(loss)(labels))


def match_linearized(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    point: Point,
    batches: Batches,
    labels: Float[Array, "t b c"],
    *,
    time: float = 1.0,
) -> Match:
    """Matches the ends of a long way in closed form, through the tangent kernel at the point.

    Both train the network linearised at ``theta`` on the squared error between its outputs and the
    labels, by gradient flow on all ``n = t b`` images at once:

        theta_s = theta + J^T g_t(K) (y_s - f(x_s)),    g_t(K) = K^-1 (I - exp(-K time / (n c)))

    with the kernel ``K = J J^T`` ``[n c, n c]``, as ``ntk.mse`` and
    ``neural_tangents.predict.gradient_descent_mse`` have it. This is affine in ``y_s``: the
    gradient is one more solve. One eigendecomposition of ``K`` for the student and one for the
    expert, ``O((n c)^3)``, whatever the time.

    Args:
      model: as for ``match_jvp``, but without BatchNorm: an image's outputs may not depend on
        other images.
      optimizer: ignored.
      point: where both start.
      batches: of ``t`` steps, taken as one.
      labels: the student's ``[t, b, c]``.
      time: of training, positive. One step of SGD with rate ``eta`` is a time of ``eta``.
    """
    del optimizer
    x, expert_x, expert_y, y = (a.reshape(-1, *a.shape[2:]) for a in (*batches, labels))

    def outputs(params, x):
        return model.apply({"params": params}, x)

    def flow(x, y):
        f, pull = jax.vjp(lambda params: outputs(params, x), point.params)
        kernel = ntk.empirical_ntk(outputs, point.params, x, trace_axes=())
        kernel = kernel.transpose(0, 2, 1, 3).reshape(f.size, f.size)

        def solve(residual):
            identity = jnp.eye(f.size, dtype=f.dtype)
            return ntk.mse(kernel, identity, residual.ravel(), t=time).value.reshape(f.shape)

        return pull(solve(y - f))[0], solve

    way, solve = flow(x, y)
    expert_way, _ = flow(expert_x, expert_y)
    loss, direction = jax.value_and_grad(
        lambda way: _relative(optax.tree.sub(way, expert_way), expert_way)
    )(way)
    _, change = jax.jvp(lambda params: outputs(params, x), (point.params,), (direction,))
    return Match(loss, solve(change).reshape(labels.shape))


def _log_probs(model, x):
    def log_probs(params):
        # Training mode takes the statistics of this batch; the running ones are of no use here.
        logits, _ = model.apply({"params": params}, x, train=True, mutable=["batch_stats"])
        return jax.nn.log_softmax(logits)

    return log_probs


def _cross_entropy(params, model, x, y):
    return -(y * _log_probs(model, x)(params)).sum() / len(y)


def _update(optimizer, point):
    def update(gradient):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            return optimizer.update(gradient, point.opt_state, point.params)[0]

    return update


def _relative(difference, way):
    total = optax.tree.norm(way, squared=True)
    moved = total > 0
    ratio = optax.tree.norm(difference, squared=True) / jnp.where(moved, total, 1.0)
    return jnp.where(moved, ratio, jnp.zeros_like(ratio))
