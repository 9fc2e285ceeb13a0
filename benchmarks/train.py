"""What a training step of each method costs, beside a loop written by hand of the same networks, losses and attacks.

    python benchmarks/train.py [--methods do redrl] [--steps 10] [--rounds 5] [--out results/benchmarks/train.json]

Each method is measured in a process of its own, at the size of its example on the digits. Both loops craft the same
batches; the one by hand is the least that trains the same: craft, loss, backward, step of the optimiser, for each
player where there are several. CPU seconds of one thread, medians over rounds that run both in turn; the share of the
crafting is that of the loop by hand. Memory is the most that the process held, victims and images included. Last,
images per second of DO in one process, in two, from a bank and compiled, one thread each, by the wall clock.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from redlab.provenance import versions
from redlab.runs.build import Trained, build, build_helpers, shared_data
from redlab.runs.config import compose, finalise
from redlab.runs.console import filter_known_warnings
from redlab.runs.trainer import make_trainer

METHODS = {
    "cdd_red": ["mix=digits"],
    "do": ["mix=digits"],
    "redrl": ["mix=attunet"],
    "attunet_gan": ["mix=attunet", "method.width=16", "method.window=3"],
    "hgd": ["mix=attunet", "method.width=8"],
    "add_defense": ["mix=attunet"],
    "ape_gan": ["mix=attunet", "method.width_divisor=4"],
    "gred": ["mix=gred", "only=fgsm_u", "mix.only_fooled=false", "mix.only_right=false"],
    "classifier": ["mix=adversarial_training"],
}
BATCH = 128
PACES = {
    "one process": [],
    "two processes": ["trainer=ddp_cpu", "trainer.devices=2"],
    "from a bank": ["bank=auto"],
    "compiled": ["compile=true"],
}


def words_of(method: str, steps: int, place: Path) -> list[str]:
    """The overrides of a run of so many steps, without validation."""
    words = [
        f"method={method}",
        *METHODS[method],
        "bank=null",
        "logger=none",
        f"victim_root={place}/victims",
        "init=null",
    ]
    words += [f"data.batch_size={BATCH}", f"data.limit_train={BATCH * steps}", "data.hold_out=0", "data.use=all"]
    words += ["trainer.max_epochs=1", "trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0"]
    words += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "victim_training.max_epochs=2"]
    return words


def made(words: list[str]) -> tuple[Any, Any, Any]:
    """Config, method and data of a run."""
    cfg = finalise(compose(words))
    images = shared_data(cfg)
    helpers = build_helpers(cfg, None, images)
    with contextlib.redirect_stdout(None):
        method, data = build(cfg, {}, trained=Trained(cfg=cfg, attack_names=None, helpers=helpers), data=images)
    return cfg, method, data


class Clock(Callback):
    """CPU seconds from the first batch of a fit to its last."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begins."""
        self.seconds = -time.process_time()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Ends with the last batch."""
        if trainer.is_last_batch:
            self.seconds += time.process_time()


def with_lightning(cfg: Any, method: Any, data: Any) -> float:
    """CPU seconds of an epoch by the Trainer of a run."""
    clock = Clock()
    trainer = make_trainer(cfg, Path(tempfile.mkdtemp()), [clock], [], method=method)
    trainer.fit(method, datamodule=data)
    return clock.seconds


def by_hand(method: Any, data: Any) -> tuple[float, float]:
    """CPU seconds of an epoch without it, and of the crafting in it."""
    data.setup("fit")
    found = method.configure_optimizers()
    optimizers = found["optimizer"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    method.train()
    method.log = method.log_dict = lambda *args, **kwargs: None

    def play(player: str, loss: torch.Tensor, clip: float | None = None) -> None:
        optimizer = optimizers[list(method.players).index(player)]
        own = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        loss.backward(inputs=own)
        optimizer.step()

    method.play = play
    crafting, began = 0.0, time.process_time()
    for step, raw in enumerate(data.train_dataloader()):
        before = time.process_time()
        batch = data.craft(raw, stage="train", epoch=0)
        crafting += time.process_time() - before
        loss = method.training_step(batch, step)
        if method.automatic_optimization:
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
    return time.process_time() - began, crafting


def measure(name: str, steps: int, rounds: int, place: Path) -> dict[str, Any]:
    """One method: CPU seconds of a step both ways, the share of the crafting, and MiB."""
    torch.set_num_threads(1)
    filter_known_warnings()
    words = words_of(name, steps, place)
    there = len(made(words)[2].splits.train)
    if there * 0.9 < steps * BATCH:  # a tenth is for validation
        raise SystemExit(
            f"--steps {steps} of {BATCH} images are more than there are: at most {int(there * 0.9) // BATCH}"
        )
    lightning, hand, crafting = [], [], []
    for number in range(rounds + 1):
        torch.manual_seed(0)
        cfg, method, data = made(words)
        fitted = with_lightning(cfg, method, data)
        _, method, data = made(words)
        whole, crafted = by_hand(method, data)
        if number:  # the first one warms up
            lightning.append(fitted / steps)
            hand.append(whole / steps)
            crafting.append(crafted / whole)
    ratios = [a / b for a, b in zip(lightning, hand, strict=True)]
    return {
        "seconds": statistics.median(lightning),
        "by_hand": statistics.median(hand),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "crafting": statistics.median(crafting),
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def apart(*words: str) -> str:
    """Runs Python in a process of its own, with one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


def pace(place: Path, name: str) -> float:
    """Images per second of DO's training in one of the ways of ``PACES``, by the wall clock; best of the epochs."""
    out = place / f"pace_{name.replace(' ', '_')}"
    words = ["-m", "redlab", "train", *words_of("do", 8, place), "logger=csv", f"hydra.run.dir={out}"]
    words += ["data.limit_test=8", "trainer.max_epochs=5", "trainer.log_every_n_steps=1", f"bank_root={place}/banks"]
    apart(*words, *PACES[name])
    with (out / "csv" / "version_0" / "metrics.csv").open() as file:
        found = [row["speed/images_per_second"] for row in csv.DictReader(file) if row.get("speed/images_per_second")]
    return max(map(float, found))


def show(results: Mapping[str, Any], paces: Mapping[str, float]) -> None:
    """Prints the table."""
    table = Table("method", "CPU s a step", "by hand", "ratio", "crafting", "MiB")
    for name, found in results.items():
        spread = f"{found['ratio']:.3f} ({min(found['ratios']):.3f} to {max(found['ratios']):.3f})"
        row = (
            f"{found['seconds']:.3f}",
            f"{found['by_hand']:.3f}",
            spread,
            f"{found['crafting']:.0%}",
            f"{found['mib']:.0f}",
        )
        table.add_row(name, *row)
    Console().print(table)
    for name, images in paces.items():
        print(f"{name}: {images:.0f} images per second")


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-pace", action="store_true", help="leave out images per second")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # of a process of its own
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.only:
        print(json.dumps(measure(args.only, args.steps, args.rounds, args.place)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for name in args.methods:
            sizes = ["--steps", str(args.steps), "--rounds", str(args.rounds)]
            results[name] = json.loads(apart(__file__, "--only", name, "--place", folder, *sizes).splitlines()[-1])
        paces = {} if args.without_pace else {name: pace(Path(folder), name) for name in PACES}
    show(results, paces)
    if args.out:
        said = {"steps": args.steps, "batch": BATCH, "rounds": args.rounds, "versions": versions()}
        args.out.write_text(json.dumps({**said, "methods": results, "images_per_second": paces}, indent=1) + "\n")


if __name__ == "__main__":
    main()
