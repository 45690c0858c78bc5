"""The Git Re-Basin study end to end on tiny networks: artifacts, resume, given checkpoints."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.git_rebasin import digits, paper, tiny
from jaxml import merging
from jaxml.io import MetricsWriter, artifacts
from launch import git_rebasin

ROOT = pathlib.Path(__file__).resolve().parents[2]


def small(**changes):
    config = tiny.get_config()
    config.update(
        width=(8.0, 16.0), n_pairs=1, epochs=4, epochs_per_checkpoint=1, batch_size=200,
        ste_steps=2, ste_max_width=8.0, n_lambdas=5, merge_many=3, n_planted=2,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return git_rebasin.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rebasin")
    return workdir, run(small(), workdir=workdir)


def test_the_result_has_a_row_for_each_width_pair_and_method(finished):
    _, result = finished
    rows = [(r["width"], r["method"]) for r in result.tables["pairs"]]
    common = ["naive", "weight", "activation"]
    assert rows == [
        *(("8", m) for m in [*common, "ste", "weight + repair"]),
        *(("16", m) for m in [*common, "weight + repair"]),
    ]
    assert len(result.tables["curves"]) == 4 * 5
    assert set(result.figures) == {"line_at_width_16", "barrier_against_width"}
    assert [r["combined by"] for r in result.tables["merging_many"]][-1] == "merge many"
    assert all(isinstance(c.holds, bool) and c.value for c in result.claims)


def test_artifacts_hold_what_the_report_says(finished):
    workdir, result = finished
    folder = workdir / "artifacts" / "width_8"
    spec = merging.PermutationSpec.from_json((folder / "spec.json").read_text())
    a, b = (artifacts.load_tree(folder / "models" / f"{seed}.safetensors") for seed in (0, 1))
    pair = folder / "pair_0" / "activation"
    perms = artifacts.load_npz(pair / "permutation.npz")
    aligned = merging.apply_permutation(spec, perms, b)
    jax.tree.map(
        np.testing.assert_array_equal, artifacts.load_tree(pair / "aligned.safetensors"), aligned
    )
    merged = artifacts.load_tree(pair / "merged.safetensors")
    jax.tree.map(
        lambda m, x, y: np.testing.assert_allclose(m, (x + y) / 2, atol=1e-6), merged, a, aligned
    )
    match = artifacts.load_json(folder / "pair_0" / "weight" / "match.json")
    row = next(r for r in result.tables["pairs"] if r["method"] == "weight")
    assert match["seconds"] == row["matching seconds"]
    assert not list(folder.glob("checkpoints_*"))


class KilledError(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path):
    workdir, result = finished
    events = 0

    def kill(event):
        nonlocal events
        events += event["step"] is not None
        if events == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert list(tmp_path.rglob("checkpoints_0"))
    resumed = run(small(), workdir=tmp_path)
    for path in sorted(workdir.rglob("*.safetensors")):
        again = tmp_path / path.relative_to(workdir)
        assert path.read_bytes() == again.read_bytes(), path.name
    drop = "matching seconds"
    for before, after in zip(result.tables["pairs"], resumed.tables["pairs"], strict=True):
        assert {k: v for k, v in before.items() if k != drop} == {
            k: v for k, v in after.items() if k != drop
        }


def test_a_finished_run_is_read_and_not_measured_again(finished):
    workdir, result = finished
    events = []
    again = run(small(), workdir=workdir, writer=MetricsWriter(None, events.append))
    assert again.tables == result.tables and again.claims == result.claims
    assert not [event for event in events if event["step"] is not None]


def test_repair_carries_the_seconds_of_its_own_matching(finished):
    _, result = finished
    seconds = {r["method"]: r["matching seconds"] for r in result.tables["pairs"][:5]}
    assert seconds["weight + repair"] == seconds["weight"] != seconds["ste"]


def test_a_width_too_large_for_the_only_method_is_measured_unmatched(finished):
    workdir, _ = finished  # so that nothing is measured anew
    result = run(small(method=("ste",), width=(16.0,)), workdir=workdir)
    assert [r["method"] for r in result.tables["pairs"]] == ["naive"]


def test_given_checkpoints_are_compared_without_claims(finished):
    workdir, _ = finished
    models = workdir / "artifacts" / "width_8" / "models"
    given = {"checkpoint_a": str(models / "0.safetensors"),
             "checkpoint_b": str(models / "1.safetensors"), "method": ("weight",)}  # fmt: skip
    own = run(small(**given))
    kwargs = json.dumps({"features": [8, 8, 8], "n_classes": 10})
    named = run(small(**given, module="jaxml.nn:MLP", module_kwargs=kwargs))
    assert own.claims == named.claims == []
    for a, b in zip(own.tables["pairs"], named.tables["pairs"], strict=True):
        assert a["train barrier"] == b["train barrier"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ("magic",)}, "method must be of weight, activation, ste; got 'magic'"),
        ({"method": ()}, "method is empty"),
        ({"width": (0.0,)}, "width must be positive"),
        ({"dataset": "digts"}, "unknown data set 'digts'.*digits"),
        ({"dataset": "diabetes"}, "has no classes"),
        ({"n_pairs": 0}, "n_pairs must be positive"),
        ({"merge_many": 1}, "merge_many"),
        ({"metric": "cosine"}, "metric must be one of inner, corr, sqdist; got 'cosine'"),
        ({"n_restarts": 0}, "n_restarts must be positive"),
        ({"ste_steps": 0}, "ste_steps must be positive"),
        ({"calibration_size": 0}, "calibration_size must be positive"),
        ({"lambda_chunk": 0}, "lambda_chunk must be positive"),
        ({"n_lambdas": 4}, "n_lambdas must be odd, for the midpoint, and at least 3, got 4"),
        ({"n_lambdas": 1}, "n_lambdas must be odd"),
        ({"n_pairs": 2, "seed_b": 2}, "seed_a and seed_b must differ by an odd number, .* 0 and 2"),
        ({"epochs_per_checkpoint": 0}, "epochs_per_checkpoint must be positive"),
        ({"augment": "mixup"}, "augment"),
        ({"batch_size": 5000}, "batch_size is 5000, of 1437"),
        ({"model": "transformer"}, "name must be one of mlp"),
        ({"checkpoint_a": "a.safetensors"}, "go together"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_bad_checkpoints_are_named(finished, tmp_path):
    workdir, _ = finished
    here = str(workdir / "artifacts" / "width_8" / "models" / "0.safetensors")
    wide = str(workdir / "artifacts" / "width_16" / "models" / "0.safetensors")
    with pytest.raises(FileNotFoundError, match="checkpoint_b: there is no file"):
        run(small(checkpoint_a=here, checkpoint_b=str(tmp_path / "none.safetensors")))
    with pytest.raises(ValueError, match="params/Dense_0/bias"):
        run(small(checkpoint_a=here, checkpoint_b=wide))
    with pytest.raises(ValueError, match="module: cannot find 'no_such"):
        run(small(checkpoint_a=here, checkpoint_b=here, module="no_such.thing:Net"))
    with pytest.raises(ValueError, match="module_kwargs"):
        run(small(checkpoint_a=here, checkpoint_b=here, module="jaxml.nn:MLP"))


def test_batchnorm_networks_are_measured_with_their_statistics_reset():
    config = small(
        model="convnet", norm="batch", width=(0.25,), epochs=1, method=("weight",), n_lambdas=3,
        merge_many=2, calibration_size=64, n_planted=0,
    )  # fmt: skip
    result = run(config)
    assert [r["method"] for r in result.tables["pairs"]] == ["naive", "weight"]
    many = result.tables["merging_many"]
    assert [r["combined by"] for r in many] == [
        f"{name}, statistics reset"
        for name in ("each alone, mean", "mean of parameters, naive", "merge many")
    ]
    assert any(f"those of {config.merge_many} add up" in note for note in result.notes)
    # Two networks in the middle of a line, with the same statistics reset.
    naive = result.tables["pairs"][0]
    assert many[0]["test accuracy"] == pytest.approx(naive["test accuracy of ends"], abs=1e-3)
    assert many[1]["test accuracy"] == pytest.approx(naive["test accuracy at midpoint"], abs=3e-3)


def test_an_unprepared_data_set_says_how_to_prepare_it(tmp_path):
    workdir = tmp_path / "out"
    command = [
        sys.executable, "-m", "launch.git_rebasin", "--config=paper:cifar10_resnet20",
        f"--data_dir={tmp_path}", f"--workdir={workdir}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "python -m launch.prepare_data --name=cifar10" in done.stderr
    assert "digits" in done.stderr
    assert not workdir.exists()


def test_every_card_passes_its_own_check():
    for config in (tiny.get_config(), digits.get_config()):
        git_rebasin.check(config)
    for card in paper.CARDS:
        assert set(paper.get_config(card).keys()) == set(tiny.get_config().keys())
    with pytest.raises(ValueError, match="must be one of mnist_mlp"):
        paper.get_config("imagenet")
