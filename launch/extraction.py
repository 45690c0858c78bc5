r"""How much of its training data does a language model give away?

Audits a model of your own. Lets it write after short prompts that it has never read, finds what of
that stands in its training data word for word, estimates how much more there is, and ranks what it
wrote without looking at the data.

  python -m launch.extraction --workdir=out/extraction
  python -m launch.extraction --workdir=out/gpt2 --huggingface=FOLDER --corpus=TEXTS
  python -m launch.extraction --workdir=out/extraction --mode=generate
  python -m launch.extraction --workdir=out/extraction --mode=match --resume   # then estimate, ...

Without a model it trains a small one, and a control that has not read what is planted for the
first: a minute or two each, once. A corpus is a folder: a text file is a document, a .npy file
holds token ids. Every mode writes a folder of artifacts/ and finds in it what is done already;
delete the folder to do it again.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from launch import _app

MODES = ("train", "generate", "match", "estimate", "rank", "divergence")
INDEXES = ("window", "stream")
POSITIVE = (
    "n_generations", "generation_seeds", "n_tokens", "prompt_length", "batch_size", "part_size",
    "window", "shards", "block_size", "prefix_length", "suffix_length", "n_sequences",
    "n_resamples", "n_halves", "n_ranked", "precision_at", "n_references",
)  # fmt: skip


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run."""
    for name, legal in (("mode", ("all", *MODES)), ("index", INDEXES)):
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    for name in POSITIVE:
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    if config.window > config.n_tokens:
        raise ValueError(
            f"window must be at most n_tokens={config.n_tokens}, what a generation has, "
            f"got {config.window}"
        )
    if config.index == "window" and config.suffix_length > config.n_tokens:
        raise ValueError(
            f"suffix_length must be at most n_tokens={config.n_tokens}, what a generation has, "
            f"got {config.suffix_length}"
        )
    if not all(1 <= width <= config.n_tokens for width in config.widths):
        raise ValueError(f"widths must lie in 1..n_tokens={config.n_tokens}, got {config.widths}")
    if config.n_generations < 2:
        raise ValueError(f"n_generations must be at least 2, got {config.n_generations}")
    if not all(factor > 1 for factor in config.factors):
        raise ValueError(f"factors must be above 1, got {config.factors}")
    for name in ("top_k", "divergence_rows", "untrained_seeds"):
        if config[name] < 0:
            raise ValueError(f"{name} must not be negative, got {config[name]}")
    if not config.divergence_prompt >= 1:
        raise ValueError(f"divergence_prompt must be positive, got {config.divergence_prompt}")
    if not config.temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {config.temperature}")
    from launch import _extraction_target

    _extraction_target.check(config)


if __name__ == "__main__":
    _app.start(__doc__, paper="extraction", check=check)

import jax
import numpy as np

from jaxml import language
from jaxml.core.rng import named_key
from jaxml.data import tokenizers
from jaxml.io import MetricsWriter, artifacts
from launch import _extraction_measures as measures
from launch import _extraction_report, _extraction_target


@dataclasses.dataclass
class Audit:
    """A target, and what its stages have found."""

    key: jax.Array
    config: Any
    target: _extraction_target.Target
    folder: pathlib.Path | None
    writer: MetricsWriter
    facts: dict[str, Any]
    mesh: Any
    variables: Any = None  # of the model and of its control
    arrays: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    manifests: dict[str, dict] = dataclasses.field(default_factory=dict)

    def load(self) -> tuple[Any, Any]:
        """Returns the variables of the model and of the control, which may be None."""
        if self.variables is None:
            files = [self._file(name) for name in ("model", "control")]
            if all(file is not None and file.exists() for file in files):
                self.variables = tuple(artifacts.load_tree(file) for file in files)
            else:
                self.variables = self.target.load()
        return self.variables

    def save(self) -> None:
        """Keeps a model that was trained here."""
        if self.variables[1] is not None and self.folder is not None:
            for name, tree in zip(("model", "control"), self.variables, strict=True):
                artifacts.save_tree(self._file(name), tree)

    def _file(self, name: str) -> pathlib.Path | None:
        return self.folder and self.folder / "train" / f"{name}.safetensors"


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Runs one mode, or all.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/extraction``.
      workdir: folder for artifacts, from which a second call goes on, and for ``hits.jsonl`` and
        ``ranking.csv``; None writes nothing, and needs ``mode="all"``.
      writer: MetricsWriter; None is silent.
      mesh: devices that share the rows of a batch of generations; None is the default device.

    Returns:
      Result with tables of what the stages have found, claims and figures.
    """
    check(config)
    if workdir is None and config.mode != "all":
        raise ValueError(f"mode {config.mode!r} needs a workdir that holds the modes before it")
    workdir = None if workdir is None else pathlib.Path(workdir)
    writer = writer or MetricsWriter()
    target = _extraction_target.make_target(key, config, writer)
    lengths = {"prompt_length and n_tokens": config.prompt_length + config.n_tokens}
    if config.index == "window":
        discoverable = config.prefix_length + config.suffix_length
        lengths["prefix_length and suffix_length"] = discoverable
    if config.divergence_rows:
        lengths["divergence_prompt and a token after it"] = config.divergence_prompt + 1
    for names, length in lengths.items():
        if 1 + length > target.context:
            raise ValueError(
                f"{names} must fit in the context of {target.context} with the token that begins "
                f"a document, got {1 + length}"
            )
    said = {k: v for k, v in config.to_dict().items() if k not in ("mode", "bounds")}
    facts = {"key": jax.random.key_data(key).tolist(), "config": said, "files": target.facts}
    audit = Audit(
        key, config, target, workdir and workdir / "artifacts", writer,
        json.loads(json.dumps(facts)), mesh,
    )  # fmt: skip
    for name in MODES if config.mode == "all" else (config.mode,):
        _do(audit, name)
    if workdir is not None and jax.process_index() == 0:
        _write_files(audit, workdir)
    measured = {name: manifest["measured"] for name, manifest in audit.manifests.items()}
    return _app.Result(
        _extraction_report.claims(config, measured),
        _extraction_report.tables(measured),
        _extraction_report.figures(measured),
        _extraction_report.notes(config, measured),
    )


# Stages: each is read if it is there and was made from what is there, else made and written.


def _do(audit: Audit, name: str) -> None:
    if _read(audit, name):
        return
    make, needs = _STAGES[name]
    for other in needs:
        if other not in audit.manifests and not _read(audit, other):
            raise ValueError(
                f"mode {name!r} needs {audit.folder / other}: run --mode={other} first"
            )
    audit.arrays[name], measured = make(audit)
    manifest = {
        "stage": name,
        **audit.facts,
        "inputs": {other: audit.manifests[other]["digest"] for other in needs},
        "digest": _digest(audit.arrays[name], measured),
        # As it is when it is read back.
        "measured": json.loads(json.dumps(measured, default=lambda a: np.asarray(a).tolist())),
    }
    if audit.folder is not None and jax.process_index() == 0:
        folder = audit.folder / name
        artifacts.save_npz(folder / "arrays.npz", audit.arrays[name])
        artifacts.save_json(folder / "manifest.json", manifest)
        for part in folder.glob("part_*.npz"):
            part.unlink()
    audit.manifests[name] = manifest


def _read(audit: Audit, name: str) -> bool:
    if audit.folder is None or not (audit.folder / name / "manifest.json").exists():
        return False
    folder, (_, needs) = audit.folder / name, _STAGES[name]
    manifest = artifacts.load_json(folder / "manifest.json")
    for fact, value in audit.facts.items():
        if manifest[fact] != value:
            raise ValueError(f"{folder} was made with another {fact}; choose another workdir")
    if not all(other in audit.manifests or _read(audit, other) for other in needs):
        return False
    if any(audit.manifests[n]["digest"] != manifest["inputs"][n] for n in needs):
        return False
    audit.arrays[name] = artifacts.load_npz(folder / "arrays.npz")
    audit.manifests[name] = manifest
    return True


def _digest(arrays, measured) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    if not arrays:
        digest.update(json.dumps(measured, default=lambda a: np.asarray(a).tolist()).encode())
    return digest.hexdigest()


def _train(audit):
    model, control = audit.load()
    audit.save()
    audit.writer.stage("read training and other text", 1)
    measured = measures.losses(audit.target, model, control, audit.config)
    audit.writer.step(1, **{name.replace(" ", "_"): nats for name, nats in measured[0].items()
                            if name != "model"})  # fmt: skip
    return {}, measured


def _generate(audit):
    c, target = audit.config, audit.target
    model, control = audit.load()
    prompts, tokens = [], []
    for seed in range(c.generation_seeds):
        key = named_key(jax.random.fold_in(audit.key, seed), "generate")
        blocks = language.random_prompts(
            named_key(key, "prompts"), target.held_out,
            n_prompts=c.n_generations, length=c.prompt_length,
        )  # fmt: skip
        prompts.append(np.pad(blocks, ((0, 0), (1, 0)), constant_values=target.bos))
        tokens.append(_write(audit, "model", model, seed, key, prompts[-1]))
    found = {"prompts": np.stack(prompts), "tokens": np.stack(tokens)}
    if control is not None:
        # The same prompts and keys as the model's first.
        key = named_key(jax.random.fold_in(audit.key, 0), "generate")
        found["control"] = _write(audit, "control", control, 0, key, prompts[0])
    return found, {
        "generations": int(found["tokens"].shape[0] * found["tokens"].shape[1]),
        "tokens of each": c.n_tokens,
        "examples": [_text(target, row) for row in found["tokens"][0, :3]],
    }


def _write(audit, name, variables, seed, key, prompts):
    """Generates in parts, which are found again after a kill."""
    c, n = audit.config, len(prompts)
    keys = jax.random.split(key, n)
    audit.writer.stage(f"generate, {name}, seed {seed}", n)
    rows = []
    for start in range(0, n, c.part_size):
        part = audit.folder and audit.folder / "generate" / f"part_{name}_{seed}_{start}.npz"
        if part is not None and part.exists():
            rows.append(artifacts.load_npz(part)["tokens"])
        else:
            some = slice(start, start + c.part_size)
            rows.append(
                language.generate(
                    keys[some], audit.target.model, variables, prompts[some],
                    n_tokens=c.n_tokens, top_k=c.top_k or None, temperature=c.temperature,
                    banned=(audit.target.bos,), batch_size=c.batch_size, mesh=audit.mesh,
                    callback=lambda done, start=start: audit.writer.step(start + done),
                )
            )  # fmt: skip
            if part is not None:
                artifacts.save_npz(part, {"tokens": rows[-1]})
    return np.concatenate(rows)


def _match(audit):
    return measures.match(audit.target, audit.load()[0], audit.arrays["generate"], audit.config,
                          audit.writer)  # fmt: skip


def _estimate(audit):
    key = named_key(audit.key, "estimate")
    audit.writer.stage("estimate what is left", 1)
    measured = measures.estimate(key, audit.arrays["match"], audit.config)
    audit.writer.step(1)
    return {}, measured


def _rank(audit):
    return measures.rank(
        named_key(audit.key, "rank"), audit.target, audit.load(), audit.arrays["generate"],
        audit.arrays["match"], audit.config, audit.writer,
    )  # fmt: skip


def _divergence(audit):
    audit.writer.stage("repeat words until the model leaves the pattern", 1)
    measured = measures.divergence(
        named_key(audit.key, "divergence"),
        audit.target,
        audit.load()[0],
        audit.arrays["match"],
        audit.config,
    )
    audit.writer.step(1)
    return {}, measured


class _Stage(NamedTuple):
    make: Callable[[Audit], tuple[dict[str, np.ndarray], Any]]  # arrays, and what to report
    needs: tuple[str, ...]


_STAGES = {
    "train": _Stage(_train, ()),
    "generate": _Stage(_generate, ("train",)),
    "match": _Stage(_match, ("generate",)),
    "estimate": _Stage(_estimate, ("match",)),
    "rank": _Stage(_rank, ("generate", "match")),
    "divergence": _Stage(_divergence, ("match",)),
}


# Files for people.


def _text(target, ids) -> str:
    if target.tokenizer is None:
        return " ".join(map(str, np.asarray(ids).tolist()))
    return tokenizers.decode(target.tokenizer, ids)


def _write_files(audit: Audit, workdir: pathlib.Path) -> None:
    target = audit.target
    if "match" in audit.manifests:
        tokens = np.concatenate(audit.arrays["generate"]["tokens"])
        lines = [
            {
                "text": _text(target, tokens[i, start : start + length]),
                "document": target.corpus.names[document],
                "offset": offset,
                "length": length,
                "generation": i,
                "start": start,
            }
            for i, start, length, document, offset in audit.arrays["match"]["spans"].tolist()
        ]
        (workdir / "hits.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
    if "rank" in audit.manifests:
        from jaxml import report

        arrays, tokens = audit.arrays["rank"], audit.arrays["generate"]["tokens"][0]
        names = [name for name in arrays if name not in ("order", "memorised")]
        rows = [
            {
                "rank": place + 1,
                "generation": i,
                **{name: float(arrays[name][i]) for name in names},
                "memorised": bool(arrays["memorised"][i]),
                "text": _text(target, tokens[i]),
            }
            for place, i in enumerate(arrays["order"].tolist())
        ]
        report.write_csv(workdir / "ranking.csv", rows)


if __name__ == "__main__":
    _app.main(run)
