"""The NTBA study end to end on tiny networks: artifacts, resume, modes, bad input."""

import json

import jax
import numpy as np
import pytest

from configs.ntba import digits, paper, tiny
from jaxml import data
from jaxml.io import MetricsWriter, artifacts
from launch import ntba

METHODS = ["random", "forgetting", "greedy", "exchanged", "NTBA", "NTBA, last"]


def small(**changes):
    config = tiny.get_config()
    config.update(
        width=8.0, depth=1, n_train=20, n_holdout=8, data_seeds=(4,), epochs=4, n_kernel_nets=2,
        n_victims=2, n_judges=1, n_poisons=(1, 2), n_iterations=3, judged=(1, 9),
        forgetting_epochs=2, forgetting_rounds=2, exchange_sweeps=1,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return ntba.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ntba")
    return workdir, run(small(), workdir=workdir)


def test_the_result_has_a_row_for_each_number_of_poisons_and_method(finished):
    _, result = finished
    rows = [(r["poisons"], r["method"]) for r in result.tables["data_seeds"]]
    assert rows == [(0, "clean"), *((m, method) for m in (1, 2) for method in METHODS)]
    assert [(r["poisons"], r["method"]) for r in result.tables["success"]] == rows
    assert all(0 <= r["attack success"] <= 1 for r in result.tables["success"])
    iterates = [(r["poisons"], r["iterate"]) for r in result.tables["iterates"]]
    assert iterates == [(m, k) for m in (1, 2) for k in (0, 1, 3)]
    chosen = [r for r in result.tables["iterates"] if r["chosen"]]
    assert [r["poisons"] for r in chosen] == [1, 2]
    assert len(result.tables["detection"]) == 2 * len(METHODS) * 2
    assert set(result.figures) == {
        "success_against_poisons", "success_against_iterations", "poison_images",
    }  # fmt: skip
    assert len(result.claims) == 2  # those about 1, 3 and 10 poisons need all of them
    assert all(isinstance(c.holds, bool) and c.value for c in result.claims)


def test_artifacts_say_what_is_needed_to_use_them_elsewhere(finished):
    workdir, _ = finished
    folder = workdir / "artifacts" / "seed_4" / "m_2"
    poisons, manifest = (
        artifacts.load_npz(folder / "poisons.npz"),
        json.loads((folder / "manifest.json").read_text()),
    )
    assert poisons["random"].shape == (2, 2, 8, 8, 1)
    for method in METHODS[1:]:
        assert poisons[method].shape == (2, 8, 8, 1)
        assert poisons[method].min() >= 0 and poisons[method].max() <= 1
    dataset = data.load("digits")
    x = np.concatenate([dataset.train_x, dataset.test_x])
    y = np.concatenate([dataset.train_y, dataset.test_y])
    pair = np.isin(y, (manifest["source"], manifest["target"]))
    index = manifest["train_index"]
    assert np.bincount(y[pair][index])[[4, 9]].tolist() == [20, 20]
    # Chosen ones are training images of the source class with the trigger on.
    plain = x[pair][index][y[pair][index] == 9]
    triggered = ntba._trigger(small())(plain, None)
    for image in poisons["greedy"]:
        assert np.abs(np.asarray(triggered) - image).max((1, 2, 3)).min() == 0
    assert manifest["trigger"] == {"name": "periodic", "amplitude": 0.15, "n_periods": 2.0}


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_resumes_to_the_same_numbers(finished, tmp_path):
    workdir, result = finished
    done = tmp_path / "artifacts" / "seed_4"
    for what in ("judge", "train"):

        def kill(event, what=what):
            if event["stage"].startswith(f"seed 4, 2 poisons: {what}"):
                raise KilledError

        with pytest.raises(KilledError):
            run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
        assert (done / "m_1" / "outcomes.json").exists()
        assert (done / "m_2" / "manifest.json").exists() == (what == "train")
        assert not (done / "m_2" / "outcomes.json").exists()
    events = []
    resumed = run(small(), workdir=tmp_path, writer=MetricsWriter(None, events.append))
    # Poisons that were found are not looked for again.
    assert not any("optimise" in event["stage"] for event in events)
    assert resumed.tables == result.tables and resumed.claims == result.claims
    for name in ("poisons.npz", "manifest.json", "outcomes.json"):
        paths = (root / "artifacts" / "seed_4" / "m_2" / name for root in (workdir, tmp_path))
        if name.endswith("npz"):
            jax.tree.map(np.testing.assert_array_equal, *map(artifacts.load_npz, paths))
        else:
            assert len({path.read_text() for path in paths}) == 1


def test_a_finished_run_is_read_and_not_computed_again(finished):
    workdir, result = finished
    events = []
    again = run(small(), workdir=workdir, writer=MetricsWriter(None, events.append))
    assert again.tables == result.tables and not events


@pytest.mark.heavy
def test_other_modes_triggers_and_modules_run():
    kwargs = json.dumps({"features": [8], "n_classes": 1})
    changes = {"queries": "leave_one_out", "trigger": "patch", "solver": "adam", "n_poisons": (1,)}
    result = run(small(**changes, module="jaxml.nn:MLP", module_kwargs=kwargs))
    assert len(result.tables["success"]) == 1 + len(METHODS)
    assert any("own training images" in note for note in result.notes)


def test_batch_statistics_take_no_part_in_the_kernel():
    pipeline = ntba._pipeline(small(model="convnet", width=0.25, norm="batch"), (8, 8, 1), None)
    x = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(pipeline.model.init)(jax.random.key(0), x)
    ours, plain = (jax.jit(apply)(variables, x) for apply in (pipeline.apply, pipeline.model.apply))
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
    grads = jax.jit(jax.grad(lambda v: pipeline.apply(v, x).sum()))(variables)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["batch_stats"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(grads["params"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_poisons": (0, 3)}, r"n_poisons must be positive numbers, got \(0, 3\)"),
        ({"n_poisons": (21,)}, "n_poisons must be at most n_train, 20, got 21"),
        ({"queries": "test"}, "queries must be one of holdout, leave_one_out"),
        ({"solver": "newton"}, "solver must be one of lbfgsb, adam"),
        ({"source": 4}, "source and target must differ"),
        ({"source": 10}, r"source must be a class of 'digits', in 0\.\.9, got 10"),
        ({"trigger": "stamp"}, "trigger must be one of periodic, patch, pixel, blend"),
        ({"trigger": "patch", "patch_size": 9}, r"size must lie in 1\.\.8"),
        ({"n_train": 175}, "source class 9 has 180, 184 are needed"),
        ({"diag_reg": 0.0}, "diag_reg must be positive"),
        ({"data_seeds": ()}, "data_seeds must hold at least one seed"),
        ({"batch_size": 41}, "batch_size is 41, of 40 training images"),
        ({"dataset": "digts"}, "unknown data set 'digts'.*digits"),
        ({"dataset": "wine"}, "x must be floating images"),
        (
            {"module": "jaxml.nn:MLP", "module_kwargs": '{"features": [4], "n_classes": 2}'},
            r"one output \[n, 1\], got \(2, 2\)",
        ),
        ({"module": "jaxml.nn:Nothing"}, "module: cannot find 'jaxml.nn:Nothing'"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    changes = {"source": 1, "target": 0} | changes if changes.get("dataset") == "wine" else changes
    with pytest.raises(ValueError, match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_card_passes_its_own_check():
    for card in digits.CARDS:
        ntba.check(digits.get_config(card))
    for card in paper.CARDS:
        assert set(paper.get_config(card).keys()) == set(tiny.get_config().keys())
    for module in (digits, paper):
        with pytest.raises(ValueError, match="must be one of"):
            module.get_config("mnist")
