"""The launcher that all scripts share: devices, workdir, progress, errors and the report.

A script calls ``start`` before it imports jax, so that help, a misspelt flag and a full workdir are
answered at once, and ``main`` at its end. In between it defines ``run(key, config, *, workdir=None,
writer=None, mesh=None) -> Result``, which a notebook calls without any of this.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

import jaxml
from launch import _flags
from launch._flags import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[1]


class Result(NamedTuple):
    """What ``run`` hands back to be reported.

    Attributes:
      claims: list of ``jaxml.report.Claim``.
      tables: ``{name: rows}``; the name becomes the caption and the file name.
      figures: ``{name: matplotlib Figure}``, named likewise.
      notes: sentences for the reader, such as what differs from the paper.
    """

    claims: Sequence
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    figures: Mapping[str, Any]
    notes: Sequence[str]


class Study(NamedTuple):
    """One paper with one config, ready to run.

    Attributes:
      paper: name of its module, launch script and config folder.
      title: heading of its report.
      config: the resolved config.
      label: the config's name, as ``--config`` takes it.
      command: the command that repeats it.
      workdir: where its results go.
    """

    paper: str
    title: str
    config: ConfigDict
    label: str
    command: str
    workdir: pathlib.Path


_started: tuple[flags.FlagValues, Study] | None = None


def start(doc: str, *, paper: str, check: Callable[[ConfigDict], None] | None = None) -> None:
    """Reads the command line and readies the process; to be called before jax is imported.

    Answers ``--help``, ``--print_config`` and every bad input by leaving the process, with nothing
    written.

    Args:
      doc: the script's docstring, which heads its help and names its report.
      paper: name of the config folder and of the default workdir ``out/<paper>``.
      check: raises ValueError or FileNotFoundError for a config that cannot run, without jax.
    """
    global _started
    with one_sentence(paper):
        values = _flags.common_flags(f"out/{paper}")
        flags.DEFINE_string(
            "config",
            "tiny",
            "name of a config, or a file with a get_config(); NAME:ARG hands it an argument",
            flag_values=values,
        )
        flags.DEFINE_boolean("print_config", False, "print the config and stop", flag_values=values)
        rest = _flags.parse(values, sys.argv)
        if values.help:
            print(_flags.help_text(doc, values, paper))
            sys.exit()
        config, label = _flags.load_config(paper, values.config)
        settings = _flags.override(config, rest, values)
        if values.print_config:
            print(json.dumps(config.to_dict(), indent=2))
            sys.exit()
        study = Study(
            paper=paper,
            title=doc.strip().partition("\n")[0].rstrip("."),
            config=config,
            label=label,
            command=command(paper, label, values, settings),
            workdir=pathlib.Path(values.workdir),
        )
        check_workdir(study, values)
        set_environment(values)
        check_config(check, study, values)
        join_processes(values)
        _started = values, study


def main(run: Callable[..., Result]) -> None:
    """Runs the study that ``start`` has read, writes its report and prints its claims."""
    values, study = _started
    with one_sentence(study.paper), interruptible(study.paper):
        mesh = make_mesh(values)
        leader = is_leader()
        if leader:
            print(headline(study, mesh), flush=True)
        try:
            result = run_study(run, study, values, mesh)
        except Exception as error:
            sentence = explain(error, study)
            if sentence is None:
                raise
            raise UserError(sentence) from error
        if leader:
            print_claims(result.claims)
            print(study.workdir / "report.html")


def command(paper: str, label: str, values: flags.FlagValues, settings: Sequence[str] = ()) -> str:
    """Writes the shortest command that repeats a study, wherever its workdir was."""
    parts = ["python", "-m", f"launch.{paper}", f"--config={label}", *settings]
    parts += [f"--seed={values.seed}"] if values.seed else []
    parts += ["--x64"] if values.x64 else []
    return shlex.join(parts)


# The process and its devices.


def set_environment(values: flags.FlagValues) -> None:
    """Sets what jax and tensorflow-datasets read from the environment when they are imported."""
    # The second entry keeps the host's own device at hand beside the accelerator.
    platforms = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
    if values.platform != "auto":
        os.environ["JAX_PLATFORMS"] = platforms[values.platform]
    if values.num_devices is not None:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(values.num_devices)
    if values.x64:
        os.environ["JAX_ENABLE_X64"] = "1"
    if values.cache_dir:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.expanduser(values.cache_dir)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    else:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    if values.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = os.path.abspath(os.path.expanduser(values.data_dir))


def check_config(check, study: Study, values: flags.FlagValues) -> None:
    """Runs a paper's own check; ``--download`` prepares ``config.dataset`` when it is missing.

    Raises:
      UserError: what the check, or the preparation, has raised as ValueError or FileNotFoundError.
    """
    if check is None:
        return
    from jaxml.data import NotPreparedError, tfds_source

    try:
        try:
            check(study.config)
        except NotPreparedError:
            if not (values.download and "dataset" in study.config):
                raise
            tfds_source.prepare(study.config.dataset, download=True)
            check(study.config)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def join_processes(values: flags.FlagValues) -> None:
    """Joins the other processes, if asked to; this has to precede every other use of jax.

    Raises:
      UserError: they cannot be found.
    """
    if not values.distributed:
        return
    import jax

    numbers = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    local = None if values.num_devices is None else range(values.num_devices)
    try:
        count, index = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(None, count, index, local_device_ids=local)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {error}") from error


def make_mesh(values: flags.FlagValues):
    """Makes the mesh of the devices that are asked for.

    Raises:
      UserError: there is no such platform, or there are fewer devices.
    """
    import jax

    from jaxml.core import sharding

    extras = {"gpu": "'.[cuda12]' (or '.[cuda13]')", "tpu": "'.[tpu]'"}
    try:
        found, reason = jax.default_backend(), ""
    except RuntimeError as error:
        found, reason = "none", str(error)
    if values.platform in extras and found != values.platform:
        raise UserError(
            f"--platform={values.platform}: jax finds none on this machine; where there is one, "
            f"install its support with pip install -e {extras[values.platform]}"
        )
    if reason:
        raise UserError(f"--platform={values.platform}: {reason}")
    try:
        # With several processes the mesh is all that they have together.
        return sharding.make_mesh(None if values.distributed else values.num_devices)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def is_leader() -> bool:
    """Says whether this process is the one that prints and writes."""
    import jax

    return jax.process_index() == 0


def headline(study: Study, mesh) -> str:
    """Says in one line what runs, on what, and where to."""
    import jax

    dtype = "float64" if jax.config.jax_enable_x64 else "float32"
    return (
        f"{study.paper}  config={study.label}  devices={mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}  dtype={dtype}  workdir={study.workdir}"
    )


# The workdir.


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


def _open_workdir(study: Study, values: flags.FlagValues, mesh) -> None:
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


# The run and its report.


def run_study(run: Callable[..., Result], study: Study, values: flags.FlagValues, mesh) -> Result:
    """Runs a study in its workdir, shows its progress and writes its report.

    Args:
      run: the paper's ``run``.
      study: what to run and where.
      values: the parsed common flags.
      mesh: the devices to run on.

    Returns:
      The result; a claim without a command has the study's.
    """
    import jax
    from jax.experimental import multihost_utils

    from jaxml.io.writer import MetricsWriter
    from launch._progress import Progress

    leader = is_leader()
    if leader:
        _open_workdir(study, values, mesh)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the workdir is there")
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(_trace(values.profile_steps, study.workdir / "profile"))]
        if leader:
            watchers.append(stack.enter_context(Progress()))
        writer = MetricsWriter(
            study.workdir / "metrics.jsonl" if leader else None,
            lambda event: [watch(event) for watch in watchers],
        )
        key = jax.random.key(values.seed)
        result = run(key, study.config, workdir=study.workdir, writer=writer, mesh=mesh)
    claims = [c if c.command else c._replace(command=study.command) for c in result.claims]
    result = result._replace(claims=claims)
    if leader:
        write_report(study.workdir, study.title, result)
    return result


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


def print_claims(claims: Sequence) -> None:
    """Prints the claims as a table, and how many of them hold."""
    from rich import box, console, table, text

    from jaxml import report

    grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("claim", "paper", "here", "baseline", "seeds, spread", "holds"):
        grid.add_column(name)
    styles = {True: "green", False: "bold red", None: "dim"}
    for c in claims:
        spread = ", ".join(part for part in (c.seeds, c.spread) if part)
        cells = (c.claim, f"{c.paper_value} ({c.paper})".strip(), c.value, c.baseline, spread)
        # Text objects, for a claim may hold what rich would take for markup.
        grid.add_row(*map(text.Text, cells), text.Text(c.verdict, styles[c.holds]))
    out = console.Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    out.print(grid)
    out.print(report.summary(claims))


@contextlib.contextmanager
def _trace(n_steps: int, folder: pathlib.Path) -> Iterator[Callable[[Mapping], None]]:
    """Traces with jax's profiler until the hook that it yields has seen ``n_steps`` steps."""
    import jax

    left = n_steps
    if left:
        jax.profiler.start_trace(folder)

    def hook(event: Mapping) -> None:
        nonlocal left
        if left and event["step"] is not None:
            left -= 1
            if not left:
                jax.profiler.stop_trace()

    try:
        yield hook
    finally:
        if left:
            jax.profiler.stop_trace()


# Errors.


@contextlib.contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """Turns a UserError into one sentence on standard error and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def interruptible(
    program: str, again: str = "the same command with --resume goes on from the last checkpoint"
) -> Iterator[None]:
    """Turns Ctrl-C into one sentence, which says how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; {again}", file=sys.stderr)
        sys.exit(130)


def explain(error: Exception, study: Study) -> str | None:
    """Tells an error of a run in one sentence, if it is one that a user can mend.

    Args:
      error: what the run has raised; its traceback goes to ``error.log`` in the workdir.
      study: the run.

    Returns:
      The sentence, or None for a bug, which deserves its traceback.
    """
    import jax

    if isinstance(error, UserError):
        return str(error)
    log = study.workdir / "error.log"
    if is_leader():
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    if isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    ):
        sizes = [f for f in _flags.fields(study.config).items() if re.search("batch|chunk", f[0])]
        knobs = " or ".join(f"--{name} (now {_flags.literal(value)})" for name, value in sizes)
        return f"out of memory: try a smaller {knobs or 'config'} (traceback in {log})"
    if isinstance(error, ValueError | FileNotFoundError):
        return f"{str(error).rstrip('.')} (traceback in {log})"
    return None
