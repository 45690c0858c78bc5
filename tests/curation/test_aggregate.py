"""The table of tasks, the five numbers, the results file."""

import json

import numpy as np
import pytest

from jaxml.curation import (
    AVERAGED,
    TASKS,
    aggregate,
    append_result,
    read_results,
    scores,
)

SHIFTS = ("ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet")
VTAB = (
    "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures",
    "EuroSAT", "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon",
    "RESISC45", "SVHN", "SUN397",
)  # fmt: skip
RETRIEVAL = ("Flickr", "MSCOCO", "WinoGAViL")


def test_the_table_has_forty_tasks_of_which_38_count():
    assert len(TASKS) == 40 and len(AVERAGED) == 38
    assert set(TASKS) - set(AVERAGED) == {"FairFace", "UTKFace"}
    assert len({task.key for task in TASKS.values()}) == 40
    metrics = {name: task.metric for name, task in TASKS.items()}
    recall = [name for name in metrics if metrics[name] == "mean_per_class_recall"]
    assert set(recall) == {
        "Caltech-101", "FGVC Aircraft", "Oxford Flowers-102", "Oxford-IIIT Pet",
    }  # fmt: skip
    assert metrics["iWildCam"] == "F1-macro_all" and metrics["FMoW"] == "acc_worst_region"
    assert metrics["Dollar Street"] == "acc_top5_wg" and metrics["ImageNet 1k"] == "acc1"


def test_groups_are_plain_means():
    rng = np.random.default_rng(0)
    found = {name: float(value) for name, value in zip(AVERAGED, rng.random(38), strict=True)}
    result = aggregate(found | {"FairFace": None, "UTKFace": 0.3})
    assert result.imagenet == found["ImageNet 1k"]
    for names, value in (
        (SHIFTS, result.shifts),
        (VTAB, result.vtab),
        (RETRIEVAL, result.retrieval),
    ):
        assert value == pytest.approx(np.mean([found[name] for name in names]))
    assert result.average == pytest.approx(np.mean(list(found.values())))


def test_a_missing_task_and_a_strange_one_are_named():
    found = dict.fromkeys(AVERAGED, 0.5)
    with pytest.raises(ValueError, match="1 of 38 tasks are missing: 'MNIST'"):
        aggregate(found | {"MNIST": None})
    with pytest.raises(ValueError, match="'MNISt' is no task of the benchmark"):
        aggregate(found | {"MNISt": 0.5})
    with pytest.raises(ValueError, match=r"38 of 38 tasks are missing: .* and 33 more"):
        aggregate({})


def test_results_go_on_after_a_kill(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read_results(path) == {}
    append_result(path, "mnist", "MNIST", {"acc1": 0.5, "main_metric": 0.5})
    with path.open("a") as file:
        file.write('{"key": "cars", "data')
    assert list(read_results(path)) == ["MNIST"]
    append_result(path, "cars", "Stanford Cars", {"main_metric": 0.25})
    append_result(path, "mnist", "MNIST", {"main_metric": 0.75})
    assert scores(read_results(path)) == {"MNIST": 0.75, "Stanford Cars": 0.25}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["dataset", "key", "metrics"]] * 3


def test_bad_results_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match="need a main_metric"):
        append_result(path, "a", "a", {"acc1": 1.0})
    path.write_text('nonsense\n{"dataset": "a", "metrics": {}}\n')
    with pytest.raises(ValueError, match="line 1: no JSON"):
        read_results(path)
    path.write_text('{"dataset": "a"}\n')
    with pytest.raises(ValueError, match="line 1: needs a dataset and its metrics"):
        read_results(path)
