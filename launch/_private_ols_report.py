"""Tables, figures, claims and notes of private least squares, from what was measured."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxml import report
from jaxml.privacy import ISSPConstants, predicted_error
from launch._rows import select
from launch._study import Result

PAPER = "ISSP, COLT 2024"
NAMES = {
    "ols": "least squares, not private",
    "private_ols": "private least squares",
    "adassp": "AdaSSP, true bounds",
    "tukey_em": "TukeyEM",
    "dp_gd": "DP-GD",
}
TRIVIAL = 1.0  # the error of answering 0
GUARANTEE = (
    "(epsilon, delta)-differential privacy for the replacement of one row, in real arithmetic; n "
    "and the time that a run takes are not protected. docs/private_ols.md has the proof, and what "
    "floating point leaves open."
)


class Outcome(NamedTuple):
    """One fit; errors are ``||Sigma^(1/2) (coef - centre)||``, None if it failed."""

    method: str
    n: int
    d: int
    condition: float
    trial: int
    error: float | None  # from the true coefficients
    noise: float | None  # from least squares on the same data
    failed: bool
    runtime_ratio: float  # of numpy.linalg.lstsq


class Measured(NamedTuple):
    """All that a study has found."""

    outcomes: list[Outcome]
    constants: dict[tuple[int, int], ISSPConstants]  # by (d, n)
    audits: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    marks: dict[int, int | None]  # by d, the n from which on there is an answer


# A file.


def model_result(model: dict[str, Any], ledger: dict[str, Any]) -> Result:
    """Reports a released model."""
    tables = {}
    if model["answered"]:
        tables["coefficients"] = [
            {"column": name, "coefficient": value} for name, value in model["coef"].items()
        ]
        notes = [f"Predicts {model['target']!r}. {GUARANTEE}"]
    elif ledger["feasible"]:
        notes = [
            "FAIL: the data do not meet the bounds, or the coin fell so. No more can be said "
            f"without spending budget. {GUARANTEE}"
        ]
    else:
        needs = model["needs_epsilon"]
        cure = "no epsilon helps" if needs is None else f"epsilon {needs:.3g} would do"
        notes = [
            f"FAIL for certain: leverage_bound {ledger['assumed']['leverage_bound']:g} is too "
            f"large for epsilon {ledger['epsilon']:g}; {cure}, or more rows and with them a "
            "smaller bound. The data were not used."
        ]
    if model["predicted_error"] is not None:
        notes.append(
            "The noise makes predictions err by "
            f"{model['predicted_error']:.3g} (root mean square, in units of the target), as was "
            "known before the file was read. If the target spreads less than that, answer 0."
        )
    notes.append(
        "The budget is spent: another run on these data spends it again, and two answers are "
        "(2 epsilon, 2 delta)-private together."
    )
    tables["budget"] = [
        {"part": part, **{k: v for k, v in spent.items() if k in ("epsilon", "delta")}}
        for part, spent in {**ledger["spent"], "total": ledger["total"]}.items()
    ]
    return Result([], tables, {}, notes)


# The study.


def study_result(config, found: Measured) -> Result:
    """Reports the study."""
    return Result(
        claims(config, found), tables(config, found), plots(config, found), notes(config, found)
    )


def _errors(outcomes, name="error", **wanted) -> np.ndarray:
    """Reads off errors ``[m]`` of the fits that answered."""
    found = [getattr(o, name) for o in select(outcomes, **wanted)]
    return np.array([e for e in found if e is not None], float)


def _cell(outcomes, **wanted) -> str:
    """Writes the mean error, and how many fits failed."""
    chosen = select(outcomes, **wanted)
    errors, n_failed = _errors(chosen), sum(o.failed for o in chosen)
    text = f"{errors.mean():.3g}" if errors.size else ""
    failed = f"FAIL {n_failed} of {len(chosen)}" if n_failed else ""
    return ", ".join(filter(None, (text, failed)))


def tables(config, found: Measured) -> dict[str, list[dict[str, Any]]]:
    """Lists errors by condition number, thresholds, constants, the audit and every trial."""
    outcomes, constants, audits, starts, _ = found
    by_condition = [
        {"d": d, "n": n, "method": NAMES[method]}
        | {
            f"condition {condition:g}": _cell(
                outcomes, d=d, n=n, method=method, condition=condition
            )
            for condition in config.condition_number
        }
        | {
            "time over lstsq": float(
                np.median([o.runtime_ratio for o in select(outcomes, d=d, n=n, method=method)])
            )
        }
        for d in config.d
        for n in config.n
        for method in config.methods
    ]
    public = [
        {
            "d": d,
            "n": n,
            "feasible": c.feasible,
            "k": c.k if c.feasible else None,
            "epsilon: test": c.epsilon_test,
            "mean": c.epsilon_mean,
            "covariance": c.epsilon_covariance,
            "noise scale c": c.noise_scale if c.feasible else None,
            "predicted noise": predicted_error(c, d) if c.feasible else None,
            "noise of least squares": config.noise * math.sqrt(d / n),
        }
        for (d, n), c in constants.items()
    ]
    audit = [
        {
            "noise, times the right one": a["noise"],
            "epsilon claimed": config.epsilon,
            "epsilon at least": a["epsilon_lower"],
            "most that could be found": a["epsilon_power"],
            "failed": max(a["failed"]),
        }
        for a in audits
    ]
    trials = [
        {
            "method": o.method,
            "n": o.n,
            "d": o.d,
            "kappa": o.condition,
            "eps": config.epsilon,
            "trial": o.trial,
            "error": o.error,
            "failed": o.failed,
            "predicted_error": predicted_error(constants[o.d, o.n], o.d)
            if o.method == "private_ols" and constants[o.d, o.n].feasible
            else None,
            "runtime_ratio": o.runtime_ratio,
        }
        for o in outcomes
    ]
    return {
        "error_by_condition_number": by_condition,
        "n_from_which_it_answers": starts,
        "constants_from_public_numbers": public,
        "audit": audit,
        "trials": trials,
    }


def plots(config, found: Measured) -> dict[str, Any]:
    """Draws error against n, a frame for each condition number, for each d."""
    outcomes, constants, figures = found.outcomes, found.constants, {}
    for d in config.d:
        frames = {}
        for condition in config.condition_number:
            series = {}
            for method in config.methods:
                points = [
                    (n, e.mean())
                    for n in config.n
                    if (e := _errors(outcomes, d=d, n=n, condition=condition, method=method)).size
                ]
                if points:
                    series[NAMES[method]] = tuple(zip(*points, strict=True))
            predicted = [
                (n, predicted_error(constants[d, n], d))
                for n in config.n
                if constants[d, n].feasible
            ]
            if predicted:
                series["noise predicted from public numbers"] = tuple(zip(*predicted, strict=True))
            frames[f"condition number {condition:g}"] = series or {"none": ([1.0], [1.0])}
        figure = report.panels(
            frames, xlabel="rows n", ylabel="error of prediction",
            title=f"Error against n, d = {d}, epsilon = {config.epsilon:g}", xlog=True, ylog=True,
            n_columns=3, share_y=True, size=(3.9, 3.4),
        )  # fmt: skip
        _mark(figure, found.marks[d])
        figures[f"error_against_n_d{d}"] = figure
    return figures


def _mark(figure, start) -> None:
    """Marks the n from which an answer is possible, and the error of answering 0."""
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        low, _ = axes.get_ylim()
        axes.set_ylim(low, 5 * TRIVIAL)
        left, right = axes.get_xlim()
        if start is not None:
            axes.axvspan(min(left, start / 1.2), start, color="0.9", zorder=0)
            axes.axvline(start, color="0.4", linewidth=0.8, linestyle=":")
            axes.text(
                start, low * 1.15, f" answers from n = {start:,}", rotation=90, fontsize=7,
                va="bottom", ha="left", color="0.3",
            )  # fmt: skip
        axes.set_xlim(min(left, (start or left) / 1.2), right)
        axes.axhline(TRIVIAL, color="0.4", linewidth=0.8, linestyle="--")
        axes.text(axes.get_xlim()[0], TRIVIAL, " answering 0", fontsize=7, va="bottom", color="0.3")


def claims(config, measured: Measured) -> list[report.Claim]:
    """Sets what was measured beside the theory and the bounds on the config's card."""
    outcomes, constants, audits, *_ = measured
    bounds, found = config.bounds, []
    if not {"private_ols", "ols"} <= set(config.methods):
        return found
    seeds = f"{config.trials} data sets"
    largest = max(config.condition_number)
    cells = [cell for cell in constants if constants[cell].feasible]
    if not cells:
        return found

    def errors(cell, name="error", **wanted):
        d, n = cell
        return _errors(outcomes, name, **({"d": d, "n": n, "method": "private_ols"} | wanted))

    reference = (10, 100_000)
    if reference in cells and config.epsilon == 1:
        means = [errors(reference, condition=c).mean() for c in config.condition_number]
        spread = [errors(reference, condition=c).std() for c in config.condition_number]
        found.append(
            report.Claim(
                claim="Error at d = 10, n = 100000, worst condition number",
                paper=PAPER,
                paper_value="order d / (epsilon n), constants not stated",
                value=f"{max(means):.3g}",
                baseline=f"at most {bounds.error:g}",
                seeds=seeds,
                spread=f"sd {max(spread):.2g}",
                holds=bool(max(means) <= bounds.error),
            )
        )
    if largest > 1 and 1 in config.condition_number:
        ratios = [
            errors(cell, condition=largest).mean() / errors(cell, condition=1).mean()
            for cell in cells
            if errors(cell, condition=largest).size and errors(cell, condition=1).size
        ]
        worst = max(ratios, key=lambda r: abs(r - 1))
        found.append(
            report.Claim(
                claim="The error does not depend on the condition number, 1 to "
                f"{largest:g}, same draws",
                paper=PAPER,
                paper_value="no condition number in the bound",
                value=f"ratio {worst:.3f}, the farthest from 1 of {len(ratios)} sizes",
                baseline=f"1 within {bounds.condition_ratio:g}",
                seeds=seeds,
                spread=f"{min(ratios):.3f} to {max(ratios):.3f}",
                holds=bool(abs(worst - 1) <= bounds.condition_ratio),
            )
        )
    if "adassp" in config.methods and largest >= 1e3 and reference in cells:
        own = errors(reference, condition=largest)
        other = errors(reference, condition=largest, method="adassp")
        found.append(
            report.Claim(
                claim=f"At condition number {largest:g} AdaSSP errs far more, n = 100000, d = 10",
                paper=PAPER,
                paper_value="prior work: error grows with the condition number",
                value=f"{other.mean():.3g} against {own.mean():.3g}: "
                f"{other.mean() / own.mean():.3g} times",
                baseline=f"at least {bounds.adassp_over_private:g} times",
                seeds=seeds,
                spread=f"sd {other.std():.2g}",
                holds=bool(other.mean() >= bounds.adassp_over_private * own.mean()),
            )
        )
    cell = (min(config.d), max(config.n))
    if cell in cells:
        own, plain = errors(cell), errors(cell, method="ols")
        claim = report.ratio_claim(
            f"Close to least squares at d = {cell[0]}, n = {cell[1]}", own, plain,
            against_name="least squares", bound=bounds.ols_ratio, paper=PAPER,
            paper_value="its error is of lower order for large n", seeds=seeds,
        )  # fmt: skip
        found.append(claim)
    # Of one condition number, for the draws are the same at all of them. In units of what was
    # predicted, sizes can be put together: the more of them, the less is left to chance.
    first = config.condition_number[0]
    shares = {
        cell: errors(cell, "noise", condition=first) / predicted_error(constants[cell], cell[0])
        for cell in cells
    }
    sizes = [math.sqrt(np.square(share).mean()) for share in shares.values() if share.size]
    if sizes:
        ratio = math.sqrt(np.square(np.concatenate(list(shares.values()))).mean())
        found.append(
            report.Claim(
                claim="The noise is what was predicted before the data were seen",
                paper=PAPER,
                paper_value="not in the paper",
                value=f"root mean square {ratio:.3f} of the prediction",
                baseline=f"1 within {bounds.predicted_ratio:g}",
                seeds=f"{seeds} of {len(sizes)} sizes",
                spread=f"{min(sizes):.2f} to {max(sizes):.2f} by size",
                holds=bool(abs(ratio - 1) <= bounds.predicted_ratio),
            )
        )
    slopes = {}
    for d in config.d:
        sizes = [n for n in config.n if (d, n) in cells and errors((d, n), "noise").size]
        if len(sizes) > 1:
            means = [errors((d, n), "noise").mean() for n in sizes]
            slopes[d] = float(np.polyfit(np.log(sizes), np.log(means), 1)[0])
    if slopes:
        worst = max(slopes.values())
        found.append(
            report.Claim(
                claim="The noise falls at least as fast as 1/n",
                paper=PAPER,
                paper_value="1/n, above a least n",
                value=f"slope {worst:.2f} of log noise against log n",
                baseline=f"at most {bounds.slope:g}; least squares has -0.5",
                seeds=seeds,
                spread=", ".join(f"d = {d}: {slope:.2f}" for d, slope in slopes.items()),
                holds=worst <= bounds.slope,
            )
        )
    found.append(_audit_claim(config, audits))
    return found


def _audit_claim(config, audits) -> report.Claim:
    """Claims that the audit has nothing against the right noise, and much against the least."""
    right = [a["epsilon_lower"] for a in audits if a["noise"] >= 1]
    least = min(audits, key=lambda a: a["noise"])
    caught = least["noise"] >= 1 or least["epsilon_lower"] > config.epsilon
    return report.Claim(
        claim="An audit finds nothing against the noise, and finds out too little of it",
        paper="not in the paper",
        paper_value="",
        value=f"epsilon at least {max(right, default=0.0):.2f}; with {least['noise']:g} of the "
        f"noise at least {least['epsilon_lower']:.2f}",
        baseline=f"claimed {config.epsilon:g}; {least['epsilon_power']:.2f} could be found at most",
        seeds=f"{config.audit_draws} draws",
        spread=f"confidence {config.audit_confidence:g}",
        holds=bool(max(right, default=0.0) <= config.epsilon and caught),
    )


def notes(config, measured: Measured) -> list[str]:
    """Says what a reader has to know to read the numbers."""
    outcomes = measured.outcomes
    found = [
        f"All private methods: {GUARANTEE}",
        "The error is ||Sigma^(1/2) (coef - truth)||: by how much a prediction for a new row is "
        "off. Answering 0 errs by 1.",
        "Private least squares is told leverage_bound, residual_bound and residual_scale by a "
        "rule for normal data, from n, d and the noise alone. AdaSSP is told the true largest "
        "norms, more than it could know; DP-GD a clip and a step size that suit condition 1.",
        "AdaSSP is stated with exact Gaussian noise for replacement of a row, which has up to "
        "twice the sensitivity of leaving one out, for which it is often run.",
        "TukeyEM at high condition numbers is off the frame: its boxes lie along the axes.",
        "This is a variant of the paper's mechanism with constants of its own: the paper's could "
        "not be compared.",
    ]
    for method in ("adassp", "tukey_em", "dp_gd"):
        better = [
            f"d = {d}, n = {n} ({other.mean():.3g} against {own.mean():.3g})"
            for d in config.d
            for n in config.n
            if (other := _errors(outcomes, d=d, n=n, condition=1, method=method)).size
            and (own := _errors(outcomes, d=d, n=n, condition=1, method="private_ols")).size
            and other.mean() < own.mean()
        ]
        if better:
            found.append(
                f"At condition number 1 {NAMES[method]} is the better one at {'; '.join(better)}."
            )
    useless = [
        f"d = {d}, n = {n}"
        for d in config.d
        for n in config.n
        if (p := _errors(outcomes, d=d, n=n, method="private_ols")).size and p.mean() >= TRIVIAL
    ]
    if useless:
        found.append(
            f"Private least squares answers, but worse than 0 would, at {'; '.join(useless)}: its "
            "predicted error says so before any budget is spent."
        )
    return found
