"""GPT against a numpy re-statement of GPT-2, and its cache against the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxml.nn import GPT
from jaxml.nn.gpt import rotate

V, T, WIDTH, HEADS, HIDDEN = 11, 12, 8, 2, (16, 12)


def make(**options):
    return GPT(V, context=T, width=WIDTH, hidden=HIDDEN, heads=HEADS, **options)


@pytest.fixture(scope="module", params=["learned", "rotary with shift"])
def network(request):
    shift = request.param != "learned"
    model = make(positions="rotary" if shift else "learned", token_shift=shift)
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, V)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    # The initial biases and scales are zeros and ones, which would hide where they go.
    rng = np.random.default_rng(0)

    def noisy(leaf):
        return np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)

    return model, jax.tree.map(noisy, variables), tokens


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def gelu_new(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turned(x, t):
    """Multiplies pairs, as complex numbers, by ``exp(i t rate)``."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * t * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], axis=-1)


def numpy_gpt(params, tokens, model):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    table = p["embed"]["embedding"]
    x = table[tokens]
    if model.token_shift:
        before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
        x = x + before @ p["shift"]["kernel"]
    if model.positions == "learned":
        x = x + p["position"][: len(tokens)]
    for i in range(len(HIDDEN)):
        block = p[f"blocks_{i}"]
        y = layer_norm(x, block["norm_1"])
        q, k, v = (
            np.einsum("td,dhe->the", y, block[n]["kernel"]) + block[n]["bias"]
            for n in ("query", "key", "value")
        )
        out = np.zeros_like(q)
        for t in range(len(tokens)):
            for h in range(HEADS):
                a, b = q[t, h], k[: t + 1, h]
                if model.positions == "rotary":
                    a, b = turned(a, t), np.stack([turned(row, s) for s, row in enumerate(b)])
                out[t, h] = softmax(b @ a / np.sqrt(WIDTH // HEADS)) @ v[: t + 1, h]
        x = x + np.einsum("the,hed->td", out, block["out"]["kernel"]) + block["out"]["bias"]
        y = layer_norm(x, block["norm_2"]) @ block["up"]["kernel"] + block["up"]["bias"]
        x = x + gelu_new(y) @ block["down"]["kernel"] + block["down"]["bias"]
    return layer_norm(x, p["norm"]) @ table.T


def test_equals_a_numpy_restatement_compiled_and_eager(network):
    model, variables, tokens = network
    eager = model.apply(variables, tokens)
    compiled = jax.jit(model.apply)(variables, tokens)
    for row, logits in zip(np.asarray(tokens), np.asarray(eager), strict=True):
        np.testing.assert_allclose(
            logits, numpy_gpt(variables["params"], row, model), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


def test_a_cache_changes_nothing_however_the_tokens_come(network):
    model, variables, tokens = network
    whole = model.apply(variables, tokens)
    decode = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache, method="decode"))
    cache, pieces = model.init_cache(3, 10), []
    for a, b in ((0, 4), (4, 5), (5, 6), (6, 9)):
        logits, cache = decode(tokens[:, a:b], cache)
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-4, atol=1e-5)
    assert int(cache.used) == 9


def test_is_causal(network):
    model, variables, tokens = network
    changed = tokens.at[:, 6:].set((tokens[:, 6:] + 1) % V)
    a, b = model.apply(variables, tokens), model.apply(variables, changed)
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    assert not np.allclose(a[:, 6:], b[:, 6:])


def test_takes_weights_over_the_vocabulary_and_gives_the_last_logits_alone(network):
    model, variables, tokens = network
    whole = model.apply(variables, tokens)
    np.testing.assert_allclose(
        model.apply(variables, jax.nn.one_hot(tokens, V)), whole, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(model.apply(variables, tokens, last=2), whole[:, -2:])
    assert model.apply(variables, tokens, last=0).shape == (len(tokens), 0, V)
    with pytest.raises(ValueError, match=r"last must lie in \[0, 9\], .* got 10"):
        model.apply(variables, tokens, last=10)


def test_rotation_depends_on_distance_only():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(s, t):
        return (rotate(a, jnp.asarray([s])) * rotate(b, jnp.asarray([t]))).sum()

    np.testing.assert_allclose(product(3, 1), product(40, 38), rtol=1e-4)
    np.testing.assert_allclose(product(0, 0), (a * b).sum(), rtol=1e-6)
    assert not np.allclose(product(3, 1), product(1, 3))


def test_has_gpt2s_parameters():
    shapes = jax.eval_shape(GPT(50257).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 124_439_808


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "sinus"}, "positions must be one of"),
        ({"positions": "rotary", "heads": 8}, "rotary positions need width / heads even"),
        ({"heads": 3}, "heads must divide the width 8"),
    ],
)
def test_bad_options(options, message):
    model = make(**options) if "heads" not in options else GPT(V, T, WIDTH, HIDDEN, **options)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


def test_sequences_that_are_too_long():
    model = make()
    with pytest.raises(ValueError, match="at most context=12"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 13), jnp.int32))
    with pytest.raises(ValueError, match="length must be at most context=12"):
        model.init_cache(1, 13)
