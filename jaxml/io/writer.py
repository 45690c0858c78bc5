"""Metrics as JSON lines: one line a step, readable while the run goes on."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any


class MetricsWriter:
    """Appends ``{"stage", "step", "n_steps", **scalars}`` lines and tells whoever watches.

    Without a path and without a watcher it is silent, which is what a notebook gets. A run that is
    killed and resumed goes on in the same file: steps after the last checkpoint then stand there
    twice, the later line being the valid one.
    """

    def __init__(
        self,
        path: str | pathlib.Path | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ):
        """Opens nothing yet.

        Args:
          path: file to append to; a last line torn by a kill is dropped. None writes no file.
          on_event: called with the line's dict at every step, and with ``step=None`` when a stage
            is announced.
        """
        self._path = None if path is None else pathlib.Path(path)
        self._on_event = on_event or (lambda event: None)
        self._stage, self._n_steps = "run", None
        if self._path is not None and self._path.exists():
            text = self._path.read_bytes()
            if not text.endswith(b"\n"):
                self._path.write_bytes(text[: text.rfind(b"\n") + 1])

    def stage(self, name: str, n_steps: int | None = None) -> None:
        """Announces a stage; its first step usually waits for a compilation.

        Args:
          name: what is going on, for example ``"train model A"``.
          n_steps: the step that ends the stage, or None when that is not known.

        Raises:
          ValueError: ``n_steps`` is not positive.
        """
        if n_steps is not None and n_steps < 1:
            raise ValueError(f"n_steps must be positive, got {n_steps}")
        self._stage, self._n_steps = name, n_steps
        self._on_event({"stage": name, "step": None, "n_steps": n_steps})

    def step(self, step: int, **scalars: Any) -> None:
        """Records scalars after ``step`` steps of the stage, counted from 1.

        Args:
          step: steps done so far.
          **scalars: numbers or zero-dimensional arrays; one that is not finite is written as null.

        Raises:
          ValueError: a value is not a scalar, or is called ``stage`` or ``n_steps``.
        """
        line: dict[str, Any] = {"stage": self._stage, "step": int(step), "n_steps": self._n_steps}
        for name, value in scalars.items():
            if name in line:
                raise ValueError(f"a scalar may not be called {name!r}, which every line has")
            if getattr(value, "shape", ()) != ():
                raise ValueError(f"{name} must be a scalar, got an array of shape {value.shape}")
            line[name] = value.item() if hasattr(value, "item") else value
        if self._path is not None:
            finite = {k: None if _not_finite(v) else v for k, v in line.items()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._on_event(line)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
