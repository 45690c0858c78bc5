"""Scoring a target token by token, which may stop as soon as a prompt is hopeless."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxml.language.oracles import PAD, Answers, frame

NextLogProbs = Callable[[np.ndarray], np.ndarray]
"""``fn(contexts [n, l]) -> log-probabilities [n, v]`` of the token that follows."""


class TokenScores(NamedTuple):
    """What is known of one token after each of ``n`` contexts.

    Attributes:
      log_prob: of the token; NaN when there was no answer.
      is_argmax: whether it is the most likely one.
      calls: requests that this took.
    """

    log_prob: Float[np.ndarray, " n"]
    is_argmax: Bool[np.ndarray, " n"]
    calls: Int[np.ndarray, " n"]


ScoreToken = Callable[[np.ndarray, np.ndarray, np.ndarray], TokenScores]
"""``fn(contexts [n, l], tokens [n], guesses [n]) -> TokenScores``; a guess of a log-probability is
NaN where there is none."""


def full_scores(next_log_probs: NextLogProbs) -> ScoreToken:
    """Reads a token off the whole next-token distribution, one call each."""

    def score(contexts, tokens, guesses):
        log_probs = np.asarray(next_log_probs(contexts))
        log_prob = log_probs[np.arange(len(tokens)), tokens]
        calls = np.ones(len(tokens), np.int64)
        return TokenScores(log_prob, log_probs.argmax(1) == tokens, calls)

    return score


class TokenwiseOracle:
    """Scores the tokens of a target one after the other, each in calls of its own.

    ``loss = -sum_i log p(y_i | prefix, x, suffix, y_<i)`` as ``LogprobOracle`` has it. No term is
    negative, so once the sum is above its limit, and some token has not been the most likely one,
    a prompt can neither enter a buffer whose worst loss is that limit nor succeed: it is given up
    there, and nothing changes but the cost.

    Attributes:
      n_problems: number of targets.
      n_parts: tokens of the longest.
      queries_per_prompt: 1.
      targets: ids ``[k, t]``, see ``pad_targets``.
    """

    queries_per_prompt = 1

    def __init__(
        self,
        score_token: ScoreToken,
        targets: Int[np.ndarray, "k t"],
        *,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        short_circuit: bool = True,
    ):
        """Makes the oracle.

        Args:
          score_token: ``full_scores`` or ``bias_scores`` of what is asked.
          targets: from ``pad_targets``.
          prefix: ids ahead of every prompt.
          suffix: ids between prompt and target.
          short_circuit: whether to give prompts up at their limits.
        """
        self.score_token, self.targets = score_token, np.asarray(targets, np.int32)
        self.prefix, self.suffix, self.short_circuit = prefix, suffix, short_circuit
        self.n_problems, self.n_parts = self.targets.shape

    def __call__(self, problems, prompts, limits=None, priors=None) -> Answers:
        """Answers, see ``Oracle``."""
        contexts, targets = frame(prompts, self.prefix, self.suffix), self.targets[problems]
        n, t = targets.shape
        guesses = np.full((n, t), np.nan) if priors is None else -np.asarray(priors, float)
        parts = np.where(targets != PAD, np.inf, 0).astype(np.float32)
        total, success = np.zeros(n, np.float32), np.ones(n, bool)
        calls, scored, sent = (np.zeros(n, np.int64) for _ in range(3))
        alive = np.ones(n, bool)
        for i in range(t):
            (rows,) = np.nonzero(alive & (targets[:, i] != PAD))
            if not len(rows):
                break
            whole = np.concatenate([contexts, targets[:, :i]], axis=1)[rows]
            found = self.score_token(whole, targets[rows, i], guesses[rows, i])
            parts[rows, i] = 0 - np.asarray(found.log_prob, np.float32)
            success[rows] &= np.asarray(found.is_argmax, bool)
            calls[rows] += found.calls
            sent[rows] += found.calls * whole.shape[1]
            scored[rows] += 1
            total += np.where(alive, parts[:, i], np.float32(0))
            alive &= ~np.isnan(total)
            if limits is not None and self.short_circuit:
                alive &= success | ~(total > limits)
        success &= alive
        return Answers(parts, success, np.ones(n, np.int64), calls, scored, sent)
