"""The searches: what they keep, find, count and never exceed."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest

from jaxml import language as lm
from tests.language.prompt_cases import ALLOWED, VOCAB, Lock, small_gpt

K, M = 4, 6
RNG = np.random.default_rng(0)
SECRETS = RNG.integers(1, VOCAB, (K, M)).astype(np.int32)
START = RNG.integers(1, VOCAB, (K, M)).astype(np.int32)
KEYS = jax.random.split(jax.random.key(0), K)


def bind(step, oracle, **options):
    options = {"allowed": ALLOWED, **options}
    if step is lm.gcq_step:
        options = {"proxy": None, "query_batch": 8, "proxy_batch": 32, **options}
    return partial(step, oracle=oracle, **options)


def search(oracle, step=lm.gcq_step, *, keys=KEYS, start=START, n_steps=5000, buffer_size=4,
           stop=True, max_queries=3000, state=None, callback=None, **options):  # fmt: skip
    if state is None:
        state = lm.init_search(oracle, start, buffer_size=buffer_size, max_queries=max_queries)
    return lm.run_search(
        keys, state, bind(step, oracle, max_queries=max_queries, stop=stop, **options),
        oracle=oracle, n_steps=n_steps, max_queries=max_queries, stop=stop, callback=callback,
    )  # fmt: skip


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


SEARCHES = {
    "random": (lm.gcq_step, {}),
    "best-first": (lm.gcq_step, {"expand": "best_unexplored"}),
    "gcq": (lm.gcq_step, {"proxy": Lock(SECRETS, noise=1.0), "query_batch": 4}),
    "position first": (lm.position_first_step, {"n_tries": 6}),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_opens_the_lock_and_counts_exactly(name):
    step, options = SEARCHES[name]
    oracle = Lock(SECRETS)
    trace = []
    state = search(oracle, step, callback=lambda s, i: trace.append((s, i)), **options)
    assert state.solved.all()
    np.testing.assert_array_equal(state.best, SECRETS)
    asked = np.array([p for p, _ in oracle.asked])
    counts = np.bincount(asked, minlength=K)
    np.testing.assert_array_equal(state.ledger.queries, counts)
    np.testing.assert_array_equal(state.ledger.scored_tokens, 3 * counts)
    np.testing.assert_array_equal(state.ledger.prompt_tokens, 5 * counts)
    assert counts.max() <= 3000 and not state.ledger.failures.any()
    for (before, low), (after, high) in itertools.pairwise(trace):
        assert (high.best_loss <= low.best_loss).all()
        assert (high.worst_loss <= low.worst_loss).all()
        assert (high.queries >= low.queries).all() and (after.step == before.step + 1)
    # What stands in the buffer is what the oracle says of it.
    for problem in range(K):
        finite = np.isfinite(state.buffer.loss[problem])
        again = Lock(SECRETS)(np.full(finite.sum(), problem), state.buffer.prompts[problem, finite])
        np.testing.assert_allclose(
            again.parts.sum(1), state.buffer.loss[problem, finite], atol=1e-5
        )
        # None of it was paid for twice.
        kept = state.buffer.prompts[problem, finite]
        assert len(np.unique(kept, axis=0)) == len(kept)
    # No prompt was asked about that had been in the buffer at the time.
    if name == "random":
        assert len(set(oracle.asked)) >= 0.9 * len(oracle.asked)


@pytest.mark.parametrize("name", SEARCHES)
def test_nothing_in_the_buffer_is_asked_about_again(name):
    step, options = SEARCHES[name]
    oracle, few = Lock(SECRETS), np.arange(VOCAB) < 5
    before: list[set] = [set()]
    known: list[bool] = []

    def look(state, info):
        known.extend(asked in before[-1] for asked in oracle.asked)
        oracle.asked.clear()
        prompts = state.buffer.prompts
        before.append({(i, tuple(p)) for i in range(K) for p in prompts[i].tolist()})

    start = np.minimum(START, 4)
    search(oracle, step, start=start, n_steps=12, callback=look, **options | {"allowed": few})
    assert len(known) > 12 and not any(known)


@pytest.mark.parametrize("name", SEARCHES)
def test_problems_side_by_side_are_as_alone_and_runs_repeat(name):
    step, options = SEARCHES[name]
    together = search(Lock(SECRETS), step, n_steps=9, **options)
    same(together, search(Lock(SECRETS), step, n_steps=9, **options))
    for i in range(K):
        alone = dict(options)
        if "proxy" in alone:
            alone["proxy"] = Lock(SECRETS[i : i + 1], noise=1.0)
        single = search(
            Lock(SECRETS[i : i + 1]), step, keys=KEYS[i : i + 1], start=START[i : i + 1],
            n_steps=9, **alone,
        )  # fmt: skip
        same(single.buffer, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together.buffer))
        assert single.ledger.queries[0] == together.ledger.queries[i]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("max_queries", [1, 7, 50])
def test_the_budget_is_never_exceeded(name, max_queries):
    step, options = SEARCHES[name]
    oracle = Lock(SECRETS)
    state = search(oracle, step, max_queries=max_queries, stop=False, **options)
    assert (state.ledger.queries == max_queries).all()
    assert len(oracle.asked) == K * max_queries


def test_a_good_proxy_halves_the_queries():
    needed = {}
    for name, proxy in (("random", None), ("gcq", Lock(SECRETS))):
        counts = []
        for seed in range(5):
            keys = jax.random.split(jax.random.key(seed), K)
            state = search(Lock(SECRETS), proxy=proxy, query_batch=4, keys=keys)
            assert state.solved.all()
            counts.append(state.ledger.queries)
        needed[name] = np.mean(counts)
    assert needed["gcq"] <= needed["random"] / 2


def test_nan_is_counted_and_never_kept():
    oracle = Lock(SECRETS, nan_token=7)
    state = search(oracle, stop=False, max_queries=200)
    bad = [7 in prompt for _, prompt in oracle.asked]
    assert state.ledger.failures.sum() == sum(bad) > 0
    finite = np.isfinite(state.buffer.loss)
    assert not (state.buffer.prompts[finite] == 7).any() and finite.any(1).sum() >= 3


def test_an_oracle_that_dies_leaves_a_state_to_go_on_from():
    saved = []
    with pytest.raises(ConnectionError):
        search(Lock(SECRETS, fail_at=5), n_steps=12, callback=lambda s, i: saved.append(s))
    assert saved[-1].step == 3
    resumed = search(Lock(SECRETS), n_steps=12, state=saved[-1])
    same(resumed, search(Lock(SECRETS), n_steps=12))


def test_what_may_not_be_sent_is_not_sent():
    def admissible(prompts):
        return prompts.sum(1) % 2 == 0

    for step, options in (SEARCHES["gcq"], SEARCHES["random"], SEARCHES["position first"]):
        oracle = Lock(SECRETS)
        search(oracle, step, n_steps=6, stop=False, admissible=admissible, **options)
        assert all(sum(prompt) % 2 == 0 for _, prompt in oracle.asked[K:])
        allowed = np.broadcast_to(ALLOWED, (M, VOCAB)).copy()
        allowed[2] = False
        oracle = Lock(SECRETS)
        state = search(oracle, step, n_steps=6, stop=False, allowed=allowed, **options)
        np.testing.assert_array_equal(state.buffer.prompts[:, 0, 2], START[:, 2])
    nothing = search(
        Lock(SECRETS), n_steps=2, admissible=lambda prompts: np.zeros(len(prompts), bool)
    )
    assert (nothing.ledger.queries == 1).all() and nothing.step == 2


def test_short_circuit_changes_nothing_but_the_cost():
    model, variables = small_gpt()
    targets = lm.pad_targets(np.random.default_rng(2).integers(1, VOCAB, (K, 6)).astype(np.int32))
    following = lm.lm_next_token(model, variables, length=13, batch_size=64)
    found = {}
    for name, score, short in (
        ("full", lm.full_scores(following), False),
        ("short", lm.full_scores(following), True),
        ("top k", lm.bias_scores(lm.simulate_top_k(following, k=5)), True),
    ):
        oracle = lm.TokenwiseOracle(score, targets, prefix=(0,), short_circuit=short)
        found[name] = search(oracle, n_steps=12, buffer_size=3)
    for name in ("short", "top k"):
        np.testing.assert_array_equal(found[name].buffer.prompts, found["full"].buffer.prompts)
        np.testing.assert_array_equal(found[name].ledger.queries, found["full"].ledger.queries)
        np.testing.assert_array_equal(found[name].solved, found["full"].solved)
        saving = 1 - found[name].ledger.scored_tokens / found["full"].ledger.scored_tokens
        assert (saving >= 0).all() and saving.sum() > 0
    np.testing.assert_allclose(found["short"].buffer.loss, found["full"].buffer.loss, rtol=1e-5)
    np.testing.assert_allclose(found["top k"].buffer.loss, found["full"].buffer.loss, atol=1e-3)
    # Priors are good guesses: about one call a token.
    ledger = found["top k"].ledger
    assert ledger.calls.sum() / ledger.scored_tokens.sum() < 2


def test_prompts_to_begin_with():
    targets = [np.int32([1, 2, 3]), np.int32([4, 5, 6, 7, 8])]
    rows = lm.init_prompts(0, "repeat_target", targets=targets, suffix_len=7)
    assert rows.tolist() == [[3, 1, 2, 3, 1, 2, 3], [7, 8, 4, 5, 6, 7, 8]]
    rows = lm.init_prompts(0, "random", targets=targets, suffix_len=50, allowed=ALLOWED)
    assert rows.shape == (2, 50) and rows.min() > 0
    given = np.int32([[1, 2], [3, 4]])
    assert (lm.init_prompts(0, "given", given=given, suffix_len=2) == given).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "best"}, "init must be one of"),
        ({"how": "random", "suffix_len": 0}, "suffix_len must be positive, got 0"),
        ({"how": "random", "n": 1, "allowed": np.zeros(5, bool)}, "allowed must be a mask with a"),
        ({"how": "repeat_target", "targets": [[]]}, "none empty"),
        ({"how": "given", "given": START}, "given must be prompts of 3"),
    ],
)
def test_bad_first_prompts_are_named(options, message):
    options = {"suffix_len": 3, **options}
    with pytest.raises(ValueError, match=message):
        lm.init_prompts(0, options.pop("how"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": START[:, :0]}, "prompts must be 4, of one token or more"),
        ({"start": START[:2]}, "prompts must be 4"),
        ({"buffer_size": 0}, "buffer_size must be positive, got 0"),
        ({"max_queries": 0}, "max_queries must be at least 1"),
        ({"query_batch": 0}, "query_batch must lie in"),
        ({"proxy": Lock(SECRETS), "query_batch": 33}, "lie in 1..proxy_batch=32, got 33"),
        ({"expand": "worst"}, "expand must be one of"),
        ({"allowed": np.zeros(VOCAB, bool)}, "allowed must be a mask with a"),
        ({"allowed": np.ones((2, VOCAB), bool)}, r"allowed must be \[v\]"),
        ({"step": lm.position_first_step, "n_tries": 0}, "n_tries must be positive"),
        ({"keys": KEYS[:2]}, "keys must be 4, one a problem"),
    ],
)
def test_bad_searches_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        search(Lock(SECRETS), **options)
