"""Probes, against closed forms on networks small enough to work out by hand."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import PGD
from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.methods import CDDRED
from redlab.probes import (
    Attribution,
    AttributionShift,
    Certification,
    Cost,
    Logits,
    PartialPerturbation,
    Resemblance,
    Revert,
    Transfer,
    gradcam,
    overlap,
)
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


# ---- undone, alike, elsewhere, certain, and at what cost ------------------------------------------------------------


class Side(nn.Module):
    """Two classes: whether the first pixel is above one half, by how much."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 10 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-lead, lead], dim=1)


class Kept:
    """A restorer that knows nothing."""

    def restore(self, x: Tensor) -> Tensor:
        return x


def test_an_attack_is_undone_within_its_budget_and_only_where_it_succeeded() -> None:
    of = batch(4, victims=1)
    of.clean[:, 0, 0, 0] = torch.tensor([0.58, 0.58, 0.6, 0.42])
    of = replace(of, adv=of.clean.clone())
    of.adv[:, 0, 0, 0] = torch.tensor([0.45, 0.3, 0.55, 0.7])  # undone by 0.1; not; no success; not
    found = Revert(settings=(("small", 0.1, 10), ("large", 0.3, 20)))(Kept(), {"net": Side()}, of, said(of))
    assert found["pa_benign_small"].tolist() == [1, 0, 1, 0]
    assert found["pa_benign_large"].tolist() == [1, 1, 1, 1]
    assert float(found["d_small"][2]) == pytest.approx(0.05)  # x' itself
    assert float(found["d_small"][0]) == pytest.approx(0.58 - 0.55)  # all of the budget, the loss falls on
    assert found["pa_adv_small"].tolist() == [1, 1, 1, 1]  # of x less what was added: 0.48, 0.48, 0.6, 0.52


def test_logits_are_those_of_the_first_victim_of_all_images() -> None:
    of = batch()
    nets = {"a": victim(0), "b": victim(1)}
    found = Logits()(Half(), nets, of, said(of))
    assert list(found) == [f"{side}_logit_{k}" for side in ("true", "red") for k in range(3)]
    with torch.no_grad():
        true, red = nets["a"](of.adv), nets["a"](of.adv / 2 + of.clean)
    torch.testing.assert_close(torch.stack([found[f"true_logit_{k}"] for k in range(3)], 1), true.double())
    torch.testing.assert_close(torch.stack([found[f"red_logit_{k}"] for k in range(3)], 1), red.double())


def test_a_perturbation_resembles_the_attack_that_it_comes_from() -> None:
    """Behind a restorer that knows the clean images, each attack is itself."""
    of = batch(6, victims=1)
    nets = {"a": victim(0), "b": victim(3)}
    attack = PGD(eps=0.1, steps=5, random_start=False)
    with torch.no_grad():
        of = replace(of, adv=attack(nets["a"], of.clean, nets["a"](of.clean).argmax(1)))

    class Oracle:
        def restore(self, x: Tensor) -> Tensor:
            return of.clean

    weak = PGD(eps=0.1, steps=1, step_size=0.01, random_start=False)
    probe = Resemblance(library=(("strong", attack), ("weak", weak)))
    found = probe(Oracle(), nets, of, Answers(restored=of.clean))
    assert set(found) == {f"cosine_{n}_{v}" for n in ("strong", "weak") for v in "ab"}
    torch.testing.assert_close(found["cosine_strong_a"], torch.ones(6, dtype=torch.float64))
    assert bool((found["cosine_strong_b"] < 0.999).all())


def test_a_map_that_stays_is_no_shift() -> None:
    of = batch()
    nets = {"a": victim(0), "b": victim(1)}
    same = AttributionShift()(Kept(), nets, of, Answers(restored=of.adv))
    assert float(same["score_attribution"].abs().max()) < 1e-6
    assert float(same["score_attribution_iou"].abs().max()) == 0
    moved = AttributionShift()(Half(), nets, of, Answers(restored=1 - of.adv))
    one, two = (gradcam(nets["b"], x[1::2], nets["b"](x[1::2]).argmax(1)) for x in (of.adv, 1 - of.adv))
    expected = 1 - F.cosine_similarity(one.flatten(1).double(), two.flatten(1).double())
    nowhere = ~(one.flatten(1).any(1) | two.flatten(1).any(1))
    torch.testing.assert_close(moved["score_attribution"][1::2], torch.where(nowhere, 0.0, expected))
    with pytest.raises(ValueError, match="threshold must be"):
        AttributionShift(threshold=0)


def test_what_is_certain_of_a_half_space_is_its_distance() -> None:
    """Of a linear classifier the smoothed one is right within exactly the distance to its boundary."""
    of = batch(4, victims=1)
    of.clean[:, 0, 0, 0] = torch.tensor([0.9, 0.2, 0.5, 0.9])
    of = replace(of, label=torch.tensor([1, 0, 1, 0]))
    nets, probe = {"net": Side()}, Certification(sigma=0.25, draws=20000)
    found = probe(Kept(), nets, of, said(of))
    assert torch.equal(found["radius"], found["radius_plain"])
    assert found["radius"].tolist() == pytest.approx([0.4, 0.3, -1, -1], abs=0.03)  # 3: no side; 4: the wrong one
    assert float(found["radius"][0]) < 0.4

    class Darker:
        def restore(self, x: Tensor) -> Tensor:
            return x - 0.2

    darker = probe(Darker(), nets, of, said(of))
    assert darker["radius"][:2].tolist() == pytest.approx([0.2, 0.5], abs=0.03)
    assert torch.equal(darker["radius_plain"], found["radius_plain"])
    with pytest.raises(ValueError, match="must be positive"):
        Certification(alpha=1.0)


def test_cost_is_of_a_step_and_of_an_estimate() -> None:
    of = batch(8)
    adam = {"optimizer": partial(torch.optim.Adam, lr=1e-3), "channels": 1, "depth": 4}
    few, many = (CDDRED(victims={"a": victim(0)}, width=width, **adam).eval() for width in (4, 64))
    found = [Cost()(method, {"a": victim(0)}, of, said(of)) for method in (few, many)]
    for name in ("step_s", "restore_s"):
        assert len({*found[0][name].tolist()}) == 1
        assert 0 < float(found[0][name][0]) < float(found[1][name][0])
    assert all(p.grad is None for p in many.parameters())
    with pytest.raises(ValueError, match="has no loss_terms"):
        Cost()(Half(), {}, of, said(of))


@pytest.mark.parametrize("probe", [AttributionShift(), Certification(), Logits(), Resemblance(library=())])
def test_probes_of_restored_images_say_so(probe: Any) -> None:
    of = batch()
    with pytest.raises(ValueError, match="the defence is no restorer"):
        probe(object(), {"a": victim(0)}, of, Answers())
