from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from report_rows import made_up

from redlab.metrics import Samples, auroc, confusion, roc, worst
from redlab.report.canvas import figure_pixels, log_figure, save_figure, to_uint8
from redlab.report.figures import (
    SHARE_COLOURS,
    accuracy_bars,
    comparison,
    confusion_map,
    roc_curves,
    training_curves,
)
from redlab.report.pictures import Caption, residual, residual_limit, restoration_grid, verdict_grid


def test_to_uint8_scales_clips_and_orders_channels() -> None:
    image = torch.zeros(3, 2, 5)
    image[0] = 1.0  # red
    image[1, 0, 0] = 0.5
    image[2, 0, 1] = 7.0
    pixels = to_uint8(image)
    assert pixels.shape == (2, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels[1, 4].tolist() == [255, 0, 0]
    assert pixels[0, 0].tolist() == [255, 128, 0]
    assert pixels[0, 1].tolist() == [255, 0, 255]
    assert to_uint8(torch.full((1, 3, 3), 0.2)).tolist() == np.full((3, 3, 3), 51).tolist()


def test_to_uint8_refuses_a_batch() -> None:
    with pytest.raises(ValueError, match="2, 1, 4, 4"):
        to_uint8(torch.zeros(2, 1, 4, 4))


def test_residual_is_grey_where_nothing_changed_and_signed_elsewhere() -> None:
    restored = torch.full((1, 1, 1, 4), 0.5)
    adv = restored + torch.tensor([0.0, 0.1, -0.1, 0.05])
    assert residual(adv, restored, 0.1).flatten().tolist() == pytest.approx([0.5, 1.0, 0.0, 0.75], abs=1e-6)


@pytest.mark.parametrize("levels", [1, 8, 32])
def test_residual_limit_is_the_budget_of_a_sign_perturbation(levels: int) -> None:
    restored = torch.full((4, 1, 8, 8), 0.5)
    sign = torch.randint(0, 2, restored.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert residual_limit(restored + sign * levels / 255, restored) == pytest.approx(levels / 255)


def test_residual_limit_without_perturbation_is_one_level() -> None:
    assert residual_limit(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)) == 1 / 255


def images_of(figure: Figure) -> list[np.ndarray]:
    """The array in each axes, in drawing order."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 16, 40), (1, 1, 8, 8)])
def test_grid_shows_clean_attacked_restored_and_their_true_residual(shape: tuple[int, ...]) -> None:
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    sign = torch.where(clean > 0.5, 1.0, -1.0)
    adv = clean + sign * 10 / 255
    shown = images_of(restoration_grid(clean, adv, clean))  # restored == clean: the residual is the true perturbation
    assert len(shown) == 4 * shape[0]
    for row in range(shape[0]):
        parts = shown[4 * row : 4 * row + 4]
        for part, images in zip(parts, (clean, adv, clean), strict=False):
            assert np.array_equal(part, to_uint8(images[row]))
        expected = np.where(sign[row].expand(3, -1, -1).permute(1, 2, 0).numpy() > 0, 255, 0)
        assert np.array_equal(parts[3], expected)


def test_grid_says_names_and_colours_predictions() -> None:
    x = torch.rand(2, 1, 8, 8)
    figure = restoration_grid(
        x,
        x,
        x,
        labels=torch.tensor([0, 1]),
        predictions=(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0, 0])),
        attacks=["fgsm", "pgd"],
        victims=["lenet", "vgg$11"],
        class_names=["cat", "do$g$"],  # dollar signs are no formulas
        title="title",
    )
    texts = {text.get_text() for text in figure.texts}
    assert {"title", "fgsm", "pgd", "on lenet", "on vgg$11", "true: cat", "true: do$g$"} <= texts
    assert "attacked − restored, ±1/255" in texts
    said = [(axes.texts[0].get_text(), axes.texts[0].get_color()) for axes in figure.axes if axes.texts]
    right, wrong = "#1a7f4b", "#c0392b"
    assert said == [
        ("cat ✓", right),
        ("do$g$ ✗", wrong),
        ("cat ✓", right),
        ("do$g$ ✓", right),
        ("do$g$ ✓", right),
        ("cat ✗", wrong),
    ]


def test_what_stands_beside_a_row_ends_before_its_pictures() -> None:
    x = torch.rand(2, 1, 8, 8)
    attacks = ["patch eps=24/255 size=16", "aware_pgd (adaptive)"]
    figure = restoration_grid(x, x, x, labels=torch.tensor([0, 1]), attacks=attacks, victims=["fashion_cnn"] * 2)
    figure_pixels(figure)
    first = min(axes.get_window_extent().x0 for axes in figure.axes)
    beside = [text.get_window_extent() for text in figure.texts if text.get_ha() == "left"]
    assert {text.get_text() for text in figure.texts} >= {"patch", "eps=24/255 size=16"}
    assert len(beside) == 8
    assert max(box.x1 for box in beside) < first


def test_grid_refuses_images_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="one shape"):
        restoration_grid(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="one shape"):
        restoration_grid(*[torch.zeros(0, 1, 4, 4)] * 3)


def test_the_grid_of_verdicts_shows_the_perturbation_and_what_was_said() -> None:
    clean = torch.full((2, 1, 8, 8), 0.5)
    adv = clean + torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) * 10 / 255
    figure = verdict_grid(
        clean,
        adv,
        labels=torch.tensor([0, 1]),
        predictions=(torch.tensor([0, 1]), torch.tensor([1, 1])),
        verdicts=[Caption("alarm, 1.50", True), Caption("pgd")],
        attacks=["fgsm", "pgd eps 4"],
        victims=["lenet", "lenet"],
        class_names=["cat", "dog"],
    )
    shown = images_of(figure)
    assert [int(part[0, 0, 0]) for part in shown] == [128, 138, 255, 128, 118, 0]
    assert "±10/255, and the defence" in {text.get_text() for text in figure.texts}
    said = [(axes.texts[0].get_text(), axes.texts[0].get_color()) for axes in figure.axes]
    right, wrong, neither = "#1a7f4b", "#c0392b", "#697586"
    assert said == [
        ("cat ✓", right), ("dog ✗", wrong), ("alarm, 1.50 ✓", right),
        ("dog ✓", right), ("dog ✓", right), ("pgd", neither),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="one shape"):
        verdict_grid(
            clean, adv[:1], labels=clean, predictions=(clean, clean), verdicts=[], attacks=[], victims=[]
        )  # fmt: skip


def heights(figure: Figure, panel: int = 0) -> dict[str, list[float]]:
    """Legend name -> heights of its bars."""
    return {
        str(bars.get_label()): [float(patch.get_height()) for patch in bars]
        for bars in figure.axes[panel].containers
        if hasattr(bars, "patches")
    }


def test_bars_are_as_high_as_the_accuracies() -> None:
    rows = made_up("restorer", attacks=("pgd",))
    figure = accuracy_bars(rows)
    clean, pgd, knows = (
        rows.where(attacked=0),
        rows.where(attacked=1, knowledge="victim"),
        rows.where(knowledge="defence"),
    )
    assert heights(figure) == {
        "clean": [part.mean("right_clean") for part in (pgd, pgd, knows, clean)],
        "attacked": [part.mean("right_attacked") for part in (pgd, pgd, knows)],
        "restored": [worst(rows).mean("right"), *(part.mean("right") for part in (pgd, pgd, knows, clean))],
    }
    ticks = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["every attacker", "all attacks", "pgd", "pgd (adaptive)", "no attack"]
    assert figure_pixels(figure).std() > 10


def test_a_bar_stands_above_the_name_of_its_attacker() -> None:
    figure = accuracy_bars(made_up("detector"))
    (bars,) = (b for b in figure.axes[0].containers if getattr(b, "get_label", str)() == "attacked")
    centres = [patch.get_x() + patch.get_width() / 2 for patch in bars]
    assert [round(x) for x in centres] == [1, 2, 3, 4]  # not 0, every attacker, and not 5, no attack
    assert all(abs(x - round(x)) < 0.01 for x in centres)  # the middle one of three


def test_bars_without_right_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="no right answers"):
        accuracy_bars(Samples({}))


def test_roc_curves_are_those_of_each_attacker_against_the_clean_rows() -> None:
    rows = made_up("detector", n=30, scores=("odds", "size"))
    figure = roc_curves(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["score odds", "score size"]
    clean, pgd = rows.where(attacked=0), rows.where(attack="pgd")
    for axes, score in zip(figure.axes, ("odds", "size"), strict=True):
        drawn = {str(line.get_label()): line for line in axes.lines[1:]}
        both = Samples.cat([clean, pgd.where(knowledge="defence")])
        line = drawn.pop(f"pgd (adaptive), {auroc(both, score):.3f}")
        false, true = roc(both, score)
        assert np.asarray(line.get_xydata()).T.tolist() == [false.tolist(), true.tolist()]
        assert line.get_linestyle() == "--"
        assert [name.split(",")[0] for name in drawn] == ["fgsm", "pgd"]
    for lacking in (
        made_up("restorer"),
        made_up("detector", clean=False),
        made_up("detector", attacks=(), adaptive=()),
    ):
        with pytest.raises(ValueError, match="a ROC curve needs"):
            roc_curves(lacking)


def test_the_confusion_map_says_shares_of_each_attack() -> None:
    rows = made_up("identifier", adaptive=(), known=("pgd", "c$w"))
    figure = confusion_map(rows)
    (axes,) = figure.axes
    counts, _, _ = confusion(rows)
    shares = counts / counts.sum(1, keepdim=True)
    assert np.allclose(np.asarray(axes.images[0].get_array()), shares)
    assert [text.get_text() for text in axes.texts] == [f"{100 * share:.0f}" for share in shares.flatten().tolist()]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["no attack", "fgsm (unseen)", "pgd"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["no attack", "pgd", r"c\$w"]
    figure_pixels(figure)


def test_curves_go_through_the_logged_points() -> None:
    rows = [
        {"step": "0", "train/loss": "2.0", "val/restored_accuracy": "", "lr-Adam": "0.1"},
        {"step": "10", "train/loss": "1.0", "val/restored_accuracy": "", "lr-Adam": "0.1"},
        {"step": "10", "train/loss": "", "val/restored_accuracy": "0.5", "val/restored_accuracy/pgd": "0.1"},
    ]
    figure = training_curves(rows)
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for axes in figure.axes for line in axes.lines}
    assert drawn == {"train/loss": [[0, 2], [10, 1]], "val/restored_accuracy": [[10, 0.5]]}
    with pytest.raises(ValueError, match="no losses"):
        training_curves([{"step": "1", "test/loss": "1"}])


def test_curves_of_every_capability_in_the_colours_of_the_bars() -> None:
    keys = ("attacked_accuracy", "defended_accuracy", "auroc", "auroc_size", "identified", "worst_accuracy", "d")
    row = {"step": "1"} | {f"val/{key}": f"0.{i}" for i, key in enumerate(keys, start=1)}
    (axes,) = training_curves([row, {"step": "2", "train/lr": "1"}]).axes
    drawn = {str(line.get_label()): line.get_color() for line in axes.lines}
    assert list(drawn) == [f"val/{key}" for key in keys[:5]]  # in validation, an image meets one attack: no worst case
    assert drawn["val/attacked_accuracy"] == SHARE_COLOURS["attacked"]
    assert drawn["val/defended_accuracy"] == SHARE_COLOURS["defended"]
    assert len(set(drawn.values())) == 5
    (axes,) = training_curves([row | {"val/restored_accuracy": "0.2"}]).axes  # the same: it has no answer but this
    assert "val/defended_accuracy" not in {line.get_label() for line in axes.lines}


def test_comparison_keeps_ours_and_the_papers_on_separate_axes() -> None:
    ours = {"d": {"A": (1.0, 0.2), "B": (2.0, 0.0)}}
    figure = comparison(ours, {"d": {"A": 10.0, "B": 30.0}}, ours_title="ours", paper_title="paper")
    above, below = figure.axes
    assert next(iter(heights(figure, 0).values())) == [1.0, 2.0]
    assert next(iter(heights(figure, 1).values())) == [10.0, 30.0]
    assert above.get_ylim()[1] < 10 < below.get_ylim()[1]
    assert (above.get_ylabel(), below.get_ylabel()) == ("ours", "paper")


class TakesImages:
    """As WandbLogger."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def log_image(self, **call: Any) -> None:
        self.seen.append(call)


class TakesArrays:
    """As TensorBoardLogger."""

    def __init__(self) -> None:
        self.experiment = self
        self.seen: list[tuple[Any, ...]] = []

    def add_image(self, *call: Any, dataformats: str) -> None:
        self.seen.append((*call, dataformats))


class TakesNone:
    """As CSVLogger."""

    experiment = object()


def test_log_figure_writes_png_and_hands_loggers_uint8(tmp_path: Path) -> None:
    first, second = TakesImages(), TakesArrays()
    figure = restoration_grid(*[torch.rand(1, 1, 8, 8)] * 3)
    path = log_figure([first, second, TakesNone()], "test/grid", figure, 7, folder=tmp_path)
    assert path == tmp_path / "test/grid.png"
    on_disk = np.asarray(Image.open(path))
    (call,) = first.seen
    assert (call["key"], call["step"]) == ("test/grid", 7)
    assert call["images"][0].dtype == np.uint8
    assert np.array_equal(call["images"][0], on_disk)
    assert on_disk.mean() > 100  # paper is white: a float picture cast to bytes would be black
    name, pixels, step, layout = second.seen[0]
    assert (name, step, layout) == ("test/grid", 7, "HWC")
    assert np.array_equal(pixels, on_disk)


def test_floats_are_refused_as_pixels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float32"):
        save_figure(np.ones((4, 4, 3), dtype=np.float32), tmp_path / "x.png")
