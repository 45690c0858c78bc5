"""Tables, figures, claims and notes of the NTBA study, from what was measured."""

from typing import Any, NamedTuple

import numpy as np

from jaxml import report
from launch._rows import grouped, select

METHODS = ("random", "forgetting", "greedy", "exchanged", "NTBA", "NTBA, last")
REAL, KERNEL = "attack success", "attack success, kernel"


class Outcome(NamedTuple):
    """What one set of poisons has done; lists are over victims."""

    seed: int
    m: int
    method: str
    clean_accuracy: list[float]
    attack_success: list[float]
    poisons_fitted: list[float]
    shortfall: list[float]
    kernel_success: float
    kernel_accuracy: float
    judged: dict[str, list[float]]  # of the iterates: number, success on the judges, loss


class Detection(NamedTuple):
    """How well a score finds the poisons; lists are over victims."""

    seed: int
    m: int
    method: str
    score: str
    area: list[float]
    recall: list[float]


def _values(rows, field) -> np.ndarray:
    """All values of a field, over data seeds and victims."""
    return np.concatenate([np.atleast_1d(getattr(row, field)) for row in rows])


def _half_quartiles(values) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low) / 2


def tables(outcomes: list[Outcome], detections: list[Detection]) -> dict[str, list[dict[str, Any]]]:
    """Lists medians, every data seed, the judged iterates and the defender's view."""
    summary, judged = [], []
    for (m, method), rows in sorted(grouped(outcomes, "m", "method"), key=lambda g: g[0][0]):
        real = _values(rows, "attack_success")
        summary.append(
            {
                "poisons": m,
                "method": method,
                REAL: np.median(real),
                "least": real.min(),
                "largest": real.max(),
                KERNEL: np.median(_values(rows, "kernel_success")),
                "clean accuracy": np.median(_values(rows, "clean_accuracy")),
                "poisons fitted": np.mean(_values(rows, "poisons_fitted")),
                "networks": len(real),
            }
        )
    each = [
        {
            "data seed": o.seed,
            "poisons": o.m,
            "method": o.method,
            REAL: np.median(o.attack_success),
            "of each victim": " ".join(f"{100 * v:.0f}" for v in o.attack_success),
            KERNEL: o.kernel_success,
            "clean accuracy": np.median(o.clean_accuracy),
            "clean accuracy, kernel": o.kernel_accuracy,
            "poisons fitted": np.mean(o.poisons_fitted),
        }
        for o in outcomes
    ]
    for o in select(outcomes, method="NTBA"):
        chosen = int(np.argmin(o.judged["shortfall"]))
        judged += [
            {
                "data seed": o.seed,
                "poisons": o.m,
                "iterate": iterate,
                "backdoor loss, kernel": o.judged["loss"][i],
                "attack success, judges": o.judged["success"][i],
                "shortfall, judges": o.judged["shortfall"][i],
                "chosen": "yes" if i == chosen else "",
            }
            for i, iterate in enumerate(o.judged["iterate"])
        ]
    found = [
        {
            "poisons": m,
            "method": method,
            "score": score,
            "area under ROC": np.median(_values(rows, "area")),
            "poisons found": np.mean(_values(rows, "recall")),
        }
        for (m, method, score), rows in grouped(detections, "m", "method", "score")
    ]
    named = {"success": summary, "data_seeds": each, "iterates": judged, "detection": found}
    return {name: rows for name, rows in named.items() if rows}


def figures(config, outcomes: list[Outcome], images: dict[str, np.ndarray]) -> dict[str, Any]:
    """Draws success against poisons, success against iterations, and the poisons themselves."""
    frames = {"networks trained from scratch": {}, "predicted by the kernel": {}}
    for method in METHODS:
        for name, field in zip(frames, ("attack_success", "kernel_success"), strict=True):
            points = [
                (m, np.median(values), _half_quartiles(values))
                for m in sorted(set(config.n_poisons))
                if (rows := select(outcomes, m=m, method=method))
                for values in [_values(rows, field)]
            ]
            frames[name][method] = tuple(zip(*points, strict=True))
    drawn = {
        "success_against_poisons": report.panels(
            frames, xlabel="poisons", ylabel="attack success", xlog=True, share_y=True,
            title="Attack success (median; band: half the interquartile range)",
        ),
    }  # fmt: skip
    by_iterate = {}
    for m in sorted(set(config.n_poisons)):
        rows = select(outcomes, m=m, method="NTBA")
        common = set.intersection(*(set(o.judged["iterate"]) for o in rows))
        points = [
            (k, np.mean(values), np.std(values))
            for k in sorted(common)
            for values in [[o.judged["success"][o.judged["iterate"].index(k)] for o in rows]]
        ]
        by_iterate[f"m = {m}"] = tuple(zip(*points, strict=True))
    drawn["success_against_iterations"] = report.lines(
        by_iterate, xlabel="iterations (0: greedy)", ylabel="attack success on the judges",
        title="Success by iteration (band: sd over data seeds)",
    )  # fmt: skip
    rows = {
        method: images[method] if images[method].ndim == 4 else images[method][0]
        for method in METHODS
        if method in images
    }
    if next(iter(rows.values())).shape[-1] in (1, 3):
        drawn["poison_images"] = report.image_grid(
            {method: poisons[:10] for method, poisons in rows.items()},
            title=f"Poisons of data seed {config.data_seeds[0]}, all labelled {config.target}",
        )
    return drawn


def claims(config, outcomes: list[Outcome]) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    bounds, found = config.bounds, []
    where = "90 % success with about 10x fewer poisons than sampling (CIFAR-10, ImageNet pairs)"

    def values(m, method, field="attack_success"):
        rows = select(outcomes, m=m, method=method)
        return _values(rows, field) if rows else np.zeros(0)

    def add(
        text, measured, baseline, spread_of, holds, n_networks=config.n_victims, paper_value=where
    ):
        found.append(
            report.Claim(
                claim=text, paper="Abstract", paper_value=paper_value, value=measured,
                baseline=baseline,
                seeds=f"{len(config.data_seeds)} data seeds x {n_networks} networks",
                spread=f"quartiles {np.percentile(spread_of, 25):.0%} to "
                f"{np.percentile(spread_of, 75):.0%}",
                holds=bool(holds),
            )
        )  # fmt: skip

    def ratio(text, m, method, bound, field="attack_success", n_networks=config.n_victims):
        ours, chance = values(m, method, field), values(m, "random", field)
        if ours.size:
            a, b = np.median(ours), np.median(chance)
            times = f"{a / b:.1f}x" if b else "more than any multiple"
            add(
                text, f"{a:.1%}: {times} of random choice",
                f"{bound:g}x of random choice, {b:.1%}", ours, a >= bound * b and a > 0,
                n_networks,
            )  # fmt: skip

    def level(text, m, method, bound):
        ours = values(m, method)
        if ours.size:
            a = 100 * np.median(ours)
            add(text, f"{a:.1f} %", f"{bound:g} %", ours, a >= bound)

    ratio("Three optimised poisons against three random ones", 3, "NTBA", bounds.ntba_over_random)
    level("Attack success of three optimised poisons", 3, "NTBA", bounds.ntba_success)
    ratio("Three poisons chosen greedily", 3, "greedy", bounds.greedy_over_random)
    level("Attack success of ten optimised poisons", 10, "NTBA", bounds.many_success)
    ours, chance = values(10, "NTBA"), values(10, "random")
    if ours.size:
        points = 100 * (np.median(ours) - np.median(chance))
        add(
            "Ten optimised poisons against ten random ones",
            f"{np.median(ours):.1%}: {points:+.1f} points on random choice",
            f"{bounds.many_over_random:+g} points on random choice, {np.median(chance):.1%}",
            ours, points >= bounds.many_over_random,
        )  # fmt: skip
    clean = values(0, "clean", "clean_accuracy")
    worst = min(
        (np.median(values(m, "NTBA", "clean_accuracy")), m) for m in sorted(set(config.n_poisons))
    )
    points = 100 * (worst[0] - np.median(clean))
    add(
        "Clean accuracy with the poisons in, the worst number of them",
        f"{worst[0]:.1%} (m = {worst[1]}): {points:+.1f} points",
        f"{bounds.clean_accuracy:+g} points on the clean networks, {np.median(clean):.1%}",
        values(worst[1], "NTBA", "clean_accuracy"), points >= bounds.clean_accuracy,
        paper_value="no figure in the abstract",
    )  # fmt: skip
    ratio(
        "As the kernel predicts: one optimised poison against one random one", 1, "NTBA, last",
        bounds.kernel_over_random, "kernel_success", config.n_kernel_nets,
    )  # fmt: skip
    ours, chance = (values(m, n, "kernel_success") for m, n in ((1, "NTBA, last"), (3, "random")))
    if ours.size and chance.size:
        a, b = np.median(ours), np.median(chance)
        add(
            "As the kernel predicts: one optimised poison against three random ones", f"{a:.1%}",
            f"{b:.1%}", ours, a >= b, config.n_kernel_nets,
        )  # fmt: skip
    return found


def notes(config, outcomes: list[Outcome], detections: list[Detection]) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    clean = select(outcomes, method="clean")
    found = [
        "Attack success is the share of triggered test images of the source class that are "
        "answered as the target class; without poisons it is "
        f"{np.median(_values(clean, 'attack_success')):.1%}. Figures are medians over data seeds "
        "and victims, whose initialisations and orders the attack has not seen.",
        "NTBA is the iterate, the greedy start included, whose triggered images fall least short "
        "of the target label on networks that only judge; 'NTBA, last' is the end of the "
        "optimisation. Each victim of 'random' has random poisons of its own.",
    ]
    gaps = [
        (np.median(_values(rows, "kernel_success")) - np.median(_values(rows, "attack_success")),
         m, method, rows)
        for (m, method), rows in grouped(outcomes, "m", "method")
    ]  # fmt: skip
    gap, m, method, rows = max(gaps, key=lambda entry: entry[0])
    if gap > 0.2:
        found.append(
            f"The kernel's prediction is furthest off for {m} poisons by {method}: "
            f"{np.median(_values(rows, 'kernel_success')):.0%} predicted, "
            f"{np.median(_values(rows, 'attack_success')):.0%} in real training, where "
            f"{np.mean(_values(rows, 'poisons_fitted')):.0%} of the poisons are fitted."
        )
    m = max(config.n_poisons)
    by_score = {
        score: np.mean(_values(rows, "recall"))
        for (score,), rows in grouped(select(detections, m=m, method="NTBA"), "score")
    }
    if by_score:
        best = max(by_score, key=by_score.get)
        listed = ", ".join(f"{score} {recall:.0%}" for score, recall in by_score.items())
        found.append(
            f"The defender removes 1.5 times as many images as there are poisons. Of {m} poisons "
            f"of NTBA that finds, by score: {listed}; {best} is the better one."
        )
    if config.queries != "holdout":
        found.append("The judges are asked triggered copies of their own training images too.")
    return found
