"""The same rounds over many machines, by Flower: a ClientApp and a ServerApp around pure functions.

One Flower node carries a part of the cohort as an array axis, since a message a client would leave
an accelerator idle. Compiled functions are kept by value in this module, so that they outlive the
message that made them wherever the process does.

Needs the extra ``flower`` (flwr); nothing else here imports it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from jaxml.backdoor.clients import Clients
from jaxml.backdoor.federated import apply_update, client_update, cohort_update, representations
from jaxml.backdoor.representation_filter import label_rows
from jaxml.core.types import Key, PyTree

Part = tuple[int, Clients]
"""Number of the first client of a node among all, and the node's clients."""


@functools.cache
def train_function(
    module: nn.Module, learning_rate: float, n_epochs: int, batch_size: int
) -> Callable[..., PyTree]:
    """Returns a jitted ``train(key, params, first, cohort)``, one for equal arguments."""
    update = functools.partial(
        client_update, apply=module.apply, learning_rate=learning_rate, n_epochs=n_epochs,
        batch_size=batch_size,
    )  # fmt: skip

    @jax.jit
    def train(key, params, first, cohort):
        return cohort_update(key, params, cohort, update=update, first=first)

    return train


@functools.cache
def read_function(module: nn.Module) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns a jitted ``read(params, cohort, label) -> (rows, there)``, one for each module."""

    @jax.jit
    def read(params, cohort, label):
        h = jax.vmap(functools.partial(representations, module, params))(cohort.x)
        return label_rows(h, cohort, label, level="user")

    return read


def client_app(
    load: Callable[[int, int], Part],
    *,
    module: nn.Module,
    learning_rate: float,
    n_epochs: int,
    batch_size: int,
):
    """Makes the ClientApp of a node.

    It answers ``query`` with the representation rows of its clients and ``train`` with their
    updates. Flower sends it to its workers by pickle, ``load`` included.

    Args:
      load: ``load(partition, n_partitions) -> (first, clients)``; the node's data.
      module: the network; its parameters travel as one flat array.
      learning_rate: of ``client_update``.
      n_epochs: likewise.
      batch_size: likewise.

    Returns:
      A ``flwr.clientapp.ClientApp``.
    """
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def receive(message, context):
        node = context.node_config
        first, cohort = load(int(node["partition-id"]), int(node["num-partitions"]))
        shapes = jax.eval_shape(module.init, jax.random.key(0), cohort.x[0, :1])
        template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        (flat,) = message.content["arrays"].to_numpy_ndarrays()
        params = ravel_pytree(template)[1](jnp.asarray(flat))
        return first, cohort, params, message.content["config"]

    def reply(message, first, *arrays):
        content = RecordDict(
            {
                "arrays": ArrayRecord([np.asarray(array) for array in arrays]),
                "config": ConfigRecord({"first": first}),
            }
        )
        return Message(content, reply_to=message)

    @app.query()
    def query(message, context):
        first, cohort, params, config = receive(message, context)
        rows, there = read_function(module)(params, cohort, config["label"])
        return reply(message, first, rows, there)

    @app.train()
    def train(message, context):
        first, cohort, params, config = receive(message, context)
        key = jax.random.wrap_key_data(jnp.array(config["key"], jnp.uint32))
        fn = train_function(module, learning_rate, n_epochs, batch_size)
        updates = fn(key, params, jnp.int32(first), cohort)
        flat = jax.vmap(lambda update: ravel_pytree(update)[0])(updates)
        return reply(message, first, flat, cohort.weights)

    return app


def run_round(
    grid,
    key: Key,
    params: PyTree,
    *,
    aggregate: Callable[[PyTree, jax.Array], PyTree],
    learning_rate: float = 1.0,
    accept: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    label: int = 0,
    group: str = "",
    timeout: float = 600.0,
) -> PyTree:
    """Runs one round on all nodes of a grid; equals the same round in one process.

    Args:
      grid: a ``flwr.serverapp.Grid``.
      key: a typed key; client ``i`` of all gets ``fold_in(key, i)``.
      params: the server's parameters.
      aggregate: ``aggregate(updates, weights [c]) -> update``.
      learning_rate: factor on the aggregated update.
      accept: ``accept(rows [c, d], there [c]) -> accepted [c]``; then nodes are asked for
        representations first, those without an accepted client do not train, and an update that
        was not accepted weighs nothing. None accepts all.
      label: whose representations are asked for.
      group: name of the round.
      timeout: seconds to wait for the nodes.

    Returns:
      The new parameters.

    Raises:
      RuntimeError: a node did not answer, or answered with an error.
    """
    flat, unflatten = ravel_pytree(params)
    nodes, accepted = list(grid.get_node_ids()), None
    ask = functools.partial(_ask, grid, np.asarray(flat), group, timeout)
    if accept is not None:
        answers = ask(nodes, "query", {"label": label})
        rows, there = _join(answers)
        accepted = np.asarray(accept(rows, there))
        nodes = [
            node
            for node, (first, (_, part)) in answers.items()
            if accepted[first : first + len(part)].any()
        ]
    answers = ask(nodes, "train", {"key": jax.random.key_data(key).tolist()})
    if not answers:
        return params
    updates, weights = _join(answers)
    if accepted is not None:
        numbers = [np.arange(first, first + len(part)) for first, (_, part) in _in_order(answers)]
        weights = jnp.where(accepted[np.concatenate(numbers)], weights, 0)
    delta = aggregate(jax.vmap(unflatten)(updates), weights)
    return apply_update(params, delta, learning_rate=learning_rate)


def server_app(
    params: PyTree,
    key: Key,
    *,
    n_rounds: int,
    on_round: Callable[[int, PyTree], None],
    **options,
):
    """Makes a ServerApp that runs ``n_rounds`` rounds.

    Args:
      params: initial parameters.
      key: a typed key; round ``t`` gets ``fold_in(key, t)``.
      n_rounds: rounds.
      on_round: ``on_round(t, params)`` after each.
      **options: of ``run_round``.

    Returns:
      A ``flwr.serverapp.ServerApp``.
    """
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid, context):
        current = params
        for t in range(n_rounds):
            round_key = jax.random.fold_in(key, t)
            current = run_round(grid, round_key, current, group=str(t), **options)
            on_round(t, current)

    return app


def _in_order(answers) -> list[tuple[int, list[np.ndarray]]]:
    """Puts the nodes' answers in the order of their clients."""
    return sorted(answers.values(), key=lambda answer: answer[0])


def _join(answers) -> list[jax.Array]:
    parts = [arrays for _, arrays in _in_order(answers)]
    return [
        jnp.concatenate([jnp.asarray(a) for a in column]) for column in zip(*parts, strict=True)
    ]


def _ask(grid, flat, group, timeout, nodes, kind, config) -> dict[int, tuple[int, list]]:
    """Sends one message to each node and returns ``{node: (first, arrays)}``."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

    messages = [
        Message(
            RecordDict({"arrays": ArrayRecord([flat]), "config": ConfigRecord(config)}),
            dst_node_id=node,
            message_type=kind,
            group_id=group,
        )
        for node in nodes
    ]
    replies = list(grid.send_and_receive(messages, timeout=timeout)) if messages else []
    answers = {}
    for message in replies:
        if message.has_error():
            raise RuntimeError(f"a node failed to {kind}: {message.error.reason}")
        arrays = message.content["arrays"].to_numpy_ndarrays()
        first = message.content["config"]["first"]
        answers[message.metadata.src_node_id] = (first, arrays)
    if len(answers) < len(nodes):
        raise RuntimeError(f"{len(nodes) - len(answers)} of {len(nodes)} nodes did not answer")
    return answers
