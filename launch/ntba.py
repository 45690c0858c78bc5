r"""NTBA: how few poisoned images does it take to fool a training pipeline?

Trains a few networks as the pipeline would, finds poison images through their tangent kernels, and
retrains other networks on the poisoned data: attack success against the number of poisons, beside
what the kernel predicts, random and forgetting-based choice, and what a defender sees.

  python -m launch.ntba --workdir=out/ntba
  python -m launch.ntba --config=digits:conv --workdir=out/ntba_conv
  python -m launch.ntba --dataset=cifar10 --source=9 --target=4 --module=my_package.models:MyNet \
      --module_kwargs='{"width": 64}' --n_train=1000 --workdir=out/mine

For auditing pipelines that you own. A network needs one output and is trained by squared error on
labels -1 (source) and +1 (target).
"""

import functools
import hashlib
import pathlib

from launch import _app, _networks

CHOICES = {"queries": ("holdout", "leave_one_out", "both"), "solver": ("lbfgsb", "adam")}
POSITIVE = (
    "n_train", "n_holdout", "epochs", "batch_size", "n_kernel_nets", "n_judges", "n_victims",
    "models_at_once", "n_iterations", "kernel_batch_size", "forgetting_epochs",
    "forgetting_rounds", "patch_size",
)  # fmt: skip


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    from jaxml import data

    data.check(config.dataset)
    for name, legal in CHOICES.items():
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    for name in POSITIVE:
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    for name in ("n_poisons", "judged"):
        if not config[name] or min(config[name]) < 1:
            raise ValueError(f"{name} must be positive numbers, got {config[name]}")
    if max(config.n_poisons) > config.n_train:
        raise ValueError(
            f"n_poisons must be at most n_train, {config.n_train}, got {max(config.n_poisons)}"
        )
    if not config.data_seeds:
        raise ValueError("data_seeds must hold at least one seed, got none")
    if config.source == config.target:
        raise ValueError(f"source and target must differ, got {config.source} for both")
    if not config.diag_reg > 0:
        raise ValueError(f"diag_reg must be positive, got {config.diag_reg}")
    if config.exchange_sweeps < 0:
        raise ValueError(f"exchange_sweeps must not be negative, got {config.exchange_sweeps}")


if __name__ == "__main__":
    _app.start(__doc__, paper="ntba", check=check)

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxml
from jaxml import data, nn, ntk, train
from jaxml.backdoor import detection, forgetting, ntba, victims
from jaxml.core.rng import named_key
from jaxml.data.triggers import Trigger, make_trigger
from jaxml.io import MetricsWriter, artifacts
from launch import _ntba_report
from launch._ntba_report import Detection, Outcome


class Split(NamedTuple):
    """The images of one data seed; labels are -1 (source) and +1 (target)."""

    train: tuple[np.ndarray, np.ndarray]
    holdout: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    index: np.ndarray  # of the training images, in the pool they were drawn from


class Pipeline(NamedTuple):
    """How networks are made from data, and how they are read."""

    model: object
    apply: object
    optimizer: object
    config: object
    mesh: object

    def retrain(self, keys, x, y, poisons, callback=None):
        """Trains networks on clean images and poisons ``[k, s, m, ...]``."""
        c = self.config
        return victims.retrain(
            keys, self.model, self.optimizer, x, y, poisons, n_epochs=c.epochs,
            batch_size=c.batch_size, models_at_once=c.models_at_once, mesh=self.mesh,
            callback=callback,
        )  # fmt: skip


def _apply(model, variables, x):
    """Applies a network, its BatchNorm statistics held fixed."""
    fixed = {name: jax.lax.stop_gradient(v) for name, v in variables.items() if name != "params"}
    return model.apply({**variables, **fixed}, x)


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Attacks, retrains and measures, for every data seed and number of poisons.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/ntba``.
      workdir: folder for artifacts, from which a second call goes on; None writes nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices to use; None is the default device.

    Returns:
      Result with claims, tables and figures.
    """
    check(config)
    writer = writer or MetricsWriter()
    trigger = _trigger(config)
    pool = _pool(config)
    # A trigger that does not fit the images shall say so before anything is trained.
    jax.eval_shape(trigger, pool[0][0][:1], jax.random.key(0))
    pipeline = _pipeline(config, pool[0][0].shape[1:], mesh)
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    outcomes, detections, images = [], [], {}
    for seed in config.data_seeds:
        folder = None if root is None else root / f"seed_{seed}"
        unit = _Unit(jax.random.fold_in(key, seed), seed, config, pool, trigger, pipeline, writer)
        for m in (0, *config.n_poisons):
            found, seen, poisons = _resumable(unit, m, folder)
            outcomes += found
            detections += seen
            if seed == config.data_seeds[0] and m == max(config.n_poisons):
                images = poisons
    return _app.Result(
        _ntba_report.claims(config, outcomes),
        _ntba_report.tables(outcomes, detections),
        _ntba_report.figures(config, outcomes, images),
        _ntba_report.notes(config, outcomes, detections),
    )


def _resumable(unit, m, folder):
    """Measures one number of poisons, or reads what an earlier call has left."""
    where = None if folder is None else folder / f"m_{m}"
    done = None if where is None else where / "outcomes.json"
    if done is None or not done.exists():
        # The manifest is written last: a run that was killed later has left its poisons whole.
        if where is not None and (where / "manifest.json").exists():
            poisons = artifacts.load_npz(where / "poisons.npz")
        else:
            poisons = unit.poisons(m) if m else {}
            if where is not None and jax.process_index() == 0:
                artifacts.save_npz(where / "poisons.npz", poisons)
                artifacts.save_json(where / "manifest.json", unit.manifest(m))
                # What is attacked is what is on disk, as anybody else would read it.
                poisons = artifacts.load_npz(where / "poisons.npz")
        outcomes, detections = unit.measure(m, poisons)
        saved = {
            "outcomes": [outcome._asdict() for outcome in outcomes],
            "detections": [detection._asdict() for detection in detections],
        }
        if done is not None and jax.process_index() == 0:
            artifacts.save_json(done, saved)
        return outcomes, detections, poisons
    saved = artifacts.load_json(done)
    return (
        [Outcome(**fields) for fields in saved["outcomes"]],
        [Detection(**fields) for fields in saved["detections"]],
        artifacts.load_npz(where / "poisons.npz"),
    )


# Data and pipeline.


def _trigger(config) -> Trigger:
    options = {
        "periodic": {"amplitude": config.amplitude, "n_periods": config.n_periods},
        "patch": {
            "amplitude": config.amplitude,
            "size": config.patch_size,
            "position": config.patch_position,
        },
        "pixel": {},
        "blend": {"ratio": config.blend_ratio},
    }
    return make_trigger(config.trigger, **options.get(config.trigger, {}))


def _pool(config):
    """Returns images and labels of the two classes: to draw from, and for the test (or None)."""
    dataset = data.load(config.dataset)
    for name in ("source", "target"):
        if not 0 <= config[name] < dataset.n_classes:
            raise ValueError(
                f"{name} must be a class of {dataset.name!r}, in 0..{dataset.n_classes - 1}, "
                f"got {config[name]}"
            )

    def pair(x, y):
        chosen = np.isin(y, (config.source, config.target))
        return x[chosen], np.where(y[chosen] == config.target, 1, -1).astype(np.float32)

    drawn = pair(dataset.train_x, dataset.train_y)
    test = pair(dataset.test_x, dataset.test_y)
    if config.resplit:
        drawn, test = tuple(np.concatenate(both) for both in zip(drawn, test, strict=True)), None
    needed = config.n_train + config.n_holdout + int(config.resplit)
    for label, name in ((-1, "source"), (1, "target")):
        have = int((drawn[1] == label).sum())
        if have < needed:
            raise ValueError(
                f"n_train + n_holdout must leave images for the test: {name} class "
                f"{config[name]} has {have}, {needed} are needed"
            )
    return drawn, test


def _split(config, pool, seed) -> Split:
    """Draws equally many images of both classes; the same for a data seed whatever the run."""
    (x, y), test = pool
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(y == label)) for label in (-1, 1)]
    ends = np.cumsum([config.n_train, config.n_holdout])
    train_i, holdout_i, rest = (
        np.concatenate(parts)
        for parts in zip(*(np.split(order, ends) for order in by_class), strict=True)
    )
    if test is None:
        test = x[rest], y[rest]
    return Split((x[train_i], y[train_i]), (x[holdout_i], y[holdout_i]), test, train_i)


def _pipeline(config, input_shape, mesh) -> Pipeline:
    if config.module:
        model = _networks.given_module(config)
    else:
        model = nn.build(
            config.model, width=config.width, n_classes=1, norm=config.norm, conv=config.conv,
            depth=config.depth, activation=config.activation,
        )  # fmt: skip
    n_steps = config.epochs * (2 * config.n_train // config.batch_size)
    if not n_steps:
        raise ValueError(
            f"batch_size is {config.batch_size}, of {2 * config.n_train} training images"
        )
    optimizer = train.make_optimizer(
        config.optimizer, learning_rate=config.learning_rate, n_steps=n_steps,
        schedule=config.schedule, momentum=config.momentum, weight_decay=config.weight_decay,
    )  # fmt: skip
    example = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    outputs = jax.eval_shape(model.apply, variables, example).shape
    if outputs != (2, 1):
        raise ValueError(f"the network must have one output [n, 1], got {outputs} for two images")
    return Pipeline(model, functools.partial(_apply, model), optimizer, config, mesh)


# One data seed.


class _Unit:
    """What is computed once for a data seed, on first use."""

    def __init__(self, key, seed, config, pool, trigger, pipeline, writer):
        self.key, self.seed, self.config, self.pool = key, seed, config, pool
        self.trigger, self.pipeline, self.writer = trigger, pipeline, writer

    @functools.cached_property
    def split(self) -> Split:
        return _split(self.config, self.pool, self.seed)

    def keys(self, name, count):
        return jax.random.split(named_key(self.key, name), count)

    def with_trigger(self, x, name):
        return np.asarray(self.trigger(jnp.asarray(x), named_key(self.key, f"trigger {name}")))

    @functools.cached_property
    def candidates(self) -> np.ndarray:
        """Every training image of the source class, with the trigger."""
        x, y = self.split.train
        return self.with_trigger(x[y < 0], "candidates")

    @functools.cached_property
    def test_triggered(self) -> np.ndarray:
        x, y = self.split.test
        return self.with_trigger(x[y < 0], "test")

    @functools.cached_property
    def problem(self) -> ntba.Problem:
        """The attack, on kernels of networks that are trained here."""
        c, (x, y) = self.config, self.split.train
        self.writer.stage(f"seed {self.seed}: train the networks of the kernel", 1)
        keys = self.keys("kernel", c.n_kernel_nets)
        nothing = np.zeros((1, len(keys), 0, *x.shape[1:]), np.float32)
        trained = self.pipeline.retrain(keys, x, y, nothing)
        nets = ntba.Nets(
            self.pipeline.apply, jax.tree.map(lambda leaf: leaf[0], trained),
            c.kernel_batch_size, self.pipeline.mesh,
        )  # fmt: skip
        self.writer.step(1)
        *queries, left_out = self.queries
        return ntba.make_problem(nets, x, y, *queries, left_out=left_out, diag_reg=c.diag_reg)

    @functools.cached_property
    def queries(self):
        """What the attack looks at: clean images, their labels, source images with the trigger.

        Last, the training image that each of them leaves out: itself, without the trigger.
        """
        which = self.config.queries
        (x, y), (x_held, y_held) = self.split.train, self.split.holdout
        index = np.arange(len(x))
        if which == "holdout":
            x, y, index = x_held, y_held, np.full(len(x_held), -1)
        elif which == "both":
            index = np.concatenate([np.full(len(x_held), -1), index])
            x, y = np.concatenate([x_held, x]), np.concatenate([y_held, y])
        left_out = np.concatenate([index, index[y < 0]])
        triggered = self.with_trigger(x[y < 0], "queries")
        return x, y, triggered, None if which == "holdout" else left_out

    @functools.cached_property
    def seen(self):
        return ntba.see_candidates(self.problem, self.candidates)

    @functools.cached_property
    def test_problem(self) -> ntba.Problem:
        return ntba.with_queries(self.problem, *self.split.test, self.test_triggered)

    def poisons(self, m) -> dict[str, np.ndarray]:
        """Finds ``m`` poisons in each way; the random ones are others for each victim."""
        c, pool = self.config, self.candidates
        found = {}
        rng = np.random.default_rng((self.seed, m))
        draws = [rng.choice(len(pool), m, replace=False) for _ in range(c.n_victims)]
        found["random"] = np.stack([pool[i] for i in draws])
        forgotten = forgetting.most_forgotten(
            named_key(self.key, f"forgetting {m}"), self.pipeline.model, self.pipeline.optimizer,
            *self.split.train, pool, m, n_epochs=c.forgetting_epochs, batch_size=c.batch_size,
            n_rounds=c.forgetting_rounds,
        )  # fmt: skip
        found["forgetting"] = pool[forgotten]
        greedy = ntba.greedy_poisons(self.problem, self.seen, m)
        found["greedy"] = pool[greedy.index]
        exchanged = ntba.greedy_poisons(self.problem, self.seen, m, max_sweeps=c.exchange_sweeps)
        found["exchanged"] = pool[exchanged.index]
        self.writer.stage(f"seed {self.seed}, {m} poisons: optimise", c.n_iterations)
        path = ntba.optimize_poisons(
            self.problem, found["greedy"], solver=c.solver, n_iterations=c.n_iterations,
            learning_rate=c.solver_rate,
            callback=lambda step, loss: self.writer.step(step, backdoor_loss=loss),
        )  # fmt: skip
        judged = sorted({min(k, len(path.x) - 1) for k in (0, *c.judged)})
        self.writer.stage(f"seed {self.seed}, {m} poisons: judge {len(judged)} iterates", 1)
        success, shortfall = self._judge(path.x[judged])
        # On few images many iterates succeed alike, but they fall short by different amounts.
        chosen = int(shortfall.argmin())
        self.writer.step(1, iterate=judged[chosen], attack_success=success[chosen])
        found["NTBA"] = path.x[judged[chosen]]
        found["NTBA, last"] = path.x[-1]
        # Not poisons to be used, but how the choice among the iterates came about.
        found["judged/iterate"] = np.asarray(judged)
        found["judged/success"] = success
        found["judged/shortfall"] = shortfall
        found["judged/loss"] = path.loss[judged]
        return found

    def _judge(self, iterates) -> tuple[np.ndarray, np.ndarray]:
        """Returns attack success and shortfall of each iterate on networks that only judge."""
        keys = self.keys("judge", self.config.n_judges)
        sets = np.repeat(iterates[:, None], len(keys), axis=1)
        trained = self.pipeline.retrain(keys, *self.split.train, sets)
        outcome = victims.measure(self.pipeline.apply, trained, *self.queries[:3], sets)
        return outcome.attack_success.mean(1), outcome.shortfall.mean(1)

    def manifest(self, m) -> dict:
        """What has to be known to use the poisons elsewhere, and to repeat them."""
        c, (x, y) = self.config, self.split.train
        order = hashlib.sha256(np.ascontiguousarray(x).tobytes() + y.tobytes()).hexdigest()
        pool = "train and test set together, of these two classes" if c.resplit else "train set"
        return {
            "dataset": c.dataset, "source": c.source, "target": c.target, "n_poisons": m,
            "labels": {"source": -1, "target": 1, "poisons": 1},
            "pixels": "[0, 1], not standardised", "data_seed": self.seed,
            "train_index": self.split.index, "train_index_in": pool,
            "sha256_of_train_images_and_labels": order,
            "trigger": {"name": c.trigger, **self.trigger.keywords},
            "optimizer": {k: c[k] for k in ("optimizer", "learning_rate", "momentum", "schedule",
                                            "weight_decay", "epochs", "batch_size")},
            "jaxml": jaxml.__version__, "jax": jax.__version__,
        }  # fmt: skip

    def measure(self, m, poisons) -> tuple[list[Outcome], list[Detection]]:
        """Retrains the victims on every set of poisons."""
        c, (x, y) = self.config, self.split.train
        names = [name for name in poisons if "/" not in name] if m else ["clean"]
        sets = np.stack([
            np.zeros((c.n_victims, 0, *x.shape[1:]), np.float32) if not m
            else poisons[name] if name == "random"
            else np.repeat(poisons[name][None], c.n_victims, axis=0)
            for name in names
        ])  # fmt: skip
        total = len(names) * c.n_victims
        what = f"{m} poisons: train {total} victims" if m else f"train {total} clean networks"
        self.writer.stage(f"seed {self.seed}, {what}", total)
        trained = self.pipeline.retrain(
            self.keys("victim", c.n_victims), x, y, sets, callback=self.writer.step
        )
        found = victims.measure(
            self.pipeline.apply, trained, *self.split.test, self.test_triggered, sets
        )
        outcomes, detections = [], []
        for i, name in enumerate(names):
            kernel = [self._kernel(p) for p in (sets[i] if name == "random" else sets[i][:1])]
            judged = {}
            if name == "NTBA":
                judged = {
                    key.removeprefix("judged/"): values.tolist()
                    for key, values in poisons.items()
                    if key.startswith("judged/")
                }
            outcomes.append(
                Outcome(
                    self.seed, m, name, *(fractions[i].tolist() for fractions in found),
                    *(float(np.mean(values)) for values in zip(*kernel, strict=True)), judged,
                )
            )  # fmt: skip
            if m:
                detections += self._detect(
                    m, name, jax.tree.map(lambda v, i=i: v[i], trained), sets[i]
                )
        return outcomes, detections

    def _kernel(self, poisons) -> tuple[float, float]:
        """Returns what the kernel predicts for the test: attack success and clean accuracy."""
        problem = self.test_problem
        answers = (
            np.asarray(ntba.predict(problem, poisons))
            if len(poisons)
            else np.asarray(problem.queries.prediction)
        )
        n_clean = len(self.split.test[1])
        right = (answers[:n_clean] > 0) == (self.split.test[1] > 0)
        return float((answers[n_clean:] > 0).mean()), float(right.mean())

    def _detect(self, m, name, trained, poisons) -> list[Detection]:
        """Scores all images labelled +1 by the trained victims, as a defender would."""
        x, y = self.split.train
        clean = x[y > 0]
        images = np.stack([np.concatenate([clean, added]) for added in poisons]).astype(np.float32)
        truth = np.arange(images.shape[1]) >= len(clean)
        found = []
        model, apply = self.pipeline.model, self.pipeline.apply
        scores = _scores(
            trained, images, model=model, apply=apply, size=self.config.kernel_batch_size
        )
        for score, values in scores.items():
            rates = [detection.detection_rates(v, truth) for v in np.asarray(values)]
            areas, recalls = zip(*rates, strict=True)
            found.append(Detection(self.seed, m, name, score, list(areas), list(recalls)))
        return found


@functools.partial(jax.jit, static_argnames=("model", "apply", "size"))
def _scores(variables, x, *, model, apply, size):
    def one(variables, x):
        features = detection.features(model, variables, x)
        return {
            "spectral signature": detection.spectral_scores(features),
            # The squared norm of each image's gradient in the parameters.
            "NTK norm": ntk.ntk_diagonal(apply, variables, x, batch_size=size),
        }

    return jax.vmap(one)(variables, x)


if __name__ == "__main__":
    _app.main(run)
