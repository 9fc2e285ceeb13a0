"""Kills runs at random moments, lets them go on, and compares with runs that nobody killed.

    python tests/faults/kill.py --kills 40

A scenario is a command and what it leaves: a training of one method on one or two processes, one that builds a bank, a
sweep, a study. It runs once untouched. Then, for each kill, it runs in an empty folder until a moment drawn between its
first sign of life and its end, when one of its processes gets SIGTERM or SIGKILL. All must be over within a minute. The
same words, or ``resume``, must then end well: on one process with the very bits of the untouched run (weights and
numbers), on two, where sums have another order, within a loose tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
LIMIT = 60  # seconds, within which all processes of a job are over when one of them was killed
LONGEST = 900  # seconds of any command

SMALL = ["data.limit_train=96", "data.limit_val=24", "data.limit_test=12", "data.batch_size=24", "victim_root=victims"]
SMALL += ["victim_training.max_epochs=1", "victim_training.limit_train=96", "victim_training.limit_val=24"]
SMALL += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL += ["trainer.max_epochs=3", "bank_root=banks"]
TWO = ["trainer=ddp", "trainer.devices=2"]
RUN = "hydra.run.dir=run"
DENOISER = ["mix=attunet", "method.width=4", "method.depth=3"]
METHODS = {
    "cdd_red": DENOISER,
    "do": DENOISER,
    "ds": DENOISER,
    "classifier": ["mix=adversarial_training", "mix.components.pgd.attack.steps=2"],
    "hardened": ["mix=adversarial_training", "mix.components.pgd.attack.steps=2"],
    "redrl": ["mix=attunet", "method.width=4", "method.blocks=1", "method.recogniser_width=4"],
    "redrl_image": ["mix=attunet", "method.recogniser_width=4"],
    "redrl_delta": ["mix=attunet", "method.recogniser_width=4"],
    "attunet_gan": ["mix=attunet", "method.width=4", "method.window=3"],
    "hgd": ["mix=attunet", "method.width=2"],
    "add_defense": ["mix=attunet", "method.width_divisor=32"],
    "ape_gan": ["mix=attunet", "method.width_divisor=16"],
    "gred": [
        "mix=gred",
        "only=fgsm_u",
        "mix.only_fooled=false",
        "mix.only_right=false",
        "method.width_divisor=32",
        "method.saliency_layer=features.8",
    ],
}


@dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
        name: what it is.
        words: of the command.
        again: of the command that goes on; None for the same words.
        ranks: how many processes train.
    """

    name: str
    words: list[str]
    again: list[str] | None = None
    ranks: int = 1


def scenarios() -> list[Scenario]:
    """All that is killed: each method in one process, and more."""
    found = [
        Scenario(f"train {name}", ["train.py", f"method={name}", *SMALL, *words, RUN])
        for name, words in METHODS.items()
    ]
    found += [
        Scenario(f"two ranks {name}", ["train.py", f"method={name}", *SMALL, *METHODS[name], *TWO, RUN], ranks=2)
        for name in ("cdd_red", "redrl", "attunet_gan", "add_defense")
    ]
    bank = ["mix=digits", "method=do", "method.width=4", "method.depth=3", "bank=auto", "bank_epochs=2"]
    found.append(Scenario("bank", ["train.py", *SMALL, *bank, "mix.components.pgd.attack.steps=40", RUN]))
    sweep = ["train.py", "-m", *SMALL, *DENOISER, "method=do", "seed=0,1", "hydra.sweep.dir=sweep"]
    found.append(Scenario("sweep", sweep, ["train.py", "-m", "resume=sweep"]))
    study = ["evaluate.py", "study=cdd_red/tableA9", "scale=smoke", "data.limit_train=64", "data.limit_test=8"]
    found.append(Scenario("study", study))
    return found


@dataclass
class Outcome:
    """What came of one kill."""

    scenario: str
    how: str
    rank: int
    after: float
    of: float
    code: int
    over: float
    resumed: int = 0
    faults: list[str] = field(default_factory=list)


def environment() -> dict[str, str]:
    """One thread, so that sums have one order, and no rank of a job that this may run in."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_", "SLURM_", "TORCHELASTIC_")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(ranks)}
    return keep | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT / "src")}


def descendants(pid: int) -> list[int]:
    """Process ids of all that a process has started, and what they have."""
    try:
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(p for child in children for p in descendants(child))]


def ranks_of(pid: int) -> list[int]:
    """The processes of a job that train: the first, and those that Lightning has started."""
    found = []
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            if "LOCAL_RANK=" in Path(f"/proc/{each}/environ").read_text():
                found.append(each)
    return [pid, *found]


def start(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Starts a command in a folder, in a session of its own; what it says goes into ``said.txt``."""
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    with (folder / "said.txt").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def clean_up(process: subprocess.Popen[bytes]) -> None:
    """Nothing of a job outlives it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def alive(folder: Path) -> bool:
    """Whether a command has come as far as writing anything."""
    return any(path.name != "said.txt" for path in folder.iterdir())


def untouched(scenario: Scenario, folder: Path) -> tuple[float, float]:
    """Runs a scenario to its end: seconds until it shows a sign of life, and until it is over."""
    began, process = time.monotonic(), start(folder, scenario.words)
    first = None
    try:
        while process.poll() is None and time.monotonic() - began < LONGEST:
            first = time.monotonic() - began if first is None and alive(folder) else first
            time.sleep(0.02)
    finally:
        clean_up(process)
    if process.returncode != 0:
        raise SystemExit(f"{scenario.name} does not run: {(folder / 'said.txt').read_text()[-2000:]}")
    return first or 0.0, time.monotonic() - began


def left_by(folder: Path) -> dict[str, object]:
    """Weights and numbers of all runs in a folder, and the cards of studies."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("last.ckpt")):
        state = torch.load(path, weights_only=True)
        found[f"{path.relative_to(folder)}"] = [state["state_dict"], state["optimizer_states"], state["global_step"]]
    for path in sorted(folder.rglob("metrics.json")):
        found[f"{path.relative_to(folder)}"] = json.loads(path.read_text())
    for path in sorted(folder.glob("results/**/*.json")):
        found[f"{path.relative_to(folder)}"] = json.loads(path.read_text())["numbers"]
    return found


def differences(left: object, right: object, where: str = "", *, exact: bool = True) -> list[str]:
    """Where two trees differ: to the last bit, or by more than rounding."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = dict.fromkeys([*left, *right])
        missing = [f"{where}/{key} is missing" for key in keys if (key in left) != (key in right)]
        both = [key for key in keys if key in left and key in right]
        return missing + [d for k in both for d in differences(left[k], right[k], f"{where}/{k}", exact=exact)]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]", exact=exact)]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        near = torch.equal(left, right) or (not exact and torch.allclose(left, right, atol=1e-3, rtol=1e-2))
        return [] if near else [f"{where} differs by {(left.double() - right.double()).abs().max():.1e}"]
    same = left == right or (left != left and right != right)
    if not same and not exact and isinstance(left, float) and isinstance(right, float):
        same = abs(left - right) < 0.02 + 0.05 * abs(left)
    return [] if same else [f"{where}: {left} and {right}"]


def kill(scenario: Scenario, folder: Path, first: float, whole: float, draw: random.Random) -> Outcome:
    """Runs a scenario, kills it, and lets it go on."""
    how = draw.choice([signal.SIGTERM, signal.SIGKILL])
    rank, wait = draw.randrange(scenario.ranks), draw.uniform(0, whole - first)
    began, process = time.monotonic(), start(folder, scenario.words)
    try:
        while process.poll() is None and not alive(folder):
            time.sleep(0.02)
        moment = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        after, ranks = time.monotonic() - began, ranks_of(process.pid)
        if process.poll() is None:
            os.kill(ranks[min(rank, len(ranks) - 1)], how)
        killed, others = time.monotonic(), ranks[1:]
        while time.monotonic() - killed < LIMIT and (
            process.poll() is None or any(Path(f"/proc/{pid}").exists() for pid in others)
        ):
            time.sleep(0.05)
        over = time.monotonic() - killed
    finally:
        clean_up(process)
    found = Outcome(scenario.name, how.name, rank, after, whole, process.returncode, over)
    if over >= LIMIT:
        found.faults.append(f"not over after {LIMIT} s")
    return found


def go_on(scenario: Scenario, folder: Path, found: Outcome, whole: dict[str, object]) -> None:
    """Lets a killed scenario go on, and compares what it leaves."""
    begun = scenario.again is None or any((folder / place).exists() for place in ("sweep/sweep.yaml", "run"))
    process = start(folder, scenario.again if scenario.again is not None and begun else scenario.words)
    try:
        found.resumed = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        found.resumed = -1
    finally:
        clean_up(process)
    if found.resumed != 0:
        found.faults.append(f"does not go on: {(folder / 'said.txt').read_text()[-600:]}")
        return
    found.faults += differences(whole, left_by(folder), exact=scenario.ranks == 1)[:3]
    unfinished = [path.name for path in folder.rglob("*.part")]
    if unfinished:
        found.faults.append(f"leaves {unfinished}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of scenarios, or how they begin, parted by commas")
    parser.add_argument("--out", type=Path, help="a JSON file for what came of each kill")
    asked = parser.parse_args()
    chosen = [s for s in scenarios() if s.name.startswith(tuple(asked.only.split(",")))]
    if not chosen:
        parser.error(f"--only {asked.only}: no such scenario; there are {', '.join(s.name for s in scenarios())}")
    draw, outcomes = random.Random(asked.seed), []
    order = [chosen[i % len(chosen)] for i in range(asked.kills)]
    with tempfile.TemporaryDirectory() as place:
        wholes: dict[str, tuple[float, float, dict[str, object]]] = {}
        for number, scenario in enumerate(order):
            if scenario.name not in wholes:
                (base := Path(place) / f"whole_{len(wholes)}").mkdir()
                wholes[scenario.name] = *untouched(scenario, base), left_by(base)
            first, length, whole = wholes[scenario.name]
            (folder := Path(place) / f"kill_{number}").mkdir()
            found = kill(scenario, folder, first, length, draw)
            go_on(scenario, folder, found, whole)
            outcomes.append(found)
            said = "; ".join(found.faults) or "goes on"
            when = f"{found.how} to rank {found.rank} after {found.after:5.1f} of {length:5.1f} s"
            print(f"{number + 1:3} {scenario.name:22} {when}: exit {found.code}, over in {found.over:.1f} s; {said}")
            sys.stdout.flush()
            if found.faults:
                print(f"    {shlex.join(scenario.words)}", flush=True)
    bad = sum(bool(found.faults) for found in outcomes)
    print(f"{len(outcomes) - bad} of {len(outcomes)} went on as if nothing had happened.")
    if asked.out:
        asked.out.write_text(json.dumps([vars(found) for found in outcomes], indent=1) + "\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
