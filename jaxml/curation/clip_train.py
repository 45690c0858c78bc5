"""Training of CLIP: one step, its exact gradient in parts, many steps over pairs in memory."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxml.core.rng import named_key
from jaxml.core.sharding import shard_batch
from jaxml.core.types import Key, PyTree
from jaxml.curation.contrastive import clip_loss
from jaxml.curation.recipes import clamp_scale
from jaxml.train import TrainState

Loss = Callable[..., jax.Array]


class StepInfo(NamedTuple):
    """What is measured in a step, before it.

    Attributes:
      loss: of the batch ``[]``.
      log_scale: of the model after the step ``[]``.
    """

    loss: Float[Array, "*s"]
    log_scale: Float[Array, "*s"]


def init_state(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    images: Float[Array, "n ..."],
    tokens: Int[Array, "n t"],
    *,
    mesh: Mesh | None = None,
    split: bool = False,
) -> TrainState:
    """Draws a fresh state at step 0, each array where it will live.

    Args:
      key: a typed key.
      model: as of ``jaxml.nn.CLIP``.
      optimizer: an optax optimiser.
      images: one or more; only shapes and dtypes matter.
      tokens: likewise.
      mesh: where to place it; None is the default device.
      split: splits every array over the mesh, instead of a copy on each device.

    Returns:
      The state.
    """

    def init(key):
        params = model.init(named_key(key, "init"), images[:1], tokens[:1])["params"]
        return TrainState(jnp.int32(0), {"params": params}, optimizer.init(params))

    if mesh is None:
        return jax.jit(init)(key)
    shardings = state_shardings(jax.eval_shape(init, key), mesh, split=split)
    return jax.jit(init, out_shardings=shardings)(key)


def state_shardings(state: PyTree, mesh: Mesh, *, split: bool = False) -> PyTree:
    """Says where each array of a state lives.

    Args:
      state: arrays or their shapes.
      mesh: with an axis ``"data"``.
      split: cuts each array along its longest axis that the mesh divides, so that parameters and
        optimiser take a part of the memory; those without such an axis are copied. False copies
        everything to each device.

    Returns:
      A tree of ``NamedSharding``.
    """

    def place(leaf):
        size = mesh.shape["data"]
        axes = [i for i, n in enumerate(leaf.shape) if split and n % size == 0 and n > 1]
        if not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(
            mesh, PartitionSpec(*("data" if i == longest else None for i in range(leaf.ndim)))
        )

    return jax.tree.map(place, state)


def loss_and_gradient(
    params: PyTree,
    images: Float[Array, "n ..."],
    tokens: Int[Array, "n t"],
    ids: Int[Array, "n w"] | None = None,
    *,
    model: nn.Module,
    loss: Loss = clip_loss,
    n_parts: int = 1,
) -> tuple[Float[Array, ""], PyTree]:
    """Computes the loss of a batch and its gradient, in parts if the batch is too large at once.

    With several parts the features of each are computed without keeping anything, the loss is
    differentiated by the features of all, and each part is run again to pull that back to the
    parameters. The gradient is that of the whole batch, up to rounding, in the memory of a part.

    Ref: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    2021.

    Args:
      params: of the model.
      images: ``[n, ...]``.
      tokens: ``[n, t]``.
      ids: as for ``clip_loss``.
      model: static.
      loss: ``loss(image, text, log_scale, bias, ids=ids)``, a function of ``contrastive``; static.
      n_parts: must divide ``n``; static.

    Returns:
      The loss, and the gradient in the structure of ``params``.

    Raises:
      ValueError: parts that do not divide.
    """
    n = images.shape[0]
    if n_parts < 1 or n % n_parts:
        raise ValueError(f"n_parts must divide the batch of {n}, got {n_parts}")

    def embed(params, images, tokens):
        return model.apply({"params": params}, images, tokens)

    def whole(image, text, log_scale, bias):
        return loss(image, text, log_scale, bias, ids=ids)

    if n_parts == 1:
        return jax.value_and_grad(lambda params: whole(*embed(params, images, tokens)))(params)
    # Every n_parts-th row, so that a batch split over devices has a share of each part on each.
    parts = jax.tree.map(
        lambda a: a.reshape(-1, n_parts, *a.shape[1:]).swapaxes(0, 1), (images, tokens)
    )
    outputs = jax.lax.map(lambda part: embed(params, *part), parts)

    def join(a):
        return a.swapaxes(0, 1).reshape(n, *a.shape[2:])

    scalars = jax.tree.map(lambda a: a[0], outputs[2:])
    features = join(outputs.image), join(outputs.text)
    argnums = (0, 1, 2) if outputs.bias is None else (0, 1, 2, 3)
    value, by_feature = jax.value_and_grad(whole, argnums)(*features, *scalars)
    by_scalar = (*by_feature[2:], None)[:2]

    def pull_back(total, part):
        index, images, tokens, by_image, by_text = part
        output, pull = jax.vjp(lambda params: embed(params, images, tokens), params)
        # Scale and bias are in every part, and count once.
        first = (index == 0).astype(value.dtype)
        scalars = jax.tree.map(lambda g: g * first, by_scalar)
        cotangent = type(output)(by_image, by_text, *scalars)
        return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    cut = [g.reshape(-1, n_parts, *g.shape[1:]).swapaxes(0, 1) for g in by_feature[:2]]
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, _ = jax.lax.scan(pull_back, zeros, (jnp.arange(n_parts), *parts, *cut))
    return value, grads


def train_step(
    state: TrainState,
    images: Float[Array, "n ..."],
    tokens: Int[Array, "n t"],
    ids: Int[Array, "n w"] | None = None,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss = clip_loss,
    n_parts: int = 1,
    mesh: Mesh | None = None,
) -> tuple[TrainState, StepInfo]:
    """Takes one step: gradient, optimiser, and the scale clipped to [0, ln 100].

    Pure and not jitted inside; ``make_train_step`` is.

    Args:
      state: of ``init_state``.
      images: ``[n, ...]``.
      tokens: ``[n, t]``.
      ids: as for ``clip_loss``.
      model: static.
      optimizer: static.
      loss: as for ``loss_and_gradient``; static.
      n_parts: as for ``loss_and_gradient``; static.
      mesh: splits the batch over ``"data"``; static.

    Returns:
      The next state, and what was measured.
    """
    images, tokens = shard_batch(images, mesh), shard_batch(tokens, mesh)
    params = state.variables["params"]
    value, grads = loss_and_gradient(
        params, images, tokens, ids, model=model, loss=loss, n_parts=n_parts
    )
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = clamp_scale(optax.apply_updates(params, updates))
    info = StepInfo(value, params["log_scale"])
    return TrainState(state.step + 1, {"params": params}, opt_state), info


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    loss: Loss = clip_loss,
    n_parts: int = 1,
    mesh: Mesh | None = None,
    split: bool = False,
) -> Callable[..., tuple[TrainState, StepInfo]]:
    """Jits ``train_step``; the state that is given to it is used up.

    Args:
      model: as for ``train_step``.
      optimizer: as for ``train_step``.
      loss: as for ``train_step``.
      n_parts: as for ``train_step``.
      mesh: as for ``train_step``.
      split: as for ``init_state``, whose state this takes.

    Returns:
      ``step(state, images, tokens, ids=None) -> (state, StepInfo)``.
    """

    def step(state, images, tokens, ids=None):
        new, info = train_step(
            state, images, tokens, ids,
            model=model, optimizer=optimizer, loss=loss, n_parts=n_parts, mesh=mesh,
        )  # fmt: skip
        if mesh is not None:
            shardings = state_shardings(new, mesh, split=split)
            new = jax.lax.with_sharding_constraint(new, shardings)
        return new, info

    return jax.jit(step, donate_argnums=0)


def fit_rows(
    state: TrainState,
    images: Float[Array, "n ..."],
    tokens: Int[Array, "n t"],
    rows: Int[Array, "steps batch"],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: Loss = clip_loss,
) -> tuple[TrainState, StepInfo]:
    """Takes a step for each line of ``rows``, over pairs that are in memory.

    Data sets and seeds differ in ``rows`` and ``state`` alone: vmap over these two trains many
    models at once on one pool. Pure and not jitted inside.

    Args:
      state: of ``init_state``, at any step.
      images: of the pool ``[n, ...]``.
      tokens: of the pool ``[n, t]``.
      rows: numbers of pairs, as ``sampler`` draws them.
      model: static.
      optimizer: static.
      loss: as for ``loss_and_gradient``; static.

    Returns:
      The state after the steps, and what was measured ``[steps]``.
    """
    step = partial(train_step, model=model, optimizer=optimizer, loss=loss)
    return jax.lax.scan(lambda state, row: step(state, images[row], tokens[row]), state, rows)
