"""Figures from plain arrays. No pyplot state: a figure is a value, in scripts and notebooks."""

import functools
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

Series = Mapping[str, Sequence]
"""``{label: (x, y)}`` or ``{label: (x, y, err)}``, arrays ``[n]``; a band is ``y ± err``."""

STYLE = pathlib.Path(__file__).with_name("jaxml.mplstyle")


def lines(
    series: Series,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    xlog: bool = False,
    ylog: bool = False,
    size: tuple[float, float] = (5.2, 3.4),
):
    """Draws curves in one frame, with a band around those that carry an error.

    Args:
      series: ``{label: (x, y)}`` or ``{label: (x, y, err)}``, arrays ``[n]``.
      xlabel: text of the horizontal axis, with its unit.
      ylabel: text of the vertical axis.
      title: text above the frame.
      xlog: logarithmic horizontal axis.
      ylog: logarithmic vertical axis.
      size: width and height in inches.

    Returns:
      A ``matplotlib.figure.Figure``; ``fig.axes[0]`` is there for finishing touches.

    Raises:
      ValueError: no series, or one whose arrays are not of one shape ``[n]``.
    """
    return panels({title: series}, xlabel=xlabel, ylabel=ylabel, xlog=xlog, ylog=ylog, size=size)


def panels(
    frames: Mapping[str, Series],
    *,
    xlabel: str,
    ylabel: str | Mapping[str, str],
    title: str = "",
    xlog: bool = False,
    ylog: bool = False,
    n_columns: int = 2,
    share_y: bool = False,
    size: tuple[float, float] = (4.0, 3.0),
):
    """Draws small multiples; a label has one colour and dash in all frames, and one legend entry.

    Args:
      frames: ``{frame title: series}``, each as in :func:`lines`.
      xlabel: text of the horizontal axes.
      ylabel: text of the vertical axes, or ``{frame title: text}``.
      title: text above the whole figure.
      xlog: logarithmic horizontal axes.
      ylog: logarithmic vertical axes.
      n_columns: frames side by side.
      share_y: one vertical scale for all frames.
      size: width and height of a frame in inches.

    Returns:
      A ``matplotlib.figure.Figure`` with a frame per entry, row by row.

    Raises:
      ValueError: no frame, no series in one, or arrays that are not of one shape ``[n]``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not frames:
        raise ValueError("frames must hold at least one entry, got none")
    frames = {name: _checked(series, name) for name, series in frames.items()}
    n_columns = min(n_columns, len(frames))
    n_rows = -(-len(frames) // n_columns)
    labels = list(dict.fromkeys(label for series in frames.values() for label in series))
    with matplotlib.rc_context(fname=STYLE):
        looks = list(matplotlib.rcParams["axes.prop_cycle"])
        look = {label: looks[i % len(looks)] for i, label in enumerate(labels)}
        figure = Figure(figsize=(size[0] * n_columns, size[1] * n_rows), layout="constrained")
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=share_y).ravel()
        handles = {}
        for axes, (name, series) in zip(grid, frames.items(), strict=False):
            for label, (x, y, err) in series.items():
                marker = "o" if x.size <= 30 else ""
                (handles[label],) = axes.plot(x, y, label=label, marker=marker, **look[label])
                if err is not None:
                    color = look[label]["color"]
                    axes.fill_between(x, y - err, y + err, color=color, alpha=0.18, linewidth=0)
            axes.set(
                title=name,
                xlabel=xlabel,
                ylabel=ylabel if isinstance(ylabel, str) else ylabel[name],
                xscale="log" if xlog else "linear",
                yscale="log" if ylog else "linear",
            )
            ticks = np.unique(np.concatenate([x for x, _, _ in series.values()]))
            if xlog and ticks.size <= 8:  # widths or sample sizes: name them, not powers of ten
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.set_xticks([], minor=True)
        for axes in grid[len(frames) :]:
            axes.set_visible(False)
        if len(frames) == 1:
            if any(labels):
                grid[0].legend()
        else:
            n_legend = min(len(labels), 2 * n_columns)
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=n_legend)
            figure.suptitle(title)
    # Notebooks show a value through this method; without pyplot nothing else would draw it.
    figure._repr_png_ = functools.partial(to_png, figure)
    return figure


def image_grid(
    rows: Mapping[str, np.ndarray],
    *,
    title: str = "",
    labels: Mapping[str, Sequence[str]] | None = None,
    size: float = 0.8,
):
    """Draws images in rows, pixels as they are.

    Args:
      rows: ``{row label: images}``, each ``[k, h, w]`` or ``[k, h, w, c]`` with 1 or 3 channels, in
        [0, 1]; rows may differ in length.
      title: text above the grid.
      labels: ``{row label: k texts}``, printed above the images of that row.
      size: side of an image in inches.

    Returns:
      A ``matplotlib.figure.Figure``.

    Raises:
      ValueError: no row, or images of another shape.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("rows must hold at least one entry, got none")
    shown = {}
    for name, images in rows.items():
        images = np.asarray(images, float)
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        if images.ndim not in (3, 4) or not len(images) or images.shape[3:] not in ((), (3,)):
            raise ValueError(
                f"row {name!r} must hold images [k, h, w] or [k, h, w, 1 or 3], got shape "
                f"{np.shape(rows[name])}"
            )
        shown[name] = images
    n_columns = max(map(len, shown.values()))
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure(figsize=(size * n_columns + 1.2, size * len(shown) + 0.5))
        figure.set_layout_engine("constrained")
        grid = figure.subplots(len(shown), n_columns, squeeze=False)
        for axes_row, (name, images) in zip(grid, shown.items(), strict=True):
            for i, axes in enumerate(axes_row):
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                axes.spines[:].set_visible(False)
                if i < len(images):
                    axes.imshow(images[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                    if labels and name in labels:
                        axes.set_title(labels[name][i], fontsize="x-small")
            axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        figure.suptitle(title)
    figure._repr_png_ = functools.partial(to_png, figure)
    return figure


def to_png(figure) -> bytes:
    """Renders a matplotlib figure, ours or any other, to the bytes of a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with matplotlib.rc_context(fname=STYLE):
        FigureCanvasAgg(figure).print_figure(buffer, format="png")
    return buffer.getvalue()


def _checked(series: Series, frame: str) -> dict[str, tuple]:
    """Returns ``{label: (x, y, err or None)}`` as float arrays ``[n]``."""
    if not series:
        raise ValueError(f"series of frame {frame!r} must hold at least one curve, got none")
    checked = {}
    for label, arrays in series.items():
        arrays = [np.asarray(a, float) for a in arrays]
        shapes = [a.shape for a in arrays]
        if len(arrays) not in (2, 3) or len(set(shapes)) != 1 or arrays[0].ndim != 1:
            raise ValueError(
                f"series {label!r} must be (x, y) or (x, y, err), arrays of one shape [n], "
                f"got shapes {shapes}"
            )
        checked[label] = (*arrays, None)[:3]
    return checked
