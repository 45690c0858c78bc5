"""Oracles of a small model, against its logits one by one; what they count."""

import jax
import numpy as np
import pytest

from jaxml import language as lm
from tests.language.prompt_cases import VOCAB, log_softmax, small_gpt

TARGETS = [np.int32([5, 17, 2, 9]), np.int32([3, 3])]
PREFIX, SUFFIX = (0,), (7, 8)


@pytest.fixture(scope="module")
def case():
    model, variables = small_gpt()
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, VOCAB, (11, 5)).astype(np.int32)
    problems = rng.integers(0, 2, 11)
    return model, variables, problems, prompts


def by_hand(model, variables, problems, prompts):
    """Returns losses and successes from the logits of one sequence at a time."""
    losses, successes = [], []
    for problem, prompt in zip(problems, prompts, strict=True):
        tokens, loss, success = [*PREFIX, *prompt.tolist(), *SUFFIX], 0.0, True
        for token in TARGETS[problem].tolist():
            padded = np.zeros((1, 24), np.int32)
            padded[0, : len(tokens)] = tokens
            row = log_softmax(_logits(model, variables, padded)[0, len(tokens) - 1])
            loss -= row[token]
            success &= row.argmax() == token
            tokens.append(token)
        losses.append(loss)
        successes.append(success)
    return np.array(losses), np.array(successes)


def _logits(model, variables, tokens):
    return _apply(variables, tokens, model=model)


_apply = jax.jit(
    lambda variables, tokens, model: model.apply(variables, tokens), static_argnames="model"
)


def oracles(model, variables):
    targets, framed = lm.pad_targets(TARGETS), {"prefix": PREFIX, "suffix": SUFFIX}
    following = lm.lm_next_token(model, variables, length=12, batch_size=8)
    return {
        "logprob": lm.LogprobOracle(
            lm.lm_log_probs(model, variables, batch_size=8), targets, **framed
        ),
        "tokenwise": lm.TokenwiseOracle(lm.full_scores(following), targets, **framed),
        "top k": lm.TokenwiseOracle(
            lm.bias_scores(lm.simulate_top_k(following, k=5)), targets, **framed
        ),
    }


def test_all_oracles_say_what_the_logits_say(case):
    model, variables, problems, prompts = case
    losses, successes = by_hand(*case)
    for name, oracle in oracles(model, variables).items():
        answers = oracle(problems, prompts)
        np.testing.assert_allclose(answers.parts.sum(1), losses, atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(answers.success, successes)
        assert (answers.parts >= 0).all() and (answers.parts[problems == 1, 2:] == 0).all()
        np.testing.assert_array_equal(answers.queries, 1)
        lengths = np.array([4, 2])[problems]
        np.testing.assert_array_equal(answers.scored_tokens, lengths)
        if name == "logprob":
            np.testing.assert_array_equal(answers.calls, 1)
            np.testing.assert_array_equal(answers.prompt_tokens, 8 + lengths)
        if name == "tokenwise":
            np.testing.assert_array_equal(answers.calls, lengths)
            sent = 8 * lengths + lengths * (lengths - 1) // 2
            np.testing.assert_array_equal(answers.prompt_tokens, sent)


def test_greedy_continuations_succeed(case):
    model, variables, _, prompts = case
    contexts = np.concatenate([np.zeros((11, 1), np.int32), prompts], axis=1)
    following = lm.lm_next_token(model, variables, length=12)
    said = contexts
    for _ in range(3):
        said = np.concatenate([said, following(said).argmax(1)[:, None].astype(np.int32)], axis=1)
    oracle = lm.LogprobOracle(lm.lm_log_probs(model, variables), said[:, 6:], prefix=PREFIX)
    assert oracle(np.arange(11), prompts).success.all()
    other = np.where(np.arange(5)[None] == 0, 1 + prompts % (VOCAB - 1), prompts)
    assert not oracle(np.arange(11), other).success.all()


def test_a_prompt_is_given_up_beyond_its_limit_unless_it_may_succeed(case):
    model, variables, problems, prompts = case
    oracle = oracles(model, variables)["tokenwise"]
    full = oracle(problems, prompts)
    losses = full.parts.sum(1)
    limits = np.full(11, np.median(losses), np.float32)
    short = oracle(problems, prompts, limits)
    below = losses <= limits
    np.testing.assert_array_equal(short.parts[below], full.parts[below])
    assert (short.parts.sum(1)[~below] > limits[~below]).all()
    np.testing.assert_array_equal(short.success, full.success)
    running = np.cumsum(full.parts, 1)
    lengths = np.array([4, 2])[problems]
    # Up to the first token that lifts the sum above the limit, if the argmax failed by then.
    for i in range(11):
        over = np.flatnonzero(running[i] > limits[i])
        expected = lengths[i] if full.success[i] or not len(over) else over[0] + 1
        assert expected <= short.scored_tokens[i] <= lengths[i]
    assert short.scored_tokens.sum() < full.scored_tokens.sum()
    free = lm.TokenwiseOracle(
        oracle.score_token, oracle.targets, prefix=PREFIX, suffix=SUFFIX, short_circuit=False
    )
    np.testing.assert_array_equal(free(problems, prompts, limits).parts, full.parts)


def test_rows_are_split_over_devices(case):
    model, variables, problems, prompts = case
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    targets = lm.pad_targets(TARGETS)
    one, four = (
        lm.LogprobOracle(lm.lm_log_probs(model, variables, batch_size=8, mesh=m), targets)
        for m in (None, mesh)
    )
    np.testing.assert_allclose(
        four(problems, prompts).parts, one(problems, prompts).parts, atol=1e-5
    )


def test_any_function_is_an_oracle_and_a_nan_is_counted():
    def log_probs(contexts, targets):
        values = -np.abs(contexts[:, : targets.shape[1]] - targets).astype(float)
        values[contexts[:, 0] == 9, 0] = np.nan
        return values, values == 0

    oracle = lm.LogprobOracle(log_probs, lm.pad_targets([[4, 5], [6]]))
    prompts = np.int32([[4, 5], [9, 5], [4, 7]])
    answers = oracle(np.array([0, 0, 0]), prompts)
    assert answers.success.tolist() == [True, False, False]
    state = lm.init_search(oracle, np.int32([[9, 5], [6, 1]]), buffer_size=2)
    assert state.ledger.failures.tolist() == [1, 0]
    assert np.isinf(state.buffer.loss[0]).all() and state.solved.tolist() == [False, True]


def test_a_classifier_is_asked_about_every_string():
    seen = []

    def classify(tokens):
        seen.append(tokens)
        scores = np.stack([(tokens == 3).mean(1), (tokens == 4).mean(1)], axis=1)
        return scores, scores.max(1) > 0.3

    strings = np.int32([[[3, 3, 1], [1, 1, 1]], [[4, 1, 1], [3, 4, 1]]])
    oracle = lm.ClassifierOracle(classify, strings, n_parts=2)
    answers = oracle(np.array([0, 1, 1]), np.int32([[1, 1], [2, 2], [4, 4]]))
    np.testing.assert_allclose(answers.parts, [[0.2, 0.0], [0.1, 0.2], [0.1, 0.6]], rtol=1e-6)
    assert answers.success.tolist() == [False, True, False]
    assert answers.queries.tolist() == answers.calls.tolist() == [2, 2, 2]
    assert answers.prompt_tokens.tolist() == [10, 10, 10]
    assert sum(map(len, seen)) == 6
    with pytest.raises(ValueError, match=r"strings must be \[k, s, l\]"):
        lm.ClassifierOracle(classify, strings[0], n_parts=2)


def test_bad_input_is_named(case):
    model, variables, _, prompts = case
    fn = lm.lm_log_probs(model, variables)
    with pytest.raises(ValueError, match="targets must be one or more, none empty; got 2"):
        lm.pad_targets([[1], []])
    with pytest.raises(ValueError, match="targets must hold token ids, got -3"):
        lm.pad_targets([[1, -3]])
    with pytest.raises(ValueError, match=r"token ids must lie in 0..23, got .* to 24"):
        lm.LogprobOracle(fn, lm.pad_targets([[24]]))(np.zeros(1, int), prompts[:1])
    with pytest.raises(ValueError, match="at most context=24 a row, got 25"):
        lm.LogprobOracle(fn, lm.pad_targets([np.ones(21, int)]))(np.zeros(1, int), prompts[:1])
    with pytest.raises(ValueError, match="contexts must be at most length=2 long, got 5"):
        lm.lm_next_token(model, variables, length=2)(prompts)
