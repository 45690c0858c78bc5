"""Any token's probability from an interface that names the few likeliest and takes a bias."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxml.language.tokenwise import NextLogProbs, ScoreToken, TokenScores

TopK = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``fn(contexts [n, l], tokens [n], biases [n]) -> (ids [n, k], log-probabilities [n, k])``: the
``k >= 2`` likeliest tokens that follow when the bias is added to the logit of the token."""

MAX_BIAS = 100.0
"""What the usual interfaces take, either way."""

_SURE = np.log1p(-1e-2)  # above it, float32 log-probabilities begin to lose the odds
_FIRST_STEP = 4.0
_MAX_CALLS = 40


def bias_for(log_prob: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns the bias that makes a token of this log-probability as likely as all others.

    ``b = -logit p``; for small ``p`` this is the paper's ``-log p``.
    """
    log_prob = np.asarray(log_prob, float)
    return np.clip(-_logit(log_prob), -MAX_BIAS, MAX_BIAS)


def log_prob_from_bias(
    biased: Float[np.ndarray, "..."], bias: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Recovers a log-probability from that under a bias ``b`` on the token.

    ``p_b = e^b p / (e^b p + 1 - p)``, so ``logit p = logit p_b - b`` and
    ``log p = log_sigmoid(logit p)``; in float64.
    """
    return -np.logaddexp(0.0, np.asarray(bias, float) - _logit(np.asarray(biased, float)))


def _logit(log_p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return log_p - np.log(-np.expm1(np.minimum(log_p, 0.0)))


def bias_scores(top_k: TopK) -> ScoreToken:
    """Scores tokens through ``top_k``, one or a few calls each.

    The first bias comes from the guess, which makes the token about as likely as all others
    together when it is right, and visible when it is roughly so. A token that is not among the
    ``k`` gets more bias; one that is so likely that its odds are lost in rounding gets less; the
    two bounds are bisected. A token that is not seen at ``MAX_BIAS`` has NaN, one that outweighs
    all others at ``-MAX_BIAS`` has 0.

    The token is the argmax without the bias when its log-probability less the bias is the largest
    of those seen, which costs no call.
    """

    def score(contexts, tokens, guesses):
        n = len(tokens)
        bias = np.where(np.isnan(guesses), 0.0, bias_for(np.nan_to_num(guesses, nan=-1.0)))
        low, high = np.full(n, -np.inf), np.full(n, np.inf)
        log_prob, is_argmax = np.full(n, np.nan), np.zeros(n, bool)
        calls, rows = np.zeros(n, np.int64), np.arange(n)
        while len(rows):
            ids, values = map(np.asarray, top_k(contexts[rows], tokens[rows], bias[rows]))
            calls[rows] += 1
            is_token = ids == tokens[rows, None]
            seen = is_token.any(1)
            own = np.where(is_token, values, -np.inf).max(1)
            exact = seen & (own <= _SURE)
            done = rows[exact]
            log_prob[done] = log_prob_from_bias(own[exact], bias[done])
            others = np.where(is_token, -np.inf, values).max(1)
            is_argmax[done] = (own - bias[rows])[exact] > others[exact]
            # What is left is too unlikely to be seen, or too likely to be read off.
            low[rows[~seen]] = bias[rows[~seen]]
            high[rows[seen & ~exact]] = bias[rows[seen & ~exact]]
            step = _FIRST_STEP * 2.0 ** (calls[rows] - 1)
            away = np.where(seen, bias[rows] - step, bias[rows] + step)
            with np.errstate(invalid="ignore"):
                middle = (low[rows] + high[rows]) / 2
            both = np.isfinite(low[rows]) & np.isfinite(high[rows])
            tried = np.clip(np.where(both, middle, away), -MAX_BIAS, MAX_BIAS)
            certain = rows[seen & ~exact & (bias[rows] == -MAX_BIAS)]
            log_prob[certain], is_argmax[certain] = 0.0, True
            again = ~exact & (calls[rows] < _MAX_CALLS) & (tried != bias[rows])
            bias[rows] = tried
            rows = rows[again]
        return TokenScores(log_prob, is_argmax, calls)

    return score


def simulate_top_k(next_log_probs: NextLogProbs, *, k: int = 5) -> TopK:
    """Makes ``TopK`` of a full distribution, to test what such an interface gives away.

    Raises:
      ValueError: ``k < 2``: one token does not tell whether another is the argmax.
    """
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}")

    def top_k(contexts, tokens, biases):
        values = np.array(next_log_probs(contexts), np.float32)
        at = np.arange(len(tokens))
        values[at, tokens] += np.asarray(biases, np.float32)
        values -= values.max(1, keepdims=True)
        values -= np.log(np.exp(values).sum(1, keepdims=True))
        ids = np.argpartition(-values, k - 1, axis=1)[:, :k]
        return ids, np.take_along_axis(values, ids, axis=1)

    return top_k
