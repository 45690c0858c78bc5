"""fit: against steps by hand, alone against vmapped, one device against four, whole against cut."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml import nn, train
from jaxml.core.sharding import make_mesh
from jaxml.io import checkpoint

N, BATCH = 48, 16
STEPS = N // BATCH
RNG = np.random.default_rng(0)
Y = (np.arange(N) % 3).astype(np.int32)
X = RNG.normal(size=(N, 4, 4, 1)).astype(np.float32)
X[np.arange(N), Y, Y, 0] += 6.0

MLP = nn.MLP((8,), 3)
CONVNET = nn.ConvNet(3, features=(4,), norm="batch", conv="patches")
ADAM = optax.adam(0.01)


def _assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def _fit(key=None, model=MLP, optimizer=ADAM, x=X, y=Y, **options):
    key = jax.random.key(0) if key is None else key
    options = {"n_epochs": 2, "batch_size": BATCH, **options}
    return train.fit(key, model, optimizer, x, y, **options)


def test_separable_classes_are_learned_and_the_callback_hears_of_it():
    heard = []
    state = _fit(
        n_epochs=41,
        epochs_per_call=20,
        callback=lambda state, metrics: heard.append((int(state.step), metrics)),
    )
    assert [step for step, _ in heard] == [20 * STEPS, 40 * STEPS, 41 * STEPS]
    assert all(type(value) is float for _, metrics in heard for value in metrics)
    assert heard[-1][1].loss < 0.1 * heard[0][1].loss
    assert heard[-1][1].accuracy == 1.0
    assert train.evaluate(MLP.apply, state.variables, X, Y).accuracy == 1.0


def test_full_batch_steps_are_gradient_descent():
    state = train.init(jax.random.key(0), MLP, optax.sgd(0.1), X[:1])

    def loss(variables):
        return train.evaluate(MLP.apply, variables, X, Y).loss

    expected, losses = state.variables, []
    for _ in range(2):
        value, grads = jax.jit(jax.value_and_grad(loss))(expected)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
        losses.append(value)
    heard = []
    got = _fit(
        optimizer=optax.sgd(0.1),
        batch_size=N,
        epochs_per_call=2,
        callback=lambda _, metrics: heard.append(metrics),
    )
    _assert_close(got.variables, expected)
    np.testing.assert_allclose(heard[0].loss, np.mean(losses), rtol=1e-5)


def test_batch_statistics_are_updated():
    state = _fit(model=CONVNET, n_epochs=1)
    start = train.init(jax.random.key(0), CONVNET, ADAM, X[:1])
    before, after = start.variables["batch_stats"], state.variables["batch_stats"]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, after)))


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=["mlp", "convnet"])
def test_models_trained_together_are_those_trained_alone(model):
    keys = jax.random.split(jax.random.key(0), 3)
    heard = []
    together = _fit(keys, model, callback=lambda _, metrics: heard.append(metrics))
    assert together.step.tolist() == [2 * STEPS] * 3
    assert len(heard[-1].loss) == 3
    for i in (0, 2):
        alone = _fit(keys[i], model, callback=lambda _, metrics: heard.append(metrics))
        _assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, 1e-4)
        np.testing.assert_allclose(heard[1].loss[i], heard[-1].loss, rtol=1e-4)


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=["mlp", "convnet"])
@pytest.mark.parametrize("s", [None, 2])
def test_four_devices_give_the_numbers_of_one(model, s):
    key = jax.random.key(0) if s is None else jax.random.split(jax.random.key(0), s)
    losses = {}
    for mesh in (None, make_mesh()):
        heard = losses[mesh is None] = []
        state = _fit(key, model, mesh=mesh, callback=lambda _, m, heard=heard: heard.append(m.loss))
        if mesh is not None:
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
            assert len(state.step.devices()) == 4
    np.testing.assert_allclose(losses[False], losses[True], atol=1e-5)


def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(tmp_path):
    options = {"model": CONVNET, "n_epochs": 5, "augment": train.random_crop_flip}
    whole = _fit(**options)

    def stop_after_three(state, metrics):
        checkpoint.save(tmp_path, int(state.step), state)
        if int(state.step) == 3 * STEPS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _fit(**options, callback=stop_after_three)
    like = jax.eval_shape(lambda key: train.init(key, CONVNET, ADAM, X[:1]), jax.random.key(0))
    state = checkpoint.restore(tmp_path, checkpoint.latest_step(tmp_path), like)
    assert int(state.step) == 3 * STEPS
    _assert_same_bits(_fit(**options, state=state, epochs_per_call=2), whole)


def test_a_given_state_is_left_intact_and_a_finished_one_returned():
    start = _fit(n_epochs=1)
    copy = jax.tree.map(np.array, start)
    _fit(state=start)
    _assert_same_bits(start, copy)
    _assert_same_bits(_fit(state=start, n_epochs=1), copy)


def test_augment_changes_what_the_model_sees():
    start = train.init(jax.random.key(0), MLP, ADAM, X[:1])
    blank = _fit(augment=lambda key, x: jnp.zeros_like(x))
    _assert_same_bits(_first_kernel(blank), _first_kernel(start))  # zero input, zero gradient
    assert not np.array_equal(_first_kernel(_fit()), _first_kernel(start))


def test_augment_gets_another_key_in_every_step():
    def draw_one_pixel(key, x):
        return jnp.zeros_like(x).reshape(-1, 16).at[:, _pixel(key)].set(1.0).reshape(x.shape)

    def _pixel(key):
        return jax.random.randint(key, (), 0, 16)

    start = train.init(jax.random.key(0), MLP, ADAM, X[:1])
    moved = _first_kernel(_fit(augment=draw_one_pixel, n_epochs=4)) != _first_kernel(start)
    assert 2 < moved.any(axis=1).sum() <= 12  # 12 steps lit several of the 16 pixels


def _first_kernel(state):
    return np.asarray(state.variables["params"]["Dense_0"]["kernel"])


def test_an_equal_model_does_not_trace_again():
    traces = []

    def count(key, x):
        traces.append(1)
        return x

    _fit(augment=count)
    first = len(traces)
    _fit(jax.random.key(1), nn.MLP((8,), 3), augment=count, n_epochs=3, epochs_per_call=2)
    assert len(traces) == first > 0


def test_a_loss_that_is_not_finite_stops_the_run():
    bad = X.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match=r"^loss became NaN between step 0 and step 3; lower"):
        _fit(x=bad)
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="loss of model 0 became NaN between step 0 and step 6"):
        _fit(keys, x=bad, epochs_per_call=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": jnp.zeros(2, jnp.uint32)}, "key must be typed keys"),
        ({"y": Y[:-1]}, "y must hold 48 targets"),
        ({"y": Y.astype(np.float32)}, "y must be 48 integer labels, got float32"),
        ({"batch_size": N + 1}, "batch_size must lie in 1..48, got 49"),
        ({"epochs_per_call": 0}, "epochs_per_call must be positive, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _fit(**options)


OWN_X = np.stack([X, X[::-1], 0.5 * X])
OWN_Y = np.stack([Y, Y[::-1], (Y + 1) % 3])


@pytest.mark.parametrize(("own_x", "own_y"), [(True, True), (True, False), (False, True)])
def test_models_with_data_of_their_own_are_those_trained_alone_on_it(own_x, own_y):
    keys = jax.random.split(jax.random.key(0), 3)
    data = {"x": OWN_X if own_x else X, "y": OWN_Y if own_y else Y}
    heard = []

    def listen(_, metrics):
        heard.append(metrics)

    together = _fit(keys, **data, own_x=own_x, own_y=own_y, callback=listen)
    for i in range(3):
        x, y = OWN_X[i] if own_x else X, OWN_Y[i] if own_y else Y
        alone = _fit(keys[i], x=x, y=y, callback=listen)
        _assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)
        np.testing.assert_allclose([m[i] for m in heard[1]], heard[-1], rtol=1e-4)
    # The data do make a difference.
    assert not np.allclose(_first_kernel(together)[2], _first_kernel(_fit(keys[2])), atol=1e-3)


def test_a_run_with_data_of_its_own_resumes_with_the_bits_of_a_whole_one():
    keys = jax.random.split(jax.random.key(0), 3)
    options = {"x": OWN_X, "y": OWN_Y, "own_x": True, "own_y": True}
    start = _fit(keys, **options, n_epochs=1)
    _assert_same_bits(_fit(keys, **options, state=start), _fit(keys, **options))


def test_four_devices_give_the_numbers_of_one_on_data_of_their_own():
    keys = jax.random.split(jax.random.key(0), 3)
    options = {"x": OWN_X, "y": OWN_Y, "own_x": True, "own_y": True, "n_epochs": 1}
    _assert_close(_fit(keys, **options, mesh=make_mesh()), _fit(keys, **options))


def test_one_hot_labels_train_as_integer_labels():
    one_hot = np.eye(3, dtype=np.float32)[Y]
    soft = _fit(y=one_hot, loss=train.soft_cross_entropy)
    _assert_close(soft, _fit())
    heard = [
        train.evaluate(MLP.apply, soft.variables, X, y, loss=loss)
        for y, loss in ((Y, train.cross_entropy), (one_hot, train.soft_cross_entropy))
    ]
    np.testing.assert_allclose(*heard, rtol=1e-6)


def test_squared_error_learns_a_sign():
    model = nn.MLP((8,), 1)
    y = np.where(Y == 0, 1, -1).astype(np.float32)
    state = _fit(model=model, y=y, loss=train.squared_error, n_epochs=30)
    metrics = train.evaluate(model.apply, state.variables, X, y, loss=train.squared_error)
    assert metrics.loss < 0.1
    assert metrics.accuracy == 1.0


KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"own_x": True}, r"own_x needs keys \[s\] and x \[s, n, \.\.\.\], got \(48, 4, 4, 1\)"),
        ({"key": KEYS, "own_x": True}, r"own_x needs keys \[s\] .* got \(48, 4, 4, 1\)"),
        ({"key": KEYS, "own_x": True, "x": np.ones(3, np.float32)}, r"own_x .* got \(3,\)"),
        ({"own_y": True, "y": OWN_Y}, r"own_y needs keys \[s\] and y .* got \(3, 48\)"),
        ({"key": KEYS[:2], "own_y": True, "y": OWN_Y}, r"own_y needs .* got \(3, 48\)"),
        ({"key": KEYS, "own_x": True, "x": OWN_X[:, 1:]}, r"y must hold 47 targets, got int32"),
        ({"key": KEYS, "own_y": True, "y": OWN_Y[:, 1:]}, r"48 targets, got int32 \(3, 47\)"),
        ({"key": KEYS, "x": OWN_X, "own_x": True, "batch_size": 49}, r"must lie in 1\.\.48"),
        ({"y": np.eye(3, dtype=np.float32)[Y]}, r"48 integer labels, got float32 \(48, 3\)"),
    ],
)
def test_bad_data_of_their_own_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _fit(**options)


def test_a_state_that_does_not_fit_is_refused():
    state = train.init(jax.random.key(0), MLP, ADAM, X[:1])
    with pytest.raises(ValueError, match="end of an epoch, of 3 steps, got step 2"):
        _fit(state=state._replace(step=jnp.int32(2)))
    with pytest.raises(ValueError, match=r"state must hold models \(2,\)"):
        _fit(jax.random.split(jax.random.key(0), 2), state=state)
