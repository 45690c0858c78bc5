"""The other side of a bound: points found by gradient descent, and training against them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxml.core.types import Key
from jaxml.verify.network import Net, apply
from jaxml.verify.problem import Box, Spec

_HIGH = jax.lax.Precision.HIGHEST


class Attack(NamedTuple):
    """The lowest points found.

    Attributes:
      upper: value of each row of the spec there ``[t]`` (of each group ``[g]``), an upper bound of
        its minimum.
      x: the points ``[t, n]``, within the box.
    """

    upper: Float[Array, " t"]
    x: Float[Array, "t n"]


def pgd(
    key: Key,
    net: Net,
    box: Box,
    spec: Spec,
    *,
    groups: Bool[Array, "g t"] | None = None,
    n_steps: int = 40,
    n_restarts: int = 4,
    step_size: float = 0.2,
) -> Attack:
    """Minimises each row of a spec by signed gradient steps from random points (Madry et al. 2018).

    Pure; jit with ``n_steps`` and ``n_restarts`` static.

    Args:
      key: typed key.
      net: ``L`` layers.
      box: of the inputs.
      spec: ``t`` rows.
      groups: minimises, for each of these sets of rows, its largest row; None is each row alone.
      n_steps: steps of each restart.
      n_restarts: random starts.
      step_size: of the first step, relative to the radius of the box; it falls linearly to 0.

    Returns:
      Attack: the lowest of all points on the way.
    """
    groups = jnp.eye(len(spec.weight), dtype=bool) if groups is None else groups
    shape = (n_restarts, len(groups), len(box.lower))
    lower, upper = (end[None, None] for end in map(jnp.asarray, box))
    x = lower + jax.random.uniform(key, shape, lower.dtype) * (upper - lower)

    def values(x):
        rows = jnp.einsum("rgo,to->rgt", apply(net, x), spec.weight, precision=_HIGH)
        rows = rows + spec.offset[None, None]
        return jnp.where(groups[None], rows, -jnp.inf).max(-1)

    def step(carry, i):
        x, best, best_x = carry
        now, grad = values(x), jax.grad(lambda x: values(x).sum())(x)
        lower_now = now < best
        best, best_x = jnp.minimum(now, best), jnp.where(lower_now[..., None], x, best_x)
        size = step_size * (1 - i / n_steps) * (upper - lower) / 2
        return (jnp.clip(x - size * jnp.sign(grad), lower, upper), best, best_x), None

    steps = jnp.arange(n_steps + 1, dtype=x.dtype)
    first = (x, jnp.full(shape[:2], jnp.inf, x.dtype), x)
    (_, best, best_x), _ = jax.lax.scan(step, first, steps)
    rows = jnp.arange(shape[1])
    winner = jnp.argmin(best, axis=0)
    return Attack(best[winner, rows], best_x[winner, rows])


class AdversarialTraining(nn.Module):
    """A classifier that trains on attacked inputs, for any loop that calls ``module(x, train)``.

    In training mode each batch is first moved within ``eps`` (and [0, 1]) to raise the
    cross-entropy against the network's own clean predictions, so that no labels are needed (Miyato
    et al. 2018 attack so; Madry et al. 2018 use the labels). The variables are those of ``model``
    under ``"model"``.

    Attributes:
      model: the network.
      eps: radius.
      n_steps: of signed gradient ascent, ``2.5 eps / n_steps`` each.
    """

    model: nn.Module
    eps: float
    n_steps: int = 5

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."], train: bool = False) -> Float[Array, "n c"]:
        """Maps inputs to logits; with ``train`` those of the attacked inputs."""
        if train and self.eps > 0 and not self.is_initializing():
            x = self._attack(x)
        return self.model(x, train=train)

    def _attack(self, x):
        model, variables = self.model.unbind()
        labels = jax.lax.stop_gradient(model.apply(variables, x)).argmax(-1)

        def loss(x):
            logits = model.apply(variables, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

        lower, upper = jnp.clip(x - self.eps, 0, 1), jnp.clip(x + self.eps, 0, 1)
        # From the middle of the box's half: the gradient at x itself can vanish.
        for i in range(self.n_steps):
            start = x if i else (x + upper) / 2
            size = 2.5 * self.eps / self.n_steps
            x = jnp.clip(start + size * jnp.sign(jax.grad(loss)(start)), lower, upper)
        return jax.lax.stop_gradient(x)
