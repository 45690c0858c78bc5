"""The benchmark's five numbers from the scores of its tasks, and the file that scores are kept in.

A results file has a line of JSON for each task, ``{"key", "dataset", "metrics": {...}}``, whose
``metrics`` hold ``"main_metric"``; it is the published format, so either program reads the other's.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxml.curation.tasks import AVERAGED, GROUPS, TASKS


class Aggregate(NamedTuple):
    """Plain means over tasks.

    Attributes:
      imagenet: the score on ImageNet.
      shifts: over its 6 shifts.
      vtab: over the 13 tasks of VTAB.
      retrieval: over the 3 of retrieval.
      average: over all 38.
    """

    imagenet: float
    shifts: float
    vtab: float
    retrieval: float
    average: float


def aggregate(scores: Mapping[str, float | None]) -> Aggregate:
    """Averages the scores of the 38 tasks, by group and in all.

    Args:
      scores: ``{name: main metric}``; the two tasks without a main metric are ignored.

    Returns:
      The means.

    Raises:
      ValueError: a task is missing, has no score, or is not one of the benchmark; names it.
    """
    _known(scores)
    if missing := [name for name in AVERAGED if scores.get(name) is None]:
        raise ValueError(f"{len(missing)} of {len(AVERAGED)} tasks are missing: {_some(missing)}")
    groups = {
        group: [float(scores[name]) for name in AVERAGED if TASKS[name].group == group]
        for group in GROUPS
    }
    means = {group: sum(values) / len(values) for group, values in groups.items()}
    average = sum(float(scores[name]) for name in AVERAGED) / len(AVERAGED)
    return Aggregate(**means, average=average)


def read_results(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Reads a results file.

    A last line that a killed run has torn is left out; of two lines for a task the later counts.

    Args:
      path: the file; one that is not there has no results.

    Returns:
      ``{name: {"key", "dataset", "metrics"}}``.

    Raises:
      ValueError: a line before the last that is no JSON, or one without a task and its metrics.
    """
    path = pathlib.Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: no JSON") from None
        if not isinstance(result, dict) or not {"dataset", "metrics"} <= result.keys():
            raise ValueError(f"{path}, line {number}: needs a dataset and its metrics")
        found[result["dataset"]] = result
    return found


def append_result(
    path: str | os.PathLike, key: str, dataset: str, metrics: Mapping[str, Any]
) -> None:
    """Adds the line of one task; a last line that a killed run has torn makes room for it.

    Args:
      path: the file, made if it is not there.
      key: of the task.
      dataset: the task's name.
      metrics: with ``"main_metric"``, a number or None.

    Raises:
      ValueError: no main metric.
    """
    if "main_metric" not in metrics:
        raise ValueError(f"metrics of {dataset!r} need a main_metric, got {sorted(metrics)}")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"key": key, "dataset": dataset, "metrics": dict(metrics)}) + "\n"
    if path.exists():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            path.write_bytes(text[: text.rfind(b"\n") + 1])
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Reads the main metrics off the results of ``read_results``."""
    return {name: result["metrics"].get("main_metric") for name, result in results.items()}


def _known(names):
    if extra := [name for name in names if name not in TASKS]:
        raise ValueError(f"{_some(extra)} is no task of the benchmark")


def _some(names):
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
