"""GRED: InSen against its closed form, the choice between two detectors, what is marked and overwritten."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import jacrev

from conftest import make_pairs, make_victim
from redlab.attacks import PGD
from redlab.batch import capabilities
from redlab.crafting.defended import surface
from redlab.methods import GRED, Rectifier
from redlab.methods.gred import LEAST, Scale, entropy, input_sensitivity, overwritten, saliency, suspects
from redlab.metrics import Samples, numbers
from redlab.victims import ImageClassifier

ADAM = partial(torch.optim.Adam, lr=1e-3)


def images(n=5, channels=1, seed=3):
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def victims(channels=1):
    return {
        name: ImageClassifier(make_victim(seed, channels=channels), num_classes=4, feature_layer="2").eval()
        for seed, name in enumerate("ab")
    }


def gred(kind=GRED, channels=1, **options):
    torch.manual_seed(0)
    options = {"width_divisor": 32} | options
    return kind(victims=victims(channels), channels=channels, image_size=8, optimizer=ADAM, **options).eval()


def answers(**odds):
    """Detectors that always say so: log p(adversarial) / p(benign)."""

    def say(value):
        return nn.Sequential(nn.Flatten(), _Always(value))

    return nn.ModuleDict({name: say(value) for name, value in odds.items()})


class _Always(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.tensor([0.0, self.value]).expand(len(x), 2)


# ---- InSen ----------------------------------------------------------------------------------------------------------


def test_insen_has_its_closed_form():
    """Eq. 6, corrected: |sum over p != m of f_p (da_p/dx - da_m/dx)|, and in the form with Term I of the paper."""
    net, x = make_victim().double(), images().double()
    z = net(x)
    slopes = torch.stack([jacrev(lambda one: net(one[None])[0])(one) for one in x])  # (B, K, C, H, W)
    m = z.argmax(1)
    rows = torch.arange(len(x))
    other = z.scatter(1, m[:, None], -torch.inf).argmax(1)
    f = z.softmax(1)
    plain = sum(f[:, p, None, None, None] * (slopes[:, p] - slopes[rows, m]) for p in range(4))
    printed = torch.zeros_like(x)
    for i in range(len(x)):
        n, a = int(other[i]), z[i]
        for p in set(range(4)) - {int(m[i]), n}:
            printed[i] += (slopes[i, p] - slopes[i, m[i]]) / (a - a[p]).exp().sum()
        term = (a[m[i]] - a[n]).exp()  # Term I
        rest = sum((a[q] - a[n]).exp() for q in range(4) if q != m[i])
        printed[i] += (slopes[i, n] - slopes[i, m[i]]) / (term + rest)
    assert torch.allclose(plain, printed, atol=1e-12)
    found = input_sensitivity(make_victim(), x.float())
    assert torch.allclose(found.double(), plain.abs(), atol=1e-6)
    assert float(found.max()) > 1e-3


def test_insen_of_an_image_does_not_depend_on_the_batch():
    net, x = make_victim(), images()
    alone = torch.cat([input_sensitivity(net, one[None]) for one in x])
    assert torch.allclose(input_sensitivity(net, x), alone, atol=1e-7)


def test_insen_anywhere():
    net, x = make_victim(), images()
    plain = input_sensitivity(net, x)
    assert not plain.requires_grad
    with torch.inference_mode():
        inside = input_sensitivity(net, x.clone())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half = input_sensitivity(net, x)
    assert torch.equal(inside, plain)
    assert torch.equal(half, plain)
    assert half.dtype == torch.float32
    assert not x.requires_grad


def test_an_attacker_can_differentiate_it_again():
    net, x = make_victim(), images(1).requires_grad_()
    (slope,) = torch.autograd.grad(input_sensitivity(net, x).log10().sum(), x)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def value(step):
        return float(input_sensitivity(net, x.detach() + step * way).double().log10().sum())

    assert float((slope * way).sum()) == pytest.approx((value(1e-3) - value(-1e-3)) / 2e-3, rel=2e-2)


def test_saliency_is_that_of_the_predicted_label():
    victim, x = victims()["a"], images()
    found = saliency(victim, x, "2")
    h = torch.tanh(victim.backbone[1](victim.backbone[0](x))).detach().requires_grad_()
    z = victim.backbone[4](victim.backbone[3](h))
    (slope,) = torch.autograd.grad(z.gather(1, z.argmax(1, keepdim=True)).sum(), h)
    plain = (h * slope).sum(1, keepdim=True).clamp(min=0).detach()
    flat = plain.flatten(1)
    low, high = flat.amin(1).view(-1, 1, 1, 1), flat.amax(1).view(-1, 1, 1, 1)
    assert torch.allclose(found, (plain - low) / (high - low), atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(saliency(victim, x.clone(), "2"), found)
    assert not victim.backbone[2]._forward_hooks


# ---- how it is scaled -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["log", "global_gain"])
def test_one_mean_and_one_deviation_of_all_that_was_seen(kind):
    scale, parts = Scale(kind), [10 ** -(6 * images(n, seed=n)) for n in (3, 5, 9)]
    for part in parts:
        scale(part)
    every = torch.cat(parts).double()
    every = (every + LEAST).log10() if kind == "log" else every
    scale.eval()
    said = scale(parts[0])
    plain = (torch.log10(parts[0].double() + LEAST) if kind == "log" else parts[0].double()) - every.mean()
    assert torch.allclose(said.double(), plain / every.std(correction=0), atol=1e-5)
    assert torch.equal(scale(parts[0]), said)
    assert torch.allclose(scale(torch.zeros(1, 1, 2, 2)), scale.least.expand(1, 1, 2, 2))


def test_raw_is_as_it_is():
    scale, x = Scale("raw"), images()
    assert torch.equal(scale(x), x)
    assert float(scale.least) == 0


def test_around_a_small_image_nothing_is_sensitive():
    method, x = gred().train(), images()
    method.opinions(x)
    seen = []
    method.detectors["sen"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method.eval().opinions(x)
    assert seen[0].shape == (5, 1, 32, 32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[12:20, 12:20] = True
    assert torch.allclose(seen[0][..., ~inside], method.scale.least.expand(1), atol=1e-4)
    assert torch.allclose(seen[0][..., 12:20, 12:20], method.scale(method.sensitivity(x)), atol=1e-4)


# ---- the detector ---------------------------------------------------------------------------------------------------


def test_parameters_of_the_paper():
    for channels, count in ((1, 9_225_858), (3, 9_227_010)):
        method = gred(channels=channels, width_divisor=1)
        for detector in method.detectors.values():
            assert sum(p.numel() for p in detector.parameters()) == count


def test_entropy_in_bits():
    sure = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, 60.0]])
    assert entropy(sure)[:2].tolist() == pytest.approx([1.0, 2 - 0.75 * math.log2(3)])
    assert 0 < float(entropy(sure)[2]) < 1e-20


@pytest.mark.parametrize(
    ("org", "sen", "said"), [(3.0, -1.0, 3.0), (-1.0, 3.0, 3.0), (-3.0, 1.0, -3.0), (2.0, -2.0, -2.0), (0.0, 0.5, 0.5)]
)
def test_the_more_confident_one_decides_and_insen_where_they_are_equal(org, sen, said):
    method = gred()
    method.detectors = answers(org=org, sen=sen)
    scores = method.adversarial_scores(images())
    assert {name: set(score.tolist()) for name, score in scores.items()} == {"gred": {said}, "org": {org}, "sen": {sen}}


def test_the_verdict_is_that_of_the_one_who_decides():
    assert gred().verdict == gred(Rectifier).verdict == "gred"
    alone = gred(decides="sen")
    alone.detectors = answers(org=3.0, sen=-1.0)
    whole, x = surface(alone, alone.classifier), images()
    assert bool((whole(x).argmax(1) < 4).all())
    assert answered(whole, x) < answered(surface(with_same(alone, "org"), alone.classifier), x)


def with_same(method, decides):
    other = gred(decides=decides)
    other.detectors = method.detectors
    return other


def answered(whole, x):
    """How often the alarm is the greatest logit."""
    return int((whole(x).argmax(1) == 4).sum())


def test_the_baseline_sees_image_and_saliency():
    method = gred(saliency_layer="2")
    seen = []
    method.detectors["sal"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    scores, x = method.adversarial_scores(images()), images()
    assert set(scores) == {"gred", "org", "sen", "sal"}
    assert torch.allclose(seen[0][:, :1, 12:20, 12:20], 2 * x - 1)
    assert torch.allclose(seen[0][:, 1:, 12:20, 12:20], 2 * saliency(victims()["a"], x, "2") - 1, atol=1e-5)


def loss_of(method, batch):
    method.log, method.log_dict = lambda *_, **__: None, lambda *_, **__: None
    return float(method.training_step(batch, 0))


def test_both_kinds_of_images_count_half():
    method, batch = gred(), make_pairs()
    method.detectors = answers(org=1.0, sen=-2.0)
    attacked = [-math.log(1 / (1 + math.exp(-odds))) for odds in (1.0, -2.0)]
    benign = [-math.log(1 / (1 + math.exp(odds))) for odds in (1.0, -2.0)]
    assert loss_of(method, batch) == pytest.approx(sum(attacked + benign) / 2, rel=1e-5)
    some = batch[torch.tensor([0, 1, 2, 4, 6])]  # one that was attacked, four that were not
    assert loss_of(method, some) == pytest.approx(sum(attacked + benign) / 2, rel=1e-5)
    none = batch[torch.tensor([0, 2])]
    assert loss_of(method, none) == pytest.approx(sum(benign) / 2, rel=1e-5)


def test_who_knows_it_attacks_classifier_and_detector_as_one():
    """Through InSen, with second derivatives: PGD on the surface lowers the odds that the attack is found."""
    method, x = gred(), images()
    whole, net = surface(method, method.classifier), method.classifier
    y = net(x).argmax(1)
    target = (y + 1) % 4
    attacked = PGD(eps=0.5, steps=20, step_size=0.05)(whole, x, y, target=target)
    blind = PGD(eps=0.5, steps=20, step_size=0.05)(net, x, y, target=target)

    def loss(x):
        return float(nn.functional.cross_entropy(whole(x), target).detach())

    assert whole(x).shape == (5, 5)
    assert loss(attacked) < loss(blind) - 1e-3
    x.requires_grad_()
    (slope,) = torch.autograd.grad(method.adversarial_scores(x)["sen"].sum(), x)
    assert float(slope.abs().sum()) > 0


# ---- the rectifier --------------------------------------------------------------------------------------------------


def test_suspects_by_hand():
    s = torch.tensor([[0.0, 1.0, 2.0, 10.0], [4.0, 4.0, 4.0, 4.0]]).view(2, 1, 2, 2)
    assert suspects(s, 0.15).flatten(1).tolist() == [[False, False, True, True], [False] * 4]
    assert suspects(s, 0.2).flatten(1).tolist()[0] == [False, False, False, True]
    assert suspects(s, 0.5, "quantile").flatten(1).tolist() == [[False, False, True, True], [True, True, False, False]]
    assert not suspects(s, 0.0, "quantile").any()
    assert bool(suspects(s, 1.0, "quantile").all())


def test_suspects_of_all_channels_of_a_place():
    s = torch.tensor([[[9.0, 0.0]], [[0.0, 1.0]]]).view(1, 2, 1, 2)
    assert suspects(s, 0.5).flatten().tolist() == [True, False, False, False]
    assert suspects(s, 0.5, per_location=True).flatten().tolist() == [True, False, True, False]
    assert suspects(s, 0.5, "quantile", per_location=True).flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize(("alpha", "share"), [(0.1, 0.74), (0.3, 0.31), (0.5, 0.10), (0.6, 0.047)])
def test_how_many_are_marked_depends_on_the_tail(alpha, share):
    """Half-normal sensitivities of 784 pixels; the shares are those of a simulation by somebody else."""
    s = torch.randn(400, 1, 28, 28, generator=torch.Generator().manual_seed(1)).abs()
    assert float(suspects(s, alpha).float().mean()) == pytest.approx(share, abs=0.01)


def test_what_is_overwritten():
    g = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(3, 1, 64, 64, generator=g)
    marked = torch.rand(x.shape, generator=g) < 0.5
    chance, noise = torch.rand(x.shape, generator=g), torch.randn(x.shape, generator=g)
    out = overwritten(x, marked, chance, noise, 0.25)
    assert torch.equal(out[~marked], x[~marked])
    changed = (out != x) & marked
    assert float(changed.float().mean()) == pytest.approx(0.125, abs=0.01)
    new = out[changed] * 255
    assert torch.allclose(new, new.round(), atol=1e-4)
    assert float(out[changed].mean()) == pytest.approx(float(x.mean()), abs=0.01)
    assert float(out[changed].std()) == pytest.approx(float(x.std()), rel=0.05)
    assert torch.equal(overwritten(x, marked, chance, noise, 0.0), x)
    dark = torch.zeros_like(x)
    assert torch.equal(overwritten(dark, dark == 0, chance, noise, 1.0), dark)


def test_the_best_checkpoint_is_that_of_the_threshold_and_not_of_the_area():
    """Scores that part both kinds of images, but all below 0: their area is 1, and no alarm is ever raised."""
    method, names = gred(), {"attack": ("clean", "pgd"), "knowledge": ("victim",), "victim": ("a",)}
    kinds = {"attack": [0, 0, 1, 1], "attacked": [0, 0, 1, 1], "knowledge": [0] * 4, "victim": [0] * 4}
    found = {}
    for what, shift in (("early", -15.0), ("late", 0.0)):
        scores = [shift - 3, shift - 2, shift + 2, shift + 3]
        rows = Samples(kinds | {"score_gred": scores, "alarm": [float(score > 0) for score in scores]}, names)
        found[what] = {f"val/{key}": value for key, value in numbers(rows).items()}
    assert found["early"]["val/auroc"] == found["late"]["val/auroc"] == 1
    assert found["early"][method.monitor] == 0.5
    assert found["late"][method.monitor] == 1


def test_a_found_image_goes_to_the_rectifier_and_the_others_to_the_classifier():
    method, x = gred(Rectifier), images(6)
    assert capabilities(method) == {"labeler"}
    assert method.monitor == "val/defended_accuracy"
    with torch.no_grad():
        method.rectifier.backbone[-1].bias.add_(5 * torch.eye(4)[2])
    said = torch.tensor([1.0, -1, 1, 1, -1, 0])
    method.adversarial_scores = lambda x: {"gred": said, "org": -said, "sen": said}
    answer, net = method.class_logits(x), method.classifier
    assert torch.equal(answer[said <= 0], net(x)[said <= 0])
    assert torch.equal(answer[said > 0], method.rectified(x)[said > 0])
    assert not torch.allclose(answer[said > 0], net(x)[said > 0])


def test_masks_are_the_same_for_every_image_and_in_every_call():
    method, x = gred(Rectifier, alpha=0.1), images(4)
    masked = method.masked(x)
    assert torch.equal(method.masked(x), masked)
    assert torch.equal(torch.cat([method.masked(one[None]) for one in x]), masked)
    assert not torch.equal(method.masked(x, 1), masked)
    assert not torch.equal(gred(Rectifier, alpha=0.1, seed=1).masked(x), masked)
    unmarked = ~suspects(method.sensitivity(x), 0.1)
    assert torch.equal(masked[unmarked], x[unmarked])


def test_several_draws_are_a_mean_of_probabilities():
    method, x = gred(Rectifier, draws=3, alpha=0.1), images(4)
    each = torch.stack([method.rectifier(method.masked(x, draw)).softmax(1) for draw in range(3)])
    assert torch.allclose(method.rectified(x).softmax(1), each.mean(0), atol=1e-6)


def test_it_starts_as_the_classifier_and_its_detector_stays():
    method, x = gred(Rectifier), images()
    assert torch.allclose(method.rectifier(x), method.classifier(x), atol=1e-5)
    assert not any(part.training for part in method.train().detectors.modules())
    assert not method.scale.training
    assert method.rectifier.training
    assert not any(p.requires_grad for p in method.detectors.parameters())
    kept = {name for name in method.state_dict() if name.startswith(("detectors.", "scale."))}
    assert kept == {name for name in gred().state_dict() if name.startswith(("detectors.", "scale."))}


def test_how_insen_is_scaled_and_how_wide_the_detector_is_count_for_the_rectifier_too():
    x = images()
    plain = gred(Rectifier).adversarial_scores(x)["sen"]
    assert not torch.allclose(gred(Rectifier, sen_scale="raw").adversarial_scores(x)["sen"], plain)
    assert not torch.allclose(gred(Rectifier, width_divisor=16).adversarial_scores(x)["sen"], plain)


def test_colours_of_a_place_are_overwritten_together_where_asked():
    x = images(2, channels=3)
    apart, together = (gred(Rectifier, channels=3, per_location=how, alpha=0.2) for how in (False, True))
    assert not torch.equal(apart.masked(x), together.masked(x))
    marked = suspects(together.sensitivity(x), 0.2, per_location=True)
    assert torch.equal(marked[:, 0], marked[:, 2])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GRED, {"sen_scale": "linear"}, "sen_scale must be one of"),
        (GRED, {"decides": "sal"}, r"decides must be one of \('gred', 'org', 'sen'\), got 'sal'"),
        (GRED, {"victim": "c"}, r"victim must be one of \['a', 'b'\], got 'c'"),
        (Rectifier, {"mask": "top"}, "mask must be one of"),
        (Rectifier, {"alpha": 1.5}, r"in \[0, 1\], got 1.5 and 0.5"),
        (Rectifier, {"probability": -0.1}, "got 0.4 and -0.1"),
        (Rectifier, {"duplicates": 0}, "at least 1, got 0 and 1"),
        (Rectifier, {"draws": 0}, "at least 1, got 10 and 0"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        gred(kind, **options)
