"""Layer-wise least squares in closed form: against the paper's optimiser, and what it costs.

    python -m benchmarks.pleas            # prints the tables
    python -m benchmarks.pleas --write    # and puts them into benchmarks/RESULTS.md

CPU and wall seconds of this process, in which BLAS and XLA have one thread each.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._results import environment, main
from jaxml import data, nn, train
from jaxml.core.tree import from_paths, to_paths
from jaxml.merging import (
    accumulate_gram,
    derive_permutation_spec,
    permuted_least_squares,
    pleas_merge,
    reset_batch_stats,
    solve_gram,
)
from jaxml.merging.layers import LinearLayer, read_layers
from jaxml.merging.least_squares import _layers, _Problem, residual
from jaxml.merging.partial_merge import FROM_A, FROM_B, kernel_axes
from jaxml.report import to_markdown
from launch._tasks import split

COMMAND = "python -m benchmarks.pleas --write"
SEEDS = 3
BUDGETS = (1.0, 1.4)
N_BATCHES = 3  # equal ones: a shorter last batch would compile everything again
RIDGE, SMALL_RIDGE = 1e-2, 1e-6

ADAM_STEPS = 400
ADAM_BATCH = 16
ADAM_RATE = 5e-4
EAGER_STEPS = 20
LONGER = (400, 1600, 6400)
MIN_SPEEDUP = 8
EXACT = 1e-10  # a relative residual that is rounding

CLOSED, STEPS, LOOP, EAGER = "closed form", "Adam, jitted step", "Adam, jitted loop", "Adam, eager"
WEAK = f"closed form, ridge {SMALL_RIDGE:g}"

POSITIONS = 4096
REPEATS = 3
MAX_GB = 8

NOTES = """\
CPU time of the process (`time.process_time`) and wall time, BLAS and XLA on one thread each;
  other work shared the machine, so CPU time decides"""


class Seconds(NamedTuple):
    """What a call took."""

    cpu: float
    wall: float


def timed(fn: Callable, *args) -> tuple[Seconds, Any]:
    """Returns the times of a call and its result, computed to the end."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall), result


def spread(values, *, digits: int = 3) -> str:
    """Writes the median and, in brackets, the range."""
    low, middle, high = (
        np.format_float_positional(v, precision=digits, fractional=False, trim="-")
        for v in np.quantile(values, [0, 0.5, 1])
    )
    return f"{middle} ({low} to {high})"


class Pair(NamedTuple):
    """Two networks that each know half of the digits, and their one architecture."""

    model: Any
    spec: Any
    a: Any
    b: Any


def train_pair(seed: int, digits: data.Dataset) -> Pair:
    """Trains A on 98 % of the digits 0-4 and 2 % of 5-9, and B on the others."""
    # The patches form of the convolution trains faster on a CPU; both have the same variables.
    trained = nn.build("convnet", width=1, n_classes=10, norm="batch", conv="patches")
    variables = []
    for i, part in enumerate(split(jax.random.key(seed), digits, 0.98)):
        n_steps = 20 * (len(part.train_y) // 64)
        optimizer = train.make_optimizer("adam", learning_rate=3e-3, n_steps=n_steps)
        state = train.fit(
            jax.random.key(10 * seed + i), trained, optimizer, part.train_x, part.train_y,
            n_epochs=20, batch_size=64, epochs_per_call=20,
        )  # fmt: skip
        variables.append(state.variables)
    model = nn.build("convnet", width=1, n_classes=10, norm="batch", conv="lax")
    spec = derive_permutation_spec(model.apply, variables[0], digits.train_x[:2])
    return Pair(model, spec, *variables)


class Regressions:
    """The regressions of all layers, as the library states them in mode "paper"."""

    def __init__(self, pair: Pair, blocks, merged, x: jax.Array):
        self.pair, self.merged, leaves = pair, merged, to_paths(merged)
        ends = kernel_axes(pair.spec, pair.a)
        self.problems = {
            path: _Problem(layer, ends[path], blocks, leaves)
            for path, layer in _layers(pair.model.apply, pair.a, x).items()
        }

    def designs(self, a, b, x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Returns inputs ``[n, p]`` and targets ``[n, q]`` of every layer."""
        apply, paths = self.pair.model.apply, tuple(self.problems)
        of_a, of_b = (read_layers(v, x, apply=apply, paths=paths) for v in (a, b))
        return {
            path: problem.regression(of_a[path], of_b[path], None)
            for path, problem in self.problems.items()
        }

    def weights(self, variables) -> dict[str, np.ndarray]:
        """Reads the layers as matrices ``[p, q]``."""
        leaves = to_paths(variables)
        return {path: problem.weights(leaves) for path, problem in self.problems.items()}

    def variables(self, weights) -> Any:
        """Writes the matrices into the merged network."""
        leaves = to_paths(self.merged)
        for path, problem in self.problems.items():
            leaves |= problem.leaves(weights[path], leaves)
        return from_paths(self.merged, leaves)

    def residuals(self, variables, batches) -> dict[str, float]:
        """Returns ``||Z W - Y||^2 / ||Y||^2`` of every layer, by a pass over the data."""
        weights = self.weights(variables)
        wrong, total = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
        for x in batches:
            for path, design in self.designs(self.pair.a, self.pair.b, x).items():
                z, y = (np.asarray(v, np.float64) for v in design)
                wrong[path] += np.square(z @ weights[path] - y).sum()
                total[path] += np.square(y).sum()
        return {path: wrong[path] / total[path] for path in weights}


def _compile(fn, *args):
    return jax.jit(fn).lower(*args).compile()


class Adam:
    """The paper's optimiser: all layers at once, the sources evaluated anew on every batch."""

    def __init__(self, regressions: Regressions, x: jax.Array, seed: int):
        self._regressions, self._x, self._rng = regressions, x, np.random.default_rng(seed)
        self._masks = {}
        for path, problem in regressions.problems.items():
            rows, columns = problem.input_kinds[:, None], problem.output_kinds[None]
            apart = ((rows == FROM_A) & (columns == FROM_B)) | (
                (rows == FROM_B) & (columns == FROM_A)
            )
            self._masks[path] = jnp.where(apart, 0.0, 1.0)
        # The step size comes as an argument, so that one compiled step serves any number of them.
        self._adam = optax.scale_by_adam()
        weights = regressions.weights(regressions.merged)
        start = {path: jnp.asarray(w, jnp.float32) for path, w in weights.items()}
        self._start = start, self._adam.init(start)
        self._fixed = regressions.pair.a, regressions.pair.b, x
        plan = self._plan(ADAM_STEPS)
        first = jax.tree.map(lambda v: v[0], plan)
        self.compiling, compiled = {}, {}
        for who, fn, args in ((STEPS, self._step, first), (LOOP, self._loop, plan)):
            self.compiling[who], compiled[who] = timed(
                _compile, fn, self._start, *self._fixed, *args
            )
        self._compiled_step, self._compiled_loop = compiled[STEPS], compiled[LOOP]

    def _plan(self, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws the batches of all steps, epoch by epoch, and lists the step sizes."""
        n = len(self._x)
        n_epochs = -(-n_steps * ADAM_BATCH // n)
        order = np.concatenate([self._rng.permutation(n) for _ in range(n_epochs)])
        rates = ADAM_RATE * (1 + np.cos(np.pi * np.arange(n_steps) / n_steps)) / 2
        batches = order[: n_steps * ADAM_BATCH].reshape(n_steps, ADAM_BATCH)
        return batches.astype(np.int32), rates.astype(np.float32)

    def _step(self, carry, a, b, x, indices, rate):
        weights, state = carry
        designs = self._regressions.designs(a, b, x[indices])

        def loss(weights):
            return sum(jnp.square(z @ weights[p] - y).mean() for p, (z, y) in designs.items())

        grads = jax.tree.map(jnp.multiply, jax.grad(loss)(weights), self._masks)
        updates, state = self._adam.update(grads, state)
        return jax.tree.map(lambda w, u: w - rate * u, weights, updates), state

    def _loop(self, carry, a, b, x, batches, rates):
        def body(carry, plan):
            return self._step(carry, a, b, x, *plan), None

        return jax.lax.scan(body, carry, (batches, rates))[0]

    def loop(self) -> dict[str, jax.Array]:
        """Takes 400 steps in one compiled loop."""
        return self._compiled_loop(self._start, *self._fixed, *self._plan(ADAM_STEPS))[0]

    def steps(self, n_steps: int = ADAM_STEPS) -> dict[str, jax.Array]:
        """Calls a compiled step over and over."""
        return self._run(self._compiled_step, n_steps)

    def eager(self, n_steps: int) -> dict[str, jax.Array]:
        """Dispatches loss, gradient and update one operation at a time."""
        return self._run(self._step, n_steps)

    def _run(self, step, n_steps):
        carry = self._start
        for indices, rate in zip(*self._plan(n_steps), strict=True):
            carry = step(carry, *self._fixed, indices, rate)
        return carry[0]


class Comparison(NamedTuple):
    """All contestants on one pair and budget.

    ``seconds`` are by contestant, ``compiling`` what was spent before the first timed run;
    ``residuals`` and ``accuracy`` by "assembled", "Adam", "closed form" and that with less ridge;
    ``longer`` is the number of steps to (CPU time, residuals) of Adam with more steps.
    """

    budget: float
    seed: int
    seconds: dict[str, Seconds]
    compiling: dict[str, Seconds]
    residuals: dict[str, dict[str, float]]
    accuracy: dict[str, float]
    longer: dict[int, tuple[float, dict[str, float]]]

    def times_slower(self, who: str) -> float:
        """Returns the CPU time of a contestant over that of the closed form."""
        return self.seconds[who].cpu / self.seconds[CLOSED].cpu


def compare(pair: Pair, digits: data.Dataset, budget: float, seed: int) -> Comparison:
    """Solves one assembled network in closed form and by Adam."""
    x = jnp.asarray(digits.train_x)
    batches = jnp.split(x, N_BATCHES)
    start = pleas_merge(
        jax.random.key(seed), pair.spec, pair.model.apply, pair.a, pair.b, batches,
        budget=budget, solver="none",
    )  # fmt: skip
    regressions = Regressions(pair, start.blocks, start.variables, x)

    def closed_form(ridge=RIDGE):
        return permuted_least_squares(
            pair.spec, pair.model.apply, pair.a, pair.b, start.blocks, start.variables, batches,
            ridge=ridge,
        ).variables  # fmt: skip

    first, solved = timed(closed_form)
    adam = Adam(regressions, x, seed)
    adam.eager(2)  # compiles its operations
    runs = {CLOSED: closed_form, STEPS: adam.steps, LOOP: adam.loop}
    taken = {who: [timed(run)[0] for _ in range(REPEATS)] for who, run in runs.items()}
    seconds = {who: Seconds(*np.median(values, axis=0)) for who, values in taken.items()}
    part, _ = timed(adam.eager, EAGER_STEPS)
    seconds[EAGER] = Seconds(*(ADAM_STEPS / EAGER_STEPS * v for v in part))

    networks = {
        "assembled": start.variables,
        "Adam": regressions.variables(adam.steps()),
        "closed form": solved,
        WEAK: closed_form(SMALL_RIDGE),
    }
    merged = nn.with_widths(pair.model, start.variables)

    @jax.jit
    def accuracy(variables):
        variables = reset_batch_stats(merged.apply, variables, x)
        return train.evaluate(merged.apply, variables, digits.test_x, digits.test_y).accuracy

    longer = {}
    for n_steps in LONGER if budget == 1 else ():
        elapsed, weights = timed(adam.steps, n_steps)
        longer[n_steps] = (
            elapsed.cpu,
            regressions.residuals(regressions.variables(weights), batches),
        )
    return Comparison(
        budget,
        seed,
        seconds,
        {CLOSED: Seconds(*np.maximum(np.subtract(first, seconds[CLOSED]), 0)), **adam.compiling},
        {name: regressions.residuals(v, batches) for name, v in networks.items()},
        {name: float(accuracy(v)) for name, v in networks.items()},
        longer,
    )


def compare_all() -> list[Comparison]:
    """Runs every seed at every budget."""
    digits = data.load("digits")
    found = []
    for seed in range(SEEDS):
        pair = train_pair(seed, digits)
        found += [compare(pair, digits, budget, seed) for budget in BUDGETS]
    return sorted(found, key=lambda c: c.budget)


def time_rows(comparisons: list[Comparison]) -> list[dict]:
    """Tabulates the times of each run, compilation apart."""
    return [
        {"compute": f"{c.budget:g}x", "seed": c.seed}
        | {who: f"{s.cpu:.3f} ({s.wall:.3f})" for who, s in c.seconds.items()}
        | {f"compiling: {who}": f"{s.cpu:.1f} ({s.wall:.1f})" for who, s in c.compiling.items()}
        for c in comparisons
    ]


def residual_rows(comparisons: list[Comparison]) -> list[dict]:
    """Tabulates the residuals of every layer over the seeds."""
    rows = []
    for budget in BUDGETS:
        chosen = [c.residuals for c in comparisons if c.budget == budget]
        for layer in chosen[0]["assembled"]:
            values = {name: [r[name][layer] for r in chosen] for name in chosen[0]}
            row = {"compute": f"{budget:g}x", "layer": layer}
            if max(values["assembled"]) < EXACT:
                row |= {name: f"{np.median(v):.0e}" for name, v in values.items()}
                row["Adam / closed form"] = "rounding"
            else:
                row |= {name: spread(v) for name, v in values.items()}
                row["Adam / closed form"] = spread(np.divide(values["Adam"], values["closed form"]))
            rows.append(row)
    return rows


def longer_rows(comparisons: list[Comparison]) -> list[dict]:
    """Tabulates what more steps of Adam buy."""
    chosen = [c for c in comparisons if c.longer]
    layers = [name for name, v in chosen[0].residuals["assembled"].items() if v >= EXACT]

    def row(title, times, residuals):
        ratios = {
            layer: [
                r[layer] / c.residuals[CLOSED][layer]
                for r, c in zip(residuals, chosen, strict=True)
            ]
            for layer in layers
        }
        return {"solver": title, "CPU time": spread(times)} | {
            f"residual, {layer}": spread(v) for layer, v in ratios.items()
        }

    rows = [
        row(
            f"Adam, {n} steps",
            [c.longer[n][0] / c.seconds[CLOSED].cpu for c in chosen],
            [c.longer[n][1] for c in chosen],
        )
        for n in LONGER
    ]
    return [*rows, row(WEAK, [1.0], [c.residuals[WEAK] for c in chosen])]


def accuracy_rows(comparisons: list[Comparison]) -> list[dict]:
    """Tabulates the test accuracy, with the statistics of BatchNorm computed anew."""
    return [
        {"compute": f"{budget:g}x"}
        | {
            name: spread([c.accuracy[name] for c in comparisons if c.budget == budget])
            for name in comparisons[0].accuracy
        }
        for budget in BUDGETS
    ]


class Cost(NamedTuple):
    """Seconds of a Gram matrix and of its solution, their operations, and the memory at most."""

    gram: float
    solve: float
    gram_flops: float
    solve_flops: float
    relative_residual: float
    peak_bytes: int


def one_layer(c: int, *, side: int, images: int, n_batches: int, repeats: int) -> Cost:
    """Solves a 3x3 convolution of ``c`` to ``c`` channels, a third of them of each kind.

    That is ``r = 0.5`` of ``2 c / 3`` channels. Targets are those of a Gaussian kernel.
    """
    layer = LinearLayer("", (3, 3), (1, 1), "SAME", (1, 1))
    rng = np.random.default_rng(c)
    p, n = 9 * c, images * side**2
    output_kinds = np.sort(np.arange(c) % 3)
    input_kinds = np.tile(output_kinds, 9)
    rows, columns = input_kinds[:, None], output_kinds[None]
    allowed = (rows == columns) | (rows * columns == 0)
    kernel = jnp.asarray(rng.normal(size=(p, c)) * allowed / np.sqrt(p), jnp.float32)
    batches = []
    for _ in range(n_batches):
        x = jnp.asarray(rng.normal(size=(images, side, side, c)), jnp.float32)
        batches.append((x, layer.patches(x).reshape(n, p) @ kernel))

    def gram():
        total = None
        for x, y in batches:
            total = accumulate_gram(total, layer.patches(x).reshape(n, p), y)
        return total

    def solve(moments):
        return solve_gram(
            moments, np.zeros((p, c)),
            input_kinds=input_kinds, output_kinds=output_kinds, ridge=RIDGE,
        )  # fmt: skip

    accumulate_gram(None, layer.patches(batches[0][0]).reshape(n, p), batches[0][1])  # compiles
    grams, solves = [], []
    for _ in range(repeats):
        elapsed, moments = timed(gram)
        grams.append(elapsed.cpu)
        elapsed, weights = timed(solve, moments)
        solves.append(elapsed.cpu)
    sizes = [p] + [int((input_kinds != absent).sum()) for absent in (FROM_B, FROM_A)]
    counts = np.bincount(output_kinds, minlength=3)
    return Cost(
        float(np.median(grams)),
        float(np.median(solves)),
        2.0 * n_batches * n * p * (p + c),
        # The factor, two triangular solves, and the product with the anchor.
        sum(m**3 / 3 + 4.0 * m**2 * q for m, q in zip(sizes, counts, strict=True)),
        residual(moments, weights) * moments.n / float(moments.targets.sum()),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def width_rows() -> list[dict]:
    """Times one layer against its width."""
    rows = []
    for c in (16, 32, 64, 128, 256):
        cost = one_layer(c, side=8, images=POSITIONS // 256, n_batches=4, repeats=REPEATS)
        rows.append({
            "channels": c,
            "p": 9 * c,
            "Gram, CPU s": float(cost.gram),
            "Gram, GFLOP/s": float(cost.gram_flops / cost.gram / 1e9),
            "solve, CPU s": float(cost.solve),
            "solve, GFLOP/s": float(cost.solve_flops / cost.solve / 1e9),
        })  # fmt: skip
    return rows


def resnet50_layer() -> Cost:
    """Solves a 3x3 layer of 512 channels on 7x7 positions in a process of its own."""
    program = (
        "import json; from benchmarks.pleas import one_layer; "
        "print(json.dumps(one_layer(512, side=7, images=32, n_batches=3, repeats=1)))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    return Cost(*json.loads(done.stdout))


def resnet50_rows(cost: Cost) -> list[dict]:
    """Tabulates the large layer."""
    return [
        {
            "p": 4608,
            "Gram, MB": 8 * 4608**2 / 1e6,
            "Gram, CPU s": float(cost.gram),
            "Gram, GFLOP/s": float(cost.gram_flops / cost.gram / 1e9),
            "solve, CPU s": float(cost.solve),
            "solve, GFLOP/s": float(cost.solve_flops / cost.solve / 1e9),
            "residual after": float(cost.relative_residual),
            "peak resident memory, GB": float(cost.peak_bytes / 1e9),
        }
    ]


def bound_rows(comparisons: list[Comparison], large: Cost) -> list[dict]:
    """Holds the bounds that were asked for against what was measured."""
    rows = []
    for budget in BUDGETS:
        chosen = [c for c in comparisons if c.budget == budget]
        for who in (EAGER, STEPS, LOOP):
            ratios = [c.times_slower(who) for c in chosen]
            rows.append({
                "bound": f"{budget:g}x: CPU time of {who} at least {MIN_SPEEDUP} times closed form",
                "measured": spread(ratios),
                "holds": bool(np.median(ratios) >= MIN_SPEEDUP),
            })  # fmt: skip
        cold = chosen[0]
        with_compiler = [cold.compiling[who].cpu + cold.seconds[who].cpu for who in (STEPS, CLOSED)]
        ratio = with_compiler[0] / with_compiler[1]
        rows.append({
            "bound": f"{budget:g}x: the same for {STEPS}, first pair, compilation on both sides",
            "measured": f"{ratio:.2f}",
            "holds": ratio >= MIN_SPEEDUP,
        })  # fmt: skip
        pairs = [
            (r["closed form"][layer], r["Adam"][layer], r["assembled"][layer])
            for r in (c.residuals for c in chosen)
            for layer in r["assembled"]
            if r["assembled"][layer] >= EXACT
        ]
        lower = sum(closed < min(others) for closed, *others in pairs)
        rows.append({
            "bound": f"{budget:g}x: closed form below Adam and assembled in every inexact layer",
            "measured": f"{lower} of {len(pairs)}",
            "holds": lower == len(pairs),
        })  # fmt: skip
    n_steps = LONGER[1]
    longer = [(*c.longer[n_steps], c) for c in comparisons if c.longer]
    times = [cpu / c.seconds[CLOSED].cpu for cpu, _, c in longer]
    excess = [
        residuals[layer] / c.residuals["closed form"][layer]
        for _, residuals, c in longer
        for layer in residuals
        if c.residuals["assembled"][layer] >= EXACT
    ]
    rows.append({
        "bound": f"1x: {n_steps} steps of Adam, {np.median(times):.1f} times the CPU time of "
        "closed form, still leave more in every inexact layer",
        "measured": f"{spread(excess)} times as much",
        "holds": min(excess) > 1,
    })  # fmt: skip
    rows.append({
        "bound": f"4608 x 4608 within {MAX_GB} GB",
        "measured": f"{large.peak_bytes / 1e9:.2f} GB",
        "holds": large.peak_bytes < MAX_GB * 1e9,
    })  # fmt: skip
    return rows


def report() -> str:
    """Measures everything and returns the section."""
    start = time.perf_counter()
    # First, since a child process starts from its parent's peak.
    large = resnet50_layer()
    widths = width_rows()
    comparisons = compare_all()
    minutes = (time.perf_counter() - start) / 60
    head = environment(COMMAND, packages=("jax", "numpy", "scipy", "optax", "flax"), notes=NOTES)
    return f"""\
## PLeaS

{head}- whole run: {minutes:.1f} minutes; figures are "median (smallest to largest)"

### Closed form against Adam

{SEEDS} pairs of the digits ConvNet 16-32-64 with BatchNorm, 20 epochs, label split 0.98, matched by
activations. `permuted_least_squares` (mode "paper", ridge {RIDGE:g}, the 1437 training images in
{N_BATCHES} batches, Gram matrices in float64) against the paper's optimiser from the same assembled
weights, on the same images, inputs, targets and zeros: Adam, {ADAM_RATE:g} with cosine decay,
{ADAM_STEPS} steps on batches of {ADAM_BATCH}, sum of the mean squared errors of the layers. It runs
as a compiled step called from Python, as one compiled loop, and eagerly, one operation at a time
({EAGER_STEPS} steps, their time multiplied by {ADAM_STEPS // EAGER_STEPS}; only the functions of
the library that lay out the regressions are compiled then).

Seconds, CPU (wall), median of {REPEATS} runs without compilation. Compilation of the closed form
is what its first call takes beyond a later one.

{to_markdown(time_rows(comparisons))}
Both compile for seconds and then run for a fraction of one, so that one merge of this size in a
new process is a matter of compilation, and no faster in closed form. Its programs depend on
widths alone: later pairs reuse what the first one compiled, unless their widths differ.

Residual of every layer over the energy of its targets, on all calibration images. The first layer
is exact as assembled, up to rounding: both sources read the same pixels.

{to_markdown(residual_rows(comparisons))}
More steps of Adam at 1x (jitted step, cosine decay over all of them), relative to the closed form
with its ridge of {RIDGE:g}. The ridge holds that one above the least residual, which the last row
all but reaches.

{to_markdown(longer_rows(comparisons))}
Test accuracy with the statistics of BatchNorm computed anew:

{to_markdown(accuracy_rows(comparisons))}
### One layer against its width

3x3 convolution, as many channels in as out, {POSITIONS} positions in 4 batches, a third of the
channels of each kind (which is r = 0.5), median of {REPEATS} repeats. The Gram matrix has
p = 9 x channels rows; its time includes the patches, and its operations both triangles. The
solution factors three matrices, one for each kind of output.

{to_markdown(widths)}
### A layer of ResNet-50

3x3 convolution with 512 channels in and out, 7x7 positions, 3 batches of 32 images, in a process of
its own; its peak includes the data, python and jax. The residual is relative to the energy of the
targets, which a kernel with the same zeros could meet exactly: what is left is the ridge.

{to_markdown(resnet50_rows(large))}
### Bounds

The bound on time, on the median over pairs, was set on {ADAM_STEPS} steps whatever residual they
leave; the row of {LONGER[1]} steps says what Adam has spent while it is still behind.

{to_markdown(bound_rows(comparisons, large))}"""


if __name__ == "__main__":
    main("pleas", __doc__, report)
