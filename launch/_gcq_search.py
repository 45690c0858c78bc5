"""Searches that are saved after every step, and what comes of them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxml import language, report
from jaxml.io import artifacts
from jaxml.language.buffer import Buffer
from jaxml.language.search import summarize
from launch._flags import UserError

_STRUCTURE = jax.tree.structure(
    language.SearchState(Buffer(*"1234"), "", "", "", language.Ledger(*"12345"), "")
)


class Search(NamedTuple):
    """A finished search.

    Attributes:
      state: its last.
      trace: ``SearchInfo`` of every step, the start included; arrays ``[steps + 1, k]``.
    """

    state: language.SearchState
    trace: language.SearchInfo


def search(keys, oracle, prompts, step, *, buffer_size, max_queries, n_steps=None, stop=True,
           folder=None, on_step=None) -> Search:  # fmt: skip
    """Searches from prompts ``[k, m]``, or goes on where an earlier run has stopped.

    Args:
      keys: typed keys ``[k]``.
      oracle: what is asked.
      prompts: to begin with.
      step: a step of a search, with its options bound.
      buffer_size: of the search.
      max_queries: for each problem.
      n_steps: at most; None means one for each query.
      stop: whether a problem with a solution is done.
      folder: where the state is kept; None keeps none.
      on_step: ``on_step(state)`` after each step.

    Raises:
      UserError: the oracle has failed; what it had answered is kept.
    """
    file = None if folder is None else folder / "state.npz"
    if file is not None and file.exists():
        state, trace = load(file)
    else:
        state = language.init_search(
            oracle, prompts, buffer_size=buffer_size, max_queries=max_queries
        )
        trace = [summarize(state)]

    def save(state, info):
        trace.append(info)
        if file is not None:
            keep(file, state, trace)
        if on_step is not None:
            on_step(state)

    try:
        state = language.run_search(
            keys, state, step, oracle=oracle, n_steps=n_steps or max_queries,
            max_queries=max_queries, stop=stop,
            callback=save,
        )  # fmt: skip
    except language.OracleError as error:
        raise UserError(f"{error}; --resume goes on from the last step") from error
    if file is not None:
        keep(file, state, trace)
    return Search(state, stack(trace))


def stack(trace) -> language.SearchInfo:
    """Turns the infos of the steps into one of arrays ``[steps, k]``."""
    return language.SearchInfo(*map(np.stack, zip(*trace, strict=True)))


def keep(file, state, trace) -> None:
    """Writes a state and its trace."""
    leaves = {f"state/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    infos = {f"trace/{name}": array for name, array in stack(trace)._asdict().items()}
    artifacts.save_npz(file, leaves | infos)


def load(file) -> tuple[language.SearchState, list[language.SearchInfo]]:
    """Reads what ``keep`` wrote."""
    arrays = artifacts.load_npz(file)
    leaves = [arrays[f"state/{i}"] for i in range(_STRUCTURE.num_leaves)]
    leaves[-1] = int(leaves[-1])
    trace = [arrays[f"trace/{name}"] for name in language.SearchInfo._fields]
    return (
        jax.tree.unflatten(_STRUCTURE, leaves),
        [language.SearchInfo(*arrays) for arrays in zip(*trace, strict=True)],
    )


def write_trace(path, trace: language.SearchInfo, names) -> None:
    """Writes one line for each step and problem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"target": name, "step": step}
        | {field: array[step, i] for field, array in trace._asdict().items()}
        for i, name in enumerate(names)
        for step in range(len(trace.queries))
        # Once a target is done, its line does not change any more.
        if step == 0 or trace.queries[step, i] > trace.queries[step - 1, i]
    ]
    report.write_csv(path, rows)
