import pytest
import torch
from torch import nn

from redlab.nn import DnCNN


@pytest.mark.parametrize(("channels", "width", "count"), [(3, 64, 558_400), (3, 128, 2_222_720), (1, 64, 556_096)])
def test_parameter_count(channels, width, count):
    # 1 channel: 9*64+64 + 554 880 + 9*64
    with torch.device("meta"):
        net = DnCNN(channels, width=width)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("training", [True, False])
def test_is_the_identity_at_first_for_any_size(training):
    net = DnCNN(1, depth=4, width=8).train(training)
    x = torch.randn(2, 1, 9, 13) * 5  # nothing is clamped
    assert torch.equal(net(x), x)


def test_subtracts_what_the_convolutions_say():
    net = DnCNN(1, depth=2, width=1)
    with torch.no_grad():
        for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
            conv.weight.zero_()
            conv.weight[..., 1, 1] = 0.5
    x = torch.tensor([-1.0, 0.4]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    assert torch.allclose(net(x)[:, 0, 0, 0], torch.tensor([-1.0, 0.3]))  # x - 0.5 * relu(0.5 * x)


def test_structure():
    net = DnCNN(3, depth=5, width=8, bn_momentum=0.3, bn_eps=0.01)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [c.bias is not None for c in convs] == [True, False, False, False, False]
    assert [(m.momentum, m.eps) for m in norms] == [(0.3, 0.01)] * 3
    rows = convs[1].weight.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(8), atol=1e-5)  # orthogonal
    defaults = [m for m in DnCNN(1, width=2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(defaults) == 15
    assert {(m.momentum, m.eps) for m in defaults} == {(0.95, 1e-4)}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"depth": 1}, "depth must be at least 2, got 1"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"bn_momentum": 1.5}, r"bn_momentum must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_sizes(bad, says):
    with pytest.raises(ValueError, match=says):
        DnCNN(**{"channels": 1, **bad})
