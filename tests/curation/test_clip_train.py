"""Training of CLIP: gradients in parts, many models at once, devices, resume."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import curation, nn
from jaxml.core.sharding import make_mesh
from jaxml.io import checkpoint

N, BATCH, STEPS = 40, 8, 6
RECIPE = curation.RECIPES["tiny"]._replace(warmup_steps=2)
MODEL = nn.CLIP(nn.MLP((), 4), nn.BagOfWords(20, (8,), 4), init_bias=-2.0)
OPTIMIZER = curation.make_optimizer(RECIPE, n_steps=STEPS)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(N, 4, 4, 1)).astype(np.float32)
    tokens = rng.integers(0, 20, (N, 5)).astype(np.int32)
    rows = np.stack([curation.pair_indices(1, t, sizes=N, batch_size=BATCH) for t in range(STEPS)])
    return images, tokens, rows.astype(np.int32)


@functools.cache
def fit():
    fn = functools.partial(curation.fit_rows, model=MODEL, optimizer=OPTIMIZER)
    return jax.jit(jax.vmap(fn, in_axes=(0, None, None, 0)))


@pytest.fixture(scope="module")
def states(data):
    """Two fresh states, on the host."""
    images, tokens, _ = data
    init = functools.partial(
        curation.init_state, model=MODEL, optimizer=OPTIMIZER, images=images, tokens=tokens
    )
    return jax.device_get(jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), 2)))


def one_of(states, i=0):
    return jax.tree.map(lambda a: a[i], states)


def assert_same(a, b, **tolerance):
    compare = functools.partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(compare if tolerance else np.testing.assert_array_equal, a, b)


def test_the_gradient_in_parts_is_that_of_the_whole_batch(data, states):
    images, tokens, rows = data
    params = one_of(states).variables["params"]
    ids = (rows[0] % 5)[:, None].astype(np.int32)

    @jax.jit
    def both(params, images, tokens):
        one, four = (
            curation.loss_and_gradient(
                params, images, tokens, ids, model=MODEL, loss=curation.sigmoid_loss, n_parts=n
            )
            for n in (1, 4)
        )
        return one, four

    one, four = both(params, images[rows[0]], tokens[rows[0]])
    assert_same(one, four, rtol=1e-5, atol=2e-6)
    assert float(one[1]["log_scale"]) != 0 and float(one[1]["logit_bias"]) != 0


def test_a_resumed_run_ends_with_the_same_bits(data, states, tmp_path):
    images, tokens, rows = data
    rows = np.stack([rows, rows[::-1]])
    half = STEPS // 2
    # The same calls, with a checkpoint in between or not.
    state, _ = fit()(states, images, tokens, rows[:, :half])
    checkpoint.save(tmp_path, half, state)
    whole, info = fit()(state, images, tokens, rows[:, half:])
    again = checkpoint.restore(tmp_path, half, jax.eval_shape(lambda: states))
    again, _ = fit()(again, images, tokens, rows[:, half:])
    assert_same(whole, again)
    assert info.loss.shape == (2, half) and np.asarray(whole.step).tolist() == [STEPS] * 2


def test_models_at_once_are_the_models_alone_and_any_order_of_calls(data, states):
    images, tokens, rows = data
    rows = np.stack([rows, rows[::-1]])
    both, _ = fit()(states, images, tokens, rows[:, :3])
    step = curation.make_train_step(MODEL, OPTIMIZER)
    state = jax.device_put(one_of(states, 1))
    for row in rows[1, :3]:
        state, _ = step(state, images[row], tokens[row])
    assert_same(one_of(both, 1), state, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_devices_change_nothing_but_where_things_are(data, states, split):
    images, tokens, rows = data
    mesh = make_mesh(4)
    ends = []
    for where in (None, mesh):
        # The ring on split states; else the softmax, in parts.
        loss = curation.sigmoid_loss if split else curation.clip_loss
        if split and where is not None:
            loss = functools.partial(curation.ring_sigmoid_loss, mesh=mesh)
        n_parts = 2 if where is not None and not split else 1
        step = curation.make_train_step(
            MODEL, OPTIMIZER, loss=loss, n_parts=n_parts, mesh=where, split=split
        )
        state = one_of(states)
        places = None if where is None else curation.state_shardings(state, where, split=split)
        state = jax.device_put(state, places)
        first = state.variables["params"]["image_tower"]["Dense_0"]["kernel"]
        for row in rows[:2]:
            state, info = step(state, images[row], tokens[row])
        assert first.is_deleted()  # its memory was the next state's
        ends.append(state)
    assert_same(*map(jax.device_get, ends), rtol=1e-4, atol=1e-6)
    kernel = ends[1].variables["params"]["image_tower"]["Dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == ((4, 4) if split else (16, 4))
    assert float(info.loss) > 0


def test_a_state_is_made_where_it_lives(data, states):
    images, tokens, _ = data
    mesh = make_mesh(4)
    made = curation.init_state(
        jax.random.split(jax.random.key(0), 2)[0], MODEL, OPTIMIZER, images, tokens, mesh=mesh,
        split=True,
    )  # fmt: skip
    assert_same(jax.device_get(made), one_of(states), rtol=1e-6)
    wanted = curation.state_shardings(made, mesh, split=True)
    assert jax.tree.map(lambda a: a.sharding, made) == wanted
    assert made.variables["params"]["log_scale"].sharding.is_fully_replicated


def test_the_scale_is_clamped_in_every_step(data, states):
    images, tokens, rows = data
    state = states
    high = {**state.variables["params"], "log_scale": jnp.array([4.6051, 0.0])}
    state = state._replace(variables={"params": high})
    _, info = fit()(state, images, tokens, np.stack([rows, rows])[:, :3])
    scale = np.asarray(info.log_scale)
    assert scale.min() >= 0 and scale.max() <= np.float32(math.log(100))


def test_parts_must_divide_the_batch(data):
    images, tokens, _ = data
    with pytest.raises(ValueError, match="n_parts must divide the batch of 40, got 3"):
        curation.loss_and_gradient({}, images, tokens, model=MODEL, n_parts=3)
