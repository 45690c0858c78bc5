"""One-token swaps: which they are, and that they are drawn uniformly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxml.language.neighbours import open_swaps, sample_each_place, sample_neighbours

M, V = 6, 30


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, V, M).astype(np.int32)
    allowed = np.ones((M, V), bool)
    allowed[:, :5] = False
    near = prompt.copy()
    near[2] = (prompt[2] + 9) % V
    far = (prompt + 1) % V
    return prompt, np.stack([prompt, near, far]).astype(np.int32), allowed


def test_open_swaps_are_the_allowed_new_prompts(setting):
    prompt, seen, allowed = setting
    mask = np.asarray(jax.jit(open_swaps)(prompt, seen, allowed))
    known = {tuple(row) for row in seen.tolist()}
    for place in range(M):
        for token in range(V):
            new = prompt.copy()
            new[place] = token
            wanted = allowed[place, token] and tuple(new.tolist()) not in known
            assert mask[place, token] == wanted


def test_neighbours_are_distinct_and_new(setting):
    prompt, seen, allowed = setting
    mask = open_swaps(jnp.asarray(prompt), jnp.asarray(seen), jnp.asarray(allowed))
    rows, valid = jax.jit(sample_neighbours, static_argnames="n")(
        jax.random.key(0), prompt, mask, n=150
    )
    rows, valid = np.asarray(rows), np.asarray(valid)
    assert valid.sum() == int(mask.sum()) < 150  # there are no more
    rows = rows[valid]
    differs = rows != prompt
    assert (differs.sum(1) == 1).all()
    assert len(np.unique(rows, axis=0)) == len(rows)
    tokens = rows[differs]
    assert tokens.min() >= 5
    each, where = sample_each_place(jax.random.key(1), jnp.asarray(prompt), mask)
    assert np.asarray(where).all() and (np.diag(each) != prompt).all()
    assert ((np.asarray(each) != prompt).sum(1) == 1).all()
    shut = mask.at[3].set(False)
    assert np.asarray(
        sample_each_place(jax.random.key(1), jnp.asarray(prompt), shut)[1]
    ).tolist() == [i != 3 for i in range(M)]


def test_places_and_tokens_are_uniform(setting):
    prompt, seen, allowed = setting
    # Places with unequal numbers of tokens are drawn alike.
    allowed = allowed.copy()
    allowed[0, 5:25] = False
    mask = open_swaps(jnp.asarray(prompt), jnp.asarray(seen), jnp.asarray(allowed))
    draw = jax.jit(jax.vmap(lambda key: sample_neighbours(key, prompt, mask, n=1)[0][0]))
    rows = np.asarray(draw(jax.random.split(jax.random.key(2), 100_000)))
    differs = rows != prompt
    assert stats.chisquare(differs.sum(0)).pvalue > 1e-3
    tokens = np.bincount(rows[differs[:, 1], 1], minlength=V)
    assert stats.chisquare(tokens[np.asarray(mask)[1]]).pvalue > 1e-3
    assert tokens[~np.asarray(mask)[1]].sum() == 0
