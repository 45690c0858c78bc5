"""Recorded trajectories against training that stops at the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml import train
from jaxml.backdoor import trajectories

from .flip_cases import Net

SGD = optax.sgd(0.1, momentum=0.9)


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 4)).astype(np.float32), np.arange(20, dtype=np.int32) % 3


def train_experts(**changes):
    options = {"n_points": 3, "every": 2, "first": 1, "batch_size": 20, **changes}
    keys = jax.random.split(jax.random.key(0), 2)
    return trajectories.train_experts(keys, Net(), SGD, *data(), **options)


def test_points_are_where_training_stops_after_as_many_steps():
    found = train_experts()
    assert found.trajectories.shape == (2, 3)
    keys = jax.random.split(jax.random.key(0), 2)
    # One batch is an epoch here, so an epoch is a step.
    for point, step in enumerate((1, 3, 5)):
        state = train.fit(keys, Net(), SGD, *data(), n_epochs=step, batch_size=20)
        for expert in range(2):
            params, opt_state = found.trajectories.at(expert, point)
            for here, there in ((params, state.variables["params"]), (opt_state, state.opt_state)):
                jax.tree.map(
                    lambda a, b, e=expert: np.testing.assert_allclose(a, b[e], atol=1e-6),
                    here, there,
                )  # fmt: skip


def test_training_is_as_without_recording_and_goes_on_after_the_last_point():
    found = train_experts(n_epochs=8)
    keys = jax.random.split(jax.random.key(0), 2)
    state = train.fit(keys, Net(), SGD, *data(), n_epochs=8, batch_size=20)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found.variables, state.variables
    )
    short = train_experts()
    jax.tree.map(np.testing.assert_array_equal, found.trajectories, short.trajectories)


def test_bfloat16_rounds_the_points_and_not_the_training():
    full, half = train_experts(), train_experts(dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, full.variables, half.variables)
    kernels = half.trajectories.params["Dense_0"]["kernel"]
    assert kernels.dtype == jnp.bfloat16
    params, _ = half.trajectories.at(0, 0)
    assert params["Dense_0"]["kernel"].dtype == jnp.float32
    expected = full.trajectories.params["Dense_0"]["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(kernels, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_points": 0}, "need n_points >= 1"),
        ({"every": 0}, "every >= 1"),
        ({"first": -1}, "first >= 0"),
        ({"n_epochs": 5}, "n_epochs must be at least 6 for 6 steps, got 5"),
        ({"batch_size": 21}, "batch_size must lie in 1..20"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        train_experts(**changes)
    with pytest.raises(ValueError, match=r"typed keys \[e\]"):
        trajectories.train_experts(jax.random.key(0), Net(), SGD, *data(), n_points=1, batch_size=9)
