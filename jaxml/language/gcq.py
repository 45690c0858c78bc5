"""GCQ: prompts found by asking, with a proxy model that says which to ask about; or without.

Ref: Hayase, Borevkovic, Carlini, Tramèr & Nasr, "Query-Based Adversarial Prompt Generation",
NeurIPS 2024.
"""

from functools import partial

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxml.core.types import Key
from jaxml.language.buffer import take
from jaxml.language.neighbours import open_swaps, sample_neighbours
from jaxml.language.oracles import Oracle
from jaxml.language.search import (
    Admissible,
    SearchInfo,
    SearchState,
    active_problems,
    choose,
    query,
    summarize,
    swap_mask,
)


def gcq_step(
    keys: Key,
    state: SearchState,
    *,
    oracle: Oracle,
    proxy: Oracle | None,
    allowed: Bool[np.ndarray, "..."],
    proxy_batch: int = 256,
    query_batch: int = 16,
    expand: str = "best",
    admissible: Admissible | None = None,
    max_queries: int = 5000,
    stop: bool = True,
) -> tuple[SearchState, SearchInfo]:
    """One step of GCQ (Algorithm 1), for all problems that are not done.

    Takes the best prompt of the buffer, draws ``proxy_batch`` of its neighbours, asks the oracle
    about the ``query_batch`` of them with the lowest loss of the proxy, and keeps what is no worse
    than the buffer's worst. Without a proxy it is random search: the neighbours that are asked
    about are drawn uniformly.

    The buffer's worst loss is the oracle's limit, so that an oracle which scores token by token can
    stop there; that changes nothing but the cost.

    Args:
      keys: typed keys ``[k]``, of this step.
      state: the search.
      oracle: what is audited; every query to it counts.
      proxy: a model of one's own with the same problems; what it answers is free. None for random
        search.
      allowed: tokens that a prompt may hold, bool ``[v]``, or ``[m, v]`` for each place.
      proxy_batch: neighbours that the proxy ranks.
      query_batch: at most so many queries.
      expand: ``"best"`` or ``"best_unexplored"``, see ``take``.
      admissible: which prompts may be sent, see ``Admissible``; asked in the order of the ranking.
      max_queries: for each problem, never exceeded.
      stop: whether problems with a solution are done.

    Returns:
      The new state, and SearchInfo.

    Raises:
      ValueError: a batch below 1 or ``query_batch > proxy_batch``, another ``expand``, or no token
        allowed.
    """
    if not 1 <= query_batch <= (query_batch if proxy is None else proxy_batch):
        raise ValueError(f"query_batch must lie in 1..proxy_batch={proxy_batch}, got {query_batch}")
    swaps = swap_mask(allowed, state.parent.shape[1])
    # Without a ranking, spare draws make up for those that are not admissible.
    n = query_batch * (1 if admissible is None else 4) if proxy is None else proxy_batch
    n = min(n, swaps.size)
    marked, priors, prompts, valid = jax.device_get(
        _propose(keys, state.buffer, swaps, n=n, expand=expand)
    )
    active = active_problems(state, oracle, max_queries=max_queries, stop=stop)
    is_active = np.isin(np.arange(len(state.solved)), active)[:, None]
    expanded = np.where(is_active, marked.expanded, state.buffer.expanded)
    prompts, valid = prompts[active], valid[active]
    if proxy is not None:
        prompts, valid = rank(proxy, active, prompts, valid)
    prompts, valid = choose(prompts, valid, query_batch, admissible)
    state, _ = query(
        state._replace(buffer=marked._replace(expanded=expanded), step=state.step + 1),
        oracle, active, prompts, valid, max_queries,
        limits=state.buffer.loss[active, -1], priors=priors[active],
    )  # fmt: skip
    return state, summarize(state)


def rank(
    proxy: Oracle,
    problems: Int[np.ndarray, " a"],
    prompts: Int[np.ndarray, "a n m"],
    valid: Bool[np.ndarray, "a n"],
) -> tuple[Int[np.ndarray, "a n m"], Bool[np.ndarray, "a n"]]:
    """Sorts the prompts of each problem by the proxy's loss, those that are not valid last."""
    loss = np.full(valid.shape, np.inf, np.float32)
    rows, columns = np.nonzero(valid)
    if len(rows):
        # A NaN stays where a sort puts it, behind all numbers.
        loss[rows, columns] = proxy(problems[rows], prompts[rows, columns]).parts.sum(-1)
    order = np.argsort(np.where(valid, loss, np.inf), axis=1, kind="stable")
    return np.take_along_axis(prompts, order[..., None], 1), np.take_along_axis(valid, order, 1)


@partial(jax.jit, static_argnames=("n", "expand"))
def _propose(keys, buffer, swaps, *, n, expand):
    def one(key, buffer):
        marked, parent, parts = take(buffer, expand=expand)
        open_ = open_swaps(parent, buffer.prompts, swaps)
        return marked, parts, *sample_neighbours(key, parent, open_, n=n)

    return jax.vmap(one)(keys, buffer)
