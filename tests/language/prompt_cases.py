"""A small random language model, and an oracle without one whose best prompt is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import nn
from jaxml.language import Answers

VOCAB = 24
ALLOWED = np.arange(VOCAB) > 0


@functools.cache
def small_gpt(seed=0):
    """Returns a GPT of random weights, with logits a few units apart, and its variables."""
    model = nn.GPT(
        VOCAB, context=24, width=16, hidden=(32, 32), heads=2, positions="rotary", token_shift=True
    )
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))
    return model, jax.tree.map(lambda leaf: 2 * leaf, variables)


def log_softmax(logits):
    """Returns log-probabilities in float64."""
    logits = np.asarray(logits, float)
    shift = logits.max(-1, keepdims=True)
    return logits - shift - np.log(np.exp(logits - shift).sum(-1, keepdims=True))


class Lock:
    """Opens when every token of the prompt is right; part ``i`` is the distance of token ``i``.

    It counts for itself what it is asked, and can be told to fail, or to answer with NaN.
    """

    queries_per_prompt = 1

    def __init__(self, keys, *, noise=0.0, nan_token=None, fail_at=None):
        self.keys = np.asarray(keys)
        self.n_problems, self.n_parts = self.keys.shape
        self.noise, self.nan_token, self.fail_at = noise, nan_token, fail_at
        self.asked, self.calls, self.limits = [], 0, []

    def __call__(self, problems, prompts, limits=None, priors=None):
        self.calls += 1
        if self.calls == self.fail_at:
            raise ConnectionError("the oracle is gone")
        self.asked += [(int(p), tuple(row)) for p, row in zip(problems, prompts, strict=True)]
        self.limits.append(limits)
        parts = np.abs(prompts - self.keys[problems]).astype(np.float32)
        # A proxy is wrong in the same way each time it is asked.
        parts += self.noise * ((prompts * 7919 + self.keys[problems] * 104729) % 5)
        if self.nan_token is not None:
            parts[(prompts == self.nan_token).any(1), 0] = np.nan
        ones = np.ones(len(prompts), int)
        success = (prompts == self.keys[problems]).all(1)
        return Answers(parts, success, ones, ones, 3 * ones, 5 * ones)
