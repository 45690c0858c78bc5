"""Learning labels: from experts to logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxml import train
from jaxml.backdoor import flip, flip_selection, matchers, trajectories
from jaxml.data.triggers import make_trigger

from .flip_cases import Net, steps_loss

SGD = optax.sgd(0.1, momentum=0.9)
TRIGGER = make_trigger("pixel")


def images(n=30, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n, dtype=np.int32) % 3
    x = rng.uniform(size=(n, 2, 2, 1)).astype(np.float32) / 2
    x[..., 0, 0, 0] += y / 4
    return x, y


def experts(poisoned, model=None, n=2, **options):
    return trajectories.train_experts(
        jax.random.split(jax.random.key(0), n), model or Net(), SGD, poisoned.x, poisoned.y,
        n_points=4, batch_size=10, **options,
    ).trajectories  # fmt: skip


def learn(ways, poisoned, model=None, key=None, **changes):
    x, y = images()
    options = {
        "n_classes": 3, "n_iterations": 3, "batch_size": 10, "learning_rate": 0.5, **changes,
    }  # fmt: skip
    key = jax.random.key(1) if key is None else key
    return flip.optimize_labels(key, model or Net(), SGD, ways, x, y, poisoned, **options)


def test_poison_adds_triggered_copies_of_the_source():
    x, y = images()
    found = flip.poison(x, y, TRIGGER, source=1, target=2)
    np.testing.assert_array_equal(found.x[:30], x)
    np.testing.assert_array_equal(found.index[30:], np.flatnonzero(y == 1))
    np.testing.assert_array_equal(found.y, [*y, *[2] * 10])
    np.testing.assert_array_equal(found.x[30:, :-1, :-1], x[y == 1][:, :-1, :-1])
    assert (found.x[30:, -1, -1] == 1).all()
    # All to one: the last tenth of what is not the target.
    others = flip.poison(x, y, TRIGGER, source=-1, target=2)
    np.testing.assert_array_equal(others.index[30:], np.flatnonzero(y != 2)[-10:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 2}, "source and target must be two of the classes 0..2"),
        ({"source": 3}, "source and target must be two of the classes"),
        ({"target": 3}, "source and target must be two of the classes"),
        ({"y": np.array([0, -1, 2])}, r"labels must lie in 0..2, got -1..2"),
        ({"y": np.array([0.0, 1.0, 2.0])}, "labels must be integers"),
        ({"y": np.array([0, 2, 2])}, "source: no image has the label 1"),
        ({"trigger": make_trigger("patch", size=3, position="top_left")}, r"size must lie in 1..2"),
    ],
)
def test_poison_names_bad_input(changes, message):
    x, y = images(3)
    with pytest.raises(ValueError, match=message):
        arguments = {"x": x, "y": y, "trigger": TRIGGER, "source": 1, "target": 2, **changes}
        flip.poison(**arguments)


def test_a_step_descends_along_autodiff_through_the_optimiser():
    x, y = images()
    poisoned = flip.poison(x, y, TRIGGER, source=1, target=2)
    rows = np.array([[0, 1, 2, 30, 35, 39, 4, 7]])
    index = jnp.asarray(poisoned.index[rows])  # image 1 occurs twice, as 1 and as 30
    one_hot = jax.nn.one_hot(jnp.asarray(poisoned.y[rows]), 3)
    batches = matchers.Batches(jnp.asarray(x[poisoned.index[rows]]), poisoned.x[rows], one_hot)
    params = Net().init(jax.random.key(0), x[:2])["params"]
    point = matchers.Point(params, SGD.init(params))

    def loss(logits):
        return steps_loss(Net(), SGD, point, batches, jax.nn.softmax(logits[index]))

    @jax.jit
    def both(state):
        step = flip.match_step(
            state, point, batches, index, model=Net(), optimizer=SGD, learning_rate=0.5
        )
        return step, jax.value_and_grad(loss)(state.logits)

    state = flip.init_labels(y, 3, temperature=2.0)
    np.testing.assert_allclose(state.logits, 2 * np.eye(3)[y])
    velocity = jnp.ones_like(state.logits)
    (after, before), (value, gradient) = both(state._replace(velocity=velocity))
    np.testing.assert_allclose(before, value, rtol=1e-5)
    np.testing.assert_allclose(after.velocity, 0.5 * velocity + gradient, atol=1e-6)
    np.testing.assert_allclose(after.logits, state.logits - 0.5 * after.velocity, atol=1e-6)


def test_runs_are_vmapped_and_differ_by_their_keys():
    poisoned = flip.poison(*images(), TRIGGER, source=1, target=2)
    ways = experts(poisoned)
    keys = jax.random.split(jax.random.key(1), 2)
    both, alone = learn(ways, poisoned, key=keys), learn(ways, poisoned, key=keys[1])
    assert both.logits.shape == (2, 30, 3) and both.losses.shape == (2, 3)
    np.testing.assert_allclose(both.logits[1], alone.logits, atol=1e-4)
    assert not np.allclose(both.logits[0], both.logits[1])


@pytest.mark.parametrize("matcher", matchers.MATCHERS)
def test_all_matchers_bring_the_loss_down(matcher):
    poisoned = flip.poison(*images(), TRIGGER, source=1, target=2)
    model = Net(norm=False)
    ways = experts(poisoned, model)
    # One point and all images at once: the same quadratic, or nearly, in every iteration.
    ways = trajectories.Trajectories(*jax.tree.map(lambda leaf: leaf[:1, 2:3], tuple(ways)))
    n_steps = 1 if matcher == "jvp" else 2
    run = learn(
        ways, poisoned, model, matcher=matcher, n_steps=n_steps, batch_size=40 // n_steps,
        n_iterations=20, learning_rate=1.0, temperature=1.0,
    )  # fmt: skip
    assert run.losses[-1] < 0.95 * run.losses[0]


def test_experts_without_a_trigger_leave_nothing_to_learn():
    x, y = images()
    poisoned = flip.Poisoned(x, y, np.arange(30, dtype=np.int32))
    run = learn(experts(poisoned), poisoned, temperature=20.0)
    assert float(run.losses.max()) < 1e-12
    margins, _ = flip_selection.flip_margins(np.asarray(run.logits)[None], y)
    assert (margins < 0).all()


def test_crops_are_the_same_for_student_and_expert():
    # Without a trigger the loss is 0 whatever the crops are, if they are the same.
    x, y = images()
    poisoned = flip.Poisoned(x, y, np.arange(30, dtype=np.int32))
    run = learn(
        experts(poisoned), poisoned, temperature=20.0, n_iterations=1,
        augment=train.random_crop_flip,
    )  # fmt: skip
    assert float(run.losses.max()) < 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matcher": "hessian"}, "matcher must be one of jvp, unroll, linearized"),
        ({"n_steps": 2}, "n_steps must be 1 for 'jvp'"),
        ({"batch_size": 41}, r"n_steps \* batch_size must lie in 1..40"),
        ({"n_iterations": 0}, "n_iterations must be positive"),
        ({"n_classes": 2}, r"labels must lie in 0..1, got 0..2"),
        ({"matcher": "linearized"}, "needs a model without BatchNorm"),
        ({"model": Net(n_classes=4)}, "the models differ at .*Dense_1.*in model.*in experts"),
        ({"model": Net(norm=False)}, "the models differ.*BatchNorm_0"),
    ],
)
def test_bad_input_is_named(changes, message):
    poisoned = flip.poison(*images(), TRIGGER, source=1, target=2)
    params = Net().init(jax.random.key(0), images()[0][:2])["params"]
    ways = jax.tree.map(lambda leaf: leaf[None, None], (params, SGD.init(params)))
    with pytest.raises(ValueError, match=message):
        learn(trajectories.Trajectories(*ways), poisoned, **changes)
