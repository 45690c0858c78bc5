"""A round through Flower's apps and messages equals the round in one process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.backdoor import aggregators, flower, representation_filter
from jaxml.backdoor.clients import Clients
from jaxml.backdoor.federated import apply_update
from jaxml.nn import MLP

flwr_app = pytest.importorskip("flwr.app")

MODULE = MLP((8, 6), 3)
LOCAL = {"learning_rate": 0.1, "n_epochs": 1, "batch_size": 4}


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Says which run this process serves, as Flower's own runtime does where it asks for it."""
    module = pytest.importorskip("flwr.supercore.task_identity")
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(module.TaskIdentity, name, 1)


def everybody():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 8, 4)).astype(np.float32)
    y = np.tile(np.arange(8) % 3, (12, 1)).astype(np.int32)
    return Clients(jnp.asarray(x), jnp.asarray(y), jnp.ones((12, 8), bool))


def load(partition, n_partitions):
    size = 12 // n_partitions
    first = partition * size
    return first, everybody().take(jnp.arange(first, first + size))


class OneProcess:
    """A grid whose nodes are called directly, in an order of their own."""

    def __init__(self, app, n_nodes):
        self.app, self.n_nodes, self.calls = app, n_nodes, []

    def get_node_ids(self):
        return [100 + i for i in range(self.n_nodes)]

    def send_and_receive(self, messages, *, timeout):
        for message in reversed(messages):
            node = message.metadata.dst_node_id
            self.calls.append((node, message.metadata.message_type))
            config = {"partition-id": node - 100, "num-partitions": self.n_nodes}
            context = flwr_app.Context(1, node, config, flwr_app.RecordDict(), {})
            yield self.app(message, context)


def in_process(key, params, accepted):
    clients = everybody()
    updates = flower.train_function(MODULE, *LOCAL.values())(key, params, jnp.int32(0), clients)
    delta = aggregators.mean(updates, jnp.where(accepted, clients.weights, 0))
    return apply_update(params, delta, learning_rate=0.5)


def test_a_round_over_nodes_equals_the_round_in_one_process():
    key = jax.random.key(3)
    params = MODULE.init(jax.random.key(0), jnp.zeros((1, 4)))
    app = flower.client_app(load, module=MODULE, **LOCAL)
    options = {"aggregate": aggregators.mean, "learning_rate": 0.5}
    grid = OneProcess(app, 3)
    found = flower.run_round(grid, key, params, **options)
    expected = in_process(key, params, jnp.ones(12, bool))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)

    # With a filter, and the clients of one whole node rejected.
    def accept(rows, there):
        fitted = representation_filter.fit_filter(rows, there, alpha_bar=0.1, k=2, method="norm")
        return representation_filter.accept(fitted, rows, there) & (jnp.arange(12) >= 4)

    grid.calls.clear()
    found = flower.run_round(grid, key, params, accept=accept, label=1, **options)
    rows, there = flower.read_function(MODULE)(params, everybody(), 1)
    expected = in_process(key, params, accept(rows, there))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert sorted(kind for _, kind in grid.calls) == ["query"] * 3 + ["train"] * 2

    # The second message finds the compiled function of the first, also after a pickle.
    compiled = flower.train_function(MODULE, *LOCAL.values())
    before = compiled._cache_size()
    again = flower.client_app(load, module=MLP((8, 6), 3), **LOCAL)
    flower.run_round(OneProcess(again, 3), key, params, **options)
    assert compiled._cache_size() == before

    seen = []
    server = flower.server_app(
        params, key, n_rounds=2, on_round=lambda t, p: seen.append((t, p)), **options
    )
    server(grid, flwr_app.Context(1, 0, {}, flwr_app.RecordDict(), {}))
    expected = in_process(jax.random.fold_in(key, 0), params, jnp.ones(12, bool))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), seen[0][1], expected)
    assert [t for t, _ in seen] == [0, 1]


def test_a_silent_node_is_an_error():
    app = flower.client_app(load, module=MODULE, **LOCAL)
    grid = OneProcess(app, 3)
    grid.send_and_receive = functools.partial(lambda messages, timeout: [])
    params = MODULE.init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(RuntimeError, match="3 of 3 nodes did not answer"):
        flower.run_round(grid, jax.random.key(0), params, aggregate=aggregators.mean)
