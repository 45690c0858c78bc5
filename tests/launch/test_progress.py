"""What is shown of a run, on a terminal and elsewhere."""

import io
import itertools
import time

import pytest

from launch._progress import Progress


def events(n, stage="train [a]", first=1):
    yield {"stage": stage, "step": None, "n_steps": n}
    for step in range(first, n + 1):
        yield {"stage": stage, "step": step, "n_steps": n, "loss": 1 / step}


@pytest.fixture
def clock(monkeypatch):
    """Two seconds pass between any two looks at the clock."""
    ticks = itertools.count(step=2.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))


def test_lines_every_few_seconds_and_at_the_end_of_a_stage(clock):
    out = io.StringIO()
    with Progress(every=5.0, file=out) as progress:
        for event in events(7):
            progress(event)
    lines = out.getvalue().splitlines()
    assert lines[0] == "train [a]: compiling"
    # Steps are 2 s apart: every third is due; half a step a second, counted from the first one.
    assert lines[1] == "train [a]: 3/7  0.5 steps/s  0:08 left  loss 0.3333"
    assert lines[2] == "train [a]: 6/7  0.5 steps/s  0:02 left  loss 0.1667"
    assert lines[3] == "train [a]: 7/7  0.5 steps/s  loss 0.1429"


def test_resumed_steps_do_not_count_as_fast(clock):
    out = io.StringIO()
    with Progress(every=0.0, file=out) as progress:
        for event in events(103, first=101):
            progress(event)
    assert "102/103  0.5 steps/s" in out.getvalue()


def test_a_stage_of_unknown_length(clock):
    out = io.StringIO()
    with Progress(every=0.0, file=out) as progress:
        progress({"stage": "search", "step": None, "n_steps": None})
        progress({"stage": "search", "step": 7, "n_steps": None, "cost": 12, "name": "x"})
    assert out.getvalue().splitlines()[1] == "search: 7  cost 12  name x"


def test_a_terminal_keeps_a_line_of_every_stage(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.undo()  # rich needs the real clock
    out = Terminal()
    with Progress(file=out) as progress:
        for event in itertools.chain(events(2), events(3, stage="match")):
            progress(event)
    assert "train [a]: 2/2" in out.getvalue() and "match: 3/3" in out.getvalue()
