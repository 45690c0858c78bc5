"""Figures hold the arrays they were given, look the same everywhere and leave no state."""

import sys

import numpy as np
import pytest

from jaxml import report
from jaxml.report import plots

X = np.linspace(0, 1, 5)


def test_lines_draws_what_it_is_given():
    figure = report.lines(
        {"a": (X, 2 + X, 0.1 + X), "b": (list(X), list(X))},
        xlabel="lambda",
        ylabel="loss",
        title="Barrier",
        ylog=True,
    )
    (axes,) = figure.axes
    a, b = axes.get_lines()
    np.testing.assert_array_equal(a.get_xydata(), np.stack([X, 2 + X], 1))
    np.testing.assert_array_equal(b.get_xydata(), np.stack([X, X], 1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("lambda", "loss")
    assert axes.get_title(loc="left") == "Barrier"
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(1.9) and edges.max() == pytest.approx(4.1)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"]


def test_a_label_looks_the_same_in_every_panel_and_no_two_look_alike():
    import matplotlib

    looks = matplotlib.rc_params_from_file(plots.STYLE)["axes.prop_cycle"].by_key()
    # Apart by colour alone, and by dash alone.
    assert all(len({str(value) for value in values}) == 7 for values in looks.values())
    labels = [f"method {i}" for i in range(7)]
    frames = {
        "train loss": {label: (X, X * i) for i, label in enumerate(labels)},
        "test loss": {label: (X, X * i) for i, label in enumerate(reversed(labels))},
        "accuracy": {"method 3": (X, X)},
    }
    ylabel = {"train loss": "nats", "test loss": "nats", "accuracy": "%"}
    figure = report.panels(frames, xlabel="epoch", ylabel=ylabel, title="All", share_y=False)
    drawn = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_ylabel() for axes in drawn] == ["nats", "nats", "%"]
    colors = {(line.get_label(), line.get_color()) for a in drawn for line in a.get_lines()}
    assert colors == set(zip(labels, looks["color"], strict=True))
    assert len(figure.legends[0].get_texts()) == len(labels)


def test_a_figure_is_a_png_in_files_and_notebooks_without_pyplot():
    figure = report.lines({"": (X, X)}, xlabel="x", ylabel="y")
    assert figure.axes[0].get_legend() is None
    assert report.to_png(figure).startswith(b"\x89PNG") and figure._repr_png_()[:4] == b"\x89PNG"
    assert "matplotlib.pyplot" not in sys.modules
    import matplotlib

    assert matplotlib.rcParams["axes.spines.top"]  # the style is not left switched on


def test_few_places_on_a_logarithmic_axis_are_named():
    figure = report.lines({"a": ([32, 64, 512], [1, 2, 3])}, xlabel="x", ylabel="y", xlog=True)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["32", "64", "512"]
    many = {"a": (np.arange(1, 21), np.arange(20))}
    (axes,) = report.lines(many, xlabel="x", ylabel="y", xlog=True).axes
    assert len(axes.get_xticklabels()) < 20


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ({}, "must hold at least one curve"),
        ({"a": (X, X[1:])}, r"'a' must be .* got shapes \[\(5,\), \(4,\)\]"),
        ({"a": (X,)}, "'a' must be"),
        ({"a": (X[None], X[None])}, "'a' must be"),
        ({"a": (X, X, X, X)}, "'a' must be"),
    ],
)
def test_bad_series(series, words):
    with pytest.raises(ValueError, match=words):
        report.lines(series, xlabel="x", ylabel="y")


def test_no_panel():
    with pytest.raises(ValueError, match="at least one entry"):
        report.panels({}, xlabel="x", ylabel="y")


def test_a_grid_shows_every_pixel_as_it_is():
    grey, colour = np.random.default_rng(0).uniform(size=(2, 3, 4, 5, 3))
    figure = report.image_grid(
        {"one": grey[..., :1], "two": colour[:2]}, labels={"two": ["first", "second"]}, title="All"
    )
    shown = [[image.get_array() for image in axes.get_images()] for axes in figure.axes]
    assert [len(images) for images in shown] == [1, 1, 1, 1, 1, 0]
    for i in range(3):
        np.testing.assert_array_equal(shown[i][0], grey[i, ..., 0])
    for i in range(2):
        np.testing.assert_array_equal(shown[3 + i][0], colour[i])
    assert [axes.get_title(loc="left") for axes in figure.axes[3:]] == ["first", "second", ""]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["one", "two"]
    assert report.to_png(figure).startswith(b"\x89PNG")
    for bad in (np.zeros((0, 4, 4)), np.zeros((4, 4)), np.zeros((2, 4, 4, 2))):
        with pytest.raises(ValueError, match="row 'bad' must hold images"):
            report.image_grid({"bad": bad})
    with pytest.raises(ValueError, match="rows must hold at least one entry"):
        report.image_grid({})
