"""What a training step of the attention-U-Net GAN costs: its 96 attacks beside its two players.

    python benchmarks/step.py --width 16 --window 3 --repeats 5 [--out results/benchmarks/step.json]

The 96 images are dealt to FGSM and R-FGSM on three victims with an eps of their own each (`conf/mix/attunet.yaml`).
Crafted are they in three ways: all together, as in a training, where the rows of a victim share its passes; a cell of
attack and victim after the other; and by calls of one eps each, which is what an attack with a single eps needs. All
end in the same images, and the script checks that: in batches of another size a gradient of nearly 0 may round to the
other sign, so one pixel in 10,000 may differ. CPU seconds of one thread, medians over rounds that measure
everything in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from mix import seconds
from rich.console import Console
from rich.table import Table
from torch import Tensor

from redlab.batch import AttackBatch
from redlab.crafting import Plan
from redlab.nn.gan import least_squares_real_or_fake_loss
from redlab.provenance import versions
from redlab.runs.config import compose, finalise
from redlab.victims import Victim, architectures

IMAGES, CHANNELS, SIZE = 96, 1, 28


def of(plan: Plan, rows: Tensor) -> Plan:
    """Some rows of a plan."""
    tensors = {name: getattr(plan, name)[rows] for name in ("source", "attack", "setting", "victim", "index")}
    params = {a: {key: value[rows] for key, value in drawn.items()} for a, drawn in plan.params.items()}
    return replace(plan, **tensors, params=params, rng=replace(plan.rng, index=plan.rng.index[rows]))


def groups(plan: Plan, names: tuple[str, ...], *, by_eps: bool) -> Iterator[Tensor]:
    """The rows of each cell of attack and victim; with ``by_eps`` of one eps."""
    eps = torch.zeros(len(plan.attack))
    for attack, name in enumerate(names):
        if by_eps and "eps" in plan.params.get(name, {}):
            eps = torch.where(plan.attack == attack, plan.params[name]["eps"], eps)
    keys = torch.stack([plan.attack.float(), plan.victim.float(), eps], 1)
    for key in keys.unique(dim=0):
        yield (keys == key).all(1).nonzero()[:, 0]


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets = [architectures.fashion_cnn, architectures.small_cnn, architectures.lenet]
    victims = {net.__name__: Victim(net(10, CHANNELS, SIZE).eval(), num_classes=10, mean=0.3, std=0.3) for net in nets}
    sizes = [f"method.width={args.width}", f"method.window={args.window}"]
    config = finalise(compose(["data=fashion_mnist", "mix=attunet", "method=attunet_gan", *sizes]))
    mix, players = instantiate(config.mix), dict(config.method.optimizer)
    method = instantiate(
        {key: value for key, value in config.method.items() if key not in ("optimizer", "scheduler")},
        victims=victims,
        channels=CHANNELS,
        image_size=SIZE,
        optimizer={name: instantiate(each) for name, each in players.items()},
    ).train()
    discriminates, generates = method.configure_optimizers()[0]
    x, y, index = torch.rand(IMAGES, CHANNELS, SIZE, SIZE), torch.randint(10, (IMAGES,)), torch.arange(IMAGES)
    batch: AttackBatch

    def plan(epoch: int) -> Plan:
        return mix.plan(index, index, stage="train", epoch=epoch, victim_names=list(victims))

    def together(dealt: Plan) -> None:
        nonlocal batch
        batch = mix.craft(victims, x, y, dealt)

    def apart(dealt: Plan, *, by_eps: bool) -> None:
        found = torch.empty_like(batch.adv)
        for rows in groups(dealt, mix.attack_names, by_eps=by_eps):
            found[rows] = mix.craft(victims, x, y, of(dealt, rows)).adv
        other = float(((found - batch.adv).abs() > 1e-6).float().mean())
        if other > 1e-4:
            raise SystemExit(f"the images must not depend on how they are crafted: {other:.2%} of the pixels do")

    def discriminator() -> None:
        clean = method.frame.inside(batch.clean)
        loss = least_squares_real_or_fake_loss(method.discriminator(clean), method.discriminator(restored))
        discriminates.zero_grad()
        loss.backward()
        discriminates.step()

    def generator() -> None:
        again = method._framed(method.frame.inside(batch.adv)).clamp(-1, 1)
        terms = method.loss_terms(batch, again, method.frame.inside(batch.clean))
        method.discriminator.requires_grad_(False)
        generates.zero_grad()
        (100 * terms["pixel"] + terms["deception"] + terms["class"]).backward()
        generates.step()
        method.discriminator.requires_grad_(True)

    together(plan(0))
    with torch.no_grad():  # in a training step both players share this pass, which counts as the generator's
        restored = method._framed(method.frame.inside(batch.adv)).clamp(-1, 1)
    spent: dict[str, list[float]] = {}
    for epoch in range(args.repeats):
        dealt = plan(epoch)
        for name, run in {
            "attacks, all together": lambda dealt=dealt: together(dealt),
            "attacks, by attack and victim": lambda dealt=dealt: apart(dealt, by_eps=False),
            "attacks, by attack, victim and eps": lambda dealt=dealt: apart(dealt, by_eps=True),
            "generator": generator,
            "discriminator": discriminator,
        }.items():
            spent.setdefault(name, []).append(seconds(run))
    median = {name: statistics.median(each) for name, each in spent.items()}
    step = sum(median[name] for name in ("attacks, all together", "generator", "discriminator"))
    table = Table("96 images", "CPU seconds", "of a step")
    for name, value in median.items():
        table.add_row(name, f"{value:.3f}", f"{value / step:.0%}")
    Console().print(table)
    if args.out:
        said = {"width": args.width, "window": args.window, "repeats": args.repeats, "versions": versions()}
        args.out.write_text(json.dumps({**said, "seconds": median}, indent=1) + "\n")


if __name__ == "__main__":
    main()
