"""How far a run is: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from typing import Any, TextIO


class Progress:
    """Shows the events of a ``MetricsWriter``; used as a context manager around the run.

    Says "compiling" from the announcement of a stage to its first step. Rate and time left are
    counted from that first step, so neither compilation nor resumed steps distort them.
    """

    def __init__(self, *, prefix: str = "", every: float = 5.0, file: TextIO | None = None):
        """Prepares the display.

        Args:
          prefix: begins every line, for example how many runs are done of how many.
          every: seconds between two lines where the output is no terminal.
          file: where to write, standard error by default.
        """
        from rich.console import Console

        self._prefix = prefix
        self._file = sys.stderr if file is None else file
        self._every = every
        self._console = Console(file=self._file)
        self._bar = None
        self._first = None  # (time, step) of the stage's first step
        self._printed = float("-inf")

    def __enter__(self):
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            # The text is ours in both modes; markup off, for a stage may be called "[a]".
            columns = (
                SpinnerColumn(),
                BarColumn(24),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Shows an event ``{"stage", "step", "n_steps", **scalars}``."""
        now = time.monotonic()
        step, n_steps = event["step"], event["n_steps"]
        ended = step is not None and step == n_steps
        text = self._prefix + self._text(event, now)
        if self._bar is None:
            if step is None or ended or now - self._printed >= self._every:
                print(text, file=self._file, flush=True)
                self._printed = now
        else:
            if ended:
                self._console.print(text, markup=False, highlight=False)
            self._bar.update(self._task, description=text, total=n_steps, completed=step or 0)

    def _text(self, event: dict[str, Any], now: float) -> str:
        scalars = dict(event)
        stage, step, n_steps = (scalars.pop(name) for name in ("stage", "step", "n_steps"))
        if step is None:
            self._first = None
            return f"{stage}: compiling"
        parts = [f"{stage}: {step}" + (f"/{n_steps}" if n_steps else "")]
        if self._first is None:
            self._first = (now, step)
        elif step > self._first[1] and now > self._first[0]:
            rate = (step - self._first[1]) / (now - self._first[0])
            parts.append(f"{rate:.3g} steps/s")
            if n_steps and step < n_steps:
                parts.append(f"{_duration((n_steps - step) / rate)} left")
        parts += [
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in scalars.items()
        ]
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
