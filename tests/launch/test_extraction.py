"""The extraction study end to end on a model of a few thousand parameters."""

import itertools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.extraction import paper, stdlib, tiny
from jaxml import nn
from jaxml.data import tokenizers
from jaxml.io import MetricsWriter, artifacts, save_gpt2
from launch import (
    _extraction_measures,
    _extraction_report,
    _extraction_target,
    _language_model,
    extraction,
)

MODES = ("train", "generate", "match", "estimate", "rank", "divergence")
CONTEXT = 40


def small(**changes):
    config = tiny.get_config()
    config.lm.update(
        body_bytes=8_000, piece_bytes=1000, held_out_bytes=8_000,
        excerpts_per_level=1, excerpt_bytes=100, canaries_per_level=1, vocab_size=300,
        context=CONTEXT, width=16, depth=1, heads=2, passes=1, epochs=1, warmup_steps=2,
    )  # fmt: skip
    config.update(
        n_generations=16, generation_seeds=2, n_tokens=20, batch_size=16, part_size=8, window=3,
        widths=(2, 3, 8), prefix_length=10, suffix_length=8, n_sequences=4, n_resamples=5,
        n_halves=2, factors=(3.0,), n_ranked=10, precision_at=3, untrained_seeds=1,
        n_references=20, divergence_rows=2, divergence_prompt=8, words=(" the", "a word "),
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return extraction.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def texts_made_once():
    made, make = {}, _language_model.make_texts

    def once(lm):
        if lm.to_json() not in made:
            made[lm.to_json()] = make(lm)
        return made[lm.to_json()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_language_model, "make_texts", once)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("extraction")
    with jax.numpy_dtype_promotion("standard"):
        return workdir, run(small(), workdir=workdir)


def test_every_stage_has_its_table_and_claims(finished):
    _, result = finished
    tables = result.tables
    assert [row["window"] for row in tables["memorised tokens by window"]] == [2, 3, 8]
    rates = [row["model: memorised tokens, %"] for row in tables["memorised tokens by window"]]
    assert (np.diff(rates) <= 0).all() and rates[0] > 0
    rows = tables["what was generated"]
    assert [row["model"] for row in rows] == ["model", "control", "seed 0", "seed 1"]
    assert [row["generations"] for row in rows] == [32, 16, 16, 16]
    assert rows[0]["hits"] == rows[2]["hits"] + rows[3]["hits"]
    levels = [row["planted"] for row in tables["windows extracted by times planted"]]
    assert levels == ["never", "1", "2", "4", "8", "16", "32", "64"]
    counted = tables["windows extracted by occurrences in the corpus"]
    assert sum(row["extracted"] for row in counted) == rows[0]["unique"]
    for row in tables["estimates of what more generations would show"]:
        assert row["from"] <= row["unique windows"] <= row["to"]
    assert {row["score"] for row in tables["ranking of generations without the corpus"]} == {
        "perplexity", "zlib", "lower", "reference", "min_window", "min_k",
    }  # fmt: skip
    assert len(tables["divergence by repetition"]) == 2
    assert set(result.figures) == {
        "unique_against_generations", "rate_against_duplication",
        "discoverable_against_extractable",
    }  # fmt: skip
    assert len(result.claims) == 15
    assert [c.holds for c in result.claims if "aligned" in c.reason] == [None]


def test_hits_are_in_the_documents_that_they_name(finished):
    workdir, _ = finished
    target = _extraction_target.make_target(None, small(), MetricsWriter())
    documents = dict(zip(target.corpus.names, target.corpus, strict=True))
    lines = [json.loads(line) for line in (workdir / "hits.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        ids = documents[line["document"]][line["offset"] :][: line["length"]]
        assert len(ids) == line["length"] >= 3
        assert tokenizers.decode(target.tokenizer, ids) == line["text"]
    ranking = (workdir / "ranking.csv").read_text().splitlines()
    assert ranking[0].startswith("rank,generation,perplexity,zlib,lower,reference")


def test_modes_one_by_one_give_the_same_and_each_can_be_done_again(finished, tmp_path):
    workdir, result = finished
    with pytest.raises(ValueError, match=r"mode 'match' needs .*generate: run --mode=generate"):
        run(small(mode="match"), workdir=tmp_path)
    with pytest.raises(ValueError, match="needs a workdir"):
        run(small(mode="match"))
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    events = []
    again = run(small(), workdir=tmp_path, writer=MetricsWriter(None, events.append))
    assert not events and again.tables == result.tables and again.claims == result.claims
    for mode in MODES[2:4]:
        shutil.rmtree(tmp_path / "artifacts" / mode)
    part = run(small(mode="match"), workdir=tmp_path)
    assert "memorised tokens by window" in part.tables
    assert run(small(mode="estimate"), workdir=tmp_path).claims
    same(workdir, tmp_path)


def same(one, other):
    files = [p.relative_to(one) for p in sorted(one.rglob("*.*")) if p.is_file()]
    assert files == [p.relative_to(other) for p in sorted(other.rglob("*.*")) if p.is_file()]
    for path in files:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


class KilledError(Exception):
    pass


def test_a_killed_generation_goes_on_from_its_parts(finished, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir / "artifacts" / "train", tmp_path / "artifacts" / "train")
    done = []
    for last in (1, 3):
        events = itertools.count(1)

        def kill(event, events=events, last=last):
            if event["step"] is not None:
                done.append(event["step"])
                if next(events) == last:
                    raise KilledError

        with pytest.raises(KilledError):
            run(small(mode="generate"), workdir=tmp_path, writer=MetricsWriter(None, kill))
    run(small(mode="generate"), workdir=tmp_path, writer=MetricsWriter(
        None, lambda e: done.append(e["step"])))  # fmt: skip
    for name in ("arrays.npz", "manifest.json"):
        folder = f"artifacts/generate/{name}"
        assert (workdir / folder).read_bytes() == (tmp_path / folder).read_bytes()
    assert not list(tmp_path.rglob("part_*"))


def test_a_model_without_its_control_is_made_again(tmp_path):
    target = types.SimpleNamespace(load=lambda: ("again", None))
    audit = extraction.Audit(None, small(), target, tmp_path, MetricsWriter(), {}, None)
    artifacts.save_tree(tmp_path / "train" / "model.safetensors", {"w": np.ones(2)})
    assert audit.load() == ("again", None)  # it was killed between the two files


def test_places_are_spread_evenly_over_all_that_are_long_enough(monkeypatch):
    documents = [np.arange(100 * i, 100 * i + n) for i, n in enumerate((3, 5, 9, 4, 30))]
    corpus = _extraction_target.Corpus(tuple("abcde"), documents.__getitem__)
    target = types.SimpleNamespace(corpus=corpus, bos=0, model=None)
    asked = []

    def discoverable(model, variables, prompts, suffixes, **options):
        asked[:] = np.concatenate([prompts[:, 1:], suffixes], axis=1).tolist()
        return np.ones(len(prompts), bool)

    monkeypatch.setattr(_extraction_measures.language, "discoverable", discoverable)
    windows = [d[s : s + 5].tolist() for d in documents for s in range(len(d) - 4)]
    for n in (1, 4, 31, 40):
        config = small(prefix_length=2, suffix_length=3, n_sequences=n)
        _extraction_measures._discoverable(target, None, np.ones((2, 9), int), config)
        picks = np.linspace(0, len(windows) - 1, min(n, len(windows)))
        assert asked == [windows[round(p)] for p in picks]


def test_a_window_longer_than_what_is_planted_leaves_claims_on_the_rest(finished):
    workdir, result = finished
    m = artifacts.load_json(workdir / "artifacts" / "match" / "manifest.json")["measured"]
    assert _extraction_report.claims(small(), {"match": m}) == result.claims[:7]
    claims = _extraction_report.claims(small(), {"match": m | {"by level": m["by level"][:1]}})
    assert [c.claim for c in claims] == [result.claims[i].claim for i in (0, 1, 3, 6)]


def test_nothing_is_memorised_of_no_tokens():
    assert _extraction_measures._share_of_first({}, 0, small()) == 0


def test_streaming_finds_the_same(finished):
    _, result = finished
    streamed = run(small(index="stream", generation_seeds=2, untrained_seeds=0))
    for name in ("what was generated", "memorised tokens by window", "divergence by repetition"):
        assert streamed.tables[name] == result.tables[name]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A model of one's own in Hugging Face's layout, its corpus as text and as token ids."""
    folder = tmp_path_factory.mktemp("own")
    tokenizer = tokenizers.byte_tokenizer()
    kwargs = {
        "vocab_size": tokenizer.get_vocab_size(), "context": CONTEXT, "width": 8, "hidden": (16,),
        "heads": 2,
    }  # fmt: skip
    model = nn.GPT(**kwargs)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    save_gpt2(folder / "gpt2", kwargs, variables)
    tokenizer.save(str(folder / "gpt2" / "tokenizer.json"))
    artifacts.save_tree(folder / "model.safetensors", variables)
    texts = ["a short one", "the next is longer\n" * 9, "and a third " * 20]
    (folder / "texts" / "deep").mkdir(parents=True)
    for path, text in zip(("a.txt", "b.txt", "deep/c.txt"), texts, strict=True):
        (folder / "texts" / path).write_text(text)
    (folder / "ids").mkdir()
    ids = tokenizers.encode(tokenizer, texts)
    for name, row in zip(("a", "b", "c"), ids, strict=True):
        np.save(folder / "ids" / f"{name}.npy", row)
    np.save(folder / "prompts.npy", np.resize(ids[1], (4, 20)))
    return folder, kwargs


def test_a_model_of_ones_own(own, tmp_path):
    folder, kwargs = own
    shared = {"window": 1, "widths": (1, 2), "generation_seeds": 1, "n_tokens": 20}
    by_folder = run(
        small(huggingface=str(folder / "gpt2"), corpus=str(folder / "texts"),
              prompts=str(folder / "prompts.npy"), **shared),
        workdir=tmp_path,
    )  # fmt: skip
    by_module = run(
        small(module="jaxml.nn:GPT", module_kwargs=json.dumps(kwargs), bos=0,
              checkpoint=str(folder / "model.safetensors"), corpus=str(folder / "ids"),
              prompts=str(folder / "prompts.npy"), words=(), word_ids=((40, 41),), **shared)
    )  # fmt: skip
    name = "memorised tokens by window"
    assert by_folder.tables[name] == by_module.tables[name]
    assert by_folder.tables[name][0]["model: memorised tokens, %"] > 0
    assert "windows extracted by occurrences in the corpus" in by_module.tables
    scores = {row["score"] for row in by_module.tables["ranking of generations without the corpus"]}
    assert scores == {"perplexity", "min_window", "min_k"}
    line = json.loads((tmp_path / "hits.jsonl").read_text().splitlines()[0])
    assert line["document"] in ("a.txt", "b.txt", "deep/c.txt")


def test_bad_configs_are_refused(own, tmp_path):
    folder, _ = own
    gpt2, texts = str(folder / "gpt2"), str(folder / "texts")
    module = {"module": "jaxml.nn:GPT", "checkpoint": str(folder / "model.safetensors")}
    for changes, message in (
        ({"mode": "attack"}, "mode must be one of all, train"),
        ({"index": "tree"}, "index must be one of window, stream"),
        ({"window": 0}, "window must be positive"),
        ({"window": 21}, "window must be at most n_tokens=20"),
        ({"suffix_length": 21}, "suffix_length must be at most n_tokens=20"),
        ({"widths": (4, 21)}, "widths must lie in 1..n_tokens=20"),
        ({"n_generations": 1}, "n_generations must be at least 2"),
        ({"factors": (1.0,)}, "factors must be above 1"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"divergence_prompt": 0}, "divergence_prompt must be positive"),
        ({"corpus": texts}, "corpus needs a model of your own"),
        ({"huggingface": gpt2}, "needs --corpus"),
        ({"huggingface": gpt2, "corpus": texts, **module}, "exclude each other"),
        ({"module": "jaxml.nn:GPT", "corpus": texts}, "module needs a checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            extraction.check(small(**changes))
    for changes in (
        {"huggingface": str(tmp_path / "none"), "corpus": texts},
        {"huggingface": gpt2, "corpus": str(tmp_path / "none")},
        {"module": "jaxml.nn:GPT", "checkpoint": str(tmp_path / "none"), "corpus": texts},
    ):
        with pytest.raises(FileNotFoundError, match="there is no"):
            extraction.check(small(**changes))
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "floats.npy", np.ones(5))
    np.save(tmp_path / "negative.npy", np.array([3, -1] * 20))
    for changes, message in (
        ({"n_tokens": 40}, "prompt_length and n_tokens must fit in the context of 40"),
        ({"prefix_length": 32}, "prefix_length and suffix_length must fit in .* 40 .* got 41"),
        ({"divergence_prompt": 39}, "divergence_prompt and a token after it must .* 40 .* got 41"),
        ({"huggingface": gpt2, "corpus": str(tmp_path / "empty")}, "holds no file"),
        ({"huggingface": gpt2, "corpus": str(tmp_path / "floats.npy")}, "must hold ids"),
        ({"huggingface": gpt2, "corpus": str(tmp_path / "negative.npy")}, "ids in 0"),
        ({**module, "corpus": texts}, "module_kwargs"),
    ):
        with pytest.raises(ValueError, match=message):
            run(small(**changes))


def test_the_cards():
    for card in (tiny, stdlib, paper):
        config = card.get_config().lock()
        assert set(config) == set(tiny.get_config())
        if card is not paper:
            extraction.check(config)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, 1])
def test_the_recipe_memorises_what_is_repeated_and_only_that(seed):
    with jax.numpy_dtype_promotion("standard"):
        result = extraction.run(jax.random.key(seed), tiny.get_config().lock())
    assert all(claim.holds is not False for claim in result.claims), [
        (claim.claim, claim.value) for claim in result.claims if claim.holds is False
    ]
