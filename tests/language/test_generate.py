"""Sampling against the naive loop, the probabilities it draws from, and scores by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxml.language import document_nll, generate, token_nll
from jaxml.nn import GPT

V, T = 11, 12


@pytest.fixture(scope="module")
def network():
    model = GPT(V, context=T, width=8, hidden=(16, 16), heads=2, positions="rotary",
                token_shift=True)  # fmt: skip
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    return model, jax.tree.map(lambda leaf: 3 * leaf, variables)


@pytest.fixture(scope="module")
def sample(network):
    model, variables = network
    prompts = np.asarray(jax.random.randint(jax.random.key(1), (7, 4), 0, V))
    keys = jax.random.split(jax.random.key(2), 7)
    options = {"n_tokens": 8, "top_k": 5, "banned": (0, 3), "batch_size": 4}
    return model, variables, prompts, keys, options


def test_the_cache_draws_what_the_naive_loop_draws(sample):
    model, variables, prompts, keys, options = sample
    fast = generate(keys, model, variables, prompts, **options)
    assert fast.shape == (7, 8) and fast.dtype == np.int32
    assert not np.isin(fast, (0, 3)).any()
    naive = generate(keys, _apply(model), variables, prompts, **options)
    np.testing.assert_array_equal(fast, naive)


def _apply(model):
    # One function, so that nothing is compiled twice.
    return _APPLY.setdefault(model, lambda variables, tokens: model.apply(variables, tokens))


_APPLY = {}


def test_a_row_depends_on_its_key_and_prompt_only(sample):
    model, variables, prompts, keys, options = sample
    whole = generate(keys, model, variables, prompts, **options)
    np.testing.assert_array_equal(whole, generate(keys, model, variables, prompts, **options))
    order = np.array([5, 0, 2])
    done = []
    some = generate(
        keys[order], model, variables, prompts[order], callback=done.append, **options
    )  # fmt: skip
    np.testing.assert_array_equal(some, whole[order])
    assert done == [3]
    other = generate(keys, model, variables, prompts, **options | {"batch_size": 7})
    np.testing.assert_array_equal(other, whole)
    others = generate(
        jax.random.split(jax.random.key(9), 7), model, variables, prompts, **options
    )  # fmt: skip
    assert (others != whole).any()


def test_greedy_is_the_argmax_of_the_whole_pass(sample):
    model, variables, prompts, keys, _ = sample
    greedy = generate(keys, model, variables, prompts, n_tokens=8, top_k=1, batch_size=4)
    cold = generate(keys, model, variables, prompts, n_tokens=8, temperature=0.0, batch_size=4)
    np.testing.assert_array_equal(greedy, cold)
    tokens = np.concatenate([prompts, greedy], axis=1)
    logits = jax.jit(model.apply)(variables, tokens)
    np.testing.assert_array_equal(np.asarray(logits)[:, 3:-1].argmax(-1), greedy)


@pytest.mark.parametrize("top_k", [None, 4])
def test_first_tokens_are_drawn_by_their_probabilities(network, top_k):
    model, variables = network
    n = 4000
    prompts = np.tile([[1, 5, 2]], (n, 1))
    drawn = generate(
        jax.random.split(jax.random.key(0), n), model, variables, prompts,
        n_tokens=1, top_k=top_k, temperature=2.0, banned=(0,), batch_size=n,
    )  # fmt: skip
    logits = np.asarray(jax.jit(model.apply)(variables, prompts[:1]))[0, -1].astype(float) / 2
    logits[0] = -np.inf
    if top_k is not None:
        logits[np.argsort(logits)[:-top_k]] = -np.inf
    p = np.exp(logits - logits.max())
    p /= p.sum()
    seen = np.bincount(drawn[:, 0], minlength=V)
    assert not seen[p == 0].any()
    assert scipy.stats.chisquare(seen[p > 0], n * p[p > 0]).pvalue > 1e-3


def test_nll_is_the_log_softmax_and_padding_changes_nothing(network):
    model, variables = network
    documents = [np.array([4, 4, 1]), np.array([2]), np.arange(9), np.arange(20) % V]
    nll = document_nll(model, variables, documents, bos=0, context=T, batch_size=4)
    assert [len(row) for row in nll] == [3, 1, 9, T - 1]
    tokens = np.resize([0, 4, 4, 1], (3, T))
    rows = token_nll(model, variables, tokens, batch_size=4)
    assert rows.shape == (3, T - 1)
    np.testing.assert_allclose(rows[:, :3], np.tile(nll[0], (3, 1)), rtol=2e-5)
    apply = jax.jit(model.apply)
    for document, row in zip(documents, nll, strict=True):
        document = document[: T - 1]
        # Another padding than theirs.
        padded = np.full((1, T), 6)
        padded[0, : len(document) + 1] = np.append(0, document)
        logits = np.asarray(apply(variables, padded))[0, : len(document)].astype(float)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(
            row, -np.log(p[np.arange(len(document)), document]), rtol=2e-5, atol=2e-6
        )


def test_bad_input_is_refused(sample):
    model, variables, prompts, keys, options = sample

    def run(**changes):
        arguments = {"keys": keys, "prompts": prompts, **options, **changes}
        generate(arguments.pop("keys"), model, variables, arguments.pop("prompts"), **arguments)

    for changes, message in (
        ({"prompts": prompts[0]}, r"prompts must be \[n, p\]"),
        ({"prompts": prompts[:, :0]}, r"prompts must be \[n, p\]"),
        ({"prompts": prompts - 20}, "prompts must be token ids"),
        ({"keys": keys[:3]}, "keys must be 7 typed keys"),
        ({"keys": np.zeros(7)}, "keys must be 7 typed keys"),
        ({"n_tokens": 0}, "n_tokens must be positive"),
        ({"top_k": 0}, "top_k must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"temperature": float("nan")}, "temperature must not be negative"),
        ({"banned": tuple(range(V))}, "banned must be some ids of 0..10"),
        ({"banned": (V,)}, "banned must be some ids of 0..10"),
        ({"n_tokens": 9}, "length must be at most context=12, got 13"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**changes)
    with pytest.raises(ValueError, match="t >= 2"):
        token_nll(model, variables, np.zeros((2, 1), int))
    for documents, context in (([], 9), ([np.zeros(0, int)], 9), ([np.ones(3, int)], 1)):
        with pytest.raises(ValueError, match="documents must be one or more"):
            document_nll(model, variables, documents, bos=0, context=context)
