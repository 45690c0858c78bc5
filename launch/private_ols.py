r"""Private least squares: an error that does not depend on the condition number.

Fits a linear model to a CSV file with (epsilon, delta)-differential privacy and writes it with its
budget ledger; or, without a file, studies the error against n and the condition number, beside
AdaSSP, TukeyEM and DP-GD, and audits the mechanism.

  python -m launch.private_ols --workdir=out/private_ols
  python -m launch.private_ols --data=file.csv --target=column --leverage_bound=0.001 \
      --residual_bound=5 --epsilon=1 --delta=1e-6 --workdir=out/model

The bounds must come from outside the file: from the field, or from public data of the same kind.
leverage_bound limits z^T (Z^T Z)^-1 z over the rows z of all columns, the target and the intercept
included: for well-behaved data a few times columns / rows. residual_bound is in the units of the
target, as is residual_scale, which limits the root mean square of the residuals.
Every run with a file spends the budget anew, with noise from the system's entropy: --seed has no
part in it. --resume reads the model that is there and spends nothing.
"""

import json
import math
import pathlib
import time

from launch import _app, _flags

METHODS = ("ols", "private_ols", "adassp", "tukey_em", "dp_gd")


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    if not 0 < config.epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {config.epsilon}")
    if not 0 < config.delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {config.delta}")
    if not 0 <= config.fail_rate < 1:
        raise ValueError(f"fail_rate must lie in [0, 1), got {config.fail_rate}")
    if config.data:
        _check_file(config)
        return
    for name in ("target", "leverage_bound", "residual_bound", "residual_scale"):
        if config[name]:
            raise ValueError(f"{name} goes with a file: --data=file.csv")
    for name in ("n", "d", "condition_number", "methods", "audit_noise"):
        if not config[name]:
            raise ValueError(f"{name} must hold at least one value, got ()")
    for name in ("n", "d", "trials", "n_models", "gd_steps", "audit_draws"):
        values = config[name] if isinstance(config[name], tuple) else (config[name],)
        if min(values) < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    for name in ("noise", "gd_clip", "gd_learning_rate"):
        if not 0 < config[name] < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {config[name]}")
    if min(config.condition_number) < 1:
        raise ValueError(f"condition_number must be at least 1, got {config.condition_number}")
    if min(config.audit_noise) <= 0:
        raise ValueError(f"audit_noise must be positive, got {config.audit_noise}")
    if config.audit_n < 8 or config.audit_n % 4:
        raise ValueError(f"audit_n must be a multiple of 4 of at least 8, got {config.audit_n}")
    if not 0 < config.audit_confidence < 1:
        raise ValueError(f"audit_confidence must lie in (0, 1), got {config.audit_confidence}")
    for method in config.methods:
        if method not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}; got {method!r}")
    if min(config.n) < 10 * max(config.d):
        raise ValueError(
            f"n must be at least 10 d for every method to fit, got n {config.n} and d {config.d}"
        )


def _check_file(config):
    header = _header(config.data)
    if not config.target:
        raise ValueError(f"target must name a column of {config.data}: {', '.join(header)}")
    for name in (config.target, *filter(None, config.features)):
        if header.count(name) != 1:
            near = _flags.did_you_mean(name, header) or f"; it has {', '.join(header)}"
            many = "no" if name not in header else "more than one"
            raise ValueError(f"{config.data} has {many} column {name!r}{near}")
    if config.target in config.features:
        raise ValueError(f"features must not hold the target, {config.target!r}")
    if len(header) == 1 and not config.intercept:
        raise ValueError(f"{config.data} has no column beside {config.target!r} to predict it from")
    if not 0 < config.leverage_bound < 1:
        raise ValueError(
            f"leverage_bound must lie in (0, 1), got {config.leverage_bound}: a public bound on "
            "the leverages of the rows, from outside the file"
        )
    if not 0 < config.residual_bound < math.inf:
        raise ValueError(
            f"residual_bound must be positive and finite, got {config.residual_bound}: a public "
            "bound on residuals, from outside the file"
        )
    if not 0 <= config.residual_scale <= config.residual_bound:
        raise ValueError(
            f"residual_scale must lie in [0, residual_bound], got {config.residual_scale}"
        )


def _header(path) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            names = _cells(file.readline())
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise FileNotFoundError(f"data: cannot read {path}: {reason}") from error
    if not any(names):
        raise ValueError(f"data: {path} must begin with a line of column names")
    return names


def _cells(line: str) -> list[str]:
    # Not csv.reader: there an open quote in one record would swallow the records after it, and
    # neighbouring files would differ in more than one row.
    return [cell.strip().strip('"') for cell in line.rstrip("\r\n").split(",")]


if __name__ == "__main__":
    _app.start(__doc__, paper="private_ols", check=check)

import jax
import numpy as np

from jaxml import privacy
from jaxml.core.rng import named_key, numpy_generator
from jaxml.io import MetricsWriter, artifacts
from launch import _private_ols_report
from launch._private_ols_report import Measured, Outcome


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Fits a file, or runs the study.

    Args:
      key: typed key; with the config it determines every number of the study but the times. Noise
        for a file comes from the system's entropy instead.
      config: see ``configs/private_ols``.
      workdir: folder for artifacts, from which a second call goes on; None writes nothing.
      writer: MetricsWriter; None is silent.
      mesh: not used; a fit runs on one device.

    Returns:
      Result with claims, tables and figures.
    """
    del mesh
    check(config)
    writer = writer or MetricsWriter()
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    if config.data:
        return _fit_file(config, root)
    return _study(key, config, root, writer)


def _save(root, name, value):
    if root is not None and jax.process_index() == 0:
        artifacts.save_json(root / f"{name}.json", value)


# A file.


def _fit_file(config, root) -> _app.Result:
    """Releases a private model once; what can be read of it in the workdir is all public."""
    path = None if root is None else root / "model.json"
    if path is not None and path.exists():
        model, ledger = json.loads(path.read_text()), artifacts.load_json(root / "budget.json")
    else:
        names, X, y = _read(config)
        constants = privacy.issp_constants(
            len(y),
            epsilon=config.epsilon,
            delta=config.delta,
            leverage_bound=config.leverage_bound,
            residual_bound=config.residual_bound,
            residual_scale=config.residual_scale or config.residual_bound,
            fail_rate=config.fail_rate,
        )
        result = privacy.private_ols(privacy.entropy_key(), X, y, constants)
        answered = bool(result.status == privacy.PASS)
        model = {
            "target": config.target,
            "answered": answered,
            "coef": dict(zip(names, result.coef.tolist(), strict=True)) if answered else None,
            "predicted_error": privacy.predicted_error(constants, len(names)),
            "needs_epsilon": None if constants.feasible else _needed_epsilon(config, len(y)),
        }
        if not constants.feasible:
            model["predicted_error"] = None
        ledger = privacy.budget_ledger(constants)
        if not constants.feasible:
            # Infinity is no JSON.
            ledger["derived"] = {}
        _save(root, "budget", ledger)
        _save(root, "model", model)
    return _private_ols_report.model_result(model, ledger)


def _read(config) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reads names of features, X and y; a line that is not all numbers becomes a row of NaN."""
    header = _header(config.data)
    chosen = [name for name in config.features if name]
    chosen = chosen or [name for name in header if name != config.target]
    columns = [header.index(name) for name in [*chosen, config.target]]
    rows = []
    with open(config.data, encoding="utf-8-sig", errors="replace", newline="\n") as file:
        next(file)
        for line in file:
            cells = _cells(line)
            try:
                rows.append([float(cells[column]) for column in columns])
            except (ValueError, IndexError):
                rows.append([math.nan] * len(columns))
    table = np.array(rows, np.float64).reshape(-1, len(columns))
    if not len(table):
        raise ValueError(f"data: {config.data} has no rows below its header")
    X, y = table[:, :-1], table[:, -1]
    if config.intercept:
        X = np.column_stack([X, np.ones(len(X))])
        chosen = [*chosen, "(intercept)"]
    return chosen, X, y


def _needed_epsilon(config, n) -> float | None:
    """Finds the least budget, of a grid, with which the bounds allow an answer."""
    for epsilon in np.geomspace(config.epsilon, max(100 * config.epsilon, 100), 60):
        constants = privacy.issp_constants(
            n,
            epsilon=float(epsilon),
            delta=config.delta,
            leverage_bound=config.leverage_bound,
            residual_bound=config.residual_bound,
            residual_scale=config.residual_scale or config.residual_bound,
            fail_rate=config.fail_rate,
        )
        if constants.feasible:
            return float(epsilon)
    return None


# The study.


def _constants(config, n, d) -> privacy.ISSPConstants:
    bounds = privacy.gaussian_bounds(n, d, noise_std=config.noise)
    return privacy.issp_constants(
        n, epsilon=config.epsilon, delta=config.delta, fail_rate=config.fail_rate,
        **bounds._asdict(),
    )  # fmt: skip


def _study(key, config, root, writer) -> _app.Result:
    cells = [(d, n) for d in config.d for n in config.n]
    outcomes = []
    constants = {cell: _constants(config, cell[1], cell[0]) for cell in cells}
    for d, n in cells:
        path = None if root is None else root / f"d{d}_n{n}" / "outcomes.json"
        if path is not None and path.exists():
            outcomes += [Outcome(**saved) for saved in artifacts.load_json(path)]
            continue
        found = []
        writer.stage(f"d={d}, n={n}", config.trials * len(config.condition_number))
        for trial in range(config.trials):
            for condition in config.condition_number:
                each = _trial(key, config, constants[d, n], d, condition, trial)
                found += each
                shown = {o.method: o.error for o in each if o.error is not None}
                writer.step(len(found) // len(each), **shown)
        outcomes += found
        _save(root, f"d{d}_n{n}/outcomes", [outcome._asdict() for outcome in found])
    audits = _audits(key, config, root, writer)
    ledgers = {
        f"d={d}, n={n}": privacy.budget_ledger(found)
        for (d, n), found in constants.items()
        if found.feasible
    }
    _save(root, "budget", ledgers)
    marks = {d: first_n(config, d) for d in config.d}
    found = Measured(outcomes, constants, audits, _starts(config), marks)
    return _private_ols_report.study_result(config, found)


def _draw(rng, n, d, condition, noise):
    """Draws X, y, the root of the covariance and the coefficients, of length 1 in prediction."""
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    half = np.geomspace(1, 1 / condition, d)[:, None] * rotation
    coef = np.linalg.solve(half, np.full(d, d**-0.5))
    X = rng.normal(size=(n, d)) @ half
    return X, X @ coef + noise * rng.normal(size=n), half, coef


def _trial(key, config, constants, d, condition, trial) -> list[Outcome]:
    """Fits one data set by every method; a trial has the same draws at all condition numbers."""
    n = constants.n
    key = jax.random.fold_in(named_key(key, f"d={d}, n={n}"), trial)
    rng = numpy_generator(named_key(key, "data"))
    X, y, half, coef = _draw(rng, n, d, condition, config.noise)
    start = time.perf_counter()
    reference = np.linalg.lstsq(X, y, rcond=None)[0]
    lstsq_seconds = time.perf_counter() - start
    budget = {"epsilon": config.epsilon, "delta": config.delta}
    fits = {
        "ols": lambda key: privacy.ols(X, y),
        "private_ols": lambda key: privacy.private_ols(key, X, y, constants),
        "adassp": lambda key: privacy.adassp(
            key, X, y, **budget, x_bound=np.linalg.norm(X, axis=1).max(), y_bound=np.abs(y).max()
        ),
        "tukey_em": lambda key: privacy.tukey_em(
            key, X, y, **budget, n_models=min(config.n_models, n // (2 * d))
        ),
        "dp_gd": lambda key: privacy.dp_gd(
            key, X, y, **budget, clip=config.gd_clip, learning_rate=config.gd_learning_rate,
            n_steps=config.gd_steps,
        ),
    }  # fmt: skip
    outcomes = []
    for method in config.methods:
        start = time.perf_counter()
        answer = fits[method](named_key(key, method))
        seconds = time.perf_counter() - start
        failed = answer.status != privacy.PASS
        errors = [
            None if failed else float(np.linalg.norm(half @ (answer.coef - centre)))
            for centre in (coef, reference)
        ]
        outcomes.append(
            Outcome(method, n, d, condition, trial, *errors, bool(failed), seconds / lstsq_seconds)
        )
    return outcomes


def _audits(key, config, root, writer):
    """Audits the mechanism with its noise and with less."""
    path = None if root is None else root / "audit.json"
    if path is not None and path.exists():
        return artifacts.load_json(path)
    n = config.audit_n
    constants = privacy.issp_constants(
        n, epsilon=config.epsilon, delta=config.delta, leverage_bound=8 / n, residual_bound=3.0,
        residual_scale=1.02, fail_rate=config.fail_rate,
    )  # fmt: skip
    pair = privacy.reflected_pair(n, 7.8 / n)
    found = []
    writer.stage("audit", len(config.audit_noise))
    for i, multiple in enumerate(config.audit_noise):
        weakened = constants._replace(noise_scale=constants.noise_scale * multiple)

        def mechanism(key, Z, weakened=weakened):
            return privacy.private_ols(key, Z[:, :-1], Z[:, -1], weakened).coef

        with jax.enable_x64(True):
            keys = jax.random.split(named_key(key, "audit"), config.audit_draws)
            audit = privacy.audit_epsilon(
                mechanism, *((jax.device_put(z),) for z in pair), keys, delta=config.delta,
                confidence=config.audit_confidence,
            )  # fmt: skip
        found.append({"noise": multiple, **audit._asdict()})
        writer.step(i + 1, epsilon_lower=audit.epsilon_lower)
    _save(root, "audit", found)
    return found


def first_n(config, d, most_noise=math.inf) -> int | None:
    """Finds the least n with an answer of so much noise at most; None above 10 million rows."""

    def enough(n):
        limit = most_noise(n) if callable(most_noise) else most_noise
        constants = _constants(config, n, d)
        return constants.feasible and privacy.predicted_error(constants, d) <= limit

    low, high = d, 10**7
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _starts(config):
    """Finds, for several d, the least n with an answer of a given quality."""
    return [
        {
            "d": d,
            "answers": first_n(config, d),
            "noise at most 1": first_n(config, d, config.noise),
            "at most 0.1": first_n(config, d, 0.1 * config.noise),
            "at most that of least squares": first_n(
                config, d, lambda n, d=d: config.noise * math.sqrt(d / n)
            ),
        }
        for d in (5, 10, 20, 50)
    ]


if __name__ == "__main__":
    _app.main(run)
