"""What a search for prompts asks: oracles, and the ledger of what their answers cost."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

PAD = -1
"""Stands behind the tokens of a target that is shorter than the longest."""

LogProbs = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``fn(contexts [n, l], targets [n, t]) -> (log-probabilities [n, t], is argmax [n, t])``; what
stands at ``PAD`` does not matter."""


class Answers(NamedTuple):
    """What an oracle says about ``n`` prompts, and what it took.

    Attributes:
      parts: terms of the loss, none negative; their sum is the loss. Infinity where the oracle
        stopped before this term, NaN where it had no answer.
      success: whether the prompt does what is asked of it.
      queries: prompts scored, in the paper's count; more than one for a prompt that is tried on
        several strings.
      calls: requests sent.
      scored_tokens: tokens whose log-probability was asked for, or classified strings.
      prompt_tokens: tokens sent, over all calls.
    """

    parts: Float[np.ndarray, "n p"]
    success: Bool[np.ndarray, " n"]
    queries: Int[np.ndarray, " n"]
    calls: Int[np.ndarray, " n"]
    scored_tokens: Int[np.ndarray, " n"]
    prompt_tokens: Int[np.ndarray, " n"]


class Oracle(Protocol):
    """Scores prompts for ``k`` problems, such as targets, that are searched side by side.

    Attributes:
      n_problems: ``k``.
      n_parts: ``p`` of its answers.
      queries_per_prompt: what every prompt adds to ``Answers.queries``.
    """

    n_problems: int
    n_parts: int
    queries_per_prompt: int

    def __call__(
        self,
        problems: Int[np.ndarray, " n"],
        prompts: Int[np.ndarray, "n m"],
        limits: Float[np.ndarray, " n"] | None = None,
        priors: Float[np.ndarray, "n p"] | None = None,
    ) -> Answers:
        """Answers for prompt ``i`` of problem ``problems[i]``.

        Args:
          problems: which problem each prompt is for.
          prompts: token ids.
          limits: losses beyond which a prompt that fails is of no interest: an oracle that asks in
            several calls may stop there. None means no limit.
          priors: parts of a similar prompt, NaN where unknown: a guess that may save calls.
        """


class Ledger(NamedTuple):
    """Totals of ``Answers`` for each of ``k`` problems, int64 ``[k]``.

    Attributes:
      queries: as in ``Answers``, like the three that follow.
      calls: see there.
      scored_tokens: see there.
      prompt_tokens: see there.
      failures: prompts with a NaN for an answer, whose loss counts as infinite.
    """

    queries: np.ndarray
    calls: np.ndarray
    scored_tokens: np.ndarray
    prompt_tokens: np.ndarray
    failures: np.ndarray


def empty_ledger(n_problems: int) -> Ledger:
    """Returns a ledger of zeros."""
    return Ledger(*(np.zeros(n_problems, np.int64) for _ in Ledger._fields))


def charge(ledger: Ledger, problems: Int[np.ndarray, " n"], answers: Answers) -> Ledger:
    """Adds answers for ``problems [n]`` to a copy of the ledger."""
    failures = np.isnan(answers.parts).any(1)
    new = []
    for total, cost in zip(ledger, (*answers[2:], failures), strict=True):
        total = total.copy()
        np.add.at(total, problems, cost)
        new.append(total)
    return Ledger(*new)


def pad_targets(targets: Sequence[np.ndarray]) -> Int[np.ndarray, "k t"]:
    """Stacks targets ``[t_i]`` to ``[k, t]``, with ``PAD`` behind the shorter ones.

    Raises:
      ValueError: no target, an empty one, or a negative id.
    """
    if not len(targets) or not all(len(target) for target in targets):
        raise ValueError(f"targets must be one or more, none empty; got {len(targets)}")
    out = np.full((len(targets), max(map(len, targets))), PAD, np.int32)
    for row, target in zip(out, targets, strict=True):
        if np.min(target) < 0:
            raise ValueError(f"targets must hold token ids, got {np.min(target)}")
        row[: len(target)] = target
    return out


class LogprobOracle:
    """Scores a whole target in one call: ``loss = -sum_i log p(y_i | prefix, x, suffix, y_<i)``.

    A prompt succeeds when every token of the target is the most likely one, so that greedy decoding
    emits it. Limits and priors change nothing.

    Attributes:
      n_problems: number of targets.
      n_parts: tokens of the longest.
      queries_per_prompt: 1.
      targets: ids ``[k, t]``, see ``pad_targets``.
    """

    queries_per_prompt = 1

    def __init__(
        self,
        log_probs: LogProbs,
        targets: Int[np.ndarray, "k t"],
        *,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
    ):
        """Makes the oracle.

        Args:
          log_probs: see ``LogProbs``; ``lm_log_probs`` makes one of a model.
          targets: from ``pad_targets``.
          prefix: ids ahead of every prompt, such as the token that begins a document.
          suffix: ids between prompt and target.
        """
        self.log_probs, self.targets = log_probs, np.asarray(targets, np.int32)
        self.prefix, self.suffix = prefix, suffix
        self.n_problems, self.n_parts = self.targets.shape

    def __call__(self, problems, prompts, limits=None, priors=None) -> Answers:
        """Answers, see ``Oracle``."""
        contexts, targets = frame(prompts, self.prefix, self.suffix), self.targets[problems]
        log_probs, is_argmax = self.log_probs(contexts, targets)
        used = targets != PAD
        n_used = used.sum(1)
        ones = np.ones(len(prompts), np.int64)
        return Answers(
            # 0 - x and not -x, which would be a negative zero for certainty.
            np.where(used, 0 - np.asarray(log_probs, np.float32), np.float32(0)),
            (np.asarray(is_argmax, bool) | ~used).all(1),
            ones, ones, n_used, contexts.shape[1] + n_used,
        )  # fmt: skip


def frame(prompts, prefix: Sequence[int], suffix: Sequence[int]) -> Int[np.ndarray, "n l"]:
    """Puts a prefix before and a suffix behind every prompt ``[n, m]``."""
    before, after = (
        np.broadcast_to(np.asarray(ids, np.int32), (len(prompts), len(ids)))
        for ids in (prefix, suffix)
    )
    return np.concatenate([before, np.asarray(prompts, np.int32), after], axis=1)
