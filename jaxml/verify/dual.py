"""The Lagrangian decomposition: any multipliers give a lower bound, ascent makes it a good one.

With a copy of every pre-activation on either side of its relu and a multiplier ``rho_i`` for their
being equal, the smallest value of ``w^T z_L + o`` is at least

    g(rho) = o + min_{x in box} rho_1^T (W_1 x + b_1)
               + sum_i [rho_{i+1}^T b_{i+1} + min_{z in Z_i} -rho_i^T z + (W_{i+1}^T rho_{i+1})^T relu(z)]

with ``rho_L = w``, for every ``rho`` and all sets ``Z_i`` that hold what ``z_i`` can be (Bunel et al.
2020). ``g`` is concave. Each inner problem is a *relu program*; what differs between methods is the
set ``Z_i`` and ``rho``.
"""  # noqa: E501

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxml.core.types import PyTree
from jaxml.verify.network import Net, transpose
from jaxml.verify.problem import Bounds, Box, Spec

Multipliers = tuple[Float[Array, "t n"], ...]
"""``rho_1 .. rho_{L-1}``, a row for each inequality of the spec."""

ReluProgram = Callable[[Float[Array, "t n"], Float[Array, "t n"]], Float[Array, " t"]]
"""``program(c1, c2)`` -> a lower bound of ``min_{z in Z} c1^T z + c2^T relu(z)`` for each row."""


def relu_program_box(
    box: Box, c1: Float[Array, "t n"], c2: Float[Array, "t n"]
) -> Float[Array, " t"]:
    """Minimises ``c1^T z + c2^T relu(z)`` over a box: at an end or at the kink, by coordinate."""
    ends = jnp.stack([box.lower, jnp.clip(jnp.zeros_like(box.lower), *box), box.upper])[:, None]
    return jnp.min(c1[None] * ends + c2[None] * jax.nn.relu(ends), axis=0).sum(-1)


def dual_value(
    net: Net, box: Box, spec: Spec, programs: Sequence[ReluProgram], rhos: Multipliers
) -> Float[Array, " t"]:
    """Evaluates ``g(rho)``; a lower bound of ``spec.weight @ z_L + spec.offset`` up to rounding.

    Args:
      net: ``L`` layers.
      box: of the inputs.
      spec: ``t`` rows.
      programs: one for each of the ``L - 1`` relus.
      rhos: any multipliers.

    Returns:
      ``[t]``; differentiable in ``rhos`` (a supergradient where two minimisers tie).
    """
    rows = (*rhos, spec.weight)
    total = spec.offset
    for i, layer in enumerate(net):
        bias = jnp.asarray(layer.bias, total.dtype)
        total = total + jnp.matmul(rows[i], bias, precision=jax.lax.Precision.HIGHEST)
        coefficients = transpose(layer, rows[i])
        if i == 0:
            total = total + _lowest(box, coefficients)
        else:
            total = total + programs[i - 1](-rows[i - 1], coefficients)
    return total


def _lowest(box: Box, rows: Float[Array, "t n"]) -> Float[Array, " t"]:
    """Returns the smallest value of each linear function over a box."""
    lower, upper = (end[None] for end in box)
    return jnp.minimum(rows * lower, rows * upper).sum(-1)


# Starts: the slopes of a backward pass are multipliers.


def kw_slopes(bounds: Bounds) -> tuple[Float[Array, " n"], ...]:
    """Lower slopes of Wong & Kolter (Fast-Lin): those of the upper line, ``u / (u - l)``."""
    return tuple(map(upper_slope, bounds))


def crown_slopes(bounds: Bounds) -> tuple[Float[Array, " n"], ...]:
    """Lower slopes of CROWN: 1 where ``u >= -l``, else 0."""
    return tuple((box.upper >= -box.lower).astype(box.lower.dtype) for box in bounds)


def upper_slope(box: Box) -> Float[Array, " n"]:
    """Slope of the line above relu on ``[l, u]``: 1, 0 or ``u / (u - l)``; 1 for ``l = u = 0``."""
    lower, upper = box
    unstable = (lower < 0) & (upper > 0)
    # The inner where keeps the division, and its gradient, finite where it is not used.
    slope = upper / jnp.where(unstable, upper - lower, jnp.ones_like(upper))
    return jnp.where(unstable, slope, (lower >= 0).astype(lower.dtype))


def multipliers(
    net: Net, spec: Spec, bounds: Bounds, slopes: Sequence[Float[Array, "*t n"]]
) -> Multipliers:
    """Walks back from the spec: ``rho_i = slope_i * W_{i+1}^T rho_{i+1}``.

    With these, ``g`` over boxes is the bound of the linear relaxation that has the lower ``slopes``
    where a coefficient is positive and the line through both ends where it is negative: KW or CROWN.

    Args:
      net: ``L`` layers.
      spec: ``t`` rows.
      bounds: of the ``L - 1`` pre-activations.
      slopes: in [0, 1], ``[n]`` or a row for each of the spec's; from ``crown_slopes``, for example.

    Returns:
      ``L - 1`` arrays ``[t, n]``.
    """  # noqa: E501
    row, rhos = spec.weight, []
    for layer, box, slope in zip(net[:0:-1], bounds[::-1], slopes[::-1], strict=True):
        coefficients = transpose(layer, row)
        slope = slope if slope.ndim == 2 else slope[None]
        row = coefficients * jnp.where(coefficients > 0, slope, upper_slope(box)[None])
        rhos.append(row)
    return tuple(rhos[::-1])


# Ascent.


class Ascent(NamedTuple):
    """The best point of an ascent.

    Attributes:
      lower: best value by row ``[t]``.
      params: the parameters with it.
      trace: best value so far, before each step and at the end ``[n_steps + 1, t]``.
    """

    lower: Float[Array, " t"]
    params: PyTree
    trace: Float[Array, "s t"]


class AscentState(NamedTuple):
    """What an ascent carries from step to step."""

    params: PyTree
    opt_state: optax.OptState
    best: Float[Array, " t"]
    best_params: PyTree


def ascent(
    value: Callable[[PyTree], Float[Array, " t"]],
    params: PyTree,
    *,
    n_steps: int,
    learning_rate: float | Float[Array, ""] = 1e-2,
    decay: float | Float[Array, ""] = 0.75,
    decay_every: int = 100,
    project: Callable[[PyTree], PyTree] | None = None,
) -> Ascent:
    """Maximises rows that do not depend on each other by Adam, and keeps the best of each.

    Pure; jit it with ``n_steps`` and ``decay_every`` static. Adam works by element, so the rows run
    as if alone.

    Args:
      value: maps parameters to ``[t]``; row ``i`` depends on row ``i`` of every leaf only.
      params: start; leaves lead with ``[t]``.
      n_steps: steps.
      learning_rate: of Adam.
      decay: factor on the rate after every ``decay_every`` steps.
      decay_every: steps.
      project: applied after each step.

    Returns:
      Ascent.
    """

    def rate(count):
        periods = (count // decay_every).astype(jnp.float32)
        return jnp.float32(learning_rate) * jnp.float32(decay) ** periods

    optimizer = optax.adam(rate)

    def loss(params):
        values = value(params)
        return -values.sum(), values

    def keep(state: AscentState, values) -> AscentState:
        better = values > state.best

        def choose(new, old):
            return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)

        best_params = jax.tree.map(choose, state.params, state.best_params)
        return state._replace(best=jnp.maximum(values, state.best), best_params=best_params)

    def step(state: AscentState, _):
        grads, values = jax.grad(loss, has_aux=True)(state.params)
        state = keep(state, values)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its float32 rate with float64
            updates, opt_state = optimizer.update(grads, state.opt_state)
            params = optax.apply_updates(state.params, updates)
        if project is not None:
            params = project(params)
        return state._replace(params=params, opt_state=opt_state), state.best

    first = jax.eval_shape(value, params)
    worst = jnp.full(first.shape, -jnp.inf, first.dtype)
    state = AscentState(params, optimizer.init(params), worst, params)
    state, trace = jax.lax.scan(step, state, length=n_steps)
    state = keep(state, value(state.params))
    return Ascent(state.best, state.best_params, jnp.concatenate([trace, state.best[None]]))
