"""What a mixed batch costs beyond its gradients: 96 images, FGSM and R-FGSM on three victims (`conf/mix/attunet.yaml`).

    python benchmarks/mix.py --victim small_cnn --repeats 30

The unit is the time of three bare passes (forward and back to the input) on 32 images each, on the victims' networks as
they are; the second unit is the same on the victims, whose BatchNorm is folded. CPU seconds with one thread, medians
over rounds that measure everything in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from redlab.runs.config import compose, finalise
from redlab.victims import ImageClassifier, Victim, architectures

IMAGES, VICTIMS = 96, 3


def bare(networks: Sequence[nn.Module], x: Tensor, y: Tensor) -> None:
    """One pass forward and back to the input for each network, on its share of the images."""
    for network, images, labels in zip(networks, x.chunk(VICTIMS), y.chunk(VICTIMS), strict=True):
        point = images.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(point), labels), point)


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    before = time.process_time()
    run()
    return time.process_time() - before


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", choices=["small_cnn", "resnet18"], default="small_cnn")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    channels, size = (1, 28) if args.victim == "small_cnn" else (3, 32)
    networks = [getattr(architectures, args.victim)(10, channels, size).eval() for _ in range(VICTIMS)]
    settings = {"num_classes": 10, "mean": 0.3, "std": 0.3}
    plain = [ImageClassifier(network, **settings).requires_grad_(False).eval() for network in networks]
    victims = {str(i): Victim(network, **settings) for i, network in enumerate(networks)}
    mix = instantiate(finalise(compose(["mix=attunet"])).mix)
    x, y, index = torch.rand(IMAGES, channels, size, size), torch.randint(10, (IMAGES,)), torch.arange(IMAGES)

    def craft(epoch: int) -> None:
        plan = mix.plan(index, index, stage="train", epoch=epoch, victim_names=list(victims))
        mix.craft(victims, x, y, plan)

    craft(0)
    spent: dict[str, list[float]] = {"networks": [], "victims": [], "batch": []}
    for epoch in range(args.repeats):
        spent["networks"].append(seconds(lambda: bare(plain, x, y)))
        spent["victims"].append(seconds(lambda: bare(list(victims.values()), x, y)))
        spent["batch"].append(seconds(lambda epoch=epoch: craft(epoch)))
    table = Table("victim", "plan and craft, ms", "x bare passes of the networks", "x bare passes of the victims")
    ratios = [
        statistics.median(batch / unit for batch, unit in zip(spent["batch"], spent[name], strict=True))
        for name in ("networks", "victims")
    ]
    batch = 1000 * statistics.median(spent["batch"])
    table.add_row(args.victim, f"{batch:.1f}", *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
