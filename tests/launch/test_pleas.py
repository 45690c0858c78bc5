"""The PLeaS study end to end on tiny networks: artifacts, resume, tasks, given checkpoints."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from configs.pleas import digits, paper, tiny
from jaxml import data, merging, nn
from jaxml.io import MetricsWriter, artifacts
from launch import _tasks, pleas
from launch._pleas_report import Outcome, claims

AT_ONE = [
    "average", "RegMean", "least squares, not permuted", "sequential, not permuted",
]  # fmt: skip
BUDGETED = ["partial zip", "permutation", "PLeaS", "PLeaS sequential"]


def small(**changes):
    config = tiny.get_config()
    config.update(
        width=0.25, n_pairs=1, epochs=2, epochs_per_checkpoint=1, batch_size=100,
        budget=(1.0, 1.5), calibration_size=200,
    )  # fmt: skip
    config.update(changes)
    return config.lock()


def run(config, **kwargs):
    return pleas.run(jax.random.key(3), config, **kwargs)


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def trained(workdir):
    return [workdir / "artifacts" / side / "models" / f"{i}.safetensors"
            for i, side in enumerate("ab")]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pleas")
    return workdir, run(small(), workdir=workdir)


def test_the_result_has_a_row_for_each_budget_and_method(finished):
    _, result = finished
    rows = [(r["budget"], r["method"]) for r in result.tables["pairs"]]
    assert rows == [
        (1.0, "source A"), (1.0, "source B"), (2.0, "ensemble"),
        *((1.0, m) for m in AT_ONE + BUDGETED),
        *((1.5, m) for m in BUDGETED),
    ]  # fmt: skip
    by_name = {(r["budget"], r["method"]): r for r in result.tables["accuracy"]}
    assert set(by_name) == set(rows)
    for row in by_name.values():
        assert row["accuracy, better of both"] >= row["accuracy as is"]
        assert row["FLOPs"] <= row["FLOPs if dense"]
    assert by_name[1.0, "PLeaS"]["FLOPs"] == 1
    # A group has 4, 8 or 16 units here, so the budget is met to about a unit.
    assert 1.2 < by_name[1.5, "PLeaS"]["FLOPs"] < 1.6
    assert set(result.figures) == {"accuracy_against_compute"}
    assert all(isinstance(c.holds, bool) and c.value for c in result.claims)
    assert len(result.claims) == 5


def test_least_squares_lowers_the_error_of_every_layer(finished):
    _, result = finished
    rows = result.tables["layers"]
    assert {r["layer"] for r in rows} == {"Conv_0", "Conv_1", "Conv_2", "Dense_0"}
    # The first layer sees the images themselves: its error is rounding alone.
    later = [r for r in rows if r["layer"] != "Conv_0"]
    assert all(r["error solved"] < r["error as assembled"] for r in later)


def test_artifacts_hold_what_the_report_says(finished):
    workdir, result = finished
    root = workdir / "artifacts"
    a, b = (artifacts.load_tree(path) for path in trained(workdir))
    spec = merging.PermutationSpec.from_json((root / "spec.json").read_text())
    folder = root / "pair_0" / "1.5x" / "permutation"
    fields = artifacts.load_npz(folder / "blocks.npz")
    blocks = {
        name: merging.Blocks(*(fields[f"{name}/{field}"] for field in merging.Blocks._fields))
        for name in spec.groups
    }
    ratios = artifacts.load_json(folder / "ratios.json")
    for name, group in spec.groups.items():
        assert blocks[name].width == group.size + round(ratios[name] * group.size)
    merged = artifacts.load_tree(folder / "merged.safetensors")
    again = merging.partial_merge(spec, a, b, blocks)
    jax.tree.map(np.testing.assert_array_equal, merged, again)

    dataset = data.load("digits")
    model = nn.with_widths(nn.build("convnet", width=0.25, n_classes=10, norm="batch"), merged)
    row = next(
        r for r in result.tables["pairs"] if (r["budget"], r["method"]) == (1.5, "permutation")
    )
    for name, column in (("merged", "accuracy as is"), ("merged_reset", "accuracy reset")):
        variables = artifacts.load_tree(folder / f"{name}.safetensors")
        hits = model.apply(variables, dataset.test_x).argmax(-1) == dataset.test_y
        assert float(hits.mean()) == pytest.approx(row[column], abs=0.5 / len(dataset.test_y))
    assert not list(root.rglob("checkpoints_*"))


class KilledError(Exception):
    pass


def test_a_run_killed_twice_resumes_to_the_same_bits(finished, tmp_path):
    workdir, result = finished
    for last in (3, 14):  # in the training of B; in the merges at the second budget
        events = itertools.count(1)

        def kill(event, events=events, last=last):
            if event["step"] is not None and next(events) == last:
                raise KilledError

        with pytest.raises(KilledError):
            run(small(), workdir=tmp_path, writer=MetricsWriter(None, kill))
    assert (tmp_path / "artifacts" / "pair_0" / "1x" / "outcomes.json").exists()
    assert not (tmp_path / "artifacts" / "pair_0" / "1.5x" / "outcomes.json").exists()
    resumed = run(small(), workdir=tmp_path)
    files = [path.relative_to(workdir) for path in sorted(workdir.rglob("*.safetensors"))]
    assert files == [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*.safetensors"))]
    for path in files:
        assert (workdir / path).read_bytes() == (tmp_path / path).read_bytes(), path
    for name, rows in result.tables.items():
        assert without_seconds(rows) == without_seconds(resumed.tables[name])


def test_a_finished_run_is_read_and_not_computed_again(finished):
    workdir, result = finished
    events = []
    again = run(small(), workdir=workdir, writer=MetricsWriter(None, events.append))
    assert again.tables == result.tables and again.claims == result.claims
    assert not [event for event in events if event["step"] is not None]


def test_disjoint_labels_are_judged_by_task_and_by_probes():
    result = run(small(labels="disjoint", budget=(1.0,), matching="weight", epochs=4))
    by_name = {r["method"]: r for r in result.tables["accuracy"]}
    names = ("digits 0-4", "digits 5-9")
    ensemble = by_name["ensemble"]
    for name, source, other in zip(names, "AB", "BA", strict=True):
        # The other network's columns are 0, so the ensemble answers as the source does.
        assert ensemble[f"as is: {name}"] == by_name[f"source {source}"][f"as is: {name}"]
        assert ensemble[f"as is: {name}"] > by_name[f"source {other}"][f"as is: {name}"]
    probes = {r["features of"]: r for r in result.tables["probes"]}
    assert set(probes) == {"source A", "source B", "ensemble", *AT_ONE, *BUDGETED}
    assert all(0 <= probes[m][name] <= 1 for m in probes for name in names)
    assert [c.claim.startswith("Linear probe") for c in result.claims] == [True, True, False]


@pytest.mark.parametrize("ratios", ["uniform", "zip"])
def test_noise_can_stand_in_for_the_data(ratios):
    result = run(small(calibration="noise", ratios=ratios, budget=(1.5,)))
    assert any("Gaussian noise" in note for note in result.notes)
    rows = [r for r in result.tables["pairs"] if r["budget"] == 1.5]
    assert [r["method"] for r in rows] == BUDGETED
    zipped, chosen = rows[:2]
    assert (zipped["FLOPs"] == chosen["FLOPs"]) == (ratios == "zip")
    # Without the budget 1 there is nothing to compare but the identity.
    assert [c.claim[:14] for c in result.claims] == ["With all units"]


def test_noise_has_the_mean_and_spread_of_every_channel():
    config = small(calibration="noise", calibration_size=5000)
    rng = np.random.default_rng(0)
    x = rng.normal([1.0, -2.0], [0.5, 3.0], (400, 3, 3, 2)).astype(np.float32)
    y = np.zeros(400, np.int32)
    noise = _tasks.calibration(jax.random.key(0), config, [data.Dataset("d", x, y, x, y, ("a",))])
    assert noise.shape == (5000, 3, 3, 2) and noise.dtype == jnp.float32
    np.testing.assert_allclose(noise.mean((0, 1, 2)), x.mean((0, 1, 2)), atol=0.06)
    np.testing.assert_allclose(noise.std((0, 1, 2)), x.std((0, 1, 2)), rtol=0.03)


def test_another_set_can_stand_in_for_the_data_too():
    public = run(small(calibration="public", calibration_dataset="digits", budget=(1.0,)))
    target = run(small(budget=(1.0,)))
    assert without_seconds(public.tables["pairs"]) == without_seconds(target.tables["pairs"])


@pytest.mark.parametrize("fraction", [0.5, 0.9, 1.0])
def test_a_label_split_shares_out_every_example(fraction):
    dataset = data.load("digits")
    parts = _tasks.split(jax.random.key(1), dataset, fraction)
    low = [part.train_y < 5 for part in parts]
    n_low, n_high = (dataset.train_y < 5).sum(), (dataset.train_y >= 5).sum()
    assert abs(low[0].sum() - fraction * n_low) <= 0.5
    assert abs((~low[1]).sum() - fraction * n_high) <= 1
    both = np.concatenate([part.train_x for part in parts]).reshape(len(dataset.train_y), -1)
    order = np.lexsort(both.T), np.lexsort(dataset.train_x.reshape(len(both), -1).T)
    labels = np.concatenate([part.train_y for part in parts])
    np.testing.assert_array_equal(labels[order[0]], dataset.train_y[order[1]])


def test_two_data_sets_make_two_tasks():
    result = run(small(model="mlp", width=8.0, norm="none", dataset_b="digits", budget=(1.0,)))
    for row in result.tables["pairs"]:
        assert row["accuracy reset"] is None
        assert row["as is: digits"] == row["as is: digits again"] == row["accuracy as is"]
    config = small(model="mlp", dataset="wine", dataset_b="breast_cancer")
    with pytest.raises(ValueError, match=r"dataset_b needs inputs \(13,\) as 'wine' has"):
        run(config)


def test_given_checkpoints_are_merged_without_claims(finished):
    workdir, _ = finished
    a, b = map(str, trained(workdir))
    given = {"checkpoint_a": a, "checkpoint_b": b, "budget": (1.0,)}
    own = run(small(**given))
    kwargs = json.dumps({"n_classes": 10, "features": [4, 8, 16], "norm": "batch"})
    named = run(small(**given, module="jaxml.nn:ConvNet", module_kwargs=kwargs))
    assert own.claims == named.claims == []
    assert without_seconds(own.tables["pairs"]) == without_seconds(named.tables["pairs"])
    assert any("carry no claims" in note for note in own.notes)
    with pytest.raises(ValueError, match="have 10 outputs, 'digits 0-4' has 5 classes"):
        run(small(**given, labels="disjoint"))


class OwnNet(linen.Module):
    """What nn.with_widths does not know."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(6)(x.reshape(len(x), -1)))
        return linen.Dense(10)(x)


def test_a_module_of_ones_own_is_merged_at_the_budget_1_alone(tmp_path):
    paths = [str(tmp_path / f"{side}.safetensors") for side in "ab"]
    x = data.load("digits").test_x[:1]
    for seed, path in enumerate(paths):
        artifacts.save_tree(path, OwnNet().init(jax.random.key(seed), x))
    given = dict(zip(("checkpoint_a", "checkpoint_b"), paths, strict=True))
    given["module"] = f"{OwnNet.__module__}:OwnNet"
    result = run(small(**given, budget=(1.0,), calibration_size=64))
    assert {r["method"] for r in result.tables["pairs"]} >= {*AT_ONE, *BUDGETED}
    with pytest.raises(ValueError, match=r"with_widths knows MLP, .* got OwnNet"):
        run(small(**given), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_models_of_fixed_width_are_those_that_cannot_be_rebuilt():
    for name in nn.MODELS:
        module = nn.build(name, width=1, n_classes=2)
        known = isinstance(module, nn.MLP | nn.ConvNet | nn.ResNet | nn.VGG)
        assert name.startswith(pleas.FIXED_WIDTH) != known, name


def test_seeds_that_meet_do_not_make_one_network_of_two(tmp_path):
    config = small(seed_b=0)
    sources, key, writer = _tasks.load_sources(config), jax.random.key(3), MetricsWriter()
    _, [(a, b)] = pleas._networks_of(key, config, sources, tmp_path, writer, None)
    assert np.abs(a["params"]["Dense_0"]["kernel"] - b["params"]["Dense_0"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("calibration", ["target", "noise"])
def test_only_without_data_is_the_sequential_claim_known_not_to_hold(calibration):
    methods = {"permutation": 1.0, "PLeaS": 1.0, "PLeaS sequential": 1.0,
               "least squares, not permuted": 1.0, "ensemble": 2.0}  # fmt: skip
    outcomes = [
        Outcome(0, budget, method, {"digits": 0.5}, None, None, budget, budget, 0.0, {}, {})
        for method, budget in methods.items()
    ]
    config = small(calibration=calibration, budget=(1.0,))
    known = [claim.claim[:13] for claim in claims(config, outcomes, [None]) if claim.reason]
    assert known == ["Least squares"] * (calibration == "noise")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "both"}, "labels must be one of shared, disjoint; got 'both'"),
        ({"matching": "magic"}, "matching must be one of activation, weight"),
        ({"ratios": "best"}, "ratios must be one of qp, uniform, zip"),
        ({"calibration": "none"}, "calibration must be one of target, public, noise"),
        ({"calibration": "public"}, "calibration_dataset go together"),
        ({"calibration_dataset": "digits"}, "calibration_dataset go together"),
        ({"budget": (0.5,)}, r"budget must be numbers in \[1, 2\], got \(0.5,\)"),
        ({"budget": ()}, "budget"),
        ({"model": "vit"}, r"budget must be 1 for model 'vit', .* got \(1.0, 1.5\)"),
        ({"label_split": 1.5}, "label_split must lie in"),
        ({"width": 0.0}, "width must be positive"),
        ({"n_pairs": 0}, "n_pairs must be positive"),
        ({"calibration_size": 0}, "calibration_size must be positive"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"dataset": "digts"}, "unknown data set 'digts'.*digits"),
        ({"dataset_b": "digts"}, "unknown data set 'digts'.*digits"),
        ({"dataset": "diabetes"}, "has no classes"),
        ({"batch_size": 5000}, r"batch_size is 5000, of 7\d\d training examples"),
        ({"checkpoint_a": "a.safetensors"}, "go together"),
    ],
)
def test_bad_configs_are_one_sentence_and_write_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(small(**changes), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_card_passes_its_own_check():
    for config in (tiny.get_config(), digits.get_config(), digits.get_config("disjoint")):
        pleas.check(config)
    for card in paper.CARDS:
        assert set(paper.get_config(card).keys()) == set(tiny.get_config().keys())
    with pytest.raises(ValueError, match="must be shared or disjoint"):
        digits.get_config("some")
    with pytest.raises(ValueError, match="must be one of"):
        paper.get_config("imagenet")
