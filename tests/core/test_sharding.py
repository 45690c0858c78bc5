"""The mesh and where arrays lie on it, on four simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxml.core.sharding import make_mesh, on_each_device, replicate, shard_batch


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


def test_mesh_takes_all_devices_or_the_first_ones(mesh):
    assert len(jax.devices()) == 4
    assert mesh.axis_names == ("data",) and mesh.shape == {"data": 4}
    assert list(make_mesh(3).devices.flat) == jax.devices()[:3]


@pytest.mark.parametrize("count", [0, -1, 5])
def test_mesh_refuses_devices_that_are_not_there(count):
    with pytest.raises(ValueError, match=rf"num_devices must lie in 1..4, got {count}"):
        make_mesh(count)


def test_replicate_puts_a_copy_on_each_device(mesh):
    tree = replicate({"w": jnp.arange(6.0).reshape(2, 3)}, mesh)
    assert tree["w"].sharding.is_fully_replicated
    assert len(tree["w"].addressable_shards) == 4
    np.testing.assert_array_equal(tree["w"], np.arange(6.0).reshape(2, 3))


def test_batches_are_split_and_results_do_not_change(mesh):
    x = jnp.arange(24.0).reshape(8, 3)
    split = shard_batch(x, mesh)
    assert split.sharding.spec == PartitionSpec("data")
    assert {s.data.shape for s in split.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(split, x)

    w = replicate(jnp.ones((3, 2)), mesh)
    sharded = jax.jit(lambda x, w: jnp.tanh(shard_batch(x, mesh) @ w).sum(0))(x, w)
    np.testing.assert_allclose(sharded, np.tanh(np.asarray(x) @ np.ones((3, 2))).sum(0), rtol=1e-6)


def test_no_mesh_and_odd_sizes_change_nothing(mesh):
    x = jnp.ones((6, 3))
    assert shard_batch(x, mesh) is x
    assert shard_batch(x, None) is x
    assert replicate(x, None) is x


def test_typed_keys_are_replicated_too(mesh):
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
    copy = replicate({"keys": keys, "n": np.float32(2)}, mesh)["keys"]
    assert len(copy.devices()) == 4 and copy.dtype == keys.dtype
    np.testing.assert_array_equal(*map(jax.random.key_data, (copy, keys)))


def test_each_device_works_on_its_share_and_all_get_the_results(mesh):
    keys = jax.random.split(jax.random.key(0), 8)
    w = jnp.arange(3.0)

    def draw(keys, w):
        return {"mean": jax.vmap(lambda k: jax.random.normal(k, (3,)) * w)(keys)}

    def run(keys, w):
        return on_each_device(draw, mesh, split=[True, False])(keys, w)

    found = jax.jit(run)(keys, w)["mean"]
    assert found.sharding.is_fully_replicated and len(found.devices()) == 4
    np.testing.assert_allclose(found, draw(keys, w)["mean"], rtol=1e-6)
    with pytest.raises(ValueError, match="divisible"):
        jax.jit(run)(keys[:6], w)
