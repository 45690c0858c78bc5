"""What passes between the launcher and a paper's script: a study, and its result."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict


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
