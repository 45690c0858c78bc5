"""What all searches for prompts share: their state, the way they ask an oracle, and the loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxml.core.types import Key
from jaxml.language.buffer import Buffer, empty_buffer, insert
from jaxml.language.oracles import Ledger, Oracle, charge, empty_ledger
from jaxml.language.prompts import check_allowed

Admissible = Callable[[np.ndarray], np.ndarray]
"""``fn(prompts [n, m]) -> bool [n]``: which may be sent, such as those that survive the way through
text (``jaxml.data.tokenizers.round_trips``)."""


class SearchState(NamedTuple):
    """A search for ``k`` problems at once, all of it in numpy arrays.

    Attributes:
      buffer: the best prompts; every leaf leads with ``[k]``.
      parent: where a search that does not look back stands.
      solved: which problems have a prompt that succeeds.
      solution: the first such prompt.
      ledger: what it took.
      step: steps taken.
    """

    buffer: Buffer
    parent: Int[np.ndarray, "k m"]
    solved: Bool[np.ndarray, " k"]
    solution: Int[np.ndarray, "k m"]
    ledger: Ledger
    step: int

    @property
    def best(self) -> Int[np.ndarray, "k m"]:
        """The solution where there is one, else the prompt with the lowest loss."""
        return np.where(self.solved[:, None], self.solution, self.buffer.prompts[:, 0])


class SearchInfo(NamedTuple):
    """Where a search stands after a step; arrays ``[k]``.

    Attributes:
      queries: so far.
      scored_tokens: so far.
      best_loss: in the buffer.
      worst_loss: in the buffer, infinite until it is full.
      solved: so far.
    """

    queries: np.ndarray
    scored_tokens: np.ndarray
    best_loss: np.ndarray
    worst_loss: np.ndarray
    solved: np.ndarray


Step = Callable[[Key, SearchState], tuple[SearchState, SearchInfo]]
"""``step(keys [k], state)``: a search with its options bound by ``functools.partial``."""


def init_search(
    oracle: Oracle,
    prompts: Int[np.ndarray, "k m"],
    *,
    buffer_size: int,
    max_queries: int = 5000,
) -> SearchState:
    """Scores the first prompts, one for each problem, and puts each into an empty buffer.

    Raises:
      ValueError: not one prompt of at least one token for each problem, ``buffer_size < 1``, or a
        ``max_queries`` that does not pay for one prompt.
    """
    prompts = np.asarray(prompts, np.int32)
    k = oracle.n_problems
    if prompts.ndim != 2 or len(prompts) != k or not prompts.size:
        raise ValueError(f"prompts must be {k}, of one token or more, got shape {prompts.shape}")
    if max_queries < oracle.queries_per_prompt:
        raise ValueError(
            f"max_queries must be at least {oracle.queries_per_prompt}, one prompt, "
            f"got {max_queries}"
        )
    one = empty_buffer(buffer_size, suffix_len=prompts.shape[1], n_parts=oracle.n_parts)
    buffer = Buffer(*(np.repeat(np.asarray(leaf)[None], k, axis=0) for leaf in one))
    state = SearchState(buffer, prompts, np.zeros(k, bool), prompts, empty_ledger(k), 0)
    problems = np.arange(k)
    return query(state, oracle, problems, prompts[:, None], np.ones((k, 1), bool), max_queries)[0]


def active_problems(
    state: SearchState, oracle: Oracle, *, max_queries: int, stop: bool
) -> Int[np.ndarray, " a"]:
    """Returns which problems can pay for a prompt, and (with ``stop``) have no solution yet."""
    active = state.ledger.queries + oracle.queries_per_prompt <= max_queries
    return np.flatnonzero(active & ~state.solved if stop else active)


def query(
    state: SearchState,
    oracle: Oracle,
    problems: Int[np.ndarray, " a"],
    prompts: Int[np.ndarray, "a n m"],
    valid: Bool[np.ndarray, "a n"],
    max_queries: int,
    *,
    limits: Float[np.ndarray, " a"] | None = None,
    priors: Float[np.ndarray, "a p"] | None = None,
) -> tuple[SearchState, Float[np.ndarray, "a n"]]:
    """Asks the oracle about ``n`` prompts for each of ``a`` problems and keeps what is best.

    Args:
      state: the search.
      oracle: what to ask.
      problems: which they are, each once.
      prompts: for each.
      valid: which prompts to ask about; of them, the first that ``max_queries`` pays for.
      max_queries: for each problem, over the whole search.
      limits: for each problem, see ``Oracle``.
      priors: likewise.

    Returns:
      The new state, and the losses, infinite where nothing was asked or the answer was NaN.
    """
    left = (max_queries - state.ledger.queries[problems]) // oracle.queries_per_prompt
    asked = valid & (np.cumsum(valid, axis=1) <= left[:, None])
    rows, columns = np.nonzero(asked)
    n_problems, (a, n, m) = len(state.solved), prompts.shape
    parts = np.full((n_problems, n, oracle.n_parts), np.inf, np.float32)
    solved, solution, ledger = state.solved.copy(), state.solution.copy(), state.ledger
    if len(rows):
        answers = oracle(
            problems[rows],
            prompts[rows, columns],
            None if limits is None else limits[rows],
            None if priors is None else priors[rows],
        )
        ledger = charge(ledger, problems[rows], answers)
        parts[problems[rows], columns] = np.where(np.isnan(answers.parts), np.inf, answers.parts)
        success = np.zeros((a, n), bool)
        success[rows, columns] = answers.success
        for row in np.flatnonzero(success.any(1)):
            problem = problems[row]
            if not solved[problem]:
                solved[problem] = True
                solution[problem] = prompts[row, success[row].argmax()]
    loss = parts.sum(-1)
    everywhere = np.zeros((n_problems, n, m), np.int32)
    everywhere[problems] = prompts
    buffer = Buffer(*map(np.array, _insert(state.buffer, everywhere, parts, loss)))
    state = state._replace(buffer=buffer, solved=solved, solution=solution, ledger=ledger)
    return state, loss[problems]


def choose(
    prompts: Int[np.ndarray, "a n m"],
    valid: Bool[np.ndarray, "a n"],
    n: int,
    admissible: Admissible | None,
) -> tuple[Int[np.ndarray, "a k m"], Bool[np.ndarray, "a k"]]:
    """Takes the first ``n`` prompts of each row that are valid and admissible, as far as there are.

    ``admissible`` is asked about twice as many as are wanted at a time.
    """
    a, total, _ = prompts.shape
    if admissible is None:
        fits = valid
    else:
        fits = np.zeros((a, total), bool)
        for start in range(0, total, 2 * n):
            part = np.s_[:, start : start + 2 * n]
            wanted = valid[part] & (fits.sum(1) < n)[:, None]
            if wanted.any():
                fits[part][wanted] = admissible(prompts[part][wanted])
    order = np.argsort(~fits, axis=1, kind="stable")[:, :n]
    return np.take_along_axis(prompts, order[..., None], 1), np.take_along_axis(fits, order, 1)


def swap_mask(allowed: Bool[np.ndarray, "..."], suffix_len: int) -> Bool[np.ndarray, "m v"]:
    """Spreads ``allowed``, ``[v]`` or ``[m, v]``, over all places.

    Raises:
      ValueError: all tokens are forbidden, or a mask of another shape.
    """
    allowed = check_allowed(allowed)
    if allowed.ndim not in (1, 2) or (allowed.ndim == 2 and len(allowed) != suffix_len):
        raise ValueError(f"allowed must be [v] or [{suffix_len}, v], got shape {allowed.shape}")
    return np.broadcast_to(allowed, (suffix_len, allowed.shape[-1]))


def summarize(state: SearchState) -> SearchInfo:
    """Reads off where a search stands."""
    loss = state.buffer.loss
    return SearchInfo(
        state.ledger.queries, state.ledger.scored_tokens, loss[:, 0], loss[:, -1], state.solved
    )


def run_search(
    keys: Key,
    state: SearchState,
    step: Step,
    *,
    oracle: Oracle,
    n_steps: int,
    max_queries: int = 5000,
    stop: bool = True,
    callback: Callable[[SearchState, SearchInfo], None] | None = None,
) -> SearchState:
    """Takes steps until every problem is solved or out of queries, or ``n_steps`` have been taken.

    Step ``i`` of problem ``j`` draws with ``fold_in(keys[j], i)``, so a run that goes on from a
    saved state, with any number of problems beside, ends as one that never stopped. An exception of
    the oracle passes through: the state that the last callback has seen is good, and the queries of
    the step that failed are in no ledger. A step that finds nothing admissible costs no query, so
    it is ``n_steps`` that ends a search which can send nothing.

    Args:
      keys: typed keys ``[k]``.
      state: from ``init_search``.
      step: with all options bound, ``max_queries`` and ``stop`` too.
      oracle: the one of the step.
      n_steps: in all, those in ``state`` included.
      max_queries: for each problem.
      stop: whether a problem is done when it has a solution; otherwise its loss is lowered until
        its queries are spent.
      callback: called after each step.
    """
    if keys.shape != state.solved.shape:
        raise ValueError(f"keys must be {len(state.solved)}, one a problem, got {keys.shape}")
    while state.step < n_steps and len(
        active_problems(state, oracle, max_queries=max_queries, stop=stop)
    ):
        state, info = step(_fold_in(keys, state.step), state)
        if callback is not None:
            callback(state, info)
    return state


@jax.jit
def _fold_in(keys, step):
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)


_insert = jax.jit(jax.vmap(insert))
