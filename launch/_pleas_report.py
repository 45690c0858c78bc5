"""Tables, figure, claims and notes of the PLeaS study, from what was measured."""

from typing import Any, NamedTuple

import numpy as np

from jaxml import report
from launch._rows import grouped, select

BETTER = "accuracy, better of both"
# The methods that do something with a budget, in the order of the figure.
BUDGETED = ("permutation", "partial zip", "PLeaS", "PLeaS sequential")


class Outcome(NamedTuple):
    """What was measured on one merged network; accuracies are by task."""

    pair: int
    budget: float
    method: str
    as_is: dict[str, float]
    reset: dict[str, float] | None  # with BatchNorm statistics recomputed
    probe: dict[str, float] | None  # of a linear classifier on the last features
    flops: float
    flops_dense: float
    seconds: float
    before: dict[str, float]
    after: dict[str, float]

    @property
    def accuracies(self) -> tuple[float, float | None, float]:
        """Means over tasks: as is, reset, and the better of the two."""
        as_is, reset = (
            None if by_task is None else float(np.mean(list(by_task.values())))
            for by_task in (self.as_is, self.reset)
        )
        return as_is, reset, max(as_is, -1.0 if reset is None else reset)


def tables(outcomes: list[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """Lists means over pairs, every pair, probes where there are any, and errors by layer."""
    found = {
        "accuracy": _summary(outcomes),
        "pairs": [_row(outcome) for outcome in outcomes],
        "probes": _probe_rows(outcomes),
        "layers": _layer_rows(outcomes),
    }
    return {name: rows for name, rows in found.items() if rows}


def _row(outcome: Outcome) -> dict[str, Any]:
    as_is, reset, best = outcome.accuracies
    row = {
        "budget": outcome.budget,
        "pair": outcome.pair,
        "method": outcome.method,
        "accuracy as is": as_is,
        "accuracy reset": reset,
        BETTER: best,
        "FLOPs": outcome.flops,
        "FLOPs if dense": outcome.flops_dense,
        "seconds": outcome.seconds,
    }
    if len(outcome.as_is) > 1:
        for name in outcome.as_is:
            row[f"as is: {name}"] = outcome.as_is[name]
            row[f"reset: {name}"] = outcome.reset and outcome.reset[name]
    return row


def _mean(values) -> float | None:
    values = list(values)
    return None if None in values else float(np.mean(values))


def _summary(outcomes) -> list[dict[str, Any]]:
    rows = []
    for (budget, method), group in grouped(outcomes, "budget", "method"):
        each = [_row(outcome) for outcome in group]
        row = {"budget": budget, "method": method, "pairs": len(each)}
        for name in list(each[0])[3:]:
            row[name] = _mean(line[name] for line in each)
            if name == BETTER:
                row["sd"] = np.std([line[name] for line in each])
        rows.append(row)
    return sorted(rows, key=lambda row: row["budget"])


def _layer_rows(outcomes) -> list[dict[str, Any]]:
    return [
        {
            "budget": budget,
            "method": method,
            "layer": layer,
            "error as assembled": np.mean([outcome.before[layer] for outcome in group]),
            "error solved": np.mean([outcome.after[layer] for outcome in group]),
        }
        for (budget, method), group in grouped(outcomes, "budget", "method")
        for layer in group[0].before
    ]


def _probe_rows(outcomes) -> list[dict[str, Any]]:
    rows = []
    probed = [o for o in outcomes if o.probe]
    for (budget, method), group in grouped(probed, "budget", "method"):
        row = {"features of": method, "times one network": budget, "pairs": len(group)}
        for name in group[0].probe:
            row[name] = np.mean([outcome.probe[name] for outcome in group])
        means = [np.mean(list(outcome.probe.values())) for outcome in group]
        rows.append(row | {"mean": np.mean(means), "sd": np.std(means)})
    return rows


def _values(outcomes, method, budget, which=2) -> np.ndarray:
    """Reads off one of ``Outcome.accuracies`` for each pair."""
    chosen = select(outcomes, method=method, budget=budget)
    return np.array([outcome.accuracies[which] for outcome in chosen])


def plot(outcomes: list[Outcome]):
    """Draws accuracy against multiply-adds, beside the ensemble and the sources."""

    def point(method, budget):
        values = _values(outcomes, method, budget)
        flops = np.mean([o.flops for o in select(outcomes, method=method, budget=budget)])
        return flops, values.mean(), values.std()

    budgets = sorted({o.budget for o in select(outcomes, method="PLeaS")})
    series = {
        method: tuple(zip(*(point(method, budget) for budget in budgets), strict=True))
        for method in BUDGETED
    }
    ends = min(x for x, _, _ in series.values())[0], 2.0
    flat = {"ensemble": 2.0, "source A": 1.0, "source B": 1.0}
    for method, budget in flat.items():
        series[method] = (ends, (point(method, budget)[1],) * 2)
    figure = report.lines(
        series, xlabel="multiply-adds, of one network", ylabel="test accuracy",
        title="Accuracy against compute (band: sd over pairs)", size=(6.4, 4.2),
    )  # fmt: skip
    axes = figure.axes[0]
    for line in axes.lines:
        if line.get_label() in flat:
            line.set_marker("")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def claims(config, outcomes: list[Outcome], errors: list[float | None]) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    bounds, paper = config.bounds, "PLeaS"
    seeds = f"{config.n_pairs} pairs"
    found = []

    def add(text, values, against, against_name, bound, paper_value, known=""):
        if values.size and against.size:
            claim = report.difference_claim(
                text, values, against, against_name=against_name, bound=bound,
                paper=paper, paper_value=paper_value, seeds=seeds,
            )  # fmt: skip
            found.append(claim._replace(reason=known))

    where = "DomainNet pairs, RN50, 1.0x, second-hand"
    if config.labels == "shared":
        pleas, sequential, plain = (
            _values(outcomes, method, 1.0)
            for method in ("PLeaS", "PLeaS sequential", "least squares, not permuted")
        )
        reset = select(outcomes, method="permutation")[0].reset is not None
        add(
            "Least squares after the permutation, 1x", pleas,
            _values(outcomes, "permutation", 1.0, int(reset)),
            "the permutation" + ", reset" * reset, bounds.least_squares_over_permutation,
            f"38.6 against 17.8 (Git Re-Basin; {where})",
        )  # fmt: skip
        add(
            "The permutation before least squares, 1x", pleas, plain,
            "least squares without it", bounds.permuted_over_not_permuted,
            f"38.6 against 12.1 (RegMean; {where})",
        )  # fmt: skip
        if larger := [budget for budget in config.budget if budget > 1]:
            budget = min(larger, key=lambda b: abs(b - 1.4))
            add(
                f"More compute does no harm, {budget:g}x", _values(outcomes, "PLeaS", budget),
                pleas, "1x", bounds.larger_over_one,
                "1.2x is close to the ensemble (second-hand)",
            )  # fmt: skip
        add(
            "Least squares on the merged network's own inputs, 1x", sequential,
            _values(outcomes, "ensemble", 2.0), "the 2x ensemble",
            bounds.sequential_over_ensemble, "not in the paper",
            "Known not to hold without data: from noise, digits come to 86 %, the ensemble to 95 %."
            if config.calibration == "noise" else "",
        )  # fmt: skip
    else:
        tasks = outcomes[0].as_is
        for task, source in zip(tasks, ("source B", "source A"), strict=True):
            merged, other = (
                np.array([outcome.probe[task] for outcome in chosen])
                for chosen in (
                    select(outcomes, method="PLeaS", budget=1.0),
                    select(outcomes, method=source),
                )
            )
            add(
                f"Linear probe on {task}, features merged at 1x", merged, other,
                f"features of {source}", bounds.probe_over_source,
                "74.9 against 66.9 (ZipIt!; RN50, 1.0x, second-hand)",
            )  # fmt: skip
    if None not in errors:
        found.append(
            report.Claim(
                claim="With all units apart, the merge is the mean of both networks' outputs",
                paper=paper,
                paper_value="by construction",
                value=f"largest difference {max(errors):.1e}",
                baseline=f"{bounds.separate_error:.0e}",
                seeds=seeds,
                spread="",
                holds=max(errors) <= bounds.separate_error,
            )
        )
    return found


def notes(config, outcomes: list[Outcome]) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    found = [
        "'Better of both' takes, for each pair, the better test accuracy of the merged network as "
        "it is and with its BatchNorm statistics reset on the calibration inputs; the columns "
        "beside it report both.",
        "FLOPs are multiply-adds relative to one network. The first column credits the zero blocks "
        "between units of A and of B; a dense kernel multiplies them too, which the second counts. "
        "The networks here run dense. A budget is met to about one unit of each group.",
        "Ensemble and sources have no budget of their own: they cost 2 and 1.",
    ]
    if config.calibration == "target":
        found.append("The calibration inputs are training inputs without their labels.")
    else:
        kind = {"public": config.calibration_dataset, "noise": "Gaussian noise"}
        found.append(f"The calibration inputs are {kind[config.calibration]}: no training data.")
    if config.checkpoint_a:
        found.append("Networks that are given carry no claims: the bounds are for trained ones.")
    if config.labels == "disjoint":
        found.append(
            "Each task is judged among its own classes: the heads are joined, and a merged network "
            "has every logit in the columns of its task. A source has learnt one of the tasks "
            "only. Probes are trained on the labels of each task."
        )
    methods = ("sequential, not permuted", "PLeaS sequential")
    without, with_it = (_values(outcomes, method, 1.0) for method in methods)
    if without.size:
        sentence = (
            f"Sequential least squares at 1x reaches {without.mean():.1%} without any permutation "
            f"and {with_it.mean():.1%} with it"
        )
        if with_it.mean() - without.mean() < 0.02:
            sentence += (
                ": here it works like a distillation of both networks, layer by layer and without "
                "labels, and needs the permutation little; whether that holds for large networks "
                "is open"
            )
        found.append(f"{sentence}.")
    return found
