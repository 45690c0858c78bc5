"""The FLIP study end to end on tiny networks: stages, label files, resume, other processes."""

import collections
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs.flip import digits, paper, tiny
from jaxml import data
from jaxml.io import MetricsWriter, artifacts
from launch import _flip_data, _flip_users, flip

from .conftest import ROOT

STAGES = ("experts", "labels", "select", "users")


def small(**changes):
    config = tiny.get_config()
    config.update(
        data_seeds=(0, 1), train_size=200, width=8.0, experts=2, expert_points=3, expert_every=2,
        label_iterations=2, label_batch_size=100, budgets=(4, 10), greedy_points=2,
        soft_alpha=(0.0, 1.0), user_seeds=2, user_epochs=2, models_at_once=32,
        epochs_per_checkpoint=1, other_model="mlp", other_width=4.0, other_budgets=(4,),
        other_epochs=1, defended_budgets=(4,), filter_epochs=1,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return flip.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flip")
    return workdir, run(small(), workdir=workdir)


def test_every_pta_has_the_clean_rate_beside_it(finished):
    _, result = finished
    rows = {(r["flips"], r["labels"]) for r in result.tables["users"]}
    methods = ("FLIP", "NTK-greedy", "random", "random, source class", "inner product")
    assert rows == {(0, "true labels"), *itertools.product((4, 10), methods)}
    for rows in result.tables.values():
        for row in rows:
            assert ("PTA" in row) == ("clean source -> target" in row)
    assert {r["users"] for r in result.tables["users"]} == {4}
    defences = {(r["labels"], r["defence"]) for r in result.tables["defences"]}
    assert defences == set(
        itertools.product(("true labels", "FLIP", "NTK-greedy"), ("k-NN", "loss", "spectral"))
    )
    for row in result.tables["defences"]:
        assert (row["flips removed"] is None) == (row["labels"] == "true labels")
    assert set(result.figures) == {"tradeoff_by_budget", "soft_labels", "defences"}
    assert len(result.claims) == 7 and all(isinstance(c.holds, bool) for c in result.claims)


def test_label_files_are_what_their_manifest_says(finished):
    workdir, _ = finished
    folder = workdir / "artifacts" / "seed_0" / "select"
    manifest = artifacts.load_json(folder / "manifest.json")
    audit = _flip_data.make_audit(jax.random.key(3), small(), 0, None, MetricsWriter(), None)
    assert manifest["images_sha256"] == hashlib.sha256(audit.x.tobytes()).hexdigest()
    assert manifest["trigger"] == {"name": "periodic", "amplitude": 0.25, "n_periods": 2.0}
    assert manifest["normalisation"] == {"mean": [0.0], "std": [1.0]}
    np.testing.assert_array_equal(np.load(folder / "clean" / "labels_0.npy"), audit.y)
    for method in ("flip", "ntk_greedy", "random", "random_source", "inner_product"):
        few, many = (np.load(folder / method / f"labels_{b}.npy") != audit.y for b in (4, 10))
        assert few.sum() == 4 and many.sum() == 10 and (few <= many).all()
    np.testing.assert_array_equal(np.load(folder / "soft" / "labels_1.npy"), np.eye(10)[audit.y])
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_soft_labels_with_alpha_1_give_the_clean_run_to_the_bit(finished):
    _, result = finished
    rows = result.tables["every user"]
    by_method = collections.defaultdict(list)
    for row in rows:
        if not row["defence"] and row["network"] == "mlp 8":
            rates = row["cta"], row["pta"], row["clean_rate"]
            by_method[row["method"], row["amount"]].append(rates)
    assert by_method["soft", 1.0] == by_method["clean", 0.0]


def test_stages_one_by_one_give_the_same_and_each_can_be_done_again(finished, tmp_path):
    workdir, result = finished
    with pytest.raises(ValueError, match=r"stage 'labels' needs .*experts: run --stage=experts"):
        run(small(stage="labels"), workdir=tmp_path)
    parts = [run(small(stage=stage), workdir=tmp_path) for stage in STAGES]
    assert parts[-1].claims == result.claims
    assert parts[-1].tables["users"] == result.tables["users"]
    assert not parts[0].claims and set(parts[0].tables) == {"experts"}
    same(workdir, tmp_path)
    for stage in STAGES:
        shutil.rmtree(tmp_path / "artifacts" / "seed_1" / stage)
        run(small(stage=stage), workdir=tmp_path)
    same(workdir, tmp_path)


def same(one, other):
    files = [p.relative_to(one) for p in sorted(one.rglob("*.*")) if p.is_file()]
    assert files == [p.relative_to(other) for p in sorted(other.rglob("*.*")) if p.is_file()]
    for path in files:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


class KilledError(Exception):
    pass


def test_a_run_killed_over_and_over_resumes_to_the_same_bits(finished, tmp_path):
    workdir, result = finished
    for last in (1, 4, 3):  # in the experts, in the users, in the defended users
        events = itertools.count(1)

        def kill(event, events=events, last=last):
            if event["step"] is not None and next(events) == last:
                raise KilledError

        with pytest.raises(KilledError):
            run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
    assert run(small(), workdir=tmp_path).tables == result.tables
    same(workdir, tmp_path)
    events = []
    again = run(small(), workdir=tmp_path, writer=MetricsWriter(None, events.append))
    assert again.tables == result.tables and not events


def test_users_with_the_same_labels_do_not_share_checkpoints(monkeypatch, tmp_path):
    config, folders = small(models_at_once=1), []
    audit = _flip_data.make_audit(jax.random.key(3), config, 0, tmp_path, MetricsWriter(), None)
    state = types.SimpleNamespace(variables={"params": np.zeros((1, 2), np.float32)})
    monkeypatch.setattr(
        _flip_users, "resumable", lambda _, saves, *args: folders.append(saves) or {}
    )
    monkeypatch.setattr(_flip_users.flip_users, "train_users", lambda *_, **__: state)
    users = [_flip_users.User("clean", 0.0, audit.y, seed) for seed in range(2)]
    assert len(_flip_users._train(audit, "users", users)) == len(set(folders)) == 2


def test_label_files_give_the_same_networks_in_another_process(finished, tmp_path):
    workdir, _ = finished
    for seed in (0, 1):
        where = f"artifacts/seed_{seed}/select"
        shutil.copytree(workdir / where, tmp_path / where)
    program = (
        "import pathlib, sys; from tests.launch import test_flip; "
        "config = test_flip.small(stage='users', other_model='', defended_budgets=()); "
        "test_flip.run(config, workdir=pathlib.Path(sys.argv[1]))"
    )
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", **cache}, check=True,
    )  # fmt: skip
    for path in sorted((tmp_path / "artifacts").rglob("*.safetensors")):
        assert path.read_bytes() == (workdir / path.relative_to(tmp_path)).read_bytes()
    users = tmp_path / "artifacts" / "seed_0" / "users"
    assert (users / "users_0.safetensors").exists()


def test_a_label_file_that_was_changed_or_is_of_other_images_is_refused(finished, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir / "artifacts", tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "artifacts" / "seed_0" / "users")
    with pytest.raises(ValueError, match=r"run_key was .* when it was written, now it is"):
        flip.run(jax.random.key(4), small(stage="users"), workdir=tmp_path)
    path = tmp_path / "artifacts" / "seed_0" / "select" / "flip" / "labels_4.npy"
    np.save(path, np.zeros(200, np.int32))
    with pytest.raises(ValueError, match=r"labels_4.npy is not the file that manifest.json"):
        run(small(stage="users"), workdir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (4, 190)}, r"budgets must be at most the 1\d\d labels .* got 190"),
        ({"budgets": (0, 4)}, "budgets must be positive"),
        ({"target": 10}, r"source and target must be two of the classes 0..9"),
        ({"trigger": "patch", "patch_size": 9}, "size must lie in 1..8, the image's, got 9"),
        ({"trigger": "pixel", "pixels": (8, 0)}, r"pixel \(8, 0\) lies outside an image of 8 x 8"),
        ({"trigger": "stripes"}, "trigger must be one of periodic, patch, pixel, blend"),
        ({"matcher": "hessian"}, "matcher must be one of jvp, unroll, linearized"),
        ({"stage": "user"}, "stage must be one of all, experts, labels, select, users"),
        ({"soft_alpha": (2.0,)}, r"soft_alpha must lie in \[0, 1\], got 2.0"),
        ({"other_budgets": (5,)}, "other_budgets must be among the budgets"),
        ({"defended": ("flip", "soft")}, "defended must be among flip, .*; got 'soft'"),
        ({"train_size": 0}, "several data_seeds need a train_size"),
        ({"train_size": 1795}, "train_size must leave test images"),
        ({"coarse": True}, "coarse labels are cifar100's"),
        ({"experts": 0}, "experts must be positive"),
        ({"batch_size": 500}, "batch_size is 500, of 200 images"),
        ({"dataset": "wine"}, "is not one of images with classes"),
        ({"dataset": "digts"}, "unknown data set 'digts'"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="stage 'users' needs a workdir"):
        run(small(stage="users"))


@pytest.mark.heavy
def test_a_network_with_batch_norm_and_augmentation_goes_all_the_way():
    config = small(
        model="convnet", norm="batch", width=0.25, data_seeds=(0,), trigger="patch",
        position="random", nesterov=True, weight_decay=2e-4, standardize=True,
        augment="crop_flip", user_milestones=(1,), expert_dtype="float32",
    )  # fmt: skip
    result = run(config)
    assert len(result.tables["users"]) == 11
    assert all(np.isfinite(row["cta"]) for row in result.tables["every user"])


def test_every_card_passes_its_own_check(monkeypatch):
    for config in (tiny.get_config(), *map(digits.get_config, digits.VARIANTS)):
        flip.check(config)
    # The sets themselves are not prepared here.
    monkeypatch.setattr(data, "check", lambda name: None)
    for card in paper.CARDS:
        config = paper.get_config(card)
        assert set(config.keys()) == set(tiny.get_config().keys())
        flip.check(config)
    with pytest.raises(ValueError, match="the argument must be one of periodic"):
        digits.get_config("some")
    with pytest.raises(ValueError, match="the argument must be DATASET_MODEL_TRIGGER"):
        paper.get_config("mnist")


def test_superclasses_have_five_classes_each():
    assert set(collections.Counter(_flip_data.COARSE).values()) == {5}
    assert set(_flip_data.COARSE) == set(range(20))
