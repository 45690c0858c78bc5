"""The GCQ study end to end on a miniature model: outcomes, files, resume, bad configs."""

import itertools

import jax
import numpy as np
import pytest

from configs.gcq import paper, stdlib, tiny
from jaxml.io import MetricsWriter, artifacts
from launch import _gcq_search, gcq

SEARCHES = ("gcq", "random", "position first with gradient", "transfer")


def small(**changes):
    config = tiny.get_config()
    config.lm.update(
        body_bytes=12_000, held_out_bytes=4000, excerpts_per_level=1, canaries_per_level=1,
        vocab_size=300, context=48, width=16, depth=1, heads=2, passes=1, epochs=1,
    )  # fmt: skip
    config.detector.update(
        window=16, vocab_size=300, width=4, max_windows=300, epochs=1, n_train_strings=2,
        n_strings=20, own_strings=3, own_queries=30, universal_queries=60, universal_seeds=2,
        n_tries=2,
    )  # fmt: skip
    config.update(
        targets=("a b", "hello"), seeds=1, max_queries=12, suffix_len=6, buffer_size=4,
        query_batch=4, proxy_batch=8, n_tries=2, top_k=4, gcg_batch=6, transfer_steps=1,
        bias_steps=1,
        searches=SEARCHES,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return gcq.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gcq")
    return workdir, run(small(), workdir=workdir)


def test_every_search_has_an_outcome_for_every_target(finished):
    workdir, result = finished
    assert [row["search"] for row in result.tables["cost"]] == list(SEARCHES)
    rows = result.tables["targets"]
    assert len(rows) == 2 * len(SEARCHES)
    assert max(row["queries"] for row in rows) <= 12
    assert {row["queries"] for row in rows if row["search"] == "transfer"} == {1}
    assert {"success_against_queries", "evasion_against_queries"} <= set(result.figures)
    assert all(claim.value for claim in result.claims)
    # Two sentences are too few to compare queries on.
    unsure = [claim.claim for claim in result.claims if claim.holds is None]
    assert all("half the queries" in claim for claim in unsure)
    assert result.tables["top-k interface"][0]["same prompts"] == "2 of 2"
    saved = artifacts.load_json(workdir / "artifacts" / "gcq" / "result.json")
    assert [o["queries"] for o in saved] == [r["queries"] for r in rows if r["search"] == "gcq"]
    trace = (workdir / "artifacts" / "gcq" / "trace.csv").read_text().splitlines()
    assert trace[0] == "target,step,queries,scored_tokens,best_loss,worst_loss,solved"
    assert trace[1].startswith("a b/0,0,1,")


class KilledError(Exception):
    pass


@pytest.mark.heavy
@pytest.mark.parametrize("stage", ["random", "universal suffix, random"])
def test_a_run_that_is_killed_resumes_to_the_same_numbers(finished, tmp_path, stage):
    workdir, result = finished
    events = itertools.count(1)

    def kill(event):
        if event["stage"] == stage and event["step"] is not None and next(events) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
    folder = stage.replace(" suffix, ", "_")
    state, trace = _gcq_search.load(tmp_path / "artifacts" / folder / "state.npz")
    assert state.step == 2 and len(trace) == 3 and state.ledger.queries.max() > 1
    resumed = run(small(), workdir=tmp_path)
    assert resumed.tables == result.tables and resumed.claims == result.claims
    curves = [w / "artifacts" / "universal_random" / "curve.json" for w in (workdir, tmp_path)]
    assert artifacts.load_json(curves[0]) == artifacts.load_json(curves[1])


def test_targets_come_from_a_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("one line\n\n another \n")
    assert gcq.lines(small(targets_file=str(file))) == ["one line", "another"]
    assert gcq.lines(small()) == ["a b", "hello"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"searches": ("gcq", "best")}, "searches must be of gcq, .*; got 'best'"),
        ({"searches": ()}, "searches must name at least one, got none"),
        ({"audited": "both"}, "audited must be one of model, control; got 'both'"),
        ({"init": "zeros"}, "init must be one of repeat_target, random"),
        ({"expand": "all"}, "expand must be one of best, best_unexplored"),
        ({"max_queries": 0}, "max_queries must be positive, got 0"),
        ({"query_batch": 9}, "query_batch must be at most proxy_batch=8, got 9"),
        ({"bias_k": 1}, "bias_k must be at least 2, got 1"),
        ({"targets": (" ",)}, "targets must be one sentence or more, got none"),
        ({"targets_file": "nowhere.txt"}, "there is no file nowhere.txt"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_card_passes_its_own_check():
    for card in (tiny, stdlib, paper):
        gcq.check(card.get_config())
        assert set(card.get_config().keys()) == set(tiny.get_config().keys())
    assert np.all([len(line.split()) > 1 for line in gcq.lines(tiny.get_config())])
