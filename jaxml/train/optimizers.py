"""Optax optimisers by name, for configs."""

import optax

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine")


def make_optimizer(
    name: str = "adam",
    *,
    learning_rate: float,
    n_steps: int | None = None,
    schedule: str = "constant",
    warmup_steps: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Makes an optimiser with its learning-rate schedule.

    Args:
      name: ``"adam"``, ``"adamw"`` or ``"sgd"``.
      learning_rate: the peak rate.
      n_steps: steps of the run, where the cosine reaches 0; a constant rate needs none.
      schedule: ``"constant"`` or ``"cosine"``, after a linear warm-up from 0.
      warmup_steps: length of the warm-up, in ``0..n_steps - 1`` if ``n_steps`` is given.
      momentum: of ``"sgd"``.
      weight_decay: ``"adamw"`` shrinks the parameters by ``rate * weight_decay`` a step; the
        others add ``weight_decay * parameters`` to the gradient (an L2 penalty).

    Raises:
      ValueError: an unknown ``name`` or ``schedule``, a cosine without ``n_steps``, or
        ``warmup_steps`` out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {name!r}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if schedule == "cosine" and n_steps is None:
        raise ValueError("n_steps must be given: the cosine reaches 0 there")
    if warmup_steps < 0 or (n_steps is not None and warmup_steps >= n_steps):
        upper = "" if n_steps is None else f"{n_steps - 1}"
        raise ValueError(f"warmup_steps must lie in 0..{upper}, got {warmup_steps}")
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, n_steps)
    elif warmup_steps:
        rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    else:
        rate = learning_rate
    if name == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay)
    optimizer = optax.adam(rate) if name == "adam" else optax.sgd(rate, momentum=momentum or None)
    if weight_decay:
        optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optimizer)
    return optimizer
