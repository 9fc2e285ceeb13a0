"""Our attacks beside those of torchattacks, foolbox, adv-lib, ART and the authors of AutoAttack: time, success, norm.

    python benchmarks/attacks.py --victim small_cnn --attacks fgsm pgd_linf --images 128 --repeats 5 --out table.json

All attack the same correctly classified images of the same frozen victim with the same budget, in turn, in one process
and one thread, `repeats` times. The others get the victim's network as it is, as their users would; ours get the
`Victim`, which computes with BatchNorm folded. `--plain` gives ours the network as it is too, which is what somebody
has who brings a plain nn.Module; `--fold-peers` gives the others the `Victim` as well, which shows what the attack
itself costs. A time is CPU seconds of the process (on a GPU the time between two events), divided by that of the
bare loop of the same round: as many passes of the network, forward and back to the input, as the entry says, and
nothing else. The table shows medians. A library that is not installed is named in the table.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from contestants import Entry, Run, entries, quality
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from redlab.data import fashion_mnist
from redlab.runs.build import build_victims
from redlab.runs.config import compose, finalise
from redlab.victims import ImageClassifier, Victim, architectures, load

DISTRIBUTIONS = ("torchattacks", "foolbox", "adv-lib", "adversarial-robustness-toolbox", "pyautoattack")


def bare_loop(model: nn.Module, x: Tensor, y: Tensor, passes: int, backward: bool) -> None:
    """What no attack can do without."""
    for _ in range(passes):
        with torch.set_grad_enabled(backward):
            point = x.clone().requires_grad_(backward)
            loss = F.cross_entropy(model(point), y, reduction="sum")
            if backward:
                torch.autograd.grad(loss, point)


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """CPU seconds of the process, or on a GPU seconds between two events; and the result."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = work()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000, result
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def victim_and_images(name: str, count: int, device: torch.device) -> tuple[Victim, Tensor, Tensor]:
    """A victim trained on Fashion-MNIST, and the first test images that it gets right.

    The small CNN is trained as the project does. The ResNet-18 sees the images padded to 32x32 in three equal channels,
    and trains on few of them: what counts is that it has learned something. Both are kept in outputs/victims.
    """
    words = ["data=fashion_mnist", "victim=small_cnn", "victim_training.max_epochs=3", "victim_training.batch_size=128"]
    cfg = finalise(compose(words))
    splits = fashion_mnist(cfg.data.root)
    x, y = splits.test.images[: 2 * count + 64].float() / 255, splits.test.labels[: 2 * count + 64]
    if name == "small_cnn":
        victim = build_victims(cfg)[name]
    else:
        path, x = Path(cfg.victim_root) / "benchmark_resnet18.pt", in_colour(x)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            train_resnet18(in_colour(splits.train.images[:2048].float() / 255), splits.train.labels[:2048], path)
        victim = load(path, architectures.resnet18(10, 3, 32), num_classes=10, name=name)
    victim, x, y = victim.to(device), x.to(device), y.to(device)
    with torch.no_grad():
        right = victim(x).argmax(1) == y
    if int(right.sum()) < count:
        raise ValueError(f"{name} gets only {int(right.sum())} of {len(x)} images right")
    return victim, x[right][:count], y[right][:count]


def in_colour(x: Tensor) -> Tensor:
    """(n, 1, 28, 28) -> (n, 3, 32, 32)."""
    return F.pad(x, (2, 2, 2, 2)).repeat(1, 3, 1, 1)


def train_resnet18(x: Tensor, y: Tensor, path: Path) -> None:
    """One epoch, minutes on a CPU; leaves the state dict in ``path``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = architectures.resnet18(10, 3, 32)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        settle(net, x[:512])
    torch.save(net.state_dict(), path)


def settle(net: nn.Module, x: Tensor) -> None:
    """Averages what BatchNorm sees in ``x``: after so few steps its running averages lag behind the weights."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in x.split(128):
            net(batch)


def as_it_is(victim: Victim) -> ImageClassifier:
    """The same classifier without the victim's faster twin."""
    mean, std = victim.mean.flatten().tolist(), victim.std.flatten().tolist()
    plain = ImageClassifier(
        victim.backbone, num_classes=victim.num_classes, mean=mean, std=std, input_size=victim.input_size
    )
    return plain.to(victim.mean.device).requires_grad_(False).eval()


def measure(
    entry: Entry,
    tiny: Entry,
    victim: Victim,
    folded: Collection[str],
    x: Tensor,
    y: Tensor,
    repeats: int,
    tick: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Who -> seconds of each repeat, times the bare loop, success and norm of the first; or what is missing.

    Those in ``folded`` get the victim, the others its network as it is. ``tiny`` is the same with few steps: a first
    run imports the library and is not measured. What has fewer than 5 passes is done over and over, since a clock is
    not that fine.
    """
    results: dict[str, dict[str, Any]] = {}
    plain = as_it_is(victim)
    models = {who: victim if who in folded else plain for who in entry.runs}
    for who, run in tiny.runs.items():
        try:
            run(models[who], x[:2].clone(), y[:2].clone())
            results[who] = {"seconds": [], "times": []}
        except ImportError as error:
            results[who] = {"missing": str(error)}
    times = math.ceil(5 / entry.bare)
    bare_loop(plain, x, y, 1, entry.backward)
    for repeat in range(repeats):
        bare, _ = seconds(lambda: bare_loop(plain, x, y, times * entry.bare, entry.backward), x.device)
        for who, run in entry.runs.items():
            tick(who)
            said = results[who]
            if "missing" in said:
                continue
            torch.manual_seed(repeat)
            np.random.seed(repeat)  # noqa: NPY002 - foolbox and ART draw from it
            spent, x_adv = seconds(functools.partial(again, times, run, models[who], x, y), x.device)
            said["seconds"].append(spent / times)
            said["times"].append(spent / bare)
            if repeat == 0:
                said |= quality(plain, x, y, x_adv.detach(), entry.norm)
    return results


def again(times: int, run: Run, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The result of the last of so many runs, each on its own copy."""
    for _ in range(times):
        x_adv = run(model, x.clone(), y.clone())
    return x_adv


def show(results: dict[str, Any], console: Console) -> None:
    """One line per contestant, ours first; `to best` is ours divided by the best of the others."""
    table = Table("attack", "by", "x bare", "to best peer", "success %", "norm", title="median of all repeats")
    for name, result in results.items():
        times = {who: statistics.median(said["times"]) for who, said in result.items() if "missing" not in said}
        best = min((t for who, t in times.items() if who != "redlab"), default=float("nan"))
        for who, said in result.items():
            if "missing" in said:
                table.add_row(name, who, "not installed")
                continue
            ratio = f"{times[who] / best:.2f}" if who == "redlab" else ""
            table.add_row(name, who, f"{times[who]:.2f}", ratio, f"{said['success']:.1f}", f"{said['norm']:.4f}")
        table.add_section()
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints and writes."""
    names = list(entries())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", choices=["small_cnn", "resnet18"], default="small_cnn")
    parser.add_argument("--attacks", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps of iterative attacks")
    parser.add_argument("--queries", type=int, default=1000, help="of Square")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="LIBRARY", help="leave these out, say the slow ones"
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--plain", action="store_true", help="give ours the network as it is, as the others")
    network.add_argument("--fold-peers", action="store_true", help="give the others the folded victim as well")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--out", type=Path, help="JSON with all numbers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the libraries' own
    victim, x, y = victim_and_images(args.victim, args.images, args.device)
    table, tiny = entries(args.share, args.queries, batch=len(x)), entries(share=0.1, queries=2)
    results = {}
    head = {
        "versions": {name: _version(name) for name in ("torch", *DISTRIBUTIONS)},
        "arguments": {key: str(value) for key, value in vars(args).items() if key != "out"},
    }
    with Progress() as progress:
        task = progress.add_task("", total=args.repeats * sum(len(table[name].runs) for name in args.attacks))
        for name in args.attacks:
            entry = table[name]
            for who in args.without:
                entry.runs.pop(who, None)
                tiny[name].runs.pop(who, None)
            tick = lambda who, name=name: progress.update(task, advance=1, description=f"{name} {who}")  # noqa: E731
            folded = entry.runs if args.fold_peers else () if args.plain else ("redlab",)
            results[name] = measure(entry, tiny[name], victim, folded, x, y, args.repeats, tick)
            if args.out:  # after each attack, so that an interrupted run leaves what it has
                args.out.write_text(json.dumps(head | {"results": results}, indent=1))
    show(results, Console())


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
