"""The training loop of all papers: whole epochs on the device, the host only in between."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from jaxml.core.rng import named_key
from jaxml.core.sharding import on_each_device, replicate, shard_batch
from jaxml.core.types import Key
from jaxml.data.batching import epoch_indices
from jaxml.train.losses import Metrics, cross_entropy
from jaxml.train.state import TrainState, init

Augment = Callable[[Key, jax.Array], jax.Array]
Callback = Callable[[TrainState, Metrics], None]
Loss = Callable[[jax.Array, jax.Array], Metrics]


def fit(
    key: Key,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    x: Float[Array, "n ..."],
    y: Shaped[Array, "n ..."],
    *,
    n_epochs: int,
    batch_size: int,
    loss: Loss = cross_entropy,
    own_x: bool = False,
    own_y: bool = False,
    state: TrainState | None = None,
    augment: Augment | None = None,
    mesh: Mesh | None = None,
    epochs_per_call: int = 1,
    callback: Callback | None = None,
) -> TrainState:
    """Trains a model, or ``s`` of them at once, on the mean of a loss, by default cross-entropy.

    Each epoch walks a fresh permutation in ``n // batch_size`` steps; the order of epoch ``e``
    depends on ``key`` and ``e`` only, so a run that stops and goes on from its state with the same
    arguments ends with the same bits as one that never stopped. ``epochs_per_call`` epochs are one
    call on the device, compiled once for all calls (and for later ``fit`` of an equal model, the
    same ``optimizer``, ``loss`` and ``augment`` objects, and equal shapes).

    Args:
      key: a typed key ``[]``; or ``[s]`` to train ``s`` models at once by vmap, each with its own
        initialisation and order, as if alone. Then every leaf of the state leads with ``[s]``.
      model: a Flax module with ``__call__(x, train)`` -> logits; ``batch_stats`` are updated.
      optimizer: an optax optimiser.
      x: inputs ``[n, ...]``, shared by all models.
      y: integer labels ``[n]``, or whatever targets ``[n, ...]`` ``loss`` takes; shared likewise.
      n_epochs: epochs in all, those already in ``state`` included.
      batch_size: examples a step, in ``1..n``.
      loss: ``loss(outputs [b, ...], targets [b, ...])`` -> ``Metrics`` of means, pure: a function
        of ``jaxml.train.losses`` or another.
      own_x: each of the ``s`` models has inputs of its own: ``x`` is ``[s, n, ...]``.
      own_y: each has targets of its own: ``y`` is ``[s, n, ...]``.
      state: where to go on from, left intact; None begins with ``init(key, ...)``.
      augment: ``augment(key, x [b, ...])`` -> inputs of one batch, pure.
      mesh: splits the work over the axis ``"data"``: the ``s`` models, if the devices divide them
        evenly (then nothing is sent between devices on the way), else the examples of each batch.
        The state is on all devices.
      epochs_per_call: epochs between two callbacks.
      callback: ``callback(state, metrics)`` after each call, with ``Metrics`` of floats (lists of
        ``s`` floats for ``s`` models): means over the call, each batch measured before its step.
        The loop reuses the memory of ``state`` afterwards: copy or save what is to last. An
        exception ends the run.

    Returns:
      The state after ``n_epochs`` epochs.

    Raises:
      ValueError: bad sizes or dtypes, a ``state`` that does not fit ``key`` or is not at the end
        of an epoch, or a loss that is not finite any more.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.ndim > 1:
        raise ValueError(f"key must be typed keys [] or [s], got {key.dtype} {key.shape}")
    for name, own, array in (("x", own_x, x), ("y", own_y, y)):
        if own and (not key.ndim or array.ndim < 2 or array.shape[:1] != key.shape):
            raise ValueError(f"own_{name} needs keys [s] and {name} [s, n, ...], got {array.shape}")
    n = x.shape[int(own_x)]
    if y.shape[int(own_y) :][:1] != (n,):
        raise ValueError(f"y must hold {n} targets, got {y.dtype} {tuple(y.shape)}")
    if loss is cross_entropy and not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y must be {n} integer labels, got {y.dtype} {tuple(y.shape)}")
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie in 1..{n}, got {batch_size}")
    if epochs_per_call < 1:
        raise ValueError(f"epochs_per_call must be positive, got {epochs_per_call}")
    x, y = (
        _place(jnp.asarray(array), mesh, split=own and _splits_models(key, mesh))
        for own, array in ((own_x, x), (own_y, y))
    )
    # A copy, because the calls below donate the state.
    example = x[0, :1] if own_x else x[:1]
    state = init(key, model, optimizer, example) if state is None else jax.tree.map(jnp.copy, state)
    steps_per_epoch = n // batch_size
    epoch = _finished_epochs(state, key, steps_per_epoch)
    key, state = replicate((key, state), mesh)
    while epoch < n_epochs:
        count = min(epochs_per_call, n_epochs - epoch)
        state, metrics = _run_epochs(
            key,
            state,
            x,
            y,
            epoch,
            count,
            model=model,
            optimizer=optimizer,
            batch_size=batch_size,
            loss=loss,
            own_x=own_x,
            own_y=own_y,
            augment=augment,
            mesh=mesh,
        )
        metrics = jax.device_get(metrics)
        window = (epoch * steps_per_epoch, (epoch + count) * steps_per_epoch)
        _check_loss(metrics.loss, window)
        if callback is not None:
            callback(state, Metrics(*(values.tolist() for values in metrics)))
        epoch += count
    return state


@partial(
    jax.jit,
    static_argnames=(
        "model",
        "optimizer",
        "batch_size",
        "loss",
        "own_x",
        "own_y",
        "augment",
        "mesh",
    ),
    donate_argnames="state",
)
def _run_epochs(
    key, state, x, y, first_epoch, n_epochs, *,
    model, optimizer, batch_size, loss, own_x, own_y, augment, mesh,
):  # fmt: skip
    def loss_fn(params, variables, xb, yb):
        outputs, mutated = model.apply(
            {**variables, "params": params}, xb, train=True, mutable=["batch_stats"]
        )
        metrics = loss(outputs, yb)
        return metrics.loss, (metrics, mutated)

    by_model = _splits_models(key, mesh)
    batch_mesh = None if by_model else mesh

    def step(key, x, y, state, indices):
        xb, yb = shard_batch(x[indices], batch_mesh), shard_batch(y[indices], batch_mesh)
        if augment is not None:
            xb = augment(jax.random.fold_in(named_key(key, "augment"), state.step), xb)
        params = state.variables["params"]
        grads, (metrics, mutated) = jax.grad(loss_fn, has_aux=True)(params, state.variables, xb, yb)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        variables = {**state.variables, **mutated, "params": params}
        return TrainState(state.step + 1, variables, opt_state), metrics

    def run_one(key, state, x, y):
        def epoch(e, carry):
            state, total = carry
            epoch_key = jax.random.fold_in(named_key(key, "order"), e)
            indices = epoch_indices(epoch_key, x.shape[0], batch_size)
            state, metrics = jax.lax.scan(partial(step, key, x, y), state, indices)
            return state, jax.tree.map(lambda t, m: t + m.mean(), total, metrics)

        # The number of epochs is traced: a shorter last call does not compile again.
        carry = (state, Metrics(jnp.float32(0), jnp.float32(0)))
        state, total = jax.lax.fori_loop(first_epoch, first_epoch + n_epochs, epoch, carry)
        return state, jax.tree.map(lambda t: t / n_epochs.astype(t.dtype), total)

    axes = (0, 0, 0 if own_x else None, 0 if own_y else None)
    run = jax.vmap(run_one, in_axes=axes) if key.ndim else run_one
    if by_model:
        run = on_each_device(run, mesh, split=[axis == 0 for axis in axes])
    out = run(key, state, x, y)
    if mesh is not None:
        out = jax.lax.with_sharding_constraint(out, NamedSharding(mesh, PartitionSpec()))
    return out


def _splits_models(key: Key, mesh: Mesh | None) -> bool:
    """Says whether devices get models of their own, and not parts of every batch."""
    return mesh is not None and key.ndim == 1 and mesh.size > 1 and key.shape[0] % mesh.size == 0


def _place(array: jax.Array, mesh: Mesh | None, *, split: bool) -> jax.Array:
    if not split:
        return replicate(array, mesh)
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))


def _finished_epochs(state: TrainState, key: Key, steps_per_epoch: int) -> int:
    steps = np.unique(np.asarray(state.step))
    if state.step.shape != key.shape or len(steps) > 1:
        raise ValueError(
            f"state must hold models {key.shape} at one step, as key does, got steps {state.step}"
        )
    if steps[0] % steps_per_epoch:
        raise ValueError(
            f"state must be at the end of an epoch, of {steps_per_epoch} steps, got step {steps[0]}"
        )
    return int(steps[0]) // steps_per_epoch


def _check_loss(loss: np.ndarray, window: tuple[int, int]) -> None:
    bad = np.flatnonzero(~np.isfinite(loss))
    if len(bad):
        which = f"loss of model {bad[0]}" if loss.ndim else "loss"
        value = "NaN" if np.isnan(loss.flat[bad[0]]) else "infinite"
        raise ValueError(
            f"{which} became {value} between step {window[0]} and step {window[1]}; "
            "lower the learning rate"
        )
