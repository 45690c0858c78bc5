"""The launcher that all scripts share: devices, workdir, progress, errors and the report.

A script calls ``start`` before it imports jax, so that help, a misspelt flag and a full workdir are
answered at once, and ``main`` at its end. In between it defines ``run(key, config, *, workdir=None,
writer=None, mesh=None) -> Result``, which a notebook calls without any of this.
"""

import contextlib
import json
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict

from launch import _devices, _flags, _workdir
from launch._flags import UserError
from launch._study import Result, Study

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
        _workdir.check_workdir(study, values)
        _devices.set_environment(values)
        check_config(check, study, values)
        _devices.join_processes(values)
        _started = values, study


def main(run: Callable[..., Result]) -> None:
    """Runs the study that ``start`` has read, writes its report and prints its claims."""
    values, study = _started
    with one_sentence(study.paper), interruptible(study.paper):
        mesh = _devices.make_mesh(values)
        leader = _devices.is_leader()
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


def headline(study: Study, mesh) -> str:
    """Says in one line what runs, on what, and where to."""
    import jax

    dtype = "float64" if jax.config.jax_enable_x64 else "float32"
    return (
        f"{study.paper}  config={study.label}  devices={mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}  dtype={dtype}  workdir={study.workdir}"
    )


# The run and its report.


def run_study(
    run: Callable[..., Result], study: Study, values: flags.FlagValues, mesh, *, prefix: str = ""
) -> Result:
    """Runs a study in its workdir, shows its progress and writes its report.

    Args:
      run: the paper's ``run``.
      study: what to run and where.
      values: the parsed common flags.
      mesh: the devices to run on.
      prefix: begins every line of the progress.

    Returns:
      The result; a claim without a command has the study's.
    """
    import jax
    from jax.experimental import multihost_utils

    from jaxml.io.writer import MetricsWriter
    from launch._progress import Progress

    leader = _devices.is_leader()
    if leader:
        _workdir.open_workdir(study, values, mesh)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the workdir is there")
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(_trace(values.profile_steps, study.workdir / "profile"))]
        if leader:
            watchers.append(stack.enter_context(Progress(prefix=prefix)))
        writer = MetricsWriter(
            study.workdir / "metrics.jsonl" if leader else None,
            lambda event: [watch(event) for watch in watchers],
        )
        key = jax.random.key(values.seed)
        result = run(key, study.config, workdir=study.workdir, writer=writer, mesh=mesh)
    claims = [c if c.command else c._replace(command=study.command) for c in result.claims]
    result = result._replace(claims=claims)
    if leader:
        _workdir.write_report(study.workdir, study.title, result)
    return result


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
    if _devices.is_leader():
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
