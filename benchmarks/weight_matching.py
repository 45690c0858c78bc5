"""Weight matching against a re-statement of the published algorithm, and what it is made of.

    python -m benchmarks.weight_matching            # prints the tables
    python -m benchmarks.weight_matching --write    # and puts them into benchmarks/RESULTS.md

All times are CPU seconds of this process, in which BLAS and XLA have one thread each.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._results import environment, main
from jaxml.core.tree import to_paths
from jaxml.merging import (
    PermutationSpec,
    apply_permutation,
    coordinate_ascent,
    derive_permutation_spec,
    invert_permutation,
    linear_sum_assignment,
    random_permutation,
    weight_matching,
)
from jaxml.nn import build
from jaxml.report import to_markdown
from tests.merging import reference

COMMAND = "python -m benchmarks.weight_matching --write"
REPEATS = 9
ASSIGNMENT_REPEATS = 5

RESNET = "ResNet20 x1, two inits"
MLP = "MLP 784-512x3-10, two inits"

NOTES = """\
CPU time of the process (`time.process_time`), BLAS and XLA on one thread each, compilation
  excluded; all contestants in one process, taking turns on the same arrays"""


class Case(NamedTuple):
    """Two networks to align; ``planted`` is the answer where there is one."""

    spec: PermutationSpec
    groups: list[set]
    a: Any
    b: Any
    planted: dict | None


def make_case(name: str, width: float, groups: list[set], *, planted: bool) -> Case:
    """Draws two initialisations, or one and a permuted copy with noise of each leaf's spread."""
    model = build(name, width=width, n_classes=10)
    x = jnp.zeros((2, 784) if name == "mlp" else (2, 32, 32, 3))
    init = jax.jit(model.init)
    a = init(jax.random.key(0), x)
    spec = derive_permutation_spec(model.apply, a, x)
    if not planted:
        return Case(spec, groups, a, init(jax.random.key(1), x), None)
    perms = random_permutation(jax.random.key(2), spec)
    rng = np.random.default_rng(0)
    b = jax.tree.map(
        lambda leaf: leaf + leaf.std() * rng.normal(size=leaf.shape).astype(np.float32),
        apply_permutation(spec, perms, a),
    )
    return Case(spec, groups, a, b, invert_permutation(perms))


def cpu_seconds(fn: Callable, *args) -> tuple[float, Any]:
    """Returns the CPU time of a call and its result, computed to the end."""
    start = time.process_time()
    result = jax.block_until_ready(fn(*args))
    return time.process_time() - start, result


def spread(values, *, digits: int = 3) -> str:
    """Writes the median and, in brackets, the range."""
    low, middle, high = (
        np.format_float_positional(v, precision=digits, fractional=False, trim="-")
        for v in np.quantile(values, [0, 0.5, 1])
    )
    return f"{middle} ({low} to {high})"


class Comparison(NamedTuple):
    """The library (``jaxml``) and the re-statement in numpy and in eager jax.numpy on one case.

    Each dict holds one array of a value a repeat: CPU seconds, assignments solved, objective.
    """

    title: str
    seconds: dict[str, np.ndarray]
    solved: dict[str, np.ndarray]
    objectives: dict[str, np.ndarray]
    recovered: float | None

    def times_slower(self, who: str) -> np.ndarray:
        """Returns the CPU time of a re-statement over that of the library, repeat by repeat."""
        return self.seconds[who] / self.seconds["jaxml"]


def compare(title: str, case: Case) -> Comparison:
    """Runs all three on one pair of networks, taking turns, in a new visiting order each time."""
    by_axes = {frozenset((r.path, r.axis) for r in g.axes): n for n, g in case.spec.groups.items()}
    groups = {by_axes[frozenset(refs)]: sorted(refs) for refs in case.groups}
    sizes = {name: case.spec.groups[name].size for name in groups}
    on_device = [to_paths(tree) for tree in (case.a, case.b)]
    on_host = [{path: np.asarray(leaf) for path, leaf in tree.items()} for tree in on_device]

    def library(key):
        result = weight_matching(key, case.spec, case.a, case.b)
        return result.perms, result.n_assignments

    def restated(key, xp, models):
        # The library draws its visiting orders from the same numbers, so all take the same path.
        seed = np.asarray(jax.random.key_data(key)).tolist()
        return reference.weight_matching(groups, *models, sizes, seed=seed, xp=xp)

    runs = {
        "jaxml": library,
        "jax": functools.partial(restated, xp=jnp, models=on_device),
        "numpy": functools.partial(restated, xp=np, models=on_host),
    }
    for run in runs.values():
        run(jax.random.key(0))  # compiles
    seconds, solved, objectives = ({who: [] for who in runs} for _ in range(3))
    hits = []
    for seed in range(REPEATS):
        for who, run in runs.items():
            elapsed, (perms, count) = cpu_seconds(run, jax.random.key(seed))
            perms = {name: np.asarray(perm) for name, perm in perms.items()}
            seconds[who].append(elapsed)
            solved[who].append(count)
            objectives[who].append(reference.objective(groups, perms, *on_host))
            if case.planted is not None and who == "jaxml":
                hits += [perms[name] == planted for name, planted in case.planted.items()]
    return Comparison(
        title,
        *({who: np.array(v) for who, v in d.items()} for d in (seconds, solved, objectives)),
        recovered=float(np.concatenate(hits).mean()) if hits else None,
    )


def compare_all() -> list[Comparison]:
    """Runs every case of the first two tables."""
    resnet, mlp = reference.resnet20_groups(), reference.mlp_groups(3)
    cases = [
        (RESNET, "resnet20", 1, resnet, False),
        ("ResNet20 x1, planted + noise", "resnet20", 1, resnet, True),
        ("ResNet20 x4, two inits", "resnet20", 4, resnet, False),
        ("ResNet20 x4, planted + noise", "resnet20", 4, resnet, True),
        (MLP, "mlp", 512, mlp, False),
        ("MLP 784-512x3-10, planted + noise", "mlp", 512, mlp, True),
    ]
    return [
        compare(title, make_case(name, width, groups, planted=planted))
        for title, name, width, groups, planted in cases
    ]


def time_rows(comparisons: list[Comparison]) -> list[dict]:
    """Tabulates CPU times and their ratios."""
    return [
        {
            "case": c.title,
            **{f"{who}, ms": float(1e3 * np.median(v)) for who, v in c.seconds.items()},
            "jax / jaxml": spread(c.times_slower("jax")),
            "numpy / jaxml": spread(c.times_slower("numpy")),
        }
        for c in comparisons
    ]


def optimum_rows(comparisons: list[Comparison]) -> list[dict]:
    """Tabulates what was found, and with how many assignments."""
    return [
        {
            "case": c.title,
            "assignments, jaxml": spread(c.solved["jaxml"]),
            "assignments, numpy": spread(c.solved["numpy"]),
            "objective, jaxml": spread(c.objectives["jaxml"], digits=5),
            "objective, numpy": spread(c.objectives["numpy"], digits=5),
            "difference, %": spread(100 * (c.objectives["jaxml"] / c.objectives["numpy"] - 1)),
            "units recovered": "" if c.recovered is None else f"{c.recovered:.4f}",
        }
        for c in comparisons
    ]


def bound_rows(comparisons: list[Comparison]) -> list[dict]:
    """Holds the bounds that the library promises against what was measured."""
    rows = []
    for title, bound in ((RESNET, 10), (MLP, 1.8)):
        (c,) = (c for c in comparisons if c.title == title)
        for who in ("jax", "numpy"):
            ratio = float(np.median(c.times_slower(who)))
            rows.append({
                "bound": f"{title}: CPU time at most 1/{bound:g}",
                "of the re-statement in": who,
                "measured": f"1/{ratio:.3g}",
                "holds": ratio >= bound,
            })  # fmt: skip
        worst = max(
            np.abs(c.objectives["jaxml"] / c.objectives[who] - 1).max() for who in ("jax", "numpy")
        )
        rows.append({
            "bound": f"{title}: objective within 1 %",
            "of the re-statement in": "both",
            "measured": f"{100 * worst:.2g} % at worst",
            "holds": bool(worst <= 0.01),
        })  # fmt: skip
    return rows


def compare_assignments() -> list[dict]:
    """Times both backends of ``linear_sum_assignment`` on three kinds of costs."""
    kinds = {
        "Gaussian": lambda rng, n: rng.normal(size=(n, n)),
        "aligned": lambda rng, n: 0.3 * rng.normal(size=(n, n)) - np.eye(n),
        "integers 0-9": lambda rng, n: rng.integers(0, 10, size=(n, n)),
    }
    rows = []
    for kind, draw in kinds.items():
        for n in (64, 256, 512, 1024):
            rng = np.random.default_rng(n)
            seconds: dict[str, list[float]] = {"scipy": [], "hungarian": []}
            gaps = []
            for i in range(ASSIGNMENT_REPEATS + 1):
                cost = draw(rng, n).astype(np.float32)
                total = {}
                for backend, array in (("scipy", cost), ("hungarian", jnp.asarray(cost))):
                    solve = functools.partial(
                        linear_sum_assignment, array, maximize=False, backend=backend
                    )
                    elapsed, perm = cpu_seconds(solve)
                    total[backend] = cost[np.arange(n), np.asarray(perm)].sum(dtype=np.float64)
                    if i > 0:  # the first one compiles
                        seconds[backend].append(elapsed)
                gaps.append(abs(total["hungarian"] - total["scipy"]))
            scipy, hungarian = (np.array(v) for v in seconds.values())
            rows.append({
                "costs": kind,
                "n": n,
                "scipy, ms": float(1e3 * np.median(scipy)),
                "hungarian, ms": float(1e3 * np.median(hungarian)),
                "hungarian / scipy": spread(hungarian / scipy),
                "largest objective gap": f"{max(gaps):.1g}",
            })  # fmt: skip
    return rows


class Stopwatch:
    """Adds up the CPU time spent inside a function."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, fn: Callable) -> Callable:
        """Wraps ``fn``."""

        @functools.wraps(fn)
        def timed(*args, **kwargs):
            start = time.process_time()
            try:
                return fn(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed


def split_by_width() -> list[dict]:
    """Times weight matching of MLPs of growing width, and splits the time into its parts."""
    group = coordinate_ascent._Neighbourhood
    rows = []
    for width in (32, 64, 128, 256, 512, 1024):
        case = make_case("mlp", width, reference.mlp_groups(3), planted=False)
        seconds, passes, solved, shares = [], [], [], []
        for seed in range(REPEATS):
            assignments, tables = Stopwatch(), Stopwatch()
            with (
                mock.patch.object(
                    coordinate_ascent,
                    "linear_sum_assignment",
                    assignments.around(coordinate_ascent.linear_sum_assignment),
                ),
                mock.patch.object(group, "linear", tables.around(group.linear)),
                mock.patch.object(group, "__init__", tables.around(group.__init__)),
            ):
                elapsed, result = cpu_seconds(
                    weight_matching, jax.random.key(seed), case.spec, case.a, case.b
                )
            seconds.append(elapsed)
            passes.append(result.n_iter)
            solved.append(result.n_assignments)
            shares.append([100 * part.seconds / elapsed for part in (assignments, tables)])
        in_assignments, in_tables = np.median(shares, axis=0)
        rows.append({
            "width": width,
            "CPU time, ms": spread(1e3 * np.array(seconds)),
            "passes": spread(passes),
            "assignments": spread(solved),
            "ms per assignment, all in": float(1e3 * np.sum(seconds) / np.sum(solved)),
            "in assignments, %": round(in_assignments),
            "in tables, %": round(in_tables),
        })  # fmt: skip
    return rows


def report() -> str:
    """Measures everything and returns the section."""
    start = time.process_time()
    comparisons = compare_all()
    assignments = compare_assignments()
    widths = split_by_width()
    minutes = (time.process_time() - start) / 60
    head = environment(COMMAND, packages=("jax", "numpy", "scipy", "optax", "flax"), notes=NOTES)
    return f"""\
## Weight matching

{head}- whole run: {minutes:.1f} CPU minutes; figures are "median (smallest to largest)"

### Against the published algorithm

`jaxml.merging.weight_matching` against `tests/merging/reference.py`, a plain eager re-statement
of the paper's Algorithm 1 written for this repository: every table is formed anew at every visit,
and any rise above 1e-12 counts as progress. It runs in numpy (`numpy`) and, the same lines, in
eager `jax.numpy` (`jax`), which like the paper's own code dispatches one operation at a time and
brings each table to the host for its assignment. {REPEATS} repeats, each with a new visiting order
that all three share; the library's time includes its checks of the input. "Planted" is a random
permutation of the first network plus Gaussian noise of the spread of each leaf.

{to_markdown(time_rows(comparisons))}
The same runs: assignment problems solved, and the inner product of the aligned parameters in
float64.

{to_markdown(optimum_rows(comparisons))}
Bounds, on the median for times. They were set on the paper's own eager `jax.numpy` code, so the
`jax` rows decide; the `numpy` rows say what is left of the gain when dispatch costs nothing: the
tables and assignments that are not repeated. ResNet20 x1 is then all overhead, a few microseconds
a call on either side, and the MLP mostly assignments (last table), which both solve with scipy.

{to_markdown(bound_rows(comparisons))}
### Assignment: scipy against optax

Both backends of `jaxml.merging.linear_sum_assignment`, minimising; `hungarian` is optax's, jitted.
{ASSIGNMENT_REPEATS} repeats on float32 costs, each drawn anew. "Aligned" is minus the identity plus
0.3 times Gaussian noise. The gap is between the two sums in float64: both backends are optimal.

{to_markdown(assignments)}
### Growth with width

MLP 784-w-w-w-10, two inits, {REPEATS} visiting orders. Tables are the products of weights (with
their sums in float64); the rest of the time is checks, copies and the objective.

{to_markdown(widths)}"""


if __name__ == "__main__":
    main("weight_matching", __doc__, report)
