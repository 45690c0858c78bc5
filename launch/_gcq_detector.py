"""A small detector of licence text, hardened against random tails: what the suffixes evade."""

import functools
import importlib.metadata
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxml import train
from jaxml.core.chunk import row_blocks
from jaxml.core.rng import named_key
from jaxml.data import text, tokenizers
from jaxml.train.losses import Metrics

# Packages that jaxml requires, so that they are there; each comes with its licence.
PACKAGES = ("jaxlib", "numpy", "scipy", "matplotlib", "flax", "ml_dtypes", "scikit-learn",
            "tensorstore", "orbax-checkpoint", "pillow", "jaxtyping", "optax")  # fmt: skip
HEADS = ("attention", "maximum", "mean")
N_OUTPUTS = len(HEADS)


class Detector(nn.Module):
    """Reads tokens through windows of three and pools them in three ways, each with a head.

    Text is flagged when any head gives it more than one half: a suffix has to mislead them all.
    """

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, tokens, train: bool = False):
        """Maps tokens ``[n, l]`` to logits ``[n, 3]``."""
        x = nn.Embed(self.vocab_size, self.width)(tokens)
        # A convolution; on a CPU a dense layer of the three shifted inputs is faster.
        edge = jnp.zeros_like(x[:, :1])
        before, after = (
            jnp.concatenate(pair, axis=1) for pair in ((edge, x[:, :-1]), (x[:, 1:], edge))
        )
        x = nn.gelu(nn.Dense(2 * self.width)(jnp.concatenate([before, x, after], axis=-1)))
        weights = jax.nn.softmax(nn.Dense(1)(x), axis=1)
        pooled = ((weights * x).sum(1), jax.nn.logsumexp(4 * x, axis=1) / 4, x.mean(1))
        return jnp.concatenate([nn.Dense(1)(p) for p in pooled], axis=1)


class Windows(NamedTuple):
    """Token ids ``[n, window]``; no two of them are equal."""

    licence: np.ndarray
    other: np.ndarray
    tokenizer: object


def licence_files() -> list[str]:
    """Reads the licences of the packages, each text once.

    Raises:
      FileNotFoundError: there is hardly any.
    """
    texts = {}
    for name in PACKAGES:
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in sorted(files, key=str):
            if re.match(r"(LICEN[CS]E|COPYING|NOTICE)", file.name) and file.suffix != ".py":
                path = file.locate()
                if path.is_file():
                    content = path.read_text(encoding="utf-8", errors="replace")
                    texts.setdefault(content, None)
    if sum(map(len, texts)) < 100_000:
        raise FileNotFoundError("the installed packages come with too few licences to learn from")
    return list(texts)


@functools.cache
def make_windows(seed: int, *, window: int, vocab_size: int) -> Windows:
    """Cuts licences, and as much of Python's help topics and sources, into windows."""
    rng = np.random.default_rng(seed)
    licences = "\n".join(licence_files())
    size = len(licences.encode())
    corpus = text.load("topics").text.tobytes().decode(errors="replace")
    sources = text.pieces(seed, text.load("stdlib"), n_bytes=2000).text[: size // 2]
    others = corpus[: size // 2] + sources.tobytes().decode(errors="replace")
    tokenizer = tokenizers.train_bpe([licences, others], vocab_size=vocab_size)
    cut = []
    for ids in tokenizers.encode(tokenizer, [licences, others]):
        rows = ids[: len(ids) // window * window].reshape(-1, window)
        # Many licences hold the same clauses.
        cut.append(rng.permutation(np.unique(rows, axis=0)))
    return Windows(*cut, tokenizer)


def loss(logits, y) -> Metrics:
    """Mean binary cross-entropy of the heads; right is what any head flags."""
    target = jnp.broadcast_to(y[:, None], logits.shape).astype(logits.dtype)
    value = optax.sigmoid_binary_cross_entropy(logits, target).mean()
    right = (logits > 0).any(1) == (y > 0)
    return Metrics(value, right.astype(value.dtype).mean())


def random_tails(key, tokens, *, suffix_len: int, vocab_size: int):
    """Replaces up to ``suffix_len`` last tokens by one of three kinds of tail.

    Uniform tokens, one token repeated, or the tail of another text of the batch.
    """
    n, length = tokens.shape
    keys = jax.random.split(key, 4)
    size = jax.random.randint(keys[0], (n, 1), 0, suffix_len + 1)
    uniform = jax.random.randint(keys[1], tokens.shape, 1, vocab_size)
    kind = jax.random.randint(keys[2], (n, 1), 0, 3)
    other = tokens[jax.random.permutation(keys[3], n)]
    tail = jnp.where(kind == 0, uniform, jnp.where(kind == 1, uniform[:, :1], other))
    return jnp.where(jnp.arange(length)[None] >= length - size, tail, tokens)


def fit(key, options, windows: Windows, suffix_len: int, writer):
    """Trains on windows and a tail of ``suffix_len`` more; leaves out those to validate on.

    Returns:
      The function ``classify(tokens [n, l]) -> (scores [n, 3], flagged [n])``, the held-out licence
      windows, and the accuracy on held-out windows of both kinds, random tails and all.
    """
    held_out = options.n_strings + options.n_train_strings + options.own_strings
    n = min(len(windows.licence), len(windows.other), held_out + options.max_windows)
    if n <= held_out:
        raise ValueError(
            f"the detector must have more windows than strings, got {n} and {held_out}"
        )
    x = np.concatenate([windows.licence[held_out:n], windows.other[held_out:n]])
    y = np.repeat(np.array([1, 0], np.int32), n - held_out)
    # Every text ends with a tail's worth of its own tokens, which the augmentation may replace.
    x = np.concatenate([x, x[:, :suffix_len]], axis=1)
    size = windows.tokenizer.get_vocab_size()
    model = Detector(size, options.width)
    n_steps = options.epochs * (len(y) // options.batch_size)
    optimizer = train.make_optimizer("adam", learning_rate=options.learning_rate, n_steps=n_steps)

    def augment(key, tokens):
        return random_tails(key, tokens, suffix_len=suffix_len, vocab_size=size)

    writer.stage("train the detector", n_steps)
    state = train.fit(
        named_key(key, "detector"), model, optimizer, x, y, n_epochs=options.epochs,
        batch_size=options.batch_size, loss=loss, augment=augment,
        callback=lambda state, m: writer.step(int(state.step), loss=m.loss, accuracy=m.accuracy),
    )  # fmt: skip

    @jax.jit
    def scores(variables, tokens):
        return jax.nn.sigmoid(model.apply(variables, tokens))

    def classify(tokens):
        blocks = [
            np.asarray(scores(state.variables, tokens[rows]))[:count]
            for rows, count in row_blocks(len(tokens), 1024)
        ]
        values = np.concatenate(blocks)
        return values, (values > 0.5).any(1)

    rng = np.random.default_rng(0)
    tails = rng.integers(1, size, (held_out, suffix_len)).astype(np.int32)
    licence, other = (
        classify(np.concatenate([part[:held_out], tails], axis=1))[1]
        for part in (windows.licence, windows.other)
    )
    accuracy = float(np.concatenate([licence, ~other]).mean())
    return classify, windows.licence[:held_out], accuracy
