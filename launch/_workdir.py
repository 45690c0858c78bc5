"""The workdir of a run: whose it is, what a run finds in it, what it leaves there."""

import importlib.metadata
import json
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

from absl import flags

import jaxml
from launch import _flags
from launch._flags import UserError
from launch._study import Result, Study

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def check_workdir(study: Study, values: flags.FlagValues) -> None:
    """Checks that the workdir is free, or holds a run that the flags allow to use.

    Raises:
      UserError: it is a file; it holds something else than a run; it holds a run and neither
        --resume nor --overwrite is given; --resume with another config, seed or precision.
    """
    workdir = study.workdir
    if values.resume and values.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir: {workdir} is a file")
    if not workdir.is_dir() or not any(workdir.iterdir()):
        return
    if not is_run(workdir):
        raise UserError(
            f"--workdir: {workdir} is not empty and holds no run (no config.json and env.json of "
            "this launcher), so it is left alone; choose another folder"
        )
    if not (values.resume or values.overwrite):
        raise UserError(
            f"--workdir: {workdir} is not empty; --resume goes on with the run in it, --overwrite "
            "empties it first, another --workdir leaves it alone"
        )
    if values.resume:
        saved, env = (_read_json(workdir / name) for name in ("config.json", "env.json"))
        before = {**_flags.fields(saved), "seed": env["seed"], "x64": env["x64"]}
        # The way through JSON turns tuples into the lists that the saved config has.
        config = json.loads(json.dumps(study.config.to_dict()))
        now = {**_flags.fields(config), "seed": values.seed, "x64": values.x64}
        # They say which part of the run to do, and every part is of the same run.
        for name in ("stage", "mode"):
            before[name] = now.get(name)
        changed = [
            f"{name} was {json.dumps(before.get(name))} and now is {json.dumps(now.get(name))}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(f"--resume: {workdir} holds another run: {', '.join(changed)}")


def is_run(workdir: pathlib.Path) -> bool:
    """Says whether this launcher has written a folder."""
    try:
        env = _read_json(workdir / "env.json")
    except (OSError, ValueError):
        return False
    return (workdir / "config.json").is_file() and "jaxml" in env.get("versions", {})


def open_workdir(study: Study, values: flags.FlagValues, mesh) -> None:
    """Empties the workdir if asked to, and writes what is about to run in it."""
    from jaxml.io import artifacts

    workdir = study.workdir
    try:
        if values.overwrite and is_run(workdir):
            for path in workdir.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "error.log").unlink(missing_ok=True)
        if not is_run(workdir):
            artifacts.save_json(workdir / "env.json", _environment(values, mesh))
            artifacts.save_json(workdir / "config.json", study.config.to_dict())
    except OSError as error:
        raise UserError(f"--workdir: cannot write to {workdir}: {error.strerror}") from error


def _environment(values: flags.FlagValues, mesh) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    return {
        "versions": {
            "python": platform.python_version(),
            "jaxml": jaxml.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "devices": [device.device_kind for device in mesh.devices.flat],
        "platform": mesh.devices.flat[0].platform,
        "commit": _commit(),
        "seed": values.seed,
        "x64": values.x64,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def _commit() -> str | None:
    """Returns the commit that runs, ``-dirty`` if it was edited, or None outside a checkout."""
    # An installed copy may lie inside somebody else's repository.
    if not (_ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    git = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_report(workdir: pathlib.Path, title: str, result: Result) -> None:
    """Writes tables, plots, report.html and, last, claims.json: the mark of a finished run."""
    from jaxml import report
    from jaxml.io import artifacts

    for folder in ("tables", "plots"):
        (workdir / folder).mkdir(exist_ok=True)
    for name, rows in result.tables.items():
        path = workdir / "tables" / file_name(name)
        report.write_csv(f"{path}.csv", rows)
        pathlib.Path(f"{path}.md").write_text(report.to_markdown(rows), encoding="utf-8")
    images = {name: report.to_png(figure) for name, figure in result.figures.items()}
    for name, image in images.items():
        (workdir / "plots" / f"{file_name(name)}.png").write_bytes(image)
    section = report.Section(
        title="Measurements",
        claims=result.claims,
        tables={caption(name): rows for name, rows in result.tables.items()},
        figures={caption(name): image for name, image in images.items()},
        notes=result.notes,
    )
    page = report.render(title, [section])
    (workdir / "report.html").write_text(page, encoding="utf-8")
    artifacts.save_json(workdir / "claims.json", [claim.to_dict() for claim in result.claims])


def caption(name: str) -> str:
    """Turns the name of a table or figure into its caption."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def file_name(name: str) -> str:
    """Turns the name of a table or figure into a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"
