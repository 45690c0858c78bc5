r"""ZonoDual: certified bounds for relu networks, and answers for ONNX and VNN-LIB files.

Trains a classifier (or loads a checkpoint), bounds margins by every method, and reports certified
accuracy between the bounds and an attack.

  python -m launch.zonodual --workdir=out/zonodual
  python -m launch.zonodual --config=digits --eps=0.1 --methods=crown,lp,zd2d --workdir=out/digits
  python -m launch.zonodual --checkpoint=a.safetensors --module=my_package.models:MyNet
  python -m launch.zonodual --onnx f.onnx --vnnlib p.vnnlib --timeout 60

A bound that is reported as certified is evaluated in float64 with outward rounding. Files are
answered as in VNN-COMP: unsat (the property holds), sat (with a counter-example) or unknown; they
need the package onnx.
"""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import time

from launch import _app

METHODS = ("ibp", "deepz", "kw", "crown", "alpha", "box", "lp", "zd2d", "zdmip", "mip")
CHOICES = {
    "model": ("mlp", "ffnet", "deep", "wide"),
    "targets": ("next", "all"),
    "partition": ("similarity", "random", "spatial", "depthwise", "axalign", "single"),
    "start": ("zero", "kw", "crown", "alpha"),
}


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    from jaxml import data

    for name, legal in CHOICES.items():
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    if bad := [method for method in config.methods if method not in METHODS]:
        raise ValueError(f"methods must be among {', '.join(METHODS)}; got {bad[0]!r}")
    if "zdmip" in config.methods and "zd2d" not in config.methods:
        raise ValueError("methods: zdmip goes on from zd2d, which is missing")
    for name in ("eps", "adversarial_eps"):
        if not config[name] >= 0:
            raise ValueError(f"{name} must not be negative, got {config[name]}")
    if not config.sweep_eps or min(config.sweep_eps) < 0:
        raise ValueError(f"sweep_eps must be radii, none negative, got {config.sweep_eps}")
    positive = (
        "n_networks", "epochs", "batch_size", "epochs_per_checkpoint", "n_images", "sweep_images",
        "images_at_once", "width", "depth", "dual_decay_every", "attack_steps", "adversarial_steps",
        "timeout", "group_seconds", "mip_seconds",
    )  # fmt: skip
    for name in positive:
        if not config[name] > 0:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    for name in ("steps", "sweep_steps", "layer_steps", "max_order"):
        if config[name] < 0:
            raise ValueError(f"{name} must not be negative, got {config[name]}")
    if config.group_size < 2:
        raise ValueError(f"group_size must be at least 2, got {config.group_size}")
    if bool(config.onnx) != bool(config.vnnlib):
        raise ValueError("onnx and vnnlib go together: one of them is missing")
    if config.onnx and config.instances:
        raise ValueError("instances and onnx exclude each other")
    for name in ("checkpoint", "onnx", "vnnlib", "instances"):
        if config[name] and not os.path.isfile(config[name]):
            raise FileNotFoundError(f"{name}: there is no file {config[name]}")
    if config.onnx or config.instances:
        if importlib.util.find_spec("onnx") is None:
            raise ValueError("ONNX files need the package onnx: pip install onnx")
    else:
        data.check(config.dataset)


if __name__ == "__main__":
    _app.start(__doc__, paper="zonodual", check=check)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxml import data, train, verify
from jaxml.core.chunk import row_blocks
from jaxml.core.rng import named_key
from jaxml.core.sharding import shard_batch
from jaxml.io import MetricsWriter, artifacts, checkpoint
from jaxml.verify import models, network, onnx_file, vnnlib
from launch import _networks, _zonodual_report
from launch._workdir import file_name


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Trains or loads, bounds and measures; or answers for files.

    Args:
      key: typed key; with the config it determines every number but the seconds, and but what a
        solver does until its time runs out.
      config: see ``configs/zonodual``.
      workdir: folder for artifacts and checkpoints, from which a second call goes on; None writes
        nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices; images are shared out over them. None is the default device.

    Returns:
      Result with claims, tables and figures.
    """
    check(config)
    writer = writer or MetricsWriter()
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    if config.onnx or config.instances:
        return _answer_files(key, config, root, writer)
    dataset = data.load(config.dataset)
    if dataset.n_classes < 2 or dataset.train_x.min() < 0 or dataset.train_x.max() > 1:
        raise ValueError(f"dataset {dataset.name!r} must have classes and inputs in [0, 1]")
    bounded, curves, swept = [], [], []
    for index, net in enumerate(_nets(key, config, dataset, root, writer, mesh)):
        folder = None if root is None else root / f"network_{index}"
        found = _kept(folder, "bounds", lambda net=net, i=index, folder=folder: _bound(
                      key, config, i, net, dataset, folder, writer))  # fmt: skip
        bounded += found["rows"]
        curves.append(found["curves"])
        writer.stage(f"network {index}: certified accuracy", len(config.sweep_eps))
        for number, eps in enumerate(config.sweep_eps):
            swept += _kept(folder, f"sweep_{eps:g}", lambda net=net, i=index, eps=eps: _sweep(
                           key, config, i, eps, net, dataset, mesh))  # fmt: skip
            writer.step(number + 1)
    return _app.Result(
        [] if config.checkpoint else _zonodual_report.claims(config, bounded, swept),
        _zonodual_report.tables(bounded, swept),
        _zonodual_report.figures(bounded, curves, swept),
        _zonodual_report.notes(config),
    )


def _kept(folder, name, measure):
    """Reads what an earlier run has measured, or measures and keeps it."""
    path = None if folder is None else folder / f"{name}.json"
    if path is not None and path.exists():
        return artifacts.load_json(path)
    found = measure()
    if path is not None and jax.process_index() == 0:
        artifacts.save_json(path, found)
    return found


# Networks.


def _nets(key, config, dataset, root, writer, mesh) -> list[verify.Net]:
    if config.checkpoint:
        return [_load(config, dataset)]
    options = {"name": config.model, "width": config.width, "depth": config.depth}
    model = models.build(n_classes=dataset.n_classes, **options)
    return [
        verify.from_flax(model, _train(key, config, model, seed, options, dataset, root, writer,
                                       mesh), dataset.input_shape)
        for seed in range(config.n_networks)
    ]  # fmt: skip


def _load(config, dataset) -> verify.Net:
    if config.module:
        model = _networks.given_module(config)
    else:
        saved = artifacts.load_metadata(config.checkpoint).get("zonodual")
        if saved is None:
            raise ValueError(
                f"{config.checkpoint} does not say what it is: give --module=package:Class"
            )
        model = models.build(**json.loads(saved))
    x = jax.ShapeDtypeStruct((2, *dataset.input_shape), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), x)
    return verify.from_flax(
        model, artifacts.load_tree(config.checkpoint, like), dataset.input_shape
    )


def _train(key, config, model, seed, options, dataset, root, writer, mesh):
    """Trains one network, or reads it; goes on from its last checkpoint."""
    path = None if root is None else root / "models" / f"{seed}.safetensors"
    if path is not None and path.exists():
        return artifacts.load_tree(path)
    if config.batch_size > len(dataset.train_x):
        raise ValueError(
            f"batch_size is {config.batch_size}, of {len(dataset.train_x)} training examples"
        )
    robust = verify.AdversarialTraining(model, config.adversarial_eps, config.adversarial_steps)
    optimizer = _optimizer(config.learning_rate)
    train_key = jax.random.fold_in(named_key(key, "train"), seed)
    saves, state = None if root is None else root / f"checkpoints_{seed}", None
    if saves is not None and (step := checkpoint.latest_step(saves)) is not None:
        example = dataset.train_x[:1]
        like = jax.eval_shape(lambda k: train.init(k, robust, optimizer, example), train_key)
        state = checkpoint.restore(saves, step, like)
    steps_per_epoch = len(dataset.train_x) // config.batch_size
    writer.stage(f"network {seed}: train", config.epochs * steps_per_epoch)

    def after_epochs(state, metrics):
        if saves is not None:
            checkpoint.save(saves, int(state.step), state)
        writer.step(int(state.step), loss=metrics.loss, accuracy=metrics.accuracy)

    state = train.fit(
        train_key, robust, optimizer, dataset.train_x, dataset.train_y, n_epochs=config.epochs,
        batch_size=config.batch_size, state=state, mesh=mesh,
        epochs_per_call=config.epochs_per_checkpoint, callback=after_epochs,
    )  # fmt: skip
    variables = {"params": state.variables["params"]["model"]}
    if path is not None and jax.process_index() == 0:
        metadata = {"zonodual": json.dumps({**options, "n_classes": dataset.n_classes})}
        artifacts.save_tree(path, variables, metadata=metadata)
        shutil.rmtree(saves)  # the finished network replaces its checkpoints
    return variables


@functools.cache
def _optimizer(learning_rate):
    # `fit` compiles anew for every optimizer object, so networks share one.
    return train.make_optimizer("adam", learning_rate=learning_rate)


# Margins by every method.


def _ascent_options(config) -> dict:
    return {
        "learning_rate": config.dual_rate, "decay": config.dual_decay,
        "decay_every": config.dual_decay_every,
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="name")
def _start(net, box, spec, *, name):
    bounds = verify.crown_bounds(net, box)
    return verify.start(net, spec, bounds, name)


@jax.jit
def _alpha(net, box, spec):
    bounds = verify.crown_bounds(net, box)
    found = verify.alpha_ascent(net, box, spec, bounds)
    return verify.multipliers(net, spec, bounds, found.params), found.trace


@functools.partial(jax.jit, static_argnames=("n_steps", "decay_every"))
def _box(net, box, spec, **options):
    bounds = verify.crown_bounds(net, box)
    rhos = verify.start(net, spec, bounds, "crown")
    found = verify.box_ascent(net, box, spec, bounds, rhos, **options)
    return found.params, found.trace


@functools.partial(jax.jit, static_argnames="n_steps")
def _pgd(key, net, box, spec, *, n_steps):
    return verify.pgd(key, net, box, spec, n_steps=n_steps).x


def _attack(key, config, net, box, spec) -> np.ndarray:
    """Returns the value of each row at the lowest point found, in float64 ``[t]``."""
    points = _pgd(key, *_plain(net, box, spec), n_steps=config.attack_steps)
    points = np.clip(np.asarray(points, np.float64), *box)
    at = np.array([network.apply_on_host(net, x) for x in points])
    return (at * spec.weight).sum(1) + spec.offset


def _plain(*trees):
    return jax.tree.map(np.asarray, trees)


def _bound(key, config, index, net, dataset, folder, writer) -> dict:
    """Bounds the margins of the first images that are classified right, by every method."""
    x = dataset.test_x.reshape(len(dataset.test_x), -1)
    right = np.flatnonzero(_predict(net, x) == dataset.test_y)[: config.n_images]
    writer.stage(f"network {index}: bound margins", len(right))
    images = None if folder is None else folder / "images"
    rows, traces, warm = [], [], False
    for number, image in enumerate(right):

        def measure(image=image):
            nonlocal warm
            found = _bound_image(key, config, index, net, dataset, image, warm=warm)
            warm = True
            return found

        found = _kept(images, f"{image}", measure)
        rows += found["rows"]
        traces.append(found["trace"])
        writer.step(number + 1)
    return {"rows": rows, "curves": _curves(rows, traces)}


def _bound_image(key, config, index, net, dataset, image, *, warm) -> dict:
    """Bounds the margins of one image; returns a row for each and method, and the ascents."""
    label = int(dataset.test_y[image])
    targets = [(label + 1) % dataset.n_classes] if config.targets == "next" else None
    spec = verify.margin_spec(label, dataset.n_classes, targets=targets)
    box = verify.linf_box(dataset.test_x[image].ravel(), config.eps)
    attack = _attack(jax.random.fold_in(named_key(key, "attack"), image), config, net, box, spec)
    lower, upper, seconds, trace = _methods(
        jax.random.fold_in(named_key(key, "partition"), image), config, net, box, spec, warm=warm
    )
    upper, rows = np.minimum(upper, attack), []
    for method, values in lower.items():
        for target, value, best in zip(np.argmin(spec.weight, 1), values, upper, strict=True):
            rows.append({
                "network": index, "image": int(image), "label": label, "target": int(target),
                "eps": config.eps, "method": method, "lower": float(value),
                "upper": float(best), "seconds": seconds[method] / len(values),
                "steps": {"zd2d": config.steps, "zdmip": config.steps, "box": config.steps,
                          "alpha": 100}.get(method, 0),
            })  # fmt: skip
    return {"rows": rows, "trace": trace}


def _predict(net, x) -> np.ndarray:
    apply = jax.jit(network.apply)
    chunks = np.array_split(x, -(-len(x) // 500))
    return np.concatenate([np.asarray(apply(*_plain(net, part))).argmax(-1) for part in chunks])


def _methods(key, config, net, box, spec, *, warm):
    """Bounds one spec by each method; certified, but for the solvers' own and the MIP's part.

    Returns:
      Lower bounds and seconds by method, the exact program's upper bounds, and what the ascents
      went through: ``{method: mean of the best values so far}``.
    """
    lower, seconds, traces = {}, {}, {}
    upper = np.full(len(spec.offset), np.inf)
    arrays = _plain(net, box, spec)

    def timed(name, method, /, *args, **kwargs):
        if not warm and name not in ("ibp", "deepz", "lp", "mip"):
            jax.block_until_ready(method(*args, **kwargs))  # compiles
        clock = time.perf_counter()
        found = jax.block_until_ready(method(*args, **kwargs))
        seconds[name] = time.perf_counter() - clock
        return found

    for name in [m for m in METHODS if m in config.methods]:
        if name in ("ibp", "deepz"):
            method = verify.certify_ibp if name == "ibp" else verify.certify_deepz
            lower[name] = timed(name, method, net, box, spec)
        elif name in ("kw", "crown"):
            rhos = timed(name, _start, *arrays, name=name)
            lower[name] = verify.certify(net, box, spec, jax.device_get(rhos)).lower
        elif name in ("alpha", "box"):
            options = {} if name == "alpha" else {**_ascent_options(config),
                                                  "n_steps": config.steps}  # fmt: skip
            rhos, trace = timed(name, _alpha if name == "alpha" else _box, *arrays, **options)
            lower[name] = verify.certify(net, box, spec, jax.device_get(rhos)).lower
            traces[name] = np.asarray(trace).mean(1)
        elif name in ("lp", "mip"):
            method = verify.lp_bound if name == "lp" else verify.mip_bound
            limit = {"time_limit": config.mip_seconds} if name == "mip" else {}
            results = timed(name, method, net, box, spec, **limit)
            lower[name] = np.array([r.lower for r in results])
            upper = np.minimum(upper, [r.upper for r in results])
        elif name == "zd2d":
            zd = functools.partial(
                verify.zonodual_bound, net, box, spec, rule=config.partition, start=config.start,
                n_steps=config.steps, layer_steps=config.layer_steps, key=key,
                max_order=config.max_order or None, **_ascent_options(config),
            )  # fmt: skip
            result = zd() if warm else (zd(), zd())[1]
            lower[name], seconds[name] = result.lower, result.seconds["ascent"]
            traces[name] = np.asarray(result.trace).mean(1)
        elif name == "zdmip":
            sizes = [0] * (len(net) - 2) + [config.group_size]
            clock = time.perf_counter()
            lower[name] = verify.merged_bound(
                result.certificate, sizes=sizes, time_limit=config.group_seconds
            )
            seconds[name] = seconds["zd2d"] + time.perf_counter() - clock
    return lower, upper, seconds, traces


def _curves(rows, traces) -> dict:
    """Averages the ascents over images, at about a hundred steps, with the seconds of a step."""
    curves = {}
    for method in traces[0] if traces else ():
        mean = np.mean([trace[method] for trace in traces], axis=0)
        steps = np.unique(np.linspace(0, len(mean) - 1, 101).round().astype(int))
        seconds = np.median([row["seconds"] for row in rows if row["method"] == method])
        curves[method] = {"steps": steps, "values": mean[steps], "seconds": float(seconds)}
    return curves


# Certified accuracy.


@functools.partial(
    jax.jit,
    static_argnames=("rule", "start", "n_steps", "layer_steps", "max_order", "decay_every", "mesh"),
)
def _zonodual_many(keys, net, boxes, specs, options, *, mesh, **static):
    boxes, specs, keys = jax.tree.map(lambda a: shard_batch(a, mesh), (boxes, specs, keys))

    def one(key, box, spec):
        return verify.zonodual_ascent(net, box, spec, key=key, **options, **static)

    found = jax.vmap(one)(keys, boxes, specs)
    # Every process certifies all of it on its host.
    return (
        found
        if mesh is None
        else jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))
    )


def _sweep(key, config, index, eps, net, dataset, mesh) -> list[dict]:
    """Counts, for each image and method, the margins that are certified at one radius."""
    x = dataset.test_x.reshape(len(dataset.test_x), -1)[: config.sweep_images]
    labels, predicted = dataset.test_y[: len(x)], _predict(net, x)
    problems, lower, attacks = [], [], []
    for i, (image, label) in enumerate(zip(x, labels, strict=True)):
        box = verify.linf_box(image, eps)
        spec = verify.margin_spec(int(label), dataset.n_classes)
        problems.append((box, spec))
        attack_key = jax.random.fold_in(named_key(key, "attack"), i)
        attacks.append(_attack(attack_key, config, net, box, spec))
        crown = verify.certify(
            net, box, spec, jax.device_get(_start(*_plain(net, box, spec), name="crown"))
        ).lower
        lower.append({
            "ibp": verify.certify_ibp(net, box, spec),
            "deepz": verify.certify_deepz(net, box, spec),
            "crown": crown,
            "zd2d": crown.copy(),
        })  # fmt: skip
    # ZD-2D starts from CROWN: it has work where that leaves a margin open which no attack refutes.
    left = [i for i, a in enumerate(attacks) if ((lower[i]["crown"] <= 0) & (a > 0)).any()]
    for i, solution in _solve_many(key, config, net, [problems[i] for i in left], left, mesh):
        box, spec = problems[i]
        rows = np.flatnonzero((lower[i]["crown"] <= 0) & (solution.lower > 0) & (attacks[i] > 0))
        if rows.size:
            found = verify.certify(
                net, box, verify.Spec(spec.weight[rows], spec.offset[rows]),
                [rho[rows] for rho in solution.rhos], solution.pairs,
                layer_rhos=solution.layer_rhos,
            )  # fmt: skip
            lower[i]["zd2d"][rows] = np.maximum(lower[i]["zd2d"][rows], found.lower)
    rows = []
    for i, (of_image, attack) in enumerate(zip(lower, attacks, strict=True)):
        row = {
            "network": index, "eps": eps, "image": i, "right": bool(predicted[i] == labels[i]),
            "margins": len(attack), "not attacked": int((attack > 0).sum()),
        }  # fmt: skip
        for method, values in of_image.items():
            row[method] = int((values > 0).sum())
            # What an attack refutes and a method certifies would be a fault of the method.
            row[f"{method} excess"] = float((values - attack).max())
        rows.append(row)
    return rows


def _solve_many(key, config, net, problems, numbers, mesh):
    """Yields a Solution for each problem, ``images_at_once`` in one call on the devices."""
    options = _ascent_options(config)
    static = {
        "rule": config.partition, "start": config.start, "n_steps": config.sweep_steps,
        "layer_steps": config.layer_steps, "max_order": config.max_order or None,
        "decay_every": options.pop("decay_every"), "mesh": mesh,
    }  # fmt: skip
    # The last block repeats its last problem, so that all have one shape.
    size = config.images_at_once
    for chunk, count in row_blocks(len(problems), size, least=size):
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(problems[i] for i in chunk))
        keys = jnp.stack(
            [jax.random.fold_in(named_key(key, "partition"), numbers[i]) for i in chunk]
        )
        solutions = jax.device_get(_zonodual_many(keys, net, *stacked, options, **static))
        for place, i in enumerate(chunk[:count]):
            yield numbers[i], jax.tree.map(lambda leaf, p=place: leaf[p], solutions)


# Files.


def _answer_files(key, config, root, writer) -> _app.Result:
    """Answers for one property, or for a list of them, with a line each as in VNN-COMP."""
    instances = [(config.onnx, config.vnnlib, config.timeout)]
    if config.instances:
        folder = pathlib.Path(config.instances).parent
        instances = []
        for line in pathlib.Path(config.instances).read_text().splitlines():
            if line.strip():
                parts = [part.strip() for part in line.split(",")]
                if len(parts) != 3:
                    raise ValueError(f"instances: not 'onnx,vnnlib,timeout': {line!r}")
                paths = [str(folder / part) for part in parts[:2]]
                instances.append((*paths, min(float(parts[2]), config.timeout)))
    writer.stage("verify", len(instances))
    rows, notes = [], []
    for number, instance in enumerate(instances):
        name = f"{number}_{file_name(pathlib.Path(instance[1]).stem)}"
        found = _kept(root, f"answer_{name}", lambda i=instance, n=name: _answer(key, *i, root, n))
        rows.append(found["row"])
        notes += found["notes"]
        writer.step(number + 1, result=found["row"]["result"])
    return _app.Result([], {"results": rows}, {}, notes)


def _answer(key, onnx_path, property_path, timeout, root, name) -> dict:
    """Answers for one property; returns its line, and notes. Writes a counter-example to a file."""
    clock = time.perf_counter()
    net = verify.from_onnx(onnx_path)
    replay = onnx_file.evaluator(onnx_path)
    cases = verify.load_vnnlib(property_path)
    prepared = time.perf_counter() - clock
    answer = verify.decide(key, net, cases, timeout=timeout, replay=replay)
    row = {
        "category": pathlib.Path(onnx_path).resolve().parent.name, "onnx": onnx_path,
        "vnnlib": property_path, "prepare_time": round(prepared, 3), "result": answer.result,
        "run_time": round(answer.seconds, 3),
    }  # fmt: skip
    notes = [f"{property_path}: {_zonodual_report.explain(answer)}"]
    if answer.result == "sat" and root is not None and jax.process_index() == 0:
        root.mkdir(parents=True, exist_ok=True)
        name = f"counter_example_{name}.txt"
        text = vnnlib.counter_example_text(answer.x, answer.y)
        (root / name).write_text(text, encoding="utf-8")
        notes.append(f"The counter-example is in artifacts/{name}.")
    return {"row": row, "notes": notes}


if __name__ == "__main__":
    _app.main(run)
