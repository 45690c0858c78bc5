"""The shadow study end to end on few rounds, and the plain filter of a file."""

import jax
import numpy as np
import pytest

from configs.shadow import digits, paper, tiny
from jaxml.backdoor.shadow import FROZEN, TRAINING
from jaxml.io import MetricsWriter
from launch import _shadow_report, _shadow_world, shadow, spectre


def small(**changes):
    config = tiny.get_config()
    config.update(
        seeds=(0,), rounds=20, n_clients=20, per_label=2, clients_per_round=10, width=8.0, depth=1,
        batch_size=10, epochs=1, attack_epochs=2, window=2, tolerance=1.0, converged_level=0.0,
        shadow_rounds=4, drop=1.0, k=2, n_pooled=2, defense=("none", "rfa", "spectre", "shadow"),
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return shadow.run(jax.random.key(3), config, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("shadow")
    return workdir, run(small(), workdir=workdir)


def test_the_result_has_every_defence(finished):
    workdir, result = finished
    rows = {row["defence"]: row for row in result.tables["defences"]}
    assert list(rows) == [
        "no defence", "geometric median (RFA)", "filter alone (SPECTRE)", "shadow learning",
    ]  # fmt: skip
    assert all(
        0 <= row["success, round 20"] <= 1 and row["accuracy"] > 0.1 for row in rows.values()
    )
    assert [row["to"] for row in result.tables["phases"]] == ["collecting", "training", "frozen"]
    assert set(result.figures) == {"success_against_rounds"}
    assert len(result.claims) == 4 and all(isinstance(c.holds, bool) for c in result.claims)
    names = {path.name for path in (workdir / "artifacts" / "seed_0").iterdir()}
    assert names == {"none.npz", "rfa.npz", "spectre.npz", "shadow.npz", "shadow.safetensors"}


def test_the_backbone_of_the_shadow_is_the_undefended_run(finished):
    workdir, _ = finished
    config = small(defense=("none",))
    alone = run(config).tables["seeds"][0]
    both = np.load(workdir / "artifacts" / "seed_0" / "shadow.npz")
    assert alone["accuracy"] == pytest.approx(float(both["mta_backbone"][-1]), abs=0.01)


def test_a_killed_run_resumes_with_the_same_traces(finished, tmp_path):
    workdir, result = finished
    events = []

    def kill(event):
        if event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
    again = run(small(), workdir=tmp_path, writer=MetricsWriter(None, events.append))
    assert again.tables == result.tables and again.claims == result.claims
    for path in (workdir / "artifacts").rglob("*.npz"):
        other = tmp_path / path.relative_to(workdir)
        np.testing.assert_array_equal(np.load(path)["asr"], np.load(other)["asr"])


def test_the_filter_alone_guards_the_target_and_is_judged_in_every_round(finished):
    _, result = finished
    alone = {row["defence"]: row for row in result.tables["seeds"]}["filter alone (SPECTRE)"]
    guarding_all = run(small(defense=("spectre",), guarded_labels="all")).tables["seeds"][0]
    assert guarding_all == alone
    waiting = np.zeros(4, int)
    trace = _shadow_world.Trace(*[waiting] * 4, np.array([0, 1, 0, 1.0]), waiting, waiting)
    assert _shadow_report.found_by("spectre", trace, "recall") == 0.5
    assert _shadow_report.found_by("rfa", trace, "recall") is None
    assert _shadow_report.found_by("shadow", trace, "recall") is None  # it never trained
    trace = trace._replace(phase=np.array([0, TRAINING, TRAINING, FROZEN]))
    assert _shadow_report.found_by("shadow", trace, "recall") == 0.5


@pytest.mark.heavy
def test_remedies_levels_shift_and_all_labels_run():
    result = run(
        small(
            defense=("shadow",), remedies=("blind extractor", "sample level"),
            guarded_labels="all", shift_round=10, split="dirichlet", trigger="stripes",
        )
    )  # fmt: skip
    assert len(result.tables["defences"]) == 3 and "variants_1" in result.figures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defense": ("magic",)}, "defense must be among none, rfa.*got 'magic'"),
        ({"remedies": ("magic",)}, "remedies must be among"),
        ({"defense": ()}, "at least one"),
        ({"level": "all"}, "level must be one of user, label, sample; got 'all'"),
        ({"alpha_bar": 0.5}, r"alpha_bar must lie in \[0, 0.5\), got 0.5"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\)"),
        ({"share": 1.5}, "share must lie in"),
        ({"clients_per_round": 50}, r"clients_per_round must lie in 1\.\.20, got 50"),
        ({"k": 20}, "k must be positive and less than the rows"),
        ({"norm": "batch"}, "norm 'batch'"),
        ({"guarded_labels": "2"}, "guarded_labels must be the target's, '1', or 'all'; got '2'"),
        ({"sources": (1, 2)}, "sources must be labels other than the target, 1"),
        ({"dataset": "digts"}, "unknown data set 'digts'.*digits"),
        ({"dataset": "wine"}, "dataset must hold images"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_card_passes_its_own_check():
    for config in (tiny.get_config(), *map(digits.get_config, digits.REGIMES)):
        shadow.check(config)
    for card in paper.CARDS:
        assert set(paper.get_config(card).keys()) == set(tiny.get_config().keys())
    for module, name in ((digits, "third"), (paper, "mnist")):
        with pytest.raises(ValueError, match="must be one of"):
            module.get_config(name)
    assert shadow.DEFENSES == _shadow_world.DEFENSES


def test_a_file_of_representations_is_filtered(tmp_path, capsys):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(200, 8)).astype(np.float64)
    h[:10, 3] += 12
    np.save(tmp_path / "h.npy", h)
    common = ["spectre", f"--reps={tmp_path / 'h.npy'}", f"--out={tmp_path / 'out'}"]
    assert spectre.main([*common, "--num_poison=10", "--k=8"]) == 0
    assert "15 of 200 rows removed, k = 8" in capsys.readouterr().out
    mask, scores = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("mask", "scores"))
    assert mask.dtype == bool and mask.sum() == 185 and not mask[:10].any()
    assert scores[mask].max() <= scores[~mask].min()
    assert spectre.main(["spectre", "--help"]) == 0
    for arguments, message in (
        ([], "--reps is missing"),
        (common[1:2], "--num_poison is missing"),
        ([*common[1:], "--num_poison=150"], "n = 200; got 150"),
        ([*common[1:], "--num_poison=5", "--k=many"], "--k must be a number or auto"),
        (["--reps=none.npy", "--num_poison=5"], "cannot read none.npy"),
        (["--rep=a.npy"], "did you mean reps"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            spectre.main(["spectre", *arguments])
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err
