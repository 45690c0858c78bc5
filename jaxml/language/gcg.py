"""GCG: prompts found with the gradient of a model whose weights are at hand.

Ref: Zou, Wang, Carlini, Nasr, Kolter & Fredrikson, "Universal and Transferable Adversarial Attacks
on Aligned Language Models", 2023.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxml.core.types import Key, PyTree
from jaxml.language.generate import Model
from jaxml.language.lm_scores import last_logits, vocabulary
from jaxml.language.neighbours import open_swaps, sample_neighbours
from jaxml.language.oracles import PAD, Oracle
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

SwapRule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``fn(prompts [k, m], allowed [m, v]) -> bool [k, m, v]``: which swaps are worth a try."""


def token_gradient(
    model: Model,
    variables: PyTree,
    prompt: Int[Array, " m"],
    target: Int[Array, " t"],
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> Float[Array, "m v"]:
    """Returns the gradient of a target's loss by the one-hot rows of a prompt.

    The loss is ``-sum_i log p(y_i | prefix, x, suffix, y_<i)``. Entry ``(i, w)`` is the derivative
    along the row of token ``w`` at place ``i``, by which one ranks swaps.

    Args:
      model: takes rows of weights over the vocabulary in place of ids, as ``jaxml.nn.GPT`` does.
      variables: of the model, in the dtype of the result.
      prompt: ids.
      target: ids; ``PAD`` counts nothing.
      prefix: ids ahead of the prompt.
      suffix: ids between prompt and target.
    """
    size = vocabulary(model, variables)
    dtype = jnp.result_type(*jax.tree.leaves(variables))
    before, after = (jnp.asarray(ids, jnp.int32).reshape(-1) for ids in (prefix, suffix))
    used, target = target != PAD, jnp.maximum(target, 0)
    fixed = [jax.nn.one_hot(ids, size, dtype=dtype) for ids in (before, after, target[:-1])]

    def loss(rows):
        tokens = jnp.concatenate([fixed[0], rows, *fixed[1:]])[None]
        logits = last_logits(model, variables, tokens, target.shape[0])[0]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)[:, 0]
        return -jnp.where(used, log_probs, 0).sum()

    return jax.grad(loss)(jax.nn.one_hot(prompt, size, dtype=dtype))


def gradient_swaps(
    model: Model,
    variables: PyTree,
    targets: Int[np.ndarray, "k t"],
    *,
    top_k: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> SwapRule:
    """Makes the rule that opens, at each place, the ``top_k`` allowed swaps of steepest descent.

    Args:
      model: as in ``token_gradient``; hashable.
      variables: of the model.
      targets: from ``pad_targets``, one for each problem.
      top_k: swaps for each place.
      prefix: ids ahead of the prompt.
      suffix: ids between prompt and target.

    Raises:
      ValueError: ``top_k`` that is not within the vocabulary.
    """
    size = vocabulary(model, variables)
    if not 1 <= top_k <= size:
        raise ValueError(f"top_k must lie in 1..{size}, the vocabulary, got {top_k}")
    options = {"prefix": tuple(prefix), "suffix": tuple(suffix), "top_k": top_k}

    def rule(prompts, allowed):
        return _steepest(variables, prompts, targets, allowed, model=model, **options)

    return rule


@partial(jax.jit, static_argnames=("model", "prefix", "suffix", "top_k"))
def _steepest(variables, prompts, targets, allowed, *, model, prefix, suffix, top_k):
    def one(prompt, target):
        gradient = token_gradient(model, variables, prompt, target, prefix=prefix, suffix=suffix)
        # The parent's own token is no swap, and takes no place among the best.
        open_ = open_swaps(prompt, prompt[None], allowed)
        scores, tokens = jax.lax.top_k(jnp.where(open_, -gradient, -jnp.inf), top_k)
        places = jnp.arange(prompt.shape[0])[:, None]
        return jnp.zeros(open_.shape, bool).at[places, tokens].set(scores > -jnp.inf)

    return jax.vmap(one)(prompts, targets)


def gcg_step(
    keys: Key,
    state: SearchState,
    *,
    oracle: Oracle,
    swaps: SwapRule,
    allowed: Bool[np.ndarray, "..."],
    query_batch: int = 128,
    admissible: Admissible | None = None,
    max_queries: int = 5000,
    stop: bool = True,
) -> tuple[SearchState, SearchInfo]:
    """One step of GCG: tries swaps that the gradient suggests and moves to the best of them.

    It moves even when the best is worse than where it stands; the buffer keeps the best of all.

    Args:
      keys: typed keys ``[k]``, of this step.
      state: the search; ``state.parent`` is where it stands.
      oracle: scores the candidates; for the white-box search, the model of the gradient itself.
      swaps: from ``gradient_swaps``; each step takes one gradient for each problem.
      allowed: tokens that a prompt may hold, bool ``[v]``, or ``[m, v]`` for each place.
      query_batch: candidates for each problem.
      admissible: which prompts may be asked about.
      max_queries: for each problem, never exceeded.
      stop: whether problems with a solution are done.

    Returns:
      The new state, and SearchInfo.

    Raises:
      ValueError: ``query_batch < 1``, or no token allowed.
    """
    if query_batch < 1:
        raise ValueError(f"query_batch must be positive, got {query_batch}")
    mask = swaps(state.parent, swap_mask(allowed, state.parent.shape[1]))
    n = min(query_batch * (1 if admissible is None else 4), mask[0].size)
    prompts, valid = jax.device_get(_sample(keys, state.parent, mask, n=n))
    active = active_problems(state, oracle, max_queries=max_queries, stop=stop)
    prompts, valid = choose(prompts[active], valid[active], query_batch, admissible)
    state, loss = query(
        state._replace(step=state.step + 1), oracle, active, prompts, valid, max_queries
    )
    parent, rows = state.parent.copy(), np.arange(len(active))
    found = np.isfinite(loss).any(1)
    parent[active[found]] = prompts[rows, loss.argmin(1)][found]
    state = state._replace(parent=parent)
    return state, summarize(state)


@partial(jax.jit, static_argnames="n")
def _sample(keys, parents, swaps, *, n):
    return jax.vmap(partial(sample_neighbours, n=n))(keys, parents, swaps)
