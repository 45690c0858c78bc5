"""make_optimizer: the size of single steps against the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.train import make_optimizer

P = jnp.array([1.0, -2.0, 4.0])
G = jnp.array([0.5, 1.0, -1.0])


def _updates(optimizer, n, grads=G):
    state, out = optimizer.init(P), []
    # optax raises a float to an integer count; the training loop allows that too.
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(n):
            updates, state = optimizer.update(grads, state, P)
            out.append(np.asarray(updates))
    return out


def test_sgd_accumulates_momentum_and_decays_weights_through_the_gradient():
    optimizer = make_optimizer("sgd", learning_rate=0.1, n_steps=9, momentum=0.5, weight_decay=0.2)
    first, second = _updates(optimizer, 2)
    np.testing.assert_allclose(first, -0.1 * (G + 0.2 * P), rtol=1e-6)
    np.testing.assert_allclose(second, 1.5 * first, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 4])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_schedule_warms_up_from_0_and_the_cosine_ends_at_0(schedule, warmup_steps):
    optimizer = make_optimizer(
        "sgd",
        learning_rate=0.1,
        n_steps=12,
        schedule=schedule,
        warmup_steps=warmup_steps,
        momentum=0.0,
    )
    t = np.arange(13)
    rates = np.full(13, 0.1)
    if schedule == "cosine":
        rates = 0.05 * (1 + np.cos(np.pi * (t - warmup_steps) / (12 - warmup_steps)))
    rates[:warmup_steps] = 0.1 * t[:warmup_steps] / 4
    got = [-updates[1] for updates in _updates(optimizer, 13)]
    np.testing.assert_allclose(got, rates, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_of_adam_is_the_sign_of_the_gradient(name):
    optimizer = make_optimizer(name, learning_rate=0.1, n_steps=9)
    np.testing.assert_allclose(_updates(optimizer, 1)[0], -0.1 * np.sign(G), rtol=1e-4)


def test_adamw_shrinks_parameters_without_a_gradient_and_adam_does_not():
    options = {"learning_rate": 0.1, "n_steps": 9, "weight_decay": 0.2}
    zero = jnp.zeros(3)
    adamw = _updates(make_optimizer("adamw", **options), 1, zero)[0]
    np.testing.assert_allclose(adamw, -0.1 * 0.2 * P, rtol=1e-5)
    adam = _updates(make_optimizer("adam", **options), 1, zero)[0]
    np.testing.assert_allclose(adam, -0.1 * np.sign(P), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lion"}, "optimizer must be one of adam, adamw, sgd; got 'lion'"),
        ({"schedule": "step"}, "schedule must be one of constant, cosine; got 'step'"),
        ({"warmup_steps": 9}, "warmup_steps must lie in 0..8, got 9"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(learning_rate=0.1, n_steps=9, **options)


def test_a_cosine_has_to_know_its_end_and_a_constant_rate_has_not():
    with pytest.raises(ValueError, match="n_steps must be given"):
        make_optimizer(learning_rate=0.1, schedule="cosine")
    optimizer = make_optimizer("sgd", learning_rate=0.1, momentum=0.0)
    np.testing.assert_allclose(_updates(optimizer, 1)[0], -0.1 * G, rtol=1e-6)
