from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redlab.attacks.guard import check_inputs, guard, outside_inference, per_row

X = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


def test_inside_the_guard() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), guard(model):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.backends.cudnn.allow_tf32
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        assert model(torch.ones(2, 2)).dtype == torch.float32


def test_tf32_is_as_the_user_had_it() -> None:
    cudnn: Any = torch.backends.cudnn
    assert cudnn.allow_tf32
    with guard(nn.Linear(2, 2)):
        pass
    assert cudnn.allow_tf32
    if hasattr(cudnn, "conv"):  # from torch 2.9 on; then torch refuses to say it in one word
        cudnn.conv.fp32_precision = "ieee"
        try:
            with guard(nn.Linear(2, 2)):
                assert not cudnn.allow_tf32
            assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
        finally:
            cudnn.conv.fp32_precision = "tf32"


def test_puts_back_what_the_model_itself_changes() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            self.drop.train()
            return x

    model = Restless().eval()
    with guard(model):
        model(X)
    assert not model.drop.training


def test_does_not_call_an_overridden_train() -> None:
    """A victim's ``train`` may refuse, or merge weights: modes are set without it."""

    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> Stubborn:
            raise RuntimeError("not me")

    model = Stubborn(2, 2)
    with guard(model):
        assert not model.training
    assert model.training


def test_guards_nest() -> None:
    model = nn.Linear(2, 2)
    with guard(model):
        with guard(model):
            pass
        assert not model.training
        assert not model.weight.requires_grad
    assert model.training
    assert model.weight.requires_grad


def test_shared_modules_and_parameters() -> None:
    inner = nn.Linear(2, 2)
    model = nn.ModuleList([inner, inner, nn.Sequential(inner)])
    with guard(model):
        assert not inner.training
    assert inner.training
    assert inner.weight.requires_grad


def test_random_state_is_put_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with guard(nn.Identity()):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_outside_inference() -> None:
    with torch.inference_mode():
        t = torch.ones(2)
    with torch.inference_mode(False):
        assert not outside_inference(t).is_inference()
    plain = torch.ones(2)
    assert outside_inference(plain).data_ptr() == plain.data_ptr()
    assert not outside_inference(plain.requires_grad_()).requires_grad


def test_good_inputs_pass() -> None:
    check_inputs(X, Y)
    check_inputs(X, Y, (Y + 1) % 3)
    check_inputs(torch.zeros(1, 3, 2, 5), Y[:1])
    check_inputs(torch.ones(1, 3, 2, 5), Y[:1])


def test_the_message_names_the_value() -> None:
    with pytest.raises(ValueError, match=r"0 to 1\.25"):
        check_inputs(torch.tensor([0.0, 1.25]).view(1, 1, 1, 2), Y[:1])
    with pytest.raises(ValueError, match="y must not be negative, got -7"):
        check_inputs(X, Y - 7)
    with pytest.raises(ValueError, match="target must differ from the true label, got 2"):
        check_inputs(X, Y, torch.tensor([1, 0, 2, 1]))


OUTSIDE = {
    "a hair above": (
        [0.5, 1.0000001, 1.0000002],
        r"0\.5 to 1\.00000024, 2 of 3 outside; .* rounding, .* clamp\(0, 1\)",
    ),
    "a hair below": ([-1e-7, 0.5, 1.0], r"-1\.00000001e-07 to 1, 1 of 3 outside; .* clamp\(0, 1\)"),
    "grey values": ([0.0, 3.0, 255.0], r"0 to 255, 2 of 3 outside; divide grey values by 255"),
    "normalised": ([-2.1, 0.0, 2.6], r"2 of 3 outside; .* normalise inside the model"),
    "nan": ([0.5, float("nan"), 1.0], r"nan to nan, 1 of 3 outside; find where"),
    "infinite": ([0.5, float("inf"), 1.0], r"0\.5 to inf, 1 of 3 outside; find where"),
}


@pytest.mark.parametrize(("values", "message"), OUTSIDE.values(), ids=OUTSIDE)
def test_images_outside_the_range_are_counted_and_there_is_a_remedy(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_inputs(torch.tensor(values).view(1, 1, 1, 3), Y[:1])


@pytest.mark.parametrize(
    "value", [np.float32(0.25), np.float64(0.25), np.float16(0.25), np.int64(1), np.uint8(1)], ids=repr
)
def test_per_row_takes_numpy_numbers(value: Any) -> None:
    out = per_row("eps", value, X)
    assert out.dtype == torch.float32
    assert out.tolist() == [float(value)] * 4


def test_per_row_takes_whole_numpy_numbers() -> None:
    out = per_row("steps", np.int32(3), X, low=1, whole=True)
    assert out.dtype == torch.int64
    assert out.tolist() == [3] * 4


@pytest.mark.parametrize(
    "value", [np.bool_(True), np.float32("nan"), np.float64(7), np.array([1.0]), np.complex64(1)], ids=repr
)
def test_per_row_refuses_other_things_of_numpy(value: Any) -> None:
    with pytest.raises(ValueError, match="gamma must be"):
        per_row("gamma", value, X, low=0, high=1)


def test_per_row_wants_whole_numpy_numbers_where_it_says_so() -> None:
    with pytest.raises(ValueError, match=r"steps must be whole numbers, got (np\.float32\(3\.0\)|3\.0)$"):
        per_row("steps", np.float32(3), X, low=1, whole=True)


@pytest.mark.parametrize("value", [0.25, 1, torch.tensor(0.25), torch.tensor([0.0, 0.1, 0.2, 0.3]).double()])
def test_per_row_broadcasts(value: float | Tensor) -> None:
    out = per_row("eps", value, X)
    assert out.shape == (4,)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.as_tensor(value).float().expand(4))


def test_per_row_whole() -> None:
    for value in (3, torch.tensor([3, 3, 3, 3], dtype=torch.int32)):
        out = per_row("steps", value, X, low=1, whole=True)
        assert out.dtype == torch.int64
        assert out.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("value", [2.0, -0.1, float("nan"), "1", None, True, 1j, torch.ones(3), torch.ones(4) * 2])
def test_per_row_refuses(value: float) -> None:
    with pytest.raises(ValueError, match="gamma must be"):
        per_row("gamma", value, X, low=0, high=1)
