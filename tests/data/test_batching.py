import jax
import numpy as np
import pytest

from jaxml.data.batching import batches, epoch_indices


@pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_an_epoch_visits_distinct_examples_in_whole_batches(n, batch_size):
    indices = epoch_indices(jax.random.key(0), n, batch_size)
    assert indices.shape == (n // batch_size, batch_size)
    assert indices.dtype == np.int32
    seen = np.sort(indices.ravel())
    if n % batch_size == 0:
        np.testing.assert_array_equal(seen, np.arange(n))
    assert len(set(seen.tolist())) == n // batch_size * batch_size
    assert set(seen.tolist()) <= set(range(n))


def test_every_example_comes_first_equally_often():
    keys = jax.random.split(jax.random.key(1), 4000)
    first = jax.jit(jax.vmap(lambda key: epoch_indices(key, 5, 2)[0, 0]))(keys)
    # 800 +- 25 each: six standard deviations.
    assert np.abs(np.bincount(first, minlength=5) - 800).max() < 152


def test_jit_and_vmap_equal_eager():
    keys = jax.random.split(jax.random.key(2), 3)
    eager = [epoch_indices(key, 11, 3) for key in keys]
    jitted = jax.jit(epoch_indices, static_argnums=(1, 2))
    np.testing.assert_array_equal(jitted(keys[0], 11, 3), eager[0])
    np.testing.assert_array_equal(
        jax.vmap(lambda key: epoch_indices(key, 11, 3))(keys), np.stack(eager)
    )
    assert not np.array_equal(eager[0], eager[1])


def test_indices_stay_int32_under_x64():
    with jax.enable_x64(True):
        assert epoch_indices(jax.random.key(0), 4, 2).dtype == np.int32


@pytest.mark.parametrize("batch_size", [0, -1, 6])
def test_batch_size_outside_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size must lie in 1\.\.5.*got {batch_size}"):
        epoch_indices(jax.random.key(0), 5, batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_slices_joined_are_the_arrays(batch_size):
    x, y = np.arange(14.0).reshape(7, 2), np.arange(7)
    slices = list(batches(x, y, batch_size=batch_size))
    assert all(len(a) == len(b) <= batch_size for a, b in slices)
    assert len(slices) == -(-7 // batch_size)
    for i, array in enumerate((x, y)):
        np.testing.assert_array_equal(np.concatenate([s[i] for s in slices]), array)


def test_bad_slices_are_refused_at_the_call():
    with pytest.raises(ValueError, match=r"common length, got \[3, 4\]"):
        batches(np.zeros(3), np.zeros(4), batch_size=1)
    with pytest.raises(ValueError, match=r"common length, got \[\]"):
        batches(batch_size=1)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        batches(np.zeros(3), batch_size=0)
