r"""Shadow learning: a federated backdoor defence that survives continual training.

Simulates clients on a data set, some of them malicious, under one or several defences, and reports
the accuracy and the attack's success against rounds, over seeds.

  python -m launch.shadow --workdir=out/shadow
  python -m launch.shadow --config=digits:nine --workdir=out/shadow_nine
  python -m launch.shadow --defense=spectre,shadow --share=1 --guarded_labels=all --workdir=out/all

Defences (--defense): none, rfa, multi_krum, clip_noise, median, trimmed_mean, spectre (the filter
alone, in every round) and shadow. --remedies adds variants of the shadow's filter.
"""

import pathlib

import numpy as np

from launch import _app

CHOICES = {
    "split": ("homogeneous", "dirichlet"),
    "trigger": ("corner", "stripes"),
    "filter": ("spectre", "pca", "norm", "mahalanobis", "auto"),
    "level": ("user", "label", "sample"),
    "extractor": ("backbone", "blind"),
}
DEFENSES = (
    "none", "rfa", "multi_krum", "clip_noise", "median", "trimmed_mean", "spectre", "shadow",
)  # fmt: skip
# What each variant changes in the settings of the shadow.
REMEDIES = {
    "pooled": {"n_pooled": 6},
    "chosen by data": {"filter": "auto"},
    "pca": {"filter": "pca"},
    "before convergence": {"window": 10, "tolerance": 1.0, "converged_level": 0.5},
    "pooled before convergence": {
        "n_pooled": 6,
        "window": 10,
        "tolerance": 1.0,
        "converged_level": 0.5,
    },
    "refit on the shadow": {"n_refits": 1},
    "blind extractor": {"extractor": "blind"},
    "blind, disobeyed": {"extractor": "blind", "obedient": False},
    "label level": {"level": "label"},
    "sample level": {"level": "sample"},
}


def check(config):
    """Raises ValueError or FileNotFoundError for a config that cannot run; needs no jax."""
    from jaxml import data

    data.check(config.dataset)
    for name, legal in CHOICES.items():
        if config[name] not in legal:
            raise ValueError(f"{name} must be one of {', '.join(legal)}; got {config[name]!r}")
    for name, legal in (("defense", DEFENSES), ("remedies", REMEDIES)):
        if unknown := [value for value in config[name] if value not in legal]:
            raise ValueError(f"{name} must be among {', '.join(legal)}; got {unknown[0]!r}")
    if not config.defense or not config.seeds:
        raise ValueError("defense and seeds need at least one entry")
    if not 0 <= config.alpha_bar < 0.5:
        raise ValueError(f"alpha_bar must lie in [0, 0.5), got {config.alpha_bar}")
    if not 0 <= config.alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {config.alpha}")
    if not 0 <= config.share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {config.share}")
    if not 1 <= config.clients_per_round <= config.n_clients:
        raise ValueError(
            f"clients_per_round must lie in 1..{config.n_clients}, got {config.clients_per_round}"
        )
    if not 1 <= config.k < config.clients_per_round * config.n_pooled:
        raise ValueError(f"k must be positive and less than the rows of a fit, got {config.k}")
    if config.norm == "batch":
        raise ValueError("norm 'batch' has statistics that no round averages; choose another")
    labels = (str(config.target), "all")
    if config.guarded_labels not in labels:
        raise ValueError(
            f"guarded_labels must be the target's, {labels[0]!r}, or 'all'; "
            f"got {config.guarded_labels!r}"
        )
    if config.target in config.sources or not config.sources:
        raise ValueError(f"sources must be labels other than the target, {config.target}")


if __name__ == "__main__":
    _app.start(__doc__, paper="shadow", check=check)

import jax

from jaxml import data
from jaxml.core.rng import named_key
from jaxml.io import MetricsWriter, artifacts
from launch import _shadow_report, _shadow_world
from launch._shadow_world import PLAIN, Trace
from launch._workdir import file_name


def run(key, config, *, workdir=None, writer=None, mesh=None) -> _app.Result:
    """Simulates every defence on every seed and compares them.

    Args:
      key: typed key; with the config it determines every number.
      config: see ``configs/shadow``.
      workdir: folder for artifacts, from which a second call goes on; None writes nothing.
      writer: MetricsWriter; None is silent.
      mesh: devices over which the clients of a round are split; None is the default device.

    Returns:
      Result with claims, tables and figures.
    """
    check(config)
    writer = writer or MetricsWriter()
    dataset = data.load(config.dataset)
    if len(dataset.input_shape) != 3:
        raise ValueError(f"dataset must hold images, and {config.dataset!r} does not")
    if mesh is not None and mesh.size == 1:
        mesh = None
    base = _shadow_world.settings(config, dataset, mesh)
    root = None if workdir is None else pathlib.Path(workdir) / "artifacts"
    methods = [*config.defense, *config.remedies]
    traces: dict[str, list[Trace]] = {method: [] for method in methods}
    writer.stage("simulate", len(config.seeds) * len(methods))
    n_done = 0
    for seed in config.seeds:
        seed_key = jax.random.fold_in(named_key(key, "seed"), seed)
        world = None
        for method in sorted(methods, key="shadow".__ne__):  # its backbone is the undefended run
            path = None if root is None else root / f"seed_{seed}" / f"{file_name(method)}.npz"
            trace = _undefended(traces) if method == "none" else None
            if path is not None and path.exists():
                trace = Trace(**artifacts.load_npz(path))
            elif trace is None:
                world = world or _shadow_world.make_world(seed_key, config, dataset)
                trace = _simulate(seed_key, world, base, method, path)
            if path is not None and jax.process_index() == 0:
                artifacts.save_npz(path, trace._asdict())
            traces[method].append(trace)
            n_done += 1
            writer.step(n_done, mta=float(trace.mta[-1]), asr=float(trace.asr[-1]))
    return _app.Result(
        _shadow_report.claims(config, traces),
        _shadow_report.tables(config, traces),
        _shadow_report.figures(config, traces),
        _shadow_report.notes(config, traces),
    )


def _undefended(traces) -> Trace | None:
    """Reads the run without a defence off the shadow's backbone, if there is one."""
    if not traces.get("shadow"):
        return None
    trace = traces["shadow"][-1]
    nothing = np.zeros_like(trace.recall)
    return Trace(
        trace.mta_backbone, trace.asr_backbone, trace.mta_backbone, trace.asr_backbone,
        nothing, nothing, np.zeros_like(trace.phase),
    )  # fmt: skip


def _simulate(key, world, settings, method, path) -> Trace:
    if method in PLAIN:
        trace = _shadow_world.run_plain(key, world, PLAIN.index(method), s=settings)
    else:
        settings = settings._replace(**REMEDIES.get(method, {}))
        state, trace = _shadow_world.run_shadow(key, world, s=settings)
        if path is not None and jax.process_index() == 0:
            served = {"backbone": state.backbone, "shadows": state.guards.served}
            artifacts.save_tree(path.with_suffix(".safetensors"), served)
    return Trace(*(np.asarray(values) for values in trace))


if __name__ == "__main__":
    _app.main(run)
