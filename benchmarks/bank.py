"""What an attack bank saves: three methods trained on one mix that crafts for each, and on one that is crafted once.

    python benchmarks/bank.py [--images 2048] [--epochs 3] [--out results/benchmarks/bank.json]

Both ways end in the same numbers, since the bank holds as many epochs as are trained; the script checks that. Victims
are trained before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from redlab.provenance import versions
from redlab.runs.build import build_victims
from redlab.runs.config import compose, finalise
from redlab.runs.train import train

METHODS = {"DO": ["method=do"], "DS": ["method=ds"], "CDD-RED": ["method=cdd_red", "method.aug_mode=sample"]}


def words(images: int, epochs: int, place: Path) -> list[str]:
    """What all runs share."""
    victims = [
        "victim=[small_cnn,lenet,fashion_cnn]",
        "victim_training.max_epochs=2",
        "victim_training.limit_train=8192",
    ]
    sizes = [f"data.limit_train={images}", f"data.limit_val={images // 8}", f"data.limit_test={images // 16}"]
    sizes += ["data.batch_size=64", "method.width=16", "method.depth=5", f"trainer.max_epochs={epochs}"]
    places = [f"victim_root={place}/victims", f"bank_root={place}/banks"]
    quiet = ["trainer.enable_progress_bar=false", "logger=none"]
    return ["data=fashion_mnist", "mix=cdd_red_known", *victims, *sizes, *places, *quiet]


def timed(given: list[str], out: Path) -> tuple[float, dict[str, float]]:
    """Seconds of a run, and its numbers."""
    started = time.perf_counter()
    numbers = train(finalise(compose(given)), out)
    return time.perf_counter() - started, numbers


def main() -> None:
    """Measures both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        common = words(given.images, given.epochs, place)
        build_victims(finalise(compose(common)))
        bank = [f"bank_epochs={given.epochs}"]
        seconds = {"building the bank": timed([*common, *bank, "bank=build"], place / "build")[0]}
        for name, own in METHODS.items():
            seconds[f"{name}, crafting"], crafted = timed([*common, *own], place / f"{name} crafting")
            seconds[f"{name}, bank"], banked = timed([*common, *own, *bank, "bank=auto"], place / f"{name} bank")
            if crafted != banked:
                raise SystemExit(f"{name}: a bank of all epochs must change no number")
    without = sum(seconds[f"{name}, crafting"] for name in METHODS)
    with_bank = seconds["building the bank"] + sum(seconds[f"{name}, bank"] for name in METHODS)
    for name, value in seconds.items():
        print(f"{name:20} {value:7.1f} s")
    print(f"all, crafting {without:.1f} s; all, bank {with_bank:.1f} s: {with_bank / without:.2f}")
    if given.out:
        said = {
            "images": given.images,
            "epochs": given.epochs,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        ratio = {"ratio": with_bank / without}
        given.out.write_text(json.dumps(said | {"seconds": seconds} | ratio, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
