"""ZonoDual against auto_LiRPA and against the linear program, and what it keeps in memory.

    python -m benchmarks.verify            # prints the tables
    python -m benchmarks.verify --write    # and puts them into benchmarks/RESULTS.md

The peer runs in a Python of its own, which the environment variable PEER_PYTHON names; see
benchmarks/_lirpa_peer.py. Without it that table is left out. All times are CPU seconds, with one
thread for BLAS, XLA, HiGHS and torch.
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
import json
import pathlib
import subprocess
import tempfile
import time

import jax
import numpy as np

from benchmarks._results import environment, main
from jaxml import data, train, verify
from jaxml.nn import MLP
from jaxml.report import to_markdown

COMMAND = "PEER_PYTHON=... python -m benchmarks.verify --write"
N_IMAGES = 6
STEPS = 1000
WIDTHS = (50, 100, 200, 400)
WIDTH_STEPS = 200
EPS = 0.08

NOTES = """\
CPU time of the process (`time.process_time`), BLAS, XLA, HiGHS and torch on one thread each,
  compilation excluded; float32 ascents, their certificates timed apart"""


def trained(width: int) -> verify.Net:
    """Trains a robust 64-w-w-10 network on digits, as the study does."""
    digits = data.load("digits")
    model = verify.AdversarialTraining(MLP((width, width), 10), 0.06, 3)
    optimizer = train.make_optimizer("adam", learning_rate=3e-3)
    state = train.fit(
        jax.random.key(0), model, optimizer, digits.train_x, digits.train_y, n_epochs=60,
        batch_size=100, epochs_per_call=60,
    )  # fmt: skip
    variables = {"params": state.variables["params"]["model"]}
    return verify.from_flax(model.model, variables, digits.input_shape)


def problems(n: int) -> list[tuple[verify.Box, verify.Spec]]:
    """Lists the first test images with the margin over the next class."""
    digits = data.load("digits")
    return [
        (verify.linf_box(x, EPS), verify.margin_spec(int(y), 10, targets=[(int(y) + 1) % 10]))
        for x, y in zip(digits.test_x[:n], digits.test_y[:n], strict=True)
    ]


def float32(*trees):
    """Casts trees, so that one compilation serves all calls."""
    return jax.tree.map(lambda a: np.asarray(a, np.float32), trees)


@functools.partial(jax.jit, static_argnames="n_steps")
def ascend(net, box, spec, *, n_steps):
    """Runs boxes, zonotopes, candidates and ascent."""
    return verify.zonodual_ascent(net, box, spec, n_steps=n_steps)


@jax.jit
def crown(net, box, spec):
    """Runs CROWN."""
    return verify.crown(net, box, spec)


def cpu_seconds(method, *args, **kwargs):
    """Returns the CPU seconds of a call and its result."""
    clock = time.process_time()
    result = jax.block_until_ready(method(*args, **kwargs))
    return time.process_time() - clock, result


def peer(net, cases) -> dict | None:
    """Runs auto_LiRPA in its own Python."""
    python = os.environ.get("PEER_PYTHON")
    if not python:
        return None
    arrays = {f"w{i}": layer.weight for i, layer in enumerate(net)}
    arrays |= {f"b{i}": layer.bias for i, layer in enumerate(net)}
    with tempfile.TemporaryDirectory() as folder:
        problem, result = (pathlib.Path(folder) / name for name in ("p.npz", "r.json"))
        np.savez(
            problem, n_layers=len(net), lower=[box.lower for box, _ in cases],
            upper=[box.upper for box, _ in cases], rows=[spec.weight[0] for _, spec in cases],
            **arrays,
        )  # fmt: skip
        script = pathlib.Path(__file__).with_name("_lirpa_peer.py")
        subprocess.run([python, script, problem, result], check=True, capture_output=True)
        return json.loads(result.read_text())


def compare(net, cases) -> tuple[list[dict], list[dict]]:
    """Bounds the same margins by both, and judges the bounds of the comparison."""
    found = {"CROWN": [], f"ZD-2D, {STEPS} steps": [], "certificate of ZD-2D": []}
    seconds = {name: [] for name in found}
    for number, (box, spec) in enumerate(cases):
        arrays = float32(net, box, spec)
        for name, method, options in (
            ("CROWN", crown, {}),
            (f"ZD-2D, {STEPS} steps", ascend, {"n_steps": STEPS}),
        ):
            if not number:
                jax.block_until_ready(method(*arrays, **options))
            elapsed, result = cpu_seconds(method, *arrays, **options)
            seconds[name].append(elapsed)
            found[name].append(float(result[0] if name == "CROWN" else result.lower[0]))
        solution = jax.device_get(result)
        elapsed, proof = cpu_seconds(
            lambda s=solution, b=box, c=spec: verify.certify(net, b, c, s.rhos, s.pairs)
        )
        seconds["certificate of ZD-2D"].append(elapsed)
        found["certificate of ZD-2D"].append(float(proof.lower[0]))
    results = {("jaxml", name): (found[name], seconds[name]) for name in found}
    other = peer(net, cases)
    for name, values in (other or {}).items():
        results["auto_LiRPA 0.3", name] = (values["lower"], values["seconds"])
    rows = [
        {
            "program": program,
            "method": name,
            "mean lower bound": np.mean(lower),
            "CPU seconds a margin, median": np.median(times),
        }
        for (program, name), (lower, times) in results.items()
    ]
    if other is None:
        return rows, []
    best = other["alpha-CROWN, 100 iterations"]
    zd = np.array(found["certificate of ZD-2D"])
    tighter = int((zd > best["lower"]).sum())
    both = np.median(seconds[f"ZD-2D, {STEPS} steps"]) + np.median(seconds["certificate of ZD-2D"])
    ratio = both / np.median(best["seconds"])
    same = np.abs(np.array(found["CROWN"]) - other["CROWN"]["lower"]).max()
    judged = [
        {
            "bound": "certified ZD-2D above alpha-CROWN(100) on every image",
            "measured": f"{tighter} of {len(zd)}",
            "holds": tighter == len(zd),
        },
        {
            "bound": "at most 0.1 times its CPU time, the certificate included",
            "measured": f"{ratio:.3g}",
            "holds": ratio <= 0.1,
        },
        {
            "bound": "both CROWNs agree to 1e-3",
            "measured": f"{same:.1e}",
            "holds": same <= 1e-3,
        },
    ]
    return rows, judged


def growth() -> tuple[list[dict], str]:
    """Times ZD-2D and the linear program as the network becomes wider."""
    rows = []
    for width in WIDTHS:
        net = trained(width)
        lines = []
        for number, (box, spec) in enumerate(problems(3)):
            arrays = float32(net, box, spec)
            start = jax.device_get(
                jax.jit(lambda n, b, s: verify.start(n, s, verify.crown_bounds(n, b), "crown"))(
                    *arrays
                )
            )
            boxes = verify.certify(net, box, spec, start)
            if not number:
                jax.block_until_ready(ascend(*arrays, n_steps=WIDTH_STEPS))
                jax.block_until_ready(ascend(*arrays, n_steps=0))
            lp_seconds, (lp,) = cpu_seconds(verify.lp_bound, net, box, spec, boxes.bounds)
            set_up, _ = cpu_seconds(ascend, *arrays, n_steps=0)
            seconds, solution = cpu_seconds(ascend, *arrays, n_steps=WIDTH_STEPS)
            trace = np.asarray(solution.trace)[:, 0]
            passed = np.flatnonzero(trace > lp.lower)
            to_pass = np.inf
            if passed.size:
                to_pass = set_up + passed[0] * max(seconds - set_up, 0) / WIDTH_STEPS
            unstable = sum(((low < 0) & (high > 0)).sum() for low, high in boxes.bounds)
            lines.append((
                unstable, boxes.lower[0], lp.lower, trace[-1], lp_seconds, set_up, seconds, to_pass
            ))  # fmt: skip
        means, medians = np.mean(lines, axis=0), np.median(lines, axis=0)
        rows.append({
            "width": width, "unstable": round(means[0]), "CROWN": means[1], "LP": means[2],
            f"ZD-2D, {WIDTH_STEPS} steps": means[3], "LP, s": medians[4],
            "ZD-2D set-up, s": medians[5], "ZD-2D in all, s": medians[6],
            "ZD-2D until above the LP, s": medians[7],
        })  # fmt: skip

    def crossing(name):
        ratio = np.log([row["LP, s"] / row[name] for row in rows])
        above = np.flatnonzero(ratio > 0)
        if not above.size:
            return f"above {WIDTHS[-1]} (LP / ZD-2D at {WIDTHS[-1]}: {np.exp(ratio[-1]):.2g})"
        if not above[0]:
            return f"below {WIDTHS[0]}"
        i = above[0]
        share = -ratio[i - 1] / (ratio[i] - ratio[i - 1])
        widths = np.log(WIDTHS[i - 1 : i + 1])
        return f"of about {np.exp(widths[0] + share * (widths[1] - widths[0])):.0f}"

    sentence = (
        f"ZD-2D with {WIDTH_STEPS} steps is cheaper than the LP from a width "
        f"{crossing('ZD-2D in all, s')} on; it passes the LP's bound in less time than the LP "
        f"takes from a width {crossing('ZD-2D until above the LP, s')} on."
    )
    return rows, sentence


def memory(net) -> list[dict]:
    """Compares the candidates of each layer with the formula, and with all ends of all edges."""
    (box, _) = problems(1)[0]

    @jax.jit
    def domains(net, box):
        return verify.pair_domains(net, verify.propagate(net, box, verify.crown_bounds(net, box)))

    rows = []
    m = net[0].n_in
    for i, domain in enumerate(domains(*float32(net, box))):
        n = net[i].n_out
        pairs = -(-n // 2)
        rows.append({
            "layer": i + 1, "n": n, "m": m, "bytes": domain.candidates.nbytes,
            "4 floats x ceil(n/2) x (2m + 21)": 16 * pairs * (2 * m + 21),
            "not compacted, x (8m + 21)": 16 * pairs * (8 * m + 21),
        })  # fmt: skip
        m += n
    return rows


def batching(net) -> list[dict]:
    """Times a margin and step: alone, and 72 margins in one call."""
    digits = data.load("digits")
    boxes = [verify.linf_box(x, EPS) for x in digits.test_x[:8]]
    specs = [verify.margin_spec(int(y), 10) for y in digits.test_y[:8]]
    steps, times = 100, {}

    def stacked(n_images, n_rows):
        return float32(net, *(
            jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
            for parts in (boxes[:n_images], [
                verify.Spec(s.weight[:n_rows], s.offset[:n_rows]) for s in specs[:n_images]
            ])
        ))  # fmt: skip

    @functools.partial(jax.jit, static_argnames="n_steps")
    def many(net, boxes, specs, *, n_steps):
        return jax.vmap(lambda b, s: verify.zonodual_ascent(net, b, s, n_steps=n_steps).lower)(
            boxes, specs
        )

    for n_images, n_rows in ((1, 1), (8, 9)):
        arrays = stacked(n_images, n_rows)
        found = []
        for n_steps in (0, steps):
            jax.block_until_ready(many(*arrays, n_steps=n_steps))
            found.append(min(cpu_seconds(many, *arrays, n_steps=n_steps)[0] for _ in range(3)))
        times[n_images * n_rows] = (found[1] - found[0]) / steps / (n_images * n_rows)
    return [
        {"margins in a call": n, "microseconds a margin and step": 1e6 * t,
         "of the single one": t / times[1]}
        for n, t in times.items()
    ]  # fmt: skip


def report() -> str:
    """Measures everything and returns the section."""
    start = time.process_time()
    net = trained(100)
    rows, judged = compare(net, problems(N_IMAGES))
    widths, sentence = growth()
    kept, batches = memory(net), batching(net)
    minutes = (time.process_time() - start) / 60
    peer_text = "The peer was not there (PEER_PYTHON): its rows are missing.\n"
    if judged:
        peer_text = to_markdown(judged)
    head = environment(COMMAND, packages=("jax", "numpy", "scipy", "optax", "flax"), notes=NOTES)
    return f"""\
## Certified bounds

{head}- whole run: {minutes:.1f} CPU minutes, the peer's not counted

### Against auto_LiRPA

{N_IMAGES} test images of digits, margin over the next class, radius {EPS}, network 64-100-100-10
trained against attacks of radius 0.06. auto_LiRPA optimises the slopes of all layers together; its
release 0.3, the last on PyPI, runs on a current torch through three borrowed names
(`benchmarks/_lirpa_peer.py`), and newer ones may be faster.

{to_markdown(rows)}
{peer_text}
### Against the linear program, by width

64-w-w-10, trained alike, 3 images, medians of seconds. Both have the boxes of CROWN. HiGHS solves
the triangle relaxation; a trace says when ZD-2D has passed its optimum.

{to_markdown(widths)}
{sentence}

### Candidates in memory

One image, float32, network 64-100-100-10, shared by all targets: {
        "all"
        if all(r["bytes"] == r["4 floats x ceil(n/2) x (2m + 21)"] for r in kept)
        else "not all"
    } as the
formula says. `m` are the generators.

{to_markdown(kept)}
### Many margins in one call

The same network and radius, 100 steps, set-up subtracted: what a vmap over 8 images and 9 targets
costs on a CPU, where it saves only what the targets share.

{to_markdown(batches)}"""


if __name__ == "__main__":
    main("verify", __doc__, report)
