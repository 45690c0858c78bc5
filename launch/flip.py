r"""FLIP: how few wrong labels does it take to backdoor a training pipeline?

Audits a pipeline of your own. Trains experts that learn a backdoor, learns labels that make
training on clean images follow them, flips the few labels that moved most, trains users from
scratch on the flipped labels, and looks for the flips as a defender would.

  python -m launch.flip --workdir=out/flip
  python -m launch.flip --workdir=out/flip --stage=experts
  python -m launch.flip --workdir=out/flip --stage=labels --resume   # then select, users

Every stage writes a folder of artifacts/seed_SEED and finds in it what is done already; delete the
folder to do a stage again. The label files, artifacts/seed_SEED/select/METHOD/labels_BUDGET.npy,
are in the order of the training images, whose hash is in select/manifest.json.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from launch import _app

STAGES = ("experts", "labels", "select", "users")
CHOICES = {
    "stage": ("all", *STAGES),
    "trigger": ("periodic", "patch", "pixel", "blend"),
    "matcher": ("jvp", "unroll", "linearized"),
    "augment": ("none", "crop_flip"),
    "expert_dtype": ("float32", "bfloat16"),
}
POSITIVE = (
    "experts", "expert_points", "expert_every", "batch_size", "match_steps", "label_runs",
    "label_iterations", "label_batch_size", "greedy_points", "user_seeds", "user_epochs",
    "models_at_once", "epochs_per_checkpoint", "other_seeds", "other_epochs", "neighbours",
    "filter_epochs", "eval_batch_size",
)  # fmt: skip


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    from jaxml import data
    from launch._flip_report import HARD

    data.check(config.dataset)
    for name, legal in CHOICES.items():
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    for name in POSITIVE:
        if config[name] < 1:
            raise ValueError(f"{name} must be positive, got {config[name]}")
    if not config.data_seeds:
        raise ValueError("data_seeds must name at least one seed, got ()")
    if len(config.data_seeds) > 1 and not config.train_size:
        raise ValueError("several data_seeds need a train_size, to split the set anew for each")
    if not config.budgets or min(config.budgets) < 1:
        raise ValueError(f"budgets must be positive numbers of flips, got {config.budgets}")
    for name in ("other_budgets", "defended_budgets"):
        if not set(config[name]) <= set(config.budgets):
            raise ValueError(f"{name} must be among the budgets, got {config[name]}")
    if bad := [method for method in config.defended if method not in HARD]:
        raise ValueError(f"defended must be among {', '.join(HARD)}; got {bad[0]!r}")
    for alpha in config.soft_alpha:
        if not 0 <= alpha <= 1:
            raise ValueError(f"soft_alpha must lie in [0, 1], got {alpha}")
    if config.coarse and config.dataset != "cifar100":
        raise ValueError(f"coarse labels are cifar100's, not those of {config.dataset!r}")
    if config.removed_per_flip < 0:
        raise ValueError(f"removed_per_flip must not be negative, got {config.removed_per_flip}")
    if len(config.pixels) % 2:
        raise ValueError(f"pixels must be rows and columns in turn, got {config.pixels}")


if __name__ == "__main__":
    _app.start(__doc__, paper="flip", check=check)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxml import train
from jaxml.backdoor import flip, flip_selection, ntk_flips, trajectories
from jaxml.core.rng import named_key
from jaxml.io import MetricsWriter, artifacts
from jaxml.merging import reset_batch_stats
from launch import _flip_report, _flip_users
from launch._flip_data import Audit, make_audit, remove, resumable
from launch._flip_report import HARD, Outcome


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Runs one stage, or all, for every data seed.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/flip``.
      workdir: folder for artifacts and checkpoints, from which a second call goes on; None writes
        nothing, and needs ``stage="all"``.
      writer: MetricsWriter; None is silent.
      mesh: devices to train on; None is the default device.

    Returns:
      Result with tables of what the stage has found; claims and figures once there are users.
    """
    check(config)
    if workdir is None and config.stage != "all":
        raise ValueError(f"stage {config.stage!r} needs a workdir that holds the stages before it")
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    # All of them first: bad input is told before anything is written.
    audits = [
        make_audit(key, config, seed, root, writer or MetricsWriter(), mesh)
        for seed in config.data_seeds
    ]
    wanted = STAGES if config.stage == "all" else (config.stage,)
    for audit in audits:
        for stage in wanted:
            _do(audit, stage)
    measured = {
        stage: {
            audit.seed: audit.manifests[stage]["measured"]
            for audit in audits
            if stage in audit.manifests
        }
        for stage in STAGES
    }
    outcomes = [
        Outcome(**row) for of_seed in measured["users"].values() for row in of_seed["outcomes"]
    ]
    n = len(audits[0].y)
    return _app.Result(
        _flip_report.claims(config, outcomes, n),
        _flip_report.tables(measured, outcomes, n),
        _flip_report.figures(outcomes),
        _flip_report.notes(config, outcomes),
    )


# Stages: each is read if it is there and was made from what is there, else made and written.


def _do(audit: Audit, stage: str) -> None:
    there = _read(audit, stage)
    if jax.process_count() > 1:  # none writes before all have looked
        multihost_utils.sync_global_devices(f"{audit.seed} {stage}")
    if there:
        return
    make, save, _, needs = _STAGES[stage]
    for name in needs:
        if name not in audit.values and not _read(audit, name):
            raise ValueError(
                f"stage {stage!r} needs {audit.folder / name}: run --stage={name} first"
            )
    audit.values[stage], measured = make(audit)
    # As it is when it is read back.
    measured = json.loads(json.dumps(measured, default=float))
    manifest = {"stage": stage, **audit.facts, "files": {}, "inputs": {}, "measured": measured}
    if audit.folder is not None and jax.process_index() == 0:
        folder = audit.folder / stage
        save(folder, audit.values[stage])
        files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".npy", ".safetensors")]
        manifest["files"] = {str(p.relative_to(folder)): _sha256(p) for p in files}
        manifest["inputs"] = {name: _digest(audit, name) for name in needs}
        artifacts.save_json(folder / "manifest.json", manifest)
    audit.manifests[stage] = manifest


def _read(audit: Audit, stage: str) -> bool:
    if audit.folder is None or not (audit.folder / stage / "manifest.json").exists():
        return False
    folder, (_, _, load, needs) = audit.folder / stage, _STAGES[stage]
    manifest = artifacts.load_json(folder / "manifest.json")
    for name, value in audit.facts.items():
        if manifest[name] != value:
            raise ValueError(
                f"{folder}: {name} was {manifest[name]!r} when it was written, now it is {value!r}"
            )
    # An input that is not there any more is none that has changed.
    if any(_digest(audit, name) not in (None, manifest["inputs"][name]) for name in needs):
        return False
    for name, digest in manifest["files"].items():
        if not (folder / name).exists() or _sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the file that manifest.json describes")
    audit.manifests[stage], audit.values[stage] = manifest, load(audit, folder)
    return True


def _digest(audit: Audit, stage: str) -> str | None:
    """Says what the files of a stage hold, if it is there."""
    path = audit.folder / stage / "manifest.json"
    if not path.exists():
        return None
    files = json.dumps(artifacts.load_json(path)["files"], sort_keys=True)
    return hashlib.sha256(files.encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Experts.


def _make_experts(audit):
    c = audit.config
    keys = jax.random.split(named_key(audit.key, "experts"), c.experts)
    points = {
        "n_points": c.expert_points, "every": c.expert_every, "first": c.expert_first,
        "dtype": c.expert_dtype,
    }  # fmt: skip
    per_epoch = len(audit.poisoned.y) // c.batch_size
    n_steps = c.expert_first + (c.expert_points - 1) * c.expert_every + 1
    n_epochs = c.expert_epochs or -(-n_steps // per_epoch)
    audit.writer.stage(f"data seed {audit.seed}: train {c.experts} experts", n_epochs * per_epoch)
    recorder = trajectories.recording(audit.expert_optimizer, **points)
    saves = None if audit.folder is None else audit.folder / "experts" / "checkpoints"
    experts = trajectories.train_experts(
        keys, audit.model, audit.expert_optimizer, audit.poisoned.x, audit.poisoned.y,
        batch_size=c.batch_size, n_epochs=n_epochs, **points,
        **resumable(audit, saves, keys, audit.model, recorder, n_epochs),
    )  # fmt: skip
    remove(saves)
    rates = audit.rates(audit.model, experts.variables)
    return experts.trajectories, {name: list(v) for name, v in rates._asdict().items()}


def _save_experts(folder, value):
    artifacts.save_tree(folder / "experts.safetensors", value)


def _load_experts(audit, folder):
    c = audit.config
    recorder = trajectories.recording(
        audit.expert_optimizer, n_points=c.expert_points, every=c.expert_every,
        first=c.expert_first, dtype=c.expert_dtype,
    )  # fmt: skip
    like = jax.eval_shape(
        lambda keys: train.init(keys, audit.model, recorder, audit.x[:1]),
        jax.random.split(audit.key, c.experts),
    )
    like = trajectories.Trajectories(*like.opt_state.points)
    return artifacts.load_tree(folder / "experts.safetensors", like)


# Labels.


def _make_labels(audit):
    c = audit.config
    audit.writer.stage(f"data seed {audit.seed}: learn labels, {c.matcher}", c.label_iterations)
    result = flip.optimize_labels(
        jax.random.split(named_key(audit.key, "labels"), c.label_runs),
        audit.model, audit.expert_optimizer, audit.values["experts"], audit.x, audit.y,
        audit.poisoned, n_classes=audit.n_classes, n_iterations=c.label_iterations,
        batch_size=c.label_batch_size, learning_rate=c.label_learning_rate,
        momentum=c.label_momentum, temperature=c.label_temperature, matcher=c.matcher,
        n_steps=c.match_steps, time=c.match_time, augment=audit.augment,
    )  # fmt: skip
    logits, losses = (np.asarray(a) for a in result)
    audit.writer.step(c.label_iterations, loss=losses[:, -1].mean())
    tenth = max(1, c.label_iterations // 10)
    margins, labels = flip_selection.flip_margins(logits, audit.y)
    top = np.argsort(-margins, kind="stable")[: max(c.budgets)]
    return logits, {
        "loss, first tenth": losses[:, :tenth].mean(),
        "loss, last tenth": losses[:, -tenth:].mean(),
        "labels changed": int((margins > 0).sum()),
        "flips to the target": (labels[top] == c.target).mean(),
        "flips of the source": (audit.y[top] == c.source).mean(),
    }


def _save_array(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, value)


def _save_labels(folder, value):
    _save_array(folder / "logits.npy", value)


def _load_labels(audit, folder):
    return np.load(folder / "logits.npy")


# Label files.


def _make_selection(audit):
    c, logits, found = audit.config, audit.values["labels"], {}
    audit.writer.stage(f"data seed {audit.seed}: choose flips", 1)
    greedy = ntk_flips.ntk_greedy_flips(
        audit.model.apply, _points(audit), audit.x, audit.y, audit.poisoned,
        target=c.target, budget=max(c.budgets), batch_size=c.eval_batch_size,
    )  # fmt: skip
    random_key = named_key(audit.key, "random")
    rankings = {
        "flip": flip_selection.rank_margins(logits, audit.y),
        "ntk_greedy": greedy.ranking,
        "random": flip_selection.rank_random(random_key, audit.y, target=c.target),
        "inner_product": flip_selection.rank_inner_product(
            audit.x, audit.triggered, audit.y, target=c.target
        ),
    }
    if c.source != -1:
        rankings["random_source"] = flip_selection.rank_random(
            random_key, audit.y, target=c.target, source=c.source
        )
    found["clean/labels_0"] = flip_selection.select_flips(rankings["flip"], audit.y, (0,))[0]
    measured = {"mismatch": [greedy.mismatch[b] for b in (0, *c.budgets)], "of the source": {}}
    for method in [name for name in HARD if name in rankings]:
        ranking = rankings[method]
        # The source class alone may have fewer labels than a budget asks for.
        budgets = [b for b in c.budgets if b <= len(ranking.index)]
        labels = flip_selection.select_flips(ranking, audit.y, budgets)
        found |= {f"{method}/labels_{b}": row for b, row in zip(budgets, labels, strict=True)}
        measured["of the source"][method] = [
            (audit.y[ranking.index[:b]] == c.source).mean() for b in budgets
        ]
    for alpha in c.soft_alpha:
        found[f"soft/labels_{alpha:g}"] = flip_selection.soft_labels(logits, audit.y, alpha)
    audit.writer.step(1, mismatch=float(greedy.mismatch[-1]))
    return found, measured


def _points(audit):
    """Takes points from all along the ways of all experts, as Flax variables ``[k, ...]``."""
    c, ways = audit.config, audit.values["experts"]
    n_experts, n_points = ways.shape
    chosen = [
        ways.at(i % n_experts, int(n_points * (i + 0.5) / c.greedy_points))[0]
        for i in range(c.greedy_points)
    ]
    like = jax.eval_shape(audit.model.init, jax.random.key(0), audit.x[:2])
    points = [{"params": params} for params in chosen]
    if "batch_stats" in like:
        empty = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), like["batch_stats"])
        reset = jax.jit(lambda v, x: reset_batch_stats(audit.model.apply, v, x))
        some = audit.x[:2000]
        points = [reset({**point, "batch_stats": empty}, some) for point in points]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)


def _save_selection(folder, value):
    for name, labels in value.items():
        _save_array(folder / f"{name}.npy", labels)


def _load_selection(audit, folder):
    names = artifacts.load_json(folder / "manifest.json")["files"]
    return {name.removesuffix(".npy"): np.load(folder / name) for name in names}


class _Stage(NamedTuple):
    make: Callable[[Audit], tuple[Any, dict]]  # what comes of it, and what to report
    save: Callable[[pathlib.Path, Any], None]
    load: Callable[[Audit, pathlib.Path], Any]
    needs: tuple[str, ...]


_STAGES = {
    "experts": _Stage(_make_experts, _save_experts, _load_experts, ()),
    "labels": _Stage(_make_labels, _save_labels, _load_labels, ("experts",)),
    "select": _Stage(_make_selection, _save_selection, _load_selection, ("experts", "labels")),
    # The networks are written as they are trained.
    "users": _Stage(_flip_users.make_users, lambda *_: None, lambda *_: None, ("select",)),
}


if __name__ == "__main__":
    _app.main(run)
