import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from redlab.methods.cdd_red import (
    cdd_objective,
    denoising_loss,
    keep_mask,
    prediction_alignment,
    transformed_views,
)
from redlab.rng import generator

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "reference" / "cdd_red.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

SWITCHES = [("concat", rule) for rule in ("joint", "separate", "all", "original")] + [
    ("sample", "joint"),
    ("sample", "original"),
    ("none", "joint"),
]


def unlike_pairs(pairs):
    """Attacked images far from the clean ones, so that an augmentation changes the class of one without the other."""
    batch = pairs(24)
    return replace(batch, adv=torch.rand(batch.adv.shape, generator=generator(2)))


def setting(method, pairs, mode, rule, **options):
    """A method in eval mode, a batch, and what the reference needs: views and each view's pair before it."""
    module = method(aug_mode=mode, keep=rule, aug_group=2, **options).eval()
    batch = unlike_pairs(pairs)
    stacked = torch.stack([batch.clean, batch.adv])
    views, original = transformed_views(stacked, module.augment, mode, 2, generator(1))
    sources = [(batch.clean[i % 24], batch.adv[i % 24], bool(original[i])) for i in range(len(original))]
    return module, batch, views, sources


@pytest.mark.parametrize(("mode", "rule"), SWITCHES)
@torch.no_grad()
def test_terms_against_the_transcription(method, pairs, mode, rule):
    module, batch, (clean, adv), sources = setting(method, pairs, mode, rule)
    ours = module.loss_terms(batch, generator(1))
    theirs = reference.terms(module.denoiser, module.classifier, clean, adv, sources, rule)
    for a, b in zip(ours, theirs, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-4)
    objective = reference.objective(module.denoiser, module.classifier, clean, adv, sources, rule, 0.025)
    assert float(cdd_objective(*ours)) == pytest.approx(float(objective), rel=1e-4)


@torch.no_grad()
def test_the_rules_differ_here(method, pairs):
    """Otherwise the test above would not tell them apart."""
    terms = [
        tuple(
            float(t)
            for t in setting(method, pairs, "concat", rule)[0].loss_terms(unlike_pairs(pairs), generator(1))[1:]
        )
        for rule in ("joint", "separate", "all", "original")
    ]
    assert len(set(terms)) == 4


def test_gradients_against_the_transcription(method, pairs):
    module, batch, (clean, adv), sources = setting(method, pairs, "concat", "joint")
    weights = list(module.denoiser.parameters())
    ours = torch.autograd.grad(cdd_objective(*module.loss_terms(batch, generator(1))), weights)
    loss = reference.objective(module.denoiser, module.classifier, clean, adv, sources, "joint", 0.025)
    for a, b in zip(ours, torch.autograd.grad(loss, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_denoising_loss_is_an_element_mean():
    x = torch.zeros(5, 3, 4, 4)
    assert float(denoising_loss(x + 0.5, x)) == float(denoising_loss(x - 0.5, x)) == 0.5


def test_prediction_alignment_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]], requires_grad=True)
    label, keep = torch.tensor([0, 0, 1]), torch.tensor([True, True, False])
    low, high = torch.log1p(torch.exp(torch.tensor([-2.0, 2.0])))
    loss = prediction_alignment(logits, label, keep)
    assert float(loss.detach()) == pytest.approx(float(low + high) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:2].abs().min() > 0
    assert gradient[2].tolist() == [0.0, 0.0]
    none = prediction_alignment(logits, label, torch.zeros(3, dtype=torch.bool))
    assert none.detach() == 0
    assert torch.autograd.grad(none, logits)[0].abs().max() == 0


def test_weights_of_the_objective():
    terms = torch.tensor([1.0, 10.0, 100.0])
    assert float(cdd_objective(*terms)) == pytest.approx(1 + 0.025 * 110)
    assert float(cdd_objective(*terms, reconstruction=0.0, lambda_benign=1, lambda_adv=2)) == pytest.approx(210)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("joint", [[1, 1, 1, 0, 0, 0]] * 2),
        ("separate", [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]]),
        ("all", [[1] * 6] * 2),
        ("original", [[1, 1, 0, 0, 0, 0]] * 2),
    ],
)
def test_keep_masks(rule, expected):
    reference_labels = torch.tensor([[0, 1], [2, 3]])
    #        the originals | both kept | benign kept | adversarial kept | none kept
    label = torch.tensor([[0, 1, 0, 1, 9, 9], [2, 3, 2, 9, 2, 9]])
    original = torch.tensor([True, True, False, False, False, False])
    assert keep_mask(label, reference_labels, original, rule).int().tolist() == expected


def test_both_terms_train_the_denoiser_and_not_the_guide(method, pairs):
    module, batch = method(reconstruction=0.0, keep="all").eval(), pairs(6)
    weights = list(module.denoiser.parameters())
    _, benign, adversarial = module.loss_terms(batch, generator(0))
    for term in (benign, adversarial):
        assert max(g.abs().max() for g in torch.autograd.grad(term, weights, retain_graph=True)) > 0
    (benign + adversarial).backward()
    assert all(p.grad is None and not p.requires_grad for p in module.classifier.parameters())


def test_both_terms_reuse_one_forward_pass(method, pairs):
    module, calls = method(), []
    module.denoiser.register_forward_hook(lambda *_: calls.append(1))
    module.loss_terms(pairs(6), generator(0))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "guide_images"),
    [
        ({"lambda_benign": 0, "lambda_adv": 0, "aug_mode": "none"}, 0),  # DO
        ({"lambda_benign": 0.1, "lambda_adv": 0, "aug_mode": "none"}, 3 * 6),  # DS: x, x' and x_RED
        ({}, 3 * 4 * 6),
    ],
)
def test_cost_in_guide_images(method, pairs, options, guide_images):
    module, seen = method(**options), []
    module.classifier.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    module.loss_terms(pairs(6), generator(0))
    assert sum(seen) == guide_images
