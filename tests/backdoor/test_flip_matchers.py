"""The three matchers against autodiff through training, matrix exponentials and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

from jaxml.backdoor import matchers

from .flip_cases import Net, problem, steps_loss

DECAY = optax.add_decayed_weights(2e-2)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov, decay": optax.chain(DECAY, optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam": optax.adam(1e-2),
}


def assert_close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_jvp_is_the_gradient_through_the_optimiser_step(name):
    optimizer, model = OPTIMIZERS[name], Net()

    @jax.jit
    def both(point, batches, labels):
        def loss(labels):
            return steps_loss(model, optimizer, point, batches, labels)

        found = matchers.match_jvp(model, optimizer, point, batches, labels)
        return found, jax.value_and_grad(loss)(labels)

    # In float32 for one of them: another dtype is another compilation.
    tolerances = {np.float64: 1e-12} | ({np.float32: 1e-5} if "decay" in name else {})
    for dtype, tolerance in tolerances.items():
        with jax.enable_x64(dtype == np.float64):
            found, (loss, gradient) = both(*problem(model, optimizer, dtype=dtype))
            # Adam divides by a square root of its own gradient: the rounding is larger there.
            tolerance *= 10 if name == "adam" else 1
            assert found.gradient.dtype == dtype
            assert_close(found.loss, loss, tolerance)
            assert_close(found.gradient, gradient, tolerance)


def test_the_loss_is_a_quadratic_with_the_kernel_of_log_probabilities_as_hessian():
    optimizer, model = OPTIMIZERS["nesterov, decay"], Net()
    with jax.enable_x64(True):
        point, batches, labels = problem(model, optimizer, dtype=np.float64)
        change = jnp.asarray(np.random.default_rng(1).normal(size=labels.shape))

        @jax.jit
        def measure(change):
            def log_probs(params):
                logits, _ = model.apply(
                    {"params": params}, batches.x[0], train=True, mutable=["batch_stats"]
                )
                return jax.nn.log_softmax(logits)

            a = matchers.match_jvp(model, optimizer, point, batches, labels)
            b = matchers.match_jvp(model, optimizer, point, batches, labels + change)
            _, pull = jax.vjp(log_probs, point.params)
            _, product = jax.jvp(log_probs, (point.params,), pull(change[0]))
            expert = matchers.match_jvp(
                model, optimizer, point, batches._replace(x=batches.expert_x), batches.expert_y
            )
            return (b.gradient - a.gradient)[0], product, expert

        difference, product, expert = jax.device_get(measure(change))
    ratio = difference / product
    assert ratio.min() > 0
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-7)
    # The expert's own images and labels leave nothing to match.
    assert expert.loss < 1e-25 and np.abs(expert.gradient).max() < 1e-12


def test_unrolled_steps_with_and_without_checkpoints():
    optimizer, model = OPTIMIZERS["nesterov, decay"], Net()
    point, batches, labels = problem(model, optimizer, steps=3)

    @jax.jit
    def all_of_them(point, batches, labels):
        def loss(labels):
            return steps_loss(model, optimizer, point, batches, labels)

        kept, again = (
            matchers.match_unroll(model, optimizer, point, batches, labels, checkpoint=checkpoint)
            for checkpoint in (False, True)
        )
        return kept, again, jax.value_and_grad(loss)(labels)

    kept, again, (loss, gradient) = all_of_them(point, batches, labels)
    for found in (kept, again):
        assert_close(found.loss, loss, 1e-5)
        assert_close(found.gradient, gradient, 1e-5)
    assert_close(again.gradient, kept.gradient, 1e-6)


def test_unroll_of_one_step_is_jvp_and_jit_changes_nothing():
    optimizer, model = OPTIMIZERS["momentum"], Net()
    args = problem(model, optimizer)
    eager = matchers.match_jvp(model, optimizer, *args)
    jitted = jax.jit(lambda *a: matchers.match_unroll(model, optimizer, *a))(*args)
    assert_close(eager.loss, jitted.loss, 1e-5)
    assert_close(eager.gradient, jitted.gradient, 1e-5)


def test_linearized_is_gradient_flow_in_parameter_space():
    model, time = Net(norm=False), 4.0
    with jax.enable_x64(True):
        point, batches, labels = problem(model, optax.sgd(0.1), batch=4, dtype=np.float64)
        flat, unravel = ravel_pytree(point.params)

        @jax.jit
        def jacobian(x):
            def outputs(flat):
                return model.apply({"params": unravel(flat)}, x).ravel()

            return outputs(flat), jax.jacrev(outputs)(flat)

        def way(x, y):
            # d theta / dt = J^T (y - f - J theta) / size, as one linear system.
            f, j = (np.asarray(a) for a in jacobian(x))
            size = len(f)
            system = np.zeros((len(flat) + 1,) * 2)
            system[:-1, :-1] = -j.T @ j / size
            system[:-1, -1] = j.T @ (np.asarray(y).ravel() - f) / size
            return scipy.linalg.expm(time * system)[:-1, -1]

        expert = way(batches.expert_x[0], batches.expert_y[0])

        def loss(labels):
            student = way(batches.x[0], labels)
            return ((student - expert) ** 2).sum() / (expert**2).sum()

        found = jax.jit(
            lambda *a: matchers.match_linearized(model, None, *a, time=time)
        )(point, batches, labels)  # fmt: skip
        np.testing.assert_allclose(found.loss, loss(labels), rtol=1e-9)
        labels, step = np.asarray(labels), 1e-5
        for index in ((0, 0, 0), (0, 2, 1), (0, 3, 2)):
            nudge = np.zeros_like(labels)
            nudge[index] = step
            slope = (loss(labels + nudge) - loss(labels - nudge)) / (2 * step)
            np.testing.assert_allclose(found.gradient[index], slope, rtol=1e-6)


def test_an_expert_that_does_not_move_is_no_nan():
    optimizer, model = optax.sgd(0.0), Net()
    found = matchers.match_jvp(model, optimizer, *problem(model, optimizer))
    assert float(found.loss) == 0 and not np.any(np.asarray(found.gradient))


def test_jvp_takes_one_step_only():
    optimizer, model = OPTIMIZERS["sgd"], Net()
    with pytest.raises(ValueError, match="matcher 'jvp' matches one step, got 2"):
        matchers.match_jvp(model, optimizer, *problem(model, optimizer, steps=2))
