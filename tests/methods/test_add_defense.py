"""ADD-Defense and APE-GAN: losses against a transcription, networks, who learns from what."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from conftest import make_pairs
from redlab.batch import AttackBatch
from redlab.methods import APEGAN, ADDDefense
from redlab.methods.add_defense import (
    ClassHead,
    PerturbationDiscriminator,
    confused_loss,
    domain_weights,
    label_loss,
    literal_loss,
    mmd_loss,
    moment_prior_loss,
    prior_loss,
    restoration_loss,
    specific_loss,
)
from redlab.methods.ape_gan import Discriminator, Generator
from redlab.methods.purifying import with_targets
from redlab.nn import Decoder, Encoder, Frame, ImageDiscriminator, deception_loss, real_or_fake_loss
from reference import add_defense as reference

NAMES = ("clean", "pgd_u", "pgd_t")
DOMAIN = torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 0])  # of 4, 3 and 2 images
WEIGHTS = domain_weights(DOMAIN, 3)


def drawn(*shape, seed=0):
    return torch.randn(len(DOMAIN), *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_domain(values):
    return [values[k == DOMAIN].tolist() for k in range(3)]


def same(ours, theirs):
    assert float(ours) == pytest.approx(theirs, rel=1e-6)


def make(method=ADDDefense, **options):
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=1e-3)
    players = ("perturbation", "image", "restorer") if method is ADDDefense else ("discriminator", "generator")
    given = {"attack_names": NAMES, "channels": 1, "image_size": 8, "width_divisor": 32}
    given |= {"num_classes": 4} if method is ADDDefense else {"width_divisor": 8}
    return method(optimizer=dict.fromkeys(players, adam), **{**given, **options})


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_the_multi_domain_mmd_is_that_of_the_paper():
    z = drawn(5)
    same(mmd_loss(z, WEIGHTS.double()), reference.multi_domain_mmd(by_domain(z)))
    apart = z + DOMAIN[:, None]
    assert mmd_loss(apart, WEIGHTS.double()) > mmd_loss(z, WEIGHTS.double()) + 0.05


def test_mmd_of_two_gaussians_is_that_of_the_closed_form():
    """E k(a, b) of N(m, s^2) and N(n, t^2) under exp(-d^2 / w) in one dimension, for each of the five widths."""
    shift, count = 1.5, 2000
    source = torch.Generator().manual_seed(3)
    z = torch.cat([torch.randn(count, 1, generator=source), shift + 0.5 * torch.randn(count, 1, generator=source)])
    weights = domain_weights(torch.arange(2).repeat_interleave(count), 2)
    distance = torch.cdist(z, z).square()
    median = float(distance[~torch.eye(2 * count, dtype=torch.bool)].median())

    def inner(m, s, n, t):
        widths = [median * f for f in (0.25, 0.5, 1, 2, 4)]
        spread = 2 * (s * s + t * t)
        return sum(math.sqrt(w / (w + spread)) * math.exp(-((m - n) ** 2) / (w + spread)) for w in widths) / 5

    squared = inner(0, 1, 0, 1) - 2 * inner(0, 1, shift, 0.5) + inner(shift, 0.5, shift, 0.5)
    assert float(mmd_loss(z, weights)) == pytest.approx(math.sqrt(squared) / 2, rel=0.02)  # 2 pairs of 4


def test_mmd_of_equal_domains_is_nothing_and_has_a_gradient():
    z = torch.randn(4, 3).repeat(2, 1).requires_grad_()
    loss = mmd_loss(z, domain_weights(torch.arange(2).repeat_interleave(4), 2))
    loss.backward()
    assert float(loss.detach()) < 1e-3
    assert z.grad.isfinite().all()


def test_a_domain_without_images_counts_as_nothing():
    z, weights = drawn(5)[DOMAIN < 2], domain_weights(DOMAIN[DOMAIN < 2], 3).double()
    two = mmd_loss(z, domain_weights(DOMAIN[DOMAIN < 2], 2).double())
    same(mmd_loss(z, weights), float(two) * 4 / 9)
    assert moment_prior_loss(z, weights).isfinite()


def test_the_losses_of_z_are_those_of_the_paper():
    logits, z, log = drawn(3), drawn(5, seed=1), drawn(5, seed=2)
    weights, size = WEIGHTS.double(), 3
    of = by_domain(logits)
    truth = [[reference.one_hot(k, size)] * len(rows) for k, rows in enumerate(of)]
    confused = [[[1 / size] * size] * len(rows) for rows in of]
    same(specific_loss(logits, DOMAIN, weights), reference.of_domains(of, truth))
    same(confused_loss(logits, weights), reference.of_domains(of, confused))
    same(literal_loss(logits, DOMAIN, weights), reference.literal(of))
    same(prior_loss(z, log, weights), reference.prior(by_domain(z), by_domain(log)))
    same(moment_prior_loss(z, weights), reference.moment_prior(by_domain(z)))
    label = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2, 0])
    classes = [[reference.one_hot(i, size) for i in rows] for rows in by_domain(label)]
    same(label_loss(logits, label, weights), reference.of_domains(of, classes))


def test_the_least_confusion_is_k_log_k():
    assert float(confused_loss(torch.zeros(9, 3), WEIGHTS)) == pytest.approx(3 * math.log(3))
    assert float(prior_loss(torch.zeros(9, 5), torch.zeros(9, 5), WEIGHTS)) == 0


def test_the_losses_of_images_are_those_of_the_paper():
    images, targets = drawn(1, 4, 4), drawn(1, 4, 4, seed=1)
    same(restoration_loss(images, targets, WEIGHTS.double()), reference.mse(by_domain(images), by_domain(targets)))
    real, fake = drawn()[:4], drawn(seed=1)
    share = WEIGHTS.double().sum(1) / 3

    def log_sigmoid(values):
        return [-math.log1p(math.exp(-v)) for v in values]

    means = [sum(log_sigmoid(rows)) / len(rows) for rows in by_domain(fake)]
    caught = [sum(log_sigmoid([-v for v in rows])) / len(rows) for rows in by_domain(fake)]
    same(deception_loss(fake, share), -sum(means) / 3)
    same(real_or_fake_loss(real, fake, share), -sum(log_sigmoid(real.tolist())) / 4 - sum(caught) / 3)


def test_losses_do_not_depend_on_how_many_images_a_domain_has():
    """Each domain twice, one of them three times."""
    rows = torch.cat([torch.arange(9), torch.arange(9), (DOMAIN == 1).nonzero()[:, 0]])
    logits, weights = drawn(3), domain_weights(DOMAIN[rows], 3).double()
    same(specific_loss(logits[rows], DOMAIN[rows], weights), float(specific_loss(logits, DOMAIN, WEIGHTS.double())))
    same(confused_loss(logits[rows], weights), float(confused_loss(logits, WEIGHTS.double())))


# ---- networks -------------------------------------------------------------------------------------------------------


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_sizes_are_those_of_the_paper():
    assert [count(Encoder(c, gaussian=False)) for c in (3, 1)] == [44_574_592, 44_570_496]
    assert count(Encoder(1)) - count(Encoder(1, gaussian=False)) == 33_556_480
    assert [count(Decoder(c)) for c in (3, 1)] == [44_572_547, 44_568_449]
    assert [count(ImageDiscriminator(c)) for c in (3, 1)] == [1_215_457, 1_214_433]
    assert count(PerturbationDiscriminator(2048, 3)) == 2_377_219
    assert [count(ClassHead(2048, m)) for m in (10, 16)] == [1_054_218, 1_057_296]
    assert [count(Generator(c)) for c in (1, 3)] == [264_961, 269_059]
    assert [count(Discriminator(1, 28)), count(Discriminator(3, 32))] == [371_457, 373_889]


def test_shapes_inside():
    x = torch.rand(2, 3, 32, 32)
    encoder = Encoder(3, 16)
    sides = [x.shape[-1]]
    for layer in encoder.body:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides[1::2] == [16, 8, 4, 2]
    mean, log = encoder(torch.rand(2, 3, 32, 32))
    assert mean.shape == log.shape == (2, 128)
    assert Decoder(3, 16)(mean).shape == (2, 3, 32, 32)


def test_a_frame_is_black_and_can_be_taken_off():
    frame, x = Frame(32, 28), torch.rand(2, 1, 28, 28)
    inside = frame.inside(x)
    assert torch.equal(inside[..., 2:-2, 2:-2], 2 * x - 1)
    assert float(inside.sum()) == pytest.approx(float((2 * x - 1).sum()) - 2 * (32**2 - 28**2), rel=1e-4)
    assert torch.allclose(frame.outside(inside), x, atol=1e-6)
    odd = Frame(16, 11)
    assert torch.allclose(odd.outside(odd.inside(x[..., :11, :11])), x[..., :11, :11], atol=1e-6)
    with pytest.raises(ValueError, match="images must be at most 32 pixels a side, got 33"):
        Frame(32, 33)


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("options", [{}, {"deep": True}])
def test_images_of_every_size_come_back(size, options):
    method = make(APEGAN, image_size=size, **options).eval()
    x = torch.rand(2, 1, size, size)
    assert method.restore(x).shape == x.shape
    assert make(image_size=size).eval().restore(x).shape == x.shape


def test_the_deep_generator_is_that_of_add_defense():
    method = make(APEGAN, deep=True, width_divisor=16)
    assert count(method.generator) == count(Encoder(1, 16, gaussian=False)) + count(Decoder(1, 16))


# ---- training -------------------------------------------------------------------------------------------------------


def step(method, batch, **kept):
    """One training step; gives what was logged, and which networks each player's loss reached."""
    said, reached = {}, {}
    method.log = lambda name, value, **_: said.__setitem__(name, float(value.detach()))
    method.log_dict = lambda values, **_: said.update({k: float(v.detach()) for k, v in values.items()})

    def play(player, loss, clip=None):
        method.zero_grad()
        loss.backward(retain_graph=True)
        parts = dict(method.named_children())
        reached[player] = {
            n for n, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }

    method.play = play
    method.training_step(batch, 0)
    return said, reached


def triples(n=4):
    """Each image clean and under two attacks, side by side."""
    one = make_pairs(n)
    rows = torch.arange(n).repeat_interleave(3)
    batch = one[rows]
    attack = torch.arange(3).repeat(n)
    noise = torch.rand(batch.clean.shape, generator=torch.Generator().manual_seed(1))
    adv = torch.where((attack == 0).view(-1, 1, 1, 1), batch.clean, (batch.clean + 0.2 * noise).clamp(0, 1))
    fields = {**vars(batch), "attack": attack, "adv": adv, "attacked": attack > 0, "index": rows}
    return AttackBatch(**{**fields, "valid": torch.ones(len(rows), dtype=torch.bool), "fooled": None})


def test_each_loss_reaches_its_players():
    _, reached = step(make(), triples())
    assert reached["perturbation"] == {"tells_attacks"}
    assert reached["image"] == {"tells_images"}
    assert {"encoder", "decoder", "class_head"} <= reached["restorer"]


def test_the_restorer_minimises_equations_5_and_7_together():
    method = make(lambda_prior=0.5, lambda_perturbation=0.25, lambda_class=2.0, lambda_mse=3.0)
    said, _ = step(method, triples())
    terms = {k.removeprefix("train/"): v for k, v in said.items()}
    expected = terms["mmd"] + 0.5 * terms["prior"] + 0.25 * terms["confusion"] + 2 * terms["class"]
    assert terms["loss"] == pytest.approx(expected + terms["deception"] + 3 * terms["mse"], rel=1e-5)


def test_nothing_is_drawn_but_in_training():
    method, x = make().eval(), torch.rand(2, 1, 8, 8)
    assert torch.equal(method.latent(x), method.latent(x))
    assert torch.equal(method.latent(x), method.encoder(method.frame.inside(x))[0])
    first, second = (step(make(seed=s), triples())[0]["train/mse"] for s in (0, 0))
    assert first == second != step(make(seed=1), triples())[0]["train/mse"]


def test_in_two_phases_z_comes_first_and_then_stays():
    first, second = make(two_phase=1), make(two_phase=1)
    said, reached = step(first, triples())
    assert "train/mse" not in said
    assert "decoder" not in reached["restorer"]
    assert "encoder" in reached["restorer"]
    type(second).current_epoch = property(lambda _: 1)
    try:
        said, reached = step(second, triples())
    finally:
        del type(second).current_epoch
    assert "train/mmd" not in said
    assert "decoder" in reached["restorer"]
    assert not reached["restorer"] & {"encoder", "class_head"}
    assert "perturbation" not in reached


def test_the_target_is_the_clean_image_or_the_attacked_one_of_the_same_image():
    batch = triples()
    same_rows, clean = with_targets(batch, 0)
    assert torch.equal(clean, batch.clean)
    assert len(same_rows) == 12
    shuffled = batch[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    rows, wanted = with_targets(shuffled, 2)
    for row, image in zip(rows.index, wanted, strict=True):
        assert torch.equal(image, batch.adv[(batch.index == row) & (batch.attack == 2)][0])
    lacking = batch[~((batch.index == 1) & (batch.attack == 2))]
    rows, wanted = with_targets(lacking, 2)
    assert set(rows.index.tolist()) == {0, 2, 3}
    assert len(wanted) == 9
    with pytest.raises(ValueError, match="deal=all"):
        with_targets(batch[batch.attack == 0], 2)


def test_ape_gan_plays_its_generator_twice():
    method, played = make(APEGAN), []
    method.log = method.log_dict = lambda *_, **__: None
    method.play = lambda player, loss, clip=None: played.append((player, float(loss.detach())))
    method.training_step(triples(), 0)
    assert [name for name, _ in played] == ["discriminator", "generator", "generator"]
    x = method.frame.inside(triples().adv)
    wanted = method.frame.inside(triples().clean)
    restored = method.generator(x)
    fake = method.discriminator(restored)
    by_hand = 0.7 * (restored - wanted).square().mean() + 0.3 * -fake.sigmoid().log().mean()
    assert played[1][1] == pytest.approx(float(by_hand.detach()), rel=1e-4)
    told = -method.discriminator(wanted).sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    assert played[0][1] == pytest.approx(float(told.detach()), rel=1e-4)


def test_the_literal_game_has_a_bounded_opponent():
    plain, bounded = make(), make(game="literal")
    x = torch.randn(64, plain.encoder.size)
    with torch.no_grad():
        for layer in bounded.tells_attacks.net:
            if isinstance(layer, nn.Linear):
                assert float(torch.linalg.matrix_norm(layer.weight, 2)) < 1.5
        assert bounded.tells_attacks(100 * x).abs().max() < 100 * x.norm(dim=1).max() + 10


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ADDDefense, {"game": "x"}, "game must be one of"),
        (ADDDefense, {"lambda_mse": -1}, "not negative"),
        (ADDDefense, {"max_norm": 0}, "max_norm must be positive, got 0"),
        (ADDDefense, {"two_phase": -1}, "two_phase must be at least 0, got -1"),
        (ADDDefense, {"target": "fgsm"}, r"target must be one of \['clean', 'pgd_u', 'pgd_t'\], got 'fgsm'"),
        (ADDDefense, {"width_divisor": 65}, "width_divisor must be from 1 to 64, got 65"),
        (ADDDefense, {"image_size": 64}, "at most 32 pixels a side, got 64"),
        (APEGAN, {"lambda_adv": float("inf")}, "not negative"),
        (APEGAN, {"generator_steps": 0}, "generator_steps must be at least 1, got 0"),
        (APEGAN, {"target": "fgsm"}, "target must be one of"),
    ],
)
def test_wrong_options_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        make(method, **options)
