"""Contrastive losses against sums written out in numpy, and split over devices against whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import special

from jaxml.core.sharding import make_mesh
from jaxml.curation import clip_loss, ring_sigmoid_loss, sigmoid_loss

N, D = 16, 6
# Rows 3 and 11 show one pair, as do 5, 6 and 7.
IDS = np.arange(N, dtype=np.int32)
IDS[11], IDS[6], IDS[7] = 3, 5, 5
IDS = np.stack([IDS % 4, IDS // 4], axis=1)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, N, D))
    image, text = x / np.linalg.norm(x, axis=-1, keepdims=True)
    scalars = np.float32(1.7), np.float32(-2.0)
    return (image.astype(np.float32), text.astype(np.float32), *scalars)


def brute_softmax(image, text, log_scale, bias, ids):
    z = np.exp(np.float64(log_scale)) * image.astype(np.float64) @ text.T
    total = 0
    for i in range(N):
        others = [j for j in range(N) if j == i or ids is None or (ids[i] != ids[j]).any()]
        total += special.logsumexp(z[i, others]) + special.logsumexp(z[others, i]) - 2 * z[i, i]
    return total / 2 / N


def brute_sigmoid(image, text, log_scale, bias, ids):
    z = np.exp(np.float64(log_scale)) * image.astype(np.float64) @ text.T + bias
    total = 0
    for i in range(N):
        for j in range(N):
            if i == j:
                total -= np.log(special.expit(z[i, j]))
            elif ids is None or (ids[i] != ids[j]).any():
                total -= np.log(special.expit(-z[i, j]))
    return total / N


@pytest.mark.parametrize(
    ("loss", "brute"), [(clip_loss, brute_softmax), (sigmoid_loss, brute_sigmoid)]
)
def test_a_loss_is_its_sum_on_one_device_and_on_four(features, loss, brute):
    assert float(loss(*features)) == pytest.approx(brute(*features, None), rel=1e-5)
    fn = jax.jit(jax.value_and_grad(functools.partial(loss, ids=IDS), argnums=(0, 1, 2, 3)))
    value, grads = fn(*features)
    assert float(value) == pytest.approx(brute(*features, IDS), rel=1e-5)
    mesh = make_mesh(4)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    split = [jax.device_put(a, rows) for a in features[:2]]
    fns = [fn]
    if loss is sigmoid_loss:
        ring = functools.partial(ring_sigmoid_loss, mesh=mesh, ids=IDS)
        fns.append(jax.jit(jax.value_and_grad(ring, argnums=(0, 1, 2, 3))))
    for other in fns:
        again, other_grads = other(*split, *features[2:])
        assert float(again) == pytest.approx(float(value), abs=1e-5)
        for a, b in zip(grads, other_grads, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_finite_differences(features):
    with jax.enable_x64(True):
        image, *others = (jnp.asarray(a, jnp.float64) for a in features)

        @jax.jit
        def both(step):
            losses = clip_loss(image + step, *others), sigmoid_loss(image + step, *others)
            return jnp.stack(losses)

        step = jnp.zeros_like(image).at[2, 3].set(1e-6)
        _, slopes = jax.jvp(both, (jnp.zeros_like(image),), (step,))
        np.testing.assert_allclose(slopes, (both(step) - both(-step)) / 2, rtol=1e-4)


def test_a_copy_with_its_twin_masked_is_no_wrong_answer(features):
    image, text, *scalars = features
    twice = np.array([0, 1, 2, 0])
    ids = twice[:, None].astype(np.int32)
    loss = jax.jit(clip_loss)
    masked = loss(image[twice], text[twice], *scalars, ids=ids)
    strangers = np.arange(4, dtype=np.int32)[:, None]
    plain = loss(image[twice], text[twice], *scalars, ids=strangers)
    assert float(masked) < float(plain)
    # Orthogonal pairs and a large scale: all are found, twins or not.
    eye = np.eye(N, D, dtype=np.float32)[twice]
    sure = loss(eye, eye, np.float32(5.0), scalars[1], ids=ids)
    assert float(sure) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": np.zeros((N, D + 1), np.float32)}, r"must be \[n, d\] both"),
        ({"ids": np.zeros(N, np.int32)}, r"ids must be \[16, w\]"),
        ({"bias": None}, "bias must be given"),
    ],
)
def test_bad_input_is_refused(features, change, message):
    names = ("image", "text", "log_scale", "bias")
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(**(dict(zip(names, features, strict=True)) | change))


def test_a_ring_needs_rows_for_each_device(features):
    image, text, *scalars = features
    with pytest.raises(ValueError, match="n must be a multiple of the 4 devices, got 15"):
        ring_sigmoid_loss(image[:15], text[:15], *scalars, mesh=make_mesh(4))
