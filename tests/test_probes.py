"""Probes, against closed forms on networks small enough to work out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.probes import Attribution, PartialPerturbation, Transfer, gradcam, overlap
from redlab.victims import Victim


class Backbone(nn.Module):
    """Features, a ReLU in place after them, global average pooling, a linear head."""

    def __init__(self, channels: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 2, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def victim(seed: int = 0, layer: str = "relu", **settings) -> Victim:
    torch.manual_seed(seed)
    return Victim(Backbone(), num_classes=3, feature_layer=layer, **settings)


def batch(n: int = 6, victims: int = 2, seed: int = 1) -> AttackBatch:
    g = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, 1, 8, 8, generator=g)
    adv = (clean + 0.3 * torch.randn(n, 1, 8, 8, generator=g)).clamp(0, 1)
    zeros = torch.zeros(n, dtype=torch.int64)
    return AttackBatch(
        clean=clean, adv=adv, label=zeros, attack=zeros + 1, setting=zeros, victim=torch.arange(n) % victims,
        knowledge=zeros, target=zeros - 1, index=torch.arange(n), valid=zeros == 0, attacked=zeros == 0,
    )  # fmt: skip


class Half:
    """A restorer that halves the image."""

    def restore(self, x: Tensor) -> Tensor:
        return x / 2


def said(of: AttackBatch) -> Answers:
    return Answers(restored=of.adv / 2)


def test_gradcam_of_a_linear_head_on_pooled_features() -> None:
    """The logit is sum_k w_k mean(A_k): each channel's weight is w_k / (h w)."""
    net, x, classes = victim(), batch().clean, torch.tensor([0, 1, 2, 0, 1, 2])
    features = net.backbone.conv(x).relu()
    weights = net.backbone.head.weight[classes] / 16
    maps = torch.einsum("bk,bkhw->bhw", weights, features).relu()[:, None]
    expected = F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradcam(net, x, classes), expected)


def test_gradcam_before_a_relu_in_place_keeps_the_layers_own_output() -> None:
    net, x, classes = victim(layer="conv"), batch().clean, torch.tensor([0, 1, 2, 0, 1, 2])
    features = net.backbone.conv(x)
    weights = net.backbone.head.weight[classes] / 16 * (features > 0).float().mean((2, 3))
    maps = torch.einsum("bk,bkhw->bhw", weights, features).relu()[:, None]
    torch.testing.assert_close(
        gradcam(net, x, classes), F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    )


def test_gradcam_of_a_padded_image_is_cut_to_the_image() -> None:
    x, classes = batch().clean, torch.zeros(6, dtype=torch.int64)
    padded = F.pad(x, (2, 2, 2, 2))
    whole = gradcam(victim(), padded, classes)
    torch.testing.assert_close(gradcam(victim(input_size=12), x, classes), whole[..., 2:10, 2:10])


def test_gradcam_works_where_there_are_no_gradients_and_leaves_nothing_behind() -> None:
    net, classes = victim(), torch.zeros(6, dtype=torch.int64)
    expected = gradcam(net, batch().clean, classes)
    with torch.inference_mode():
        inside = batch().clean.clone()
        torch.testing.assert_close(gradcam(net, inside, classes.clone()), expected)
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_gradcam_needs_positions() -> None:
    with pytest.raises(ValueError, match=r"'head' of victim 'net' has an output \(6, 3\)"):
        gradcam(victim(layer="head", name="net"), batch().clean, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="no layer 'con'"):
        gradcam(victim(name="net"), batch().clean, torch.zeros(6, dtype=torch.int64), layer="con")


def test_overlap() -> None:
    a = torch.tensor([[1.0, 0.6, 0.4, 0.0], [0, 0, 0, 0], [0, 0, 0, 0], [8, 0, 0, 0]]).reshape(4, 1, 2, 2)
    b = torch.tensor([[9.0, 0.0, 5.0, 0.0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]).reshape(4, 1, 2, 2)
    assert overlap(a, b, 0.5).nan_to_num(-1).tolist() == pytest.approx([1 / 3, 0, -1, 0])
    assert overlap(a, b, 0.4)[0] == pytest.approx(2 / 3)


def test_attribution_of_each_rows_own_victim() -> None:
    rows, nets = batch(), {"a": victim(0), "b": victim(5)}
    found = Attribution()(Half(), nets, rows, said(rows))
    assert {len(values) for values in found.values()} == {6}
    assert {name: tuple(v.shape[1:]) for name, v in found.items() if name == "clean"} == {"clean": (1, 8, 8)}
    readded = rows.adv - rows.adv / 2 + rows.clean
    for n, net in enumerate(nets.values()):
        mine = rows.victim == n
        y, y_adv = (net(images[mine]).argmax(1) for images in (rows.clean, rows.adv))
        maps = [gradcam(net, images[mine], y_adv) for images in (readded, rows.adv)]
        torch.testing.assert_close(found["iou_readded_y'"][mine], overlap(*maps, 0.5), equal_nan=True)
        maps = [gradcam(net, images[mine], y) for images in (rows.adv / 2, rows.clean)]
        torch.testing.assert_close(found["iou_restored_y"][mine], overlap(*maps, 0.5), equal_nan=True)
    estimates = torch.cat([found[f"cam_{i}_{c}"] for i in ("restored", "readded") for c in ("y", "y'")], dim=1)
    assert estimates.amax((1, 2, 3)).max() == 1  # of the row's four maps, not of each
    assert estimates.min() >= 0


def test_attribution_of_a_perfect_restorer_is_the_truth() -> None:
    rows, nets = batch(), {"a": victim(0), "b": victim(5)}
    found = Attribution()(Half(), nets, rows, Answers(restored=rows.clean))
    for name in ("iou_restored_y", "iou_restored_y'", "iou_readded_y", "iou_readded_y'"):
        assert set(found[name][~found[name].isnan()].tolist()) == {1.0}


def test_transfer_says_whose_answer_changes() -> None:
    rows, nets = batch(), {"a": victim(0), "b": victim(5)}
    found = Transfer()(Half(), nets, rows, said(rows))
    assert set(found) == {"changed_a", "changed_red_a", "changed_b", "changed_red_b"}
    readded = rows.adv / 2 + rows.clean
    for name, net in nets.items():
        truth = net(rows.clean).argmax(1)
        assert found[f"changed_{name}"].tolist() == (net(rows.adv).argmax(1) != truth).double().tolist()
        assert found[f"changed_red_{name}"].tolist() == (net(readded).argmax(1) != truth).double().tolist()
    assert set(Transfer()(None, nets, rows, Answers())) == {"changed_a", "changed_b"}


def test_a_share_of_the_perturbation() -> None:
    rows, nets = batch(), {"a": victim(0), "b": victim(5)}
    found = PartialPerturbation(shares=(0.0, 0.5, 1.0))(Half(), nets, rows, said(rows))
    assert set(found["true_accuracy_0"].tolist()) == {1.0}
    assert set(found["true_success_1"].tolist()) == {1.0}
    assert found["true_pixel_d_0"].tolist() == [0] * 6
    torch.testing.assert_close(found["true_pixel_d_1"], (rows.adv - rows.clean).flatten(1).double().norm(dim=1))
    torch.testing.assert_close(found["pixel_d_1"], (rows.adv / 2).flatten(1).double().norm(dim=1))
    half = rows.clean + 0.5 * (rows.adv - rows.clean)
    red = half - half / 2 + rows.clean
    b = rows.victim == 1
    expected = (nets["b"](red[b]) - nets["b"](rows.clean[b])).double().norm(dim=1)
    torch.testing.assert_close(found["logit_d_0.5"][b], expected, atol=1e-6, rtol=1e-5)


def test_wrong_input_is_refused() -> None:
    rows, nets = batch(), {"a": victim(0), "b": victim(5)}
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        Attribution(threshold=0)
    with pytest.raises(ValueError, match=r"shares must be in \[0, 1\]"):
        PartialPerturbation(shares=(2.0,))
    for probe in (Attribution(), PartialPerturbation()):
        with pytest.raises(ValueError, match="no restorer"):
            probe(None, nets, rows, Answers())
    with pytest.raises(ValueError, match=r"'b' must be a redlab\.victims\.Victim, got Backbone"):
        Attribution()(Half(), {"a": victim(), "b": Backbone()}, rows, said(rows))
