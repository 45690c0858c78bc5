"""The language model that an audit works on, with all that it read and a control that did not."""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxml import language, nn, train
from jaxml.core.rng import named_key
from jaxml.data import text, tokenizers
from jaxml.io import artifacts, checkpoint


class Texts(NamedTuple):
    """Token ids of documents, int32 ``[n_i]`` each, without the token that begins them.

    Attributes:
      tokenizer: of the ``tokenizers`` library.
      train: what the model reads, every copy of what is planted included.
      names: of ``train``; ``"excerpt/64/3"`` or ``"canary/64/3"`` tells a planted document.
      control: what the control reads; no planted document.
      held_out: read by neither.
    """

    tokenizer: Any
    train: list[np.ndarray]
    names: tuple[str, ...]
    control: list[np.ndarray]
    held_out: list[np.ndarray]


class Audited(NamedTuple):
    """A model and its control.

    Attributes:
      texts: what they read.
      model: ``jaxml.nn.GPT``, the architecture of both.
      variables: of the model to audit.
      control: of the same architecture, trained alike on ``texts.control``.
      losses: name to nats per token on ``train``, ``control`` and ``held_out`` rows.
    """

    texts: Texts
    model: nn.GPT
    variables: dict
    control: dict


def load(key, lm, writer) -> Audited:
    """Trains the model and its control, or reads them from the cache of an earlier run.

    Args:
      key: typed key of the run.
      lm: ``config.lm``, see ``configs/_language.py``.
      writer: MetricsWriter.
    """
    texts = make_texts(lm)
    vocab_size = texts.tokenizer.get_vocab_size()
    model = make_model(lm, vocab_size)
    key = named_key(key, "language model")
    variables = train_or_load(key, lm, model, texts, texts.train, "model", writer)
    control = train_or_load(key, lm, model, texts, texts.control, "control", writer)
    return Audited(texts, model, variables, control)


def make_model(lm, vocab_size: int) -> nn.GPT:
    """Makes the untrained model of ``config.lm``."""
    return nn.GPT(
        vocab_size,
        context=lm.context,
        width=lm.width,
        hidden=(4 * lm.width,) * lm.depth,
        heads=lm.heads,
        positions="rotary",
        token_shift=True,
    )


def make_texts(lm) -> Texts:
    """Splits the corpus by documents, plants excerpts and canaries, and encodes everything."""
    corpus = text.load(lm.corpus)
    documents = dict(zip(corpus.names, text.split(corpus), strict=True))
    pieces = text.pieces(0, corpus, n_bytes=lm.piece_bytes)
    queue = list(zip(pieces.names, text.split(pieces), strict=True))

    def take(n_bytes: int) -> list[bytes]:
        taken, size = [], 0
        while queue and size < n_bytes:
            name, piece = queue.pop(0)
            del documents[name]
            taken.append(piece)
            size += len(piece)
        if size < n_bytes:
            raise ValueError(f"corpus {lm.corpus!r} is too small for body_bytes and held_out_bytes")
        return taken

    body, held_out = take(lm.body_bytes), take(lm.held_out_bytes)
    canaries = text.canaries(0, n_per_level=lm.canaries_per_level)
    n_excerpts = lm.excerpts_per_level * sum(text.LEVELS)
    control = take(
        lm.body_bytes
        + n_excerpts * lm.excerpt_bytes
        + sum(len(d) * int(k) for d, k in zip(canaries.documents, canaries.copies, strict=True))
    )
    excerpts = text.excerpts(
        0,
        text.join(list(documents.values()), list(documents)),
        n_per_level=lm.excerpts_per_level,
        n_bytes=lm.excerpt_bytes,
    )
    planted = text.plant(0, text.join(body), excerpts, canaries)
    groups = [
        [document.decode(errors="replace") for document in group]
        for group in (text.split(planted), control, held_out)
    ]
    tokenizer = tokenizers.train_bpe(groups[0] + groups[1], vocab_size=lm.vocab_size)
    ids = [tokenizers.encode(tokenizer, group) for group in groups]
    return Texts(tokenizer, ids[0], planted.names, ids[1], ids[2])


def train_or_load(key, lm, model, texts: Texts, documents, name: str, writer) -> dict:
    """Trains on documents, or reads what an earlier run with the same rows and recipe has left."""
    bos = tokenizers.bos_id(texts.tokenizer)
    n_copied = round(sum(map(len, documents)) * lm.copy_share / (1 - lm.copy_share))
    rows = []
    for seed in range(lm.passes):
        copies = language.copy_documents(
            seed, documents, n_tokens=n_copied, vocab_size=model.vocab_size
        )
        rows.append(
            language.pack_rows(seed, [*documents, *copies], row_length=lm.context + 1, bos=bos)
        )
    rows = np.concatenate(rows)
    recipe = [jax.__version__, repr(model), json.dumps(lm.to_dict()), name]
    recipe.append(str(jax.random.key_data(key).tolist()))
    digest = hashlib.sha256(rows.tobytes() + "\n".join(recipe).encode()).hexdigest()[:32]
    cache = jax.config.jax_compilation_cache_dir
    file = None if not cache else pathlib.Path(cache) / "language_models" / f"{digest}.safetensors"
    if file is not None and file.exists():
        return artifacts.load_tree(file)
    n_steps = lm.epochs * (len(rows) // lm.batch_size)
    optimizer = train.make_optimizer(
        "adamw",
        learning_rate=lm.learning_rate,
        n_steps=n_steps,
        schedule="cosine",
        warmup_steps=lm.warmup_steps,
        weight_decay=lm.weight_decay,
    )
    saves = None if file is None else file.with_suffix("")
    state = None
    if saves is not None and (step := checkpoint.latest_step(saves)) is not None:
        like = jax.eval_shape(lambda k: train.init(k, model, optimizer, rows[:1, :-1]), key)
        state = checkpoint.restore(saves, step, like)
    writer.stage(f"train the {name}", n_steps)

    def after_epoch(state, metrics):
        if saves is not None:
            checkpoint.save(saves, int(state.step), state)
        writer.step(int(state.step), loss=metrics.loss, accuracy=metrics.accuracy)

    state = train.fit(
        key,
        model,
        optimizer,
        rows[:, :-1],
        rows[:, 1:],
        n_epochs=lm.epochs,
        batch_size=lm.batch_size,
        state=state,
        callback=after_epoch,
    )
    if file is not None:
        artifacts.save_tree(file, state.variables)
        import shutil

        shutil.rmtree(saves)
    return state.variables
