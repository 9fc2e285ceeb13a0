import math

import pytest
import torch

from redlab.metrics import cosine, logit_distance, pixel_distance, prediction_alignment, psnr


def pair(shape=(4, 3, 5, 6)):
    g = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=g), torch.rand(shape, generator=g)


def test_against_loops():
    a, b = pair()
    for i in range(len(a)):
        u, v = a[i].flatten().tolist(), b[i].flatten().tolist()
        squares = sum((p - q) ** 2 for p, q in zip(u, v, strict=True))
        assert float(pixel_distance(a, b)[i]) == pytest.approx(math.sqrt(squares))
        assert float(logit_distance(a, b)[i]) == pytest.approx(math.sqrt(squares))
        assert float(psnr(a, b)[i]) == pytest.approx(10 * math.log10(len(u) / squares))
        dot = sum(p * q for p, q in zip(u, v, strict=True))
        norms = math.sqrt(sum(p * p for p in u)) * math.sqrt(sum(q * q for q in v))
        assert float(cosine(a, b)[i]) == pytest.approx(dot / norms)


def test_full_budget_at_224_is_388_eps():
    x = torch.zeros(1, 3, 224, 224)
    assert float(pixel_distance(x, x + 20 / 255)) == pytest.approx(388 * 20 / 255, rel=1e-3)


def test_cosine_ignores_length_and_is_zero_without_a_perturbation():
    a, _ = pair()
    assert torch.allclose(cosine(a, 7 * a), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(cosine(a, -a), -torch.ones(4, dtype=torch.float64))
    assert cosine(a, 0 * a).tolist() == cosine(0 * a, a).tolist() == [0.0] * 4


def test_psnr_of_equal_images_is_finite():
    a, _ = pair()
    assert psnr(a, a).tolist() == [100.0] * 4


def test_prediction_alignment_looks_at_the_arg_max_alone():
    a = torch.tensor([[-3.0, -1.0], [5.0, 1.0], [0.0, 1.0]])
    b = torch.tensor([[-9.0, -8.0], [1.0, 5.0], [-1.0, 4.0]])
    assert prediction_alignment(a, b).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("function", [cosine, logit_distance, pixel_distance, prediction_alignment, psnr])
def test_shapes_must_agree(function):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(1, 3\)"):
        function(torch.zeros(2, 3), torch.zeros(1, 3))
