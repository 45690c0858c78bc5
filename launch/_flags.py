"""The command line of every script: the launcher's flags, and a config whose fields are flags too.

Nothing here imports jax, so help and typing errors are answered at once.
"""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import os
import pathlib
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import configs

_ROOT = pathlib.Path(__file__).resolve().parents[1]


class UserError(Exception):
    """A mistake of the caller's, told in one sentence without a traceback; exit code 2."""


# Flags.


def common_flags(workdir: str) -> flags.FlagValues:
    """Defines the flags that every run has; ``workdir`` is the default of ``--workdir``."""
    values = flags.FlagValues()
    values.set_gnu_getopt()

    def define(kind, name, default, *args, **kwargs):
        getattr(flags, f"DEFINE_{kind}")(name, default, *args, flag_values=values, **kwargs)

    define("string", "workdir", workdir, "folder for everything that the run writes")
    define("boolean", "resume", False, "go on with the run that is in the workdir")
    define("boolean", "overwrite", False, "empty the workdir of its earlier run first")
    define("integer", "seed", 0, "seed of the run's key", lower_bound=0)
    define("string", "data_dir", None, "where tensorflow-datasets keeps the sets it has prepared")
    define("boolean", "download", False, "prepare the data set over the network if it is missing")
    define("enum", "platform", "auto", ["auto", "cpu", "gpu", "tpu"], "where to compute")
    define("integer", "num_devices", None, "how many devices; CPU makes them up", lower_bound=1)
    define("boolean", "x64", False, "compute in float64 where nothing else is said")
    define(
        "string",
        "cache_dir",
        os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/jaxml"),
        "where compiled programs are kept; empty keeps none",
    )
    define(
        "integer", "profile_steps", 0, "trace that many steps into workdir/profile", lower_bound=0
    )
    define(
        "boolean",
        "distributed",
        False,
        "join the other processes first: those that Slurm, Open MPI, Kubernetes or Cloud TPU has "
        "started, else those of JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; "
        "--num_devices then counts for each of them",
    )
    define("boolean", "help", False, "print this and stop", short_name="h")
    return values


def parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses ``argv``, program name first, and returns the arguments that are no flag of these.

    Raises:
      UserError: a flag has a value that it cannot take.
    """
    try:
        return values(argv, known_only=True)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error


def refuse(argument: str, names: Iterable[str]) -> None:
    """Raises the UserError for an argument that nobody knows, with the nearest of the names."""
    if not argument.startswith("-"):
        raise UserError(f"{argument!r} is no flag: arguments have the form --name=value")
    name = argument.lstrip("-").partition("=")[0]
    # "--config.a" is how a field is written in full, and no reason for another suggestion.
    near = did_you_mean(name.removeprefix("config."), names)
    raise UserError(f"there is no flag --{name}{near or '; --help lists them'}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean a or b?" for the nearest names, or nothing; dotted ones by tail."""
    names = list(names)
    tails: dict[str, list[str]] = {}
    for known in names:
        tails.setdefault(known.rpartition(".")[2], []).append(known)
    near = [known for known in names if known.startswith(f"{name}.")]
    near += difflib.get_close_matches(name, names)
    for tail in difflib.get_close_matches(name.rpartition(".")[2], tails):
        near += tails[tail]
    near = list(dict.fromkeys(near))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def help_text(doc: str, values: flags.FlagValues, paper: str | None = None) -> str:
    """Writes the answer to ``--help``: docstring, configs and their fields (of a paper), flags."""
    parts = [doc.strip()]
    if paper is not None:
        parts += ["", f"configs (--config=NAME, {values['config'].default} by default):"]
        for path in config_files(paper):
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            parts.append(_entry(path.stem, about.partition("\n")[0]))
        # A wrong --config is no reason to refuse help.
        with contextlib.suppress(UserError):
            config, label = load_config(paper, values.config)
            parts += ["", f"config fields, each of them a flag (with the values of {label}):"]
            parts += [f"  --{name}={literal(value)}" for name, value in fields(config).items()]
    parts += ["", "flags:"]
    for name in values:
        flag = values[name]
        if name == flag.name:  # and not its one-letter form
            form = f"--[no]{name}" if flag.boolean else f"--{name}=..."
            default = f" ({flag.default})" if flag.default not in (None, False) else ""
            parts.append(_entry(form, flag.help + default))
    return "\n".join(parts)


def _entry(term: str, text: str) -> str:
    return textwrap.fill(
        f"{term:<22} {text}", 100, initial_indent="  ", subsequent_indent=" " * 25
    ).rstrip()


# Configs.


def load_config(paper: str, spec: str) -> tuple[ConfigDict, str]:
    """Loads a config by name (``digits``) or by file (``path/to/file.py``), either with ``:arg``.

    Args:
      paper: folder of ``configs`` in which names are looked up.
      spec: the value of ``--config``.

    Returns:
      The locked config and the shortest spec that names it.

    Raises:
      UserError: there is no such config, or it does not take such an argument.
    """
    name, colon, argument = spec.partition(":")
    files = {path.stem: path for path in config_files(paper)}
    if name in files:
        path = files[name]
    elif name.endswith(".py"):
        # From the repository's root too: the commands in the documentation work from anywhere.
        path = next((p for p in (pathlib.Path(name), _ROOT / name) if p.is_file()), None)
        if path is None:
            raise UserError(f"--config: there is no file {name}")
        if path.resolve() == files.get(path.stem):
            name = path.stem
    else:
        near = did_you_mean(name, files) or f"; there are {', '.join(files) or 'none'}"
        raise UserError(f"--config: {paper} has no config {name!r}{near}")
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} defines no get_config()")
    arguments = [argument] if colon else []
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        takes = "no argument" if colon else f"an argument, as in --config={name}:ARG"
        raise UserError(f"--config: get_config() of {path} takes {takes}") from None
    try:
        config = module.get_config(*arguments)
    except ValueError as error:
        raise UserError(f"--config={spec}: {error}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"--config: get_config() of {path} must return a ConfigDict, not a {kind}")
    return config.lock(), f"{name}{colon}{argument}"


def config_files(paper: str) -> list[pathlib.Path]:
    """Lists the config files of a paper by name."""
    folder = pathlib.Path(configs.__file__).resolve().parent / paper
    return sorted(path for path in folder.glob("*.py") if path.stem != "__init__")


def fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a config to ``{"optimizer.lr": value}``."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat.update(fields(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def literal(value: Any) -> str:
    """Writes a field's value the way the command line takes it."""
    if isinstance(value, tuple) and all(isinstance(v, int | float | str) for v in value):
        return shlex.quote(",".join(map(str, value)) or "()")
    return shlex.quote(str(value))


def override(config: ConfigDict, arguments: Sequence[str], flag_names: Iterable[str]) -> list[str]:
    """Sets the config fields that the command line names.

    Args:
      config: locked config, changed in place.
      arguments: what ``parse`` has left over: ``--width=64``, ``--width 64``,
        ``--config.width=64``, ``--shuffle`` and ``--noshuffle`` are all understood.
      flag_names: the launcher's flags, as candidates for a misspelt argument.

    Returns:
      The settings as ``["--width=64"]``.

    Raises:
      UserError: no such field, or a value of another type.
    """
    known, left, settings = fields(config), list(arguments), []
    while left:
        argument = left.pop(0)
        name, equals, text = argument.lstrip("-").partition("=")
        name = name.removeprefix("config.")
        negated = name.removeprefix("no")
        if not argument.startswith("-"):
            refuse(argument, known)
        elif name not in known and not equals and isinstance(known.get(negated), bool):
            name, text = negated, "false"
        elif name not in known:
            refuse(argument, [*known, *flag_names])
        elif not equals and isinstance(known[name], bool):
            text = "true"
        elif not equals:
            if not left:
                raise UserError(f"--{name} needs a value, as in --{name}={literal(known[name])}")
            text = left.pop(0)
        _set_field(config, name, text)
        settings.append(f"--{name}={text}")
    return settings


def _set_field(config: ConfigDict, name: str, text: str) -> None:
    """Sets one field from text, by ml_collections' parser for the type that the field has."""
    before = fields(config)[name]
    if isinstance(before, tuple) and before and all(isinstance(v, str) for v in before):
        # Words need no quotes of their own; ml_collections would take "a,b" for one word.
        text = text if text.startswith(("(", "[")) else repr(tuple(text.split(",")))
    values = flags.FlagValues()
    argv = ["", f"--config.{name}={text}"]
    try:
        # Parsing the flag is what writes into the config.
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        kind = "another type" if before is None else type(before).__name__
        raise UserError(f"--{name} must be {kind}, got {text!r}") from error
    # ml_collections takes a tuple of anything; here its elements keep their type.
    if isinstance(before, tuple) and len({type(v) for v in before}) == 1:
        kind = type(before[0])
        after = fields(config)[name]
        if any(type(v) is not kind and (type(v), kind) != (int, float) for v in after):
            raise UserError(f"--{name} must be a tuple of {kind.__name__}, got {text!r}")
        config.update_from_flattened_dict({name: tuple(map(kind, after))})
