"""What the extraction study audits: a model, the documents it was trained on, text it was not."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml import language, nn
from jaxml.data import text, tokenizers
from jaxml.io import artifacts, load_gpt2
from launch import _language_model, _networks


class Corpus(NamedTuple):
    """Documents that are read when they are needed.

    Attributes:
      names: of the documents.
      read: ``read(i)`` returns the token ids of one, ``[n_i]``.
    """

    names: tuple[str, ...]
    read: Callable[[int], np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Reads one document after the other."""
        return map(self.read, range(len(self.names)))

    def blocks(self) -> Iterator[np.ndarray]:
        """Reads for ``match_stream``, one document at a time in memory."""
        for document in self:
            yield from language.document_blocks(document, np.array([0, len(document)]))


class Target(NamedTuple):
    """What is audited.

    Attributes:
      tokenizer: of the ``tokenizers`` library; None for a corpus of token ids without one.
      corpus: what the model was trained on.
      held_out: token ids that it was not, for prompts and comparison.
      model: module or apply function.
      context: most tokens that the model takes.
      bos: id that begins its documents; never generated.
      load: returns the variables of the model and of a control, or None.
      facts: what the files were, for a run that goes on.
    """

    tokenizer: Any
    corpus: Corpus
    held_out: list[np.ndarray]
    model: language.Model
    context: int
    bos: int
    load: Callable[[], tuple[Any, Any]]
    facts: dict[str, Any]


def is_given(config) -> bool:
    """Whether the model is the user's."""
    return bool(config.module or config.huggingface)


def check(config) -> None:
    """Raises ValueError or FileNotFoundError for a model or a corpus that cannot be had."""
    if config.module and config.huggingface:
        raise ValueError("module and huggingface exclude each other: both name the model")
    if config.module and not config.checkpoint:
        raise ValueError("module needs a checkpoint with its parameters")
    for name in ("checkpoint", "tokenizer"):
        if config[name] and not os.path.isfile(config[name]):
            raise FileNotFoundError(f"{name}: there is no file {config[name]}")
    for name in ("corpus", "prompts"):
        if config[name] and not os.path.exists(config[name]):
            raise FileNotFoundError(f"{name}: there is no file or folder {config[name]}")
    if config.huggingface and not os.path.isdir(config.huggingface):
        raise FileNotFoundError(f"huggingface: there is no folder {config.huggingface}")
    if is_given(config) and not config.corpus:
        raise ValueError("a model of your own needs --corpus, the text that it was trained on")
    if not is_given(config):
        for name in ("corpus", "prompts", "tokenizer", "checkpoint"):
            if config[name]:
                raise ValueError(f"{name} needs a model of your own: --module or --huggingface")


def make_target(key, config, writer) -> Target:
    """Loads the corpora and makes the model; its variables come with ``load``."""
    if is_given(config):
        return _given(config)
    texts = _language_model.make_texts(config.lm)
    model = _language_model.make_model(config.lm, texts.tokenizer.get_vocab_size())

    def load():
        audited = _language_model.load(key, config.lm, writer)
        return audited.variables, audited.control

    return Target(
        texts.tokenizer, Corpus(texts.names, texts.train.__getitem__), texts.held_out, model,
        config.lm.context, tokenizers.bos_id(texts.tokenizer), load, {},
    )  # fmt: skip


def _given(config) -> Target:
    model, variables, tokenizer, facts = _given_model(config)
    if config.tokenizer:
        tokenizer = tokenizers.load(config.tokenizer)
    if tokenizer is None and config.bos < 0:
        raise ValueError("bos: give the id that begins documents, or a tokenizer that has one")
    bos = config.bos if config.bos >= 0 else tokenizers.bos_id(tokenizer)
    context = config.context or getattr(model, "context", 0)
    if not context:
        raise ValueError(f"context: {config.module} does not say it; give --context")
    corpus = open_corpus("corpus", config.corpus, tokenizer)
    if config.prompts:
        held_out = [np.asarray(d) for d in open_corpus("prompts", config.prompts, tokenizer)]
    elif tokenizer is None:
        raise ValueError("prompts: without a tokenizer give a .npy file of ids, from other text")
    else:
        topics = text.split(text.load("topics"))
        held_out = tokenizers.encode(tokenizer, [topic.decode() for topic in topics])
    return Target(
        tokenizer, corpus, held_out, model, context, bos, lambda: (variables, None), facts
    )


def _given_model(config):
    """Returns module, variables, tokenizer or None, and what the files were."""
    if config.huggingface:
        kwargs, variables = load_gpt2(config.huggingface, dtype=jnp.float32)
        folder = pathlib.Path(config.huggingface)
        file = folder / "tokenizer.json"
        tokenizer = tokenizers.load(file) if file.exists() else None
        return nn.GPT(**kwargs), variables, tokenizer, _digests(folder.glob("*.safetensors"))
    model = _networks.given_module(config)
    example = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    like = jax.eval_shape(model.init, jax.random.key(0), example)
    variables = artifacts.load_tree(config.checkpoint, like)
    return model, variables, None, _digests([pathlib.Path(config.checkpoint)])


def _digests(paths) -> dict[str, str]:
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def open_corpus(name: str, path: str, tokenizer) -> Corpus:
    """Opens a file or the files of a folder; a ``.npy`` holds token ids, anything else is text.

    Args:
      name: of the config field.
      path: a text is one document, as are an array ``[n]`` and each row of an array ``[d, n]``.
      tokenizer: for text.

    Raises:
      ValueError: no file, text without a tokenizer, or an array of something else than ids.
    """
    root = pathlib.Path(path)
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    names, readers = [], []
    for file in files:
        label = file.name if file == root else file.relative_to(root).as_posix()
        if file.suffix != ".npy":
            if tokenizer is None:
                raise ValueError(f"{name}: {file} is text, and there is no tokenizer")
            names.append(label)
            readers.append(functools.partial(_read_text, file, tokenizer))
            continue
        shape, dtype = (array := np.load(file, mmap_mode="r")).shape, array.dtype
        if dtype.kind not in "iu" or len(shape) not in (1, 2):
            raise ValueError(f"{name}: {file} must hold ids [n] or [d, n], has {dtype} {shape}")
        for row in range(shape[0]) if len(shape) == 2 else (None,):
            names.append(label if row is None else f"{label}:{row}")
            readers.append(functools.partial(_read_ids, file, row))
    if not names:
        raise ValueError(f"{name}: {path} holds no file")
    return Corpus(tuple(names), lambda i: readers[i]())


def _read_text(file: pathlib.Path, tokenizer) -> np.ndarray:
    return tokenizers.encode(tokenizer, [file.read_text(encoding="utf-8", errors="replace")])[0]


def _read_ids(file: pathlib.Path, row: int | None) -> np.ndarray:
    array = np.load(file, mmap_mode="r")
    return array if row is None else array[row]
