"""What the figures of studies show: lines, cells, points and pictures, not pixels."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from redlab.report.canvas import INK, figure_pixels
from redlab.report.plots import curve, embedding, heat, image_grid, roc_figure, scatter


class N(NamedTuple):
    """A number over seeds."""

    mean: float
    spread: float = 0.0


def texts(figure: Figure) -> set[str]:
    inside = {text.get_text() for axes in figure.axes for text in axes.texts}
    return inside | {text.get_text() for text in figure.texts}


def test_curve() -> None:
    lines = {"DO": {0.0: N(1, 0.5), 0.5: N(2, 0)}, "truth": {0.0: N(0), 0.5: N(3)}}
    figure = curve({"accuracy": lines, "d": {"DO": {0.5: N(7)}}}, x_title="p", truth=["truth"], title="Sweep")
    first, second = figure.axes
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in first.lines}
    assert drawn == {"DO": [[0, 1], [0.5, 2]], "truth": [[0, 0], [0.5, 3]]}
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["accuracy", "d"]
    (band,) = first.collections  # of the line that has a spread
    assert band.get_paths()[0].vertices[:, 1].max() == 2
    assert band.get_paths()[0].vertices[:, 1].min() == 0.75
    assert first.lines[1].get_color() == INK
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DO", "truth"]
    assert figure_pixels(figure).std() > 0


def test_lines_differ_in_more_than_colour() -> None:
    figure = curve({"": {name: {0: N(i), 1: N(i)} for i, name in enumerate("abcdef")}})
    looks = {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 6


def test_a_line_keeps_its_colour_in_every_panel() -> None:
    figure = curve({"x": {"A": {0: N(1)}, "B": {0: N(2)}}, "y": {"B": {0: N(3)}}})
    assert figure.axes[0].lines[1].get_color() == figure.axes[1].lines[0].get_color()


def test_places_that_are_text_stand_in_their_order() -> None:
    axes = curve({"d": {"DO": {"none": N(1), "4/255": N(2)}}}).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "4/255"]
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[0, 1], [1, 2]]


def test_heat_has_one_scale_and_says_each_number() -> None:
    table = {"pgd": {"net": N(0.25), "lenet": N(0.5)}, "cw": {"net": N(float("nan"))}}
    figure = heat({"truth": table, "estimate": {"pgd": {"net": N(0.75)}}})
    first, second = figure.axes[:2]
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.25, 0.75)
    values = np.ma.filled(first.images[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(values, [[0.25, 0.5], [np.nan, np.nan]])
    assert [text.get_text() for text in first.texts] == ["0.25", "0.5"]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["pgd", "cw"]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["net", "lenet"]
    assert heat({"": table}, low=0, high=1).axes[0].images[0].get_clim() == (0, 1)


def test_roc_says_the_area() -> None:
    step = (torch.tensor([0.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 0.5, 1.0, 1.0]))  # 0.375 + 0.5
    axes = roc_figure({"CDD-RED": step, "chance": (torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))}).axes[0]
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == ["CDD-RED (area 0.875)", "chance (area 0.500)"]
    assert np.asarray(axes.lines[1].get_xydata()).tolist() == [[0, 0], [0, 0.5], [0.5, 1], [1, 1]]


def test_scatter_names_its_points() -> None:
    figure = scatter({"Base": (N(9), N(40, 4)), "CutMix": (N(8), N(50))}, x_title="d", y_title="PA")
    (axes,) = figure.axes
    assert texts(figure) == {"Base", "CutMix"}
    assert [np.asarray(c.lines[0].get_xydata()).tolist() for c in axes.containers] == [[[9, 40]], [[8, 50]]]
    assert [c.has_yerr for c in axes.containers] == [True, False]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("d", "PA")


def test_an_embedding_has_a_colour_for_each_class() -> None:
    points, label = torch.rand(6, 2), torch.tensor([7, 2, 2, 7, 4, 2])
    figure = embedding({"attacked": (points, label), "restored": (points[:4], label[:4])}, title="t-SNE")
    first, second = figure.axes
    assert [len(axes.collections) for axes in (first, second)] == [3, 2]
    drawn = {c.get_label(): np.asarray(c.get_offsets()) for c in first.collections}
    assert np.allclose(drawn["2"], points[label == 2].numpy())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["2", "4", "7"]
    colours = {c.get_label(): tuple(c.get_facecolor()[0]) for axes in (first, second) for c in axes.collections}
    assert len(set(colours.values())) == 3
    with pytest.raises(ValueError, match="an embedding needs a panel"):
        embedding({})


def test_image_grid() -> None:
    pictures, maps = torch.zeros(2, 3, 4, 6), torch.rand(2, 1, 4, 6)
    pictures[1] = 1
    figure = image_grid({"image": pictures, "DO: y (map)": maps, "DO: y' (map)": maps}, rows=["x", "x'"], title="T")
    assert {"T", "image", "DO", "y", "y'", "x"} <= texts(figure)
    assert len(figure.axes) == 6
    shown = [axes.images[0] for axes in figure.axes]
    assert shown[0].get_array().max() == 0
    assert shown[3].get_array().min() == 255
    np.testing.assert_allclose(shown[4].get_array(), maps[1, 0])
    assert shown[4].get_clim() == (0, 1)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a line"):
        curve({})
    with pytest.raises(ValueError, match="finite number"):
        heat({"": {"a": {"b": N(float("nan"))}}})
    with pytest.raises(ValueError, match="needs one"):
        roc_figure({})
    with pytest.raises(ValueError, match="needs a point"):
        scatter({})
    with pytest.raises(ValueError, match=r"no or as many names.*and 3"):
        image_grid({"a": torch.zeros(2, 1, 4, 4)}, rows=["x"] * 3)
    with pytest.raises(ValueError, match="one length"):
        image_grid({"a": torch.zeros(2, 1, 4, 4), "b": torch.zeros(3, 1, 4, 4)})
