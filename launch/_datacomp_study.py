"""Filters compared on pools of digits: every model of a pool trains at once, in memory."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import curation, nn
from jaxml.core.rng import named_key
from jaxml.core.sharding import replicate, shard_batch
from launch import _datacomp_digits as digits

CONTEXT = 8


class Outcome(NamedTuple):
    """What one pool gives; filters in the order of ``names``.

    Attributes:
      names: of the filters.
      points: samples seen at each measurement ``[p]``.
      accuracy: by filter, training seed, point and test ``[f, s, p, 3]``.
      kept: pairs of each filter ``[f]``.
      kinds: how many of each planted kind it keeps ``[f, 6]``.
      overlap: share of a filter's pairs that another one keeps too ``[f, f]``.
      scorer: accuracy of the scorer, and of the one trained on the pool ``[2, 3]``.
    """

    names: np.ndarray
    points: np.ndarray
    accuracy: np.ndarray
    kept: np.ndarray
    kinds: np.ndarray
    overlap: np.ndarray
    scorer: np.ndarray


def make_model(config) -> nn.CLIP:
    """Makes the model of the study: two towers of one kind, for grey images of 8x8."""
    if config.tower == "mlp":
        image = nn.MLP((config.width,), config.embed)
        text = nn.BagOfWords(config.vocabulary, (config.text_width,), config.embed)
    else:
        heads = max(1, config.width // 32)
        image = nn.VisionTower(config.width, 2, heads, 2, config.embed)
        text = nn.TextTower(config.vocabulary, CONTEXT, config.width, 1, heads, config.embed)
    return nn.CLIP(image, text)


def recipe_of(config) -> curation.Recipe:
    """Reads the recipe off the config's scale and what it changes there."""
    recipe = curation.RECIPES[config.scale]
    changes = {
        name: value
        for name in ("samples_seen", "batch_size", "learning_rate", "warmup_steps")
        if (value := config[name])
    }
    return recipe._replace(**changes)


def tokenizer(config):
    """Makes the tokenizer of the study."""
    return functools.partial(curation.hash_words, vocabulary=config.vocabulary, context=CONTEXT)


class Trainer:
    """Trains models on rows of arrays, as many at once as there are, and scores them."""

    def __init__(self, config, mesh=None):
        self.config, self.mesh = config, mesh
        self.recipe = recipe_of(config)
        self.model = make_model(config)
        self.optimizer = curation.make_optimizer(self.recipe)
        self.tokens = tokenizer(config)
        prompts = curation.prompts(digits.TEMPLATES, digits.WORDS)
        self.prompts = jnp.stack([self.tokens(of_class) for of_class in prompts])
        init = functools.partial(
            curation.init_state, model=self.model, optimizer=self.optimizer,
            images=np.zeros((1, digits.SIDE, digits.SIDE, 1), np.float32),
            tokens=np.zeros((1, CONTEXT), np.int32),
        )  # fmt: skip
        self.init = jax.jit(jax.vmap(init))  # a state for each key
        fit = functools.partial(curation.fit_rows, model=self.model, optimizer=self.optimizer)
        self._fit = jax.jit(jax.vmap(fit, in_axes=(0, None, None, 0)), donate_argnums=0)
        self._score = jax.jit(jax.vmap(self._accuracy, in_axes=(0, None, None)))
        self.features = jax.jit(jax.vmap(self._features, in_axes=(0, None, None)))

    def _accuracy(self, params, tests, labels):
        variables = {"params": params}

        def encode(method):
            return functools.partial(self.model.apply, variables, method=method)

        head = curation.classifier(encode("encode_text"), self.prompts)
        logits = [encode("encode_image")(x) @ head.T for x in tests]
        return jnp.stack([curation.accuracy(z, labels) for z in logits])

    def _features(self, params, images, tokens):
        """Returns unit vectors of images, and how they agree with the texts."""
        out = self.model.apply({"params": params}, images, tokens)
        return out.image, (out.image * out.text).sum(axis=1)

    def run(self, states, images, tokens, rows, pool, *, n_points, watch=lambda done: None):
        """Trains on rows ``[r, steps, batch]`` and measures ``n_points`` times on the way.

        Returns the states, and accuracies ``[r, p, 3]`` with the steps ``[p]`` they belong to.
        """
        tests = [jnp.asarray(digits.inputs(x)) for x in pool.tests.values()]
        labels = jnp.asarray(pool.labels)
        images, tokens = replicate((images, tokens), self.mesh)
        states = jax.tree.map(lambda leaf: shard_batch(leaf, self.mesh), states)
        marks, found = np.linspace(0, rows.shape[1], n_points + 1).astype(int), []
        for start, end in itertools.pairwise(marks):
            some = shard_batch(jnp.asarray(rows[:, start:end]), self.mesh)
            states, _ = self._fit(states, images, tokens, some)
            found.append(np.asarray(self._score(states.variables["params"], tests, labels)))
            watch(int(end))
        return states, np.stack(found, axis=1), marks[1:]


def draw_rows(seed, kept: np.ndarray, recipe) -> np.ndarray:
    """Draws the rows of all steps, with replacement among those kept, int32 ``[steps, batch]``."""
    drawn = np.stack([
        curation.pair_indices(seed, step, sizes=len(kept), batch_size=recipe.batch_size)
        for step in range(recipe.n_steps)
    ])  # fmt: skip
    return kept[drawn].astype(np.int32)


def score_pool(key, config, pool: digits.Pool, trainer: Trainer) -> tuple[digits.Scores, Any]:
    """Trains the two scorers of a pool and applies them; also returns their accuracies."""
    reference, captions = pool.reference
    texts = [*pool.columns["text"], *captions]
    images = jnp.asarray(digits.inputs(np.concatenate([pool.images, reference])))
    tokens = jnp.asarray(trainer.tokens(texts))
    n = len(pool.images)
    rows = np.stack([
        draw_rows(2**32, n + np.arange(len(reference)), trainer.recipe),
        draw_rows(2**32 + 1, np.arange(n), trainer.recipe),
    ])  # fmt: skip
    states = trainer.init(jax.random.split(named_key(key, "scorers"), 2))
    states, accuracy, _ = trainer.run(states, images, tokens, rows, pool, n_points=1)
    params = states.variables["params"]
    # The task's images come last, with a text that does not matter.
    targets = jnp.asarray(digits.inputs(pool.targets))
    x = jnp.concatenate([images[:n], targets])
    texts = jnp.concatenate([tokens[:n], jnp.zeros((len(targets), CONTEXT), tokens.dtype)])
    features, (l14, own) = (np.asarray(a) for a in trainer.features(params, x, texts))
    return digits.Scores(l14[:n], own[:n], features[0, :n], features[0, n:]), accuracy[:, 0]


def pool_of(config, seed: int) -> digits.Pool:
    """Draws a pool as the config has it."""
    return digits.make_pool(
        seed, size=config.pool_size, shares=config.shares, elsewhere=config.elsewhere,
        repeated=config.repeated, repeats=config.repeats,
    )  # fmt: skip


def filters_of(key, config, pool: digits.Pool, scores: digits.Scores) -> dict[str, np.ndarray]:
    """Applies every filter as the config has it."""
    return digits.masks(
        named_key(key, "filters"), pool, scores, fraction=config.score_fraction,
        laion_fraction=config.laion_fraction, n_clusters=config.n_clusters,
    )  # fmt: skip


def compare(key, config, seed: int, trainer: Trainer, writer) -> Outcome:
    """Scores a pool, filters it in every way, trains on each subset and measures the models."""
    key = jax.random.fold_in(named_key(key, "pool"), seed)
    pool = pool_of(config, seed)
    recipe, n_seeds = trainer.recipe, config.train_seeds
    writer.stage(f"pool {seed}: scorers")
    scores, scorer = score_pool(key, config, pool, trainer)
    kept = filters_of(key, config, pool, scores)
    images = jnp.asarray(digits.inputs(pool.images))
    tokens = jnp.asarray(trainer.tokens(pool.columns["text"]))
    # A seed's models begin alike, whatever they see; each has draws of its own.
    keys = jax.random.split(named_key(key, "train"), n_seeds)
    states = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (len(kept), *(1,) * (leaf.ndim - 1))), trainer.init(keys)
    )
    rows = np.stack([
        draw_rows(run, np.flatnonzero(mask), recipe)
        for mask in kept.values()
        for run in range(n_seeds)
    ])  # fmt: skip
    writer.stage(f"pool {seed}: {len(rows)} models", recipe.n_steps)
    _, accuracy, marks = trainer.run(
        states, images, tokens, rows, pool, n_points=config.points, watch=writer.step
    )
    table = np.stack(list(kept.values()))
    return Outcome(
        np.array(list(kept)),
        marks * recipe.batch_size,
        accuracy.reshape(len(kept), n_seeds, *accuracy.shape[1:]),
        table.sum(axis=1),
        np.stack([np.bincount(pool.kind[mask], minlength=len(digits.KINDS)) for mask in table]),
        (table[:, None] & table[None]).sum(axis=-1) / table.sum(axis=1)[:, None],
        scorer,
    )
