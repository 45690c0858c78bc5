"""The gradient by one-hot rows against differences, and the swaps that it suggests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxml import language as lm
from tests.language.prompt_cases import ALLOWED, VOCAB, small_gpt

PROMPT, TARGET = np.int32([3, 9, 4, 9, 20]), np.int32([5, 17, 2])
PREFIX, SUFFIX = (0,), (7, 8)


@partial(jax.jit, static_argnames="model")
def gradient_of(variables, target, model):
    return lm.token_gradient(model, variables, PROMPT, target, prefix=PREFIX, suffix=SUFFIX)


def recurrent(variables, tokens):
    """A causal model of few lines: GPT's attention rounds to float32 whatever its weights are."""
    embedding, mixing = variables
    if jnp.issubdtype(tokens.dtype, jnp.integer):
        tokens = jax.nn.one_hot(tokens, VOCAB, dtype=embedding.dtype)
    x = jnp.tanh(jnp.cumsum(jnp.sin(tokens @ embedding), axis=1) @ mixing)
    return x @ embedding.T


def test_gradient_equals_central_differences_in_float64():
    fixed = [np.eye(VOCAB)[list(ids)] for ids in (PREFIX, SUFFIX, TARGET[:-1])]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        variables = jnp.asarray(rng.normal(size=(VOCAB, 8))), jnp.asarray(rng.normal(size=(8, 8)))
        gradient = gradient_of(variables, TARGET, recurrent)
        assert gradient.dtype == jnp.float64
        padded = gradient_of(variables, np.append(TARGET, np.int32([lm.PAD] * 2)), recurrent)
        np.testing.assert_allclose(padded, gradient, atol=1e-12)

        @jax.jit
        def loss_of(rows):
            tokens = jnp.concatenate([fixed[0], rows, *fixed[1:]])[None]
            log_probs = jax.nn.log_softmax(recurrent(variables, tokens)[0, -len(TARGET) :])
            return -log_probs[np.arange(len(TARGET)), TARGET].sum()

        rows, step = np.eye(VOCAB)[PROMPT], 1e-5
        for place, token in zip(rng.integers(0, 5, 20), rng.integers(0, VOCAB, 20), strict=True):
            there = np.zeros_like(rows)
            there[place, token] = step
            difference = (loss_of(rows + there) - loss_of(rows - there)) / (2 * step)
            assert abs(gradient[place, token] - difference) <= 1e-6 * max(abs(difference), 1e-2)


def test_suggested_swaps_are_the_steepest_that_are_allowed():
    model, variables = small_gpt()
    targets = lm.pad_targets([TARGET, TARGET[:2]])
    allowed = np.broadcast_to(ALLOWED, (5, VOCAB)).copy()
    allowed[2] = False  # a place that must stay
    rule = lm.gradient_swaps(model, variables, targets, top_k=4, prefix=PREFIX, suffix=SUFFIX)
    masks = np.asarray(rule(np.stack([PROMPT, PROMPT]), allowed))
    for mask, target in zip(masks, (TARGET, TARGET[:2]), strict=True):
        padded = np.append(target, np.int32([lm.PAD] * (3 - len(target))))
        gradient = np.array(gradient_of(variables, padded, model))
        gradient[~allowed] = np.inf
        gradient[np.arange(5), PROMPT] = np.inf
        for place in (0, 1, 3, 4):
            assert set(np.flatnonzero(mask[place])) == set(np.argsort(gradient[place])[:4])
        assert not mask[2].any()
    with pytest.raises(ValueError, match=r"top_k must lie in 1\.\.24, the vocabulary, got 25"):
        lm.gradient_swaps(model, variables, targets, top_k=25)


def test_gcg_moves_on_even_when_nothing_is_better():
    model, variables = small_gpt()
    targets = lm.pad_targets([TARGET, TARGET[:2]])
    oracle = lm.LogprobOracle(lm.lm_log_probs(model, variables), targets, prefix=PREFIX)
    rule = lm.gradient_swaps(model, variables, targets, top_k=8, prefix=PREFIX)
    state = lm.init_search(oracle, np.stack([PROMPT, PROMPT]), buffer_size=2)
    step = partial(lm.gcg_step, oracle=oracle, swaps=rule, allowed=ALLOWED, query_batch=16)
    losses = []
    keys = jax.random.split(jax.random.key(0), 2)
    for i in range(6):
        before = state
        state, info = step(jax.vmap(jax.random.fold_in, (0, None))(keys, i), state)
        assert (info.best_loss <= before.buffer.loss[:, 0]).all()
        going = ~before.solved
        assert ((state.parent != before.parent).sum(1) == going).all()
        losses.append(oracle(np.arange(2), state.parent).parts.sum(1))
    assert (
        np.min(losses, axis=0) < oracle(np.arange(2), np.stack([PROMPT] * 2)).parts.sum(1)
    ).all()
    assert (state.ledger.queries <= 1 + 6 * 16).all()
    with pytest.raises(ValueError, match="query_batch must be positive, got 0"):
        step(keys, state, query_batch=0)
