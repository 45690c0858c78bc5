"""Search without a proxy: first find the place that is worth it, then a token for it.

Ref: Hayase, Borevkovic, Carlini, Tramèr & Nasr, "Query-Based Adversarial Prompt Generation",
NeurIPS 2024, the proxy-free variant.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxml.core.types import Key
from jaxml.language.gcg import SwapRule
from jaxml.language.neighbours import open_swaps, sample_each_place, sample_neighbours
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


def position_first_step(
    keys: Key,
    state: SearchState,
    *,
    oracle: Oracle,
    allowed: Bool[np.ndarray, "..."],
    n_tries: int = 12,
    swaps: SwapRule | None = None,
    admissible: Admissible | None = None,
    max_queries: int = 5000,
    stop: bool = True,
) -> tuple[SearchState, SearchInfo]:
    """One step: a swap at every place of the best prompt, then ``n_tries`` more at the best place.

    GCG spends about as many tries on every place; here most go where the first one did best.
    Both rounds ask without limits, for the choice of the place needs every loss.

    Args:
      keys: typed keys ``[k]``, of this step.
      state: the search; its buffer may be of size 1.
      oracle: what is audited.
      allowed: tokens that a prompt may hold, bool ``[v]``, or ``[m, v]`` for each place.
      n_tries: of the second round.
      swaps: ``gradient_swaps`` to draw from the steepest tokens; None draws from all that are
        allowed, with no gradient: a black-box search.
      admissible: which prompts may be sent.
      max_queries: for each problem, never exceeded.
      stop: whether problems with a solution are done.

    Returns:
      The new state, and SearchInfo.

    Raises:
      ValueError: ``n_tries < 1``, or no token allowed.
    """
    if n_tries < 1:
        raise ValueError(f"n_tries must be positive, got {n_tries}")
    m = state.parent.shape[1]
    mask = swap_mask(allowed, m)
    parents, priors = state.buffer.prompts[:, 0], state.buffer.parts[:, 0]
    # One mask for all problems, or one each.
    mask = mask[None] if swaps is None else swaps(parents, mask)
    mask = jnp.broadcast_to(mask, (len(parents), *mask.shape[1:]))
    tried, open_ = jax.device_get(_each_place(keys, state.buffer.prompts, mask))
    seen = np.concatenate([tried, state.buffer.prompts], axis=1)
    active = active_problems(state, oracle, max_queries=max_queries, stop=stop)
    first, valid = tried[active], open_[active]
    if admissible is not None and valid.any():
        valid[valid] = admissible(first[valid])
    state, loss = query(
        state._replace(step=state.step + 1),
        oracle, active, first, valid, max_queries, priors=priors[active],
    )  # fmt: skip
    place = np.zeros(len(parents), np.int32)
    place[active] = loss.argmin(1)
    n = min(n_tries * (1 if admissible is None else 4), mask.shape[2])
    prompts, valid = jax.device_get(_one_place(keys, parents, seen, mask, place, n=n))
    prompts, valid = choose(prompts[active], valid[active], n_tries, admissible)
    # Those that the first round has solved, or left without queries, are done.
    still = np.isin(active, active_problems(state, oracle, max_queries=max_queries, stop=stop))
    state, _ = query(
        state, oracle, active, prompts, valid & still[:, None], max_queries, priors=priors[active]
    )
    return state, summarize(state)


@jax.jit
def _each_place(keys, seen, swaps):
    def one(key, seen, swaps):
        return sample_each_place(key, seen[0], open_swaps(seen[0], seen, swaps))

    return jax.vmap(one)(keys, seen, swaps)


@partial(jax.jit, static_argnames="n")
def _one_place(keys, parents, seen, swaps, place, *, n):
    def one(key, parent, seen, swaps, place):
        here = (jnp.arange(parent.shape[0]) == place)[:, None]
        # Another key than the first round's.
        return sample_neighbours(
            jax.random.fold_in(key, 1), parent, open_swaps(parent, seen, swaps) & here, n=n
        )

    return jax.vmap(one)(keys, parents, seen, swaps, place)
