"""Tables, figures, claims and notes of the ZonoDual study, from what was measured."""

import itertools
from typing import Any

import numpy as np

from jaxml import report

NAMES = {
    "ibp": "IBP", "deepz": "DeepZ", "kw": "KW", "crown": "CROWN", "alpha": "alpha-CROWN",
    "box": "dual over boxes", "lp": "LP (triangle)", "zd2d": "ZD-2D", "zdmip": "ZD-MIP",
    "mip": "MIP",
}  # fmt: skip
SWEPT = ("ibp", "deepz", "crown", "zd2d")
ORDER = ("crown", "lp", "zd2d", "zdmip")

Rows = list[dict[str, Any]]


def _values(rows: Rows, method: str, name: str = "lower") -> np.ndarray:
    return np.array([row[name] for row in rows if row["method"] == method])


def _methods(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def tables(bounded: Rows, swept: Rows) -> dict[str, Rows]:
    """Lists means by method, counts by radius, and a line for each margin, image and method."""
    return {
        "bounds": _bound_rows(bounded),
        "certified": _sweep_rows(swept),
        "results": bounded,
        "sweep": swept,
    }


def _bound_rows(bounded: Rows) -> Rows:
    rows = []
    start, methods = _values(bounded, "crown"), _methods(bounded)
    for method in methods:
        lower, upper = _values(bounded, method), _values(bounded, method, "upper")
        row = {
            "method": NAMES[method],
            "mean lower bound": lower.mean(),
            "sd": lower.std(),
            "seconds, median": np.median(_values(bounded, method, "seconds")),
            "positive": int((lower > 0).sum()),
            "of": len(lower),
        }
        if start.size:
            row["share of CROWN to attack"] = (lower - start).mean() / (upper - start).mean()
        rows.append(row)
    return rows


def _sweep_rows(swept: Rows) -> Rows:
    rows = []
    for eps in dict.fromkeys(row["eps"] for row in swept):
        some = [row for row in swept if row["eps"] == eps]
        right = [row for row in some if row["right"]]
        row = {"eps": eps, "images": len(some), "margins": sum(r["margins"] for r in right)}
        for method in SWEPT:
            row[f"margins, {NAMES[method]}"] = sum(r[method] for r in right)
        row["margins, not attacked"] = sum(r["not attacked"] for r in right)
        for method in (*SWEPT, "not attacked"):
            name = "PGD accuracy" if method == "not attacked" else f"accuracy, {NAMES[method]}"
            row[name] = sum(r[method] == r["margins"] for r in right) / len(some)
        rows.append(row)
    return rows


def figures(bounded: Rows, curves: list[dict], swept: Rows) -> dict[str, Any]:
    """Draws the distribution of bounds, the ascents, and accuracy against the radius."""
    found = {"distribution_of_bounds": _cdf(bounded)}
    if curves and curves[0]:
        found["bound_against_step_and_time"] = _ascents(bounded, curves)
    accuracy = _sweep_rows(swept)
    eps = [row["eps"] for row in accuracy]
    series = {"PGD (upper)": (eps, [row["PGD accuracy"] for row in accuracy])}
    for method in reversed(SWEPT):
        series[NAMES[method]] = (eps, [row[f"accuracy, {NAMES[method]}"] for row in accuracy])
    found["certified_accuracy"] = report.lines(
        series, xlabel="radius, in units of the pixels", ylabel="certified accuracy",
        title="Certified accuracy",
    )  # fmt: skip
    return found


def _cdf(bounded: Rows):
    methods, start = _methods(bounded), _values(bounded, "crown")
    # IBP is far to the left of all others and would squeeze them into a line.
    shown = [m for m in methods if m != "ibp" or len(methods) == 1]
    frames = {"lower bound": {NAMES[m]: _steps(_values(bounded, m)) for m in shown}}
    if start.size and len(shown) > 1:
        gains = {NAMES[m]: _steps(_values(bounded, m) - start) for m in shown if m != "crown"}
        frames["less CROWN's, margin by margin"] = gains
    figure = report.panels(
        frames, xlabel="lower bound of the margin", ylabel="share of margins at most this",
        title="Distribution of bounds" + " (IBP is off the left side)" * ("ibp" in methods),
        share_y=True, size=(4.4, 3.6),
    )  # fmt: skip
    for axes in figure.axes:
        for line in axes.lines:
            line.set_marker("")
    figure.axes[-1].set_xlabel(
        "gain over CROWN" if len(frames) > 1 else figure.axes[0].get_xlabel()
    )
    return figure


def _steps(values: np.ndarray):
    values = np.sort(values)
    below = np.arange(1, len(values) + 1) / len(values)
    return np.repeat(values, 2), np.r_[0, np.repeat(below, 2)[:-1]]


def _ascents(bounded: Rows, curves: list[dict]):
    by_step, by_time = {}, {}
    for method in curves[0]:
        steps = np.array(curves[0][method]["steps"], float)
        values = np.mean([c[method]["values"] for c in curves], axis=0)
        seconds = np.mean([c[method]["seconds"] for c in curves])
        by_step[NAMES[method]] = (steps, values)
        # The seconds of boxes and candidates are spread over the steps, of which the axis, being
        # logarithmic, cannot show the one at 0.
        by_time[NAMES[method]] = (steps[1:] / steps[-1] * seconds, values[1:])
    last = max(x[-1] for x, _ in by_step.values())
    flat = {m: np.median(_values(bounded, m, "seconds")) for m in ("crown", "lp")
            if m in _methods(bounded)}  # fmt: skip
    end = 1.5 * max([*(x[-1] for x, _ in by_time.values()), *flat.values()])
    for method, seconds in flat.items():
        level = [_values(bounded, method).mean()] * 2
        by_step[NAMES[method]] = ([0, last], level)
        by_time[NAMES[method]] = ([seconds, end], level)
    figure = report.panels(
        {"against steps": by_step, "against seconds": by_time},
        xlabel="", ylabel="mean lower bound of the margin", share_y=True, size=(4.2, 3.4),
    )  # fmt: skip
    figure.axes[0].set(xlabel="step")
    figure.axes[1].set(xlabel="seconds a margin, compilation excluded", xscale="log")
    return figure


def claims(config, bounded: Rows, swept: Rows) -> list[report.Claim]:
    """Sets what was measured beside the paper and the bounds on the config's card."""
    found = []
    n_margins = len(_values(bounded, _methods(bounded)[0])) if bounded else 0
    seeds = f"{config.n_networks} network{'s' * (config.n_networks > 1)}, {n_margins} margins"

    def add(claim, paper_value, value, baseline, spread, holds, reason=""):
        found.append(
            report.Claim(
                claim, "ZonoDual", paper_value, value, baseline, seeds, spread, holds, reason=reason
            )
        )

    lower = {method: _values(bounded, method) for method in _methods(bounded)}
    if {"crown", "lp", "zd2d"} <= lower.keys():
        lp, zd = lower["lp"] - lower["crown"], lower["zd2d"] - lower["crown"]
        add(
            "ZD-2D is tighter than the LP relaxation: its gain over CROWN against the LP's",
            "tighter than the LP (MNIST, CIFAR-10; figures not at hand)",
            f"{zd.mean():.3g}: {zd.mean() / lp.mean():.2g} times the LP's",
            f"{config.bounds.zd_gain_over_lp_gain:g} times the LP's, {lp.mean():.3g}",
            f"sd {zd.std():.2g}",
            bool(zd.mean() >= config.bounds.zd_gain_over_lp_gain * lp.mean()),
        )
        seconds = {m: _values(bounded, m, "seconds") for m in ("lp", "zd2d")}
        ratio = np.median(seconds["zd2d"]) / np.median(seconds["lp"])
        least, most = config.bounds.zd_seconds_over_lp_seconds
        add(
            "Time of ZD-2D against the LP (HiGHS): the ascent against the solver",
            "less time than the LP (Gurobi; GPU; figures not at hand)",
            f"{np.median(seconds['zd2d']):.2g} s, median: {ratio:.2g} of the LP's",
            f"{least:g} of the LP's, {np.median(seconds['lp']):.2g} s",
            f"{min(seconds['zd2d']):.2g} to {max(seconds['zd2d']):.2g} s",
            None if least < ratio <= most else bool(ratio <= least),
            "On a machine with other work this says nothing." if least < ratio <= most else "",
        )
    if {"lp", "zd2d", "zdmip"} <= lower.keys():
        zd, mip = lower["zd2d"] - lower["lp"], lower["zdmip"] - lower["lp"]
        add(
            f"Groups of {config.group_size} by MIP gain more: over the LP, against ZD-2D's gain",
            "ZD-MIP is the tightest (figures not at hand)",
            f"{mip.mean():.3g}: {mip.mean() / zd.mean():.2g} times ZD-2D's",
            f"{config.bounds.mip_gain_over_zd_gain:g} times ZD-2D's, {zd.mean():.3g}",
            f"sd {mip.std():.2g}",
            bool(mip.mean() >= config.bounds.mip_gain_over_zd_gain * zd.mean()),
        )
    if set(ORDER) <= lower.keys():
        upper = _values(bounded, "zdmip", "upper")
        chain = [*(lower[method] for method in ORDER), upper]
        # CROWN <= LP up to the solver's tolerance; the others strictly.
        kept = np.all(
            [
                a <= b + 1e-6 if i == 0 else (a <= b if i == 3 else a < b)
                for i, (a, b) in enumerate(itertools.pairwise(chain))
            ],
            axis=0,
        )
        add(
            "CROWN <= LP < ZD-2D < ZD-MIP <= attack, on every margin",
            "by construction, but for LP < ZD-2D",
            f"{kept.sum()} of {len(kept)} margins",
            f"{len(kept)} of {len(kept)}",
            "",
            bool(kept.all()),
        )
    accuracy = _sweep_rows(swept)
    last = accuracy[-1]
    crown, zd = (last[f"margins, {NAMES[method]}"] for method in ("crown", "zd2d"))
    bound = config.bounds.certified_over_crown
    found.append(
        report.Claim(
            claim=f"ZD-2D certifies more margins than CROWN at radius {last['eps']:g}",
            paper="ZonoDual",
            paper_value="not in the paper in this form",
            value=f"{zd} of {last['margins']}: {zd / max(crown, 1):.2g} times CROWN's",
            baseline=f"{bound:g} times CROWN's, {crown}",
            seeds=f"{config.n_networks} network{'s' * (config.n_networks > 1)}, "
            f"{last['images']} images",
            spread="",
            holds=bool(zd >= bound * crown and zd > 0),
        )
    )
    excess = [row[f"{method} excess"] for row in swept for method in SWEPT]
    excess += [r["lower"] - r["upper"] for r in bounded if r["method"] not in ("lp", "mip")]
    found.append(
        report.Claim(
            claim="No bound lies above what an attack attains",
            paper="ZonoDual",
            paper_value="by construction",
            value=f"{sum(e > 0 for e in excess)} of {len(excess)}, nearest {max(excess):.2g}",
            baseline="0",
            seeds=f"{len(excess)} bounds",
            spread="",
            holds=bool(max(excess) <= 0),
        )
    )
    return found


def notes(config) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    found = [
        "Ascents run in float32; every bound but those of the LP and the MIP is evaluated anew in "
        "float64 with outward rounding. ZD-MIP's has the solver's tolerances subtracted; LP and "
        "MIP are the solver's own numbers, and yardsticks.",
        "Upper bounds are the network's value at a point: the attack's, or the exact program's.",
        "Seconds are of one margin, without compilation and without the certificate.",
        "Sets of margins at different radii are certified by ZD-2D where CROWN leaves them open: "
        "its ascent begins at CROWN's multipliers and boxes, so it proves all that CROWN proves.",
    ]
    if config.checkpoint:
        found.append("Networks that are given carry no claims: the bounds are for trained ones.")
    return found


def explain(answer) -> str:
    """Says in words what the answer for a property means."""
    seconds = f"{answer.seconds:.1f} s, {answer.n_boxes} boxes"
    if answer.result == "unsat":
        return f"unsat: there is no counter-example, by a float64 certificate ({seconds})"
    if answer.result == "sat":
        return f"sat: a counter-example was found and replayed in the ONNX file ({seconds})"
    return f"unknown: neither a proof nor a counter-example ({seconds})"
