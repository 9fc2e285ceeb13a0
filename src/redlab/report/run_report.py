"""The report of one run, from its rows and a few example pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.metrics import Samples, score_names
from redlab.report.canvas import log_figure
from redlab.report.figures import accuracy_bars, confusion_map, roc_curves, training_curves
from redlab.report.html import write_report
from redlab.report.measures import NONE, headline, tables
from redlab.report.pictures import Caption, restoration_grid, verdict_grid
from redlab.report.tables import Table

Said = Mapping[str, Tensor]

CAPTIONS = {
    "restoration": "Test images: of each attack some that were put right and some that were not, where there are such. "
    "The victim's answer stands below each, with a tick where it is right.",
    "verdicts": "Test images: of each attack some where the defence was right and some where it was not, where there "
    "are such. Below the clean and the attacked image stands the victim's answer, below the perturbation what the "
    "defence said of the attacked image, with a tick where it is right; the name of an attack has no mark where the "
    "true one is none that the defence was trained on.",
    "accuracy": "Test accuracy per attacker: the victim's on clean and on attacked images, and that of the defence. "
    "Every attacker: images that are right whatever is done to them. Adaptive: the attacker knows the defence.",
    "roc": "Test images: alarms on attacked against alarms on clean images, over all thresholds.",
    "confusion": "Test images: which attack was taken for which. An unseen attack is one that the identifier was not "
    "trained on.",
    "training": "The course of training.",
}


def run_report(
    out: Path,
    *,
    title: str,
    summary: str,
    config: str,
    rows: Samples,
    examples: Sequence[tuple[AttackBatch, Said]],
    victims: Mapping[str, nn.Module],
    class_names: Sequence[str],
    loggers: Iterable[Any],
    checks: Table,
) -> Path:
    """Writes ``figures/*.png`` and ``report.html``, and hands the figures to the loggers.

    What the defence cannot do has no tables and no figures.

    Args:
        out: folder of the run.
        title: heading of the report.
        summary: a few lines below it.
        config: resolved config as YAML.
        rows: of the test.
        examples: pairs of the attacked test cells and what was said of them.
        victims: name -> victim, on the CPU or wherever; the order gives the ids.
        class_names: names of the classes.
        loggers: Lightning loggers.
        checks: whether the numbers can be believed, see ``redlab.report.checks``.

    Returns:
        The path of ``report.html``.
    """
    figures = _pictures(rows, examples, victims, class_names)
    attacked = bool(len(rows)) and bool((rows["attacked"] > 0).any())
    if attacked:
        figures["accuracy"] = accuracy_bars(rows)
    if attacked and len(rows.clean) and score_names(rows):
        figures["roc"] = roc_curves(rows)
    if "said" in rows:
        figures["confusion"] = confusion_map(rows)
    trained = ("train/", "val/")  # an evaluation has neither
    if logged := [r for r in _csv_rows(out) if any(value and key.startswith(trained) for key, value in r.items())]:
        figures["training"] = training_curves(logged)
    for name, figure in figures.items():
        log_figure(loggers, name, figure, folder=out / "figures")
    return write_report(
        out / "report.html",
        title=title,
        summary=summary,
        tiles=headline(rows),
        figures={CAPTIONS[name]: figure for name, figure in figures.items()},
        config=config,
        tables=tables(rows),
        checks=checks,
    )


def _pictures(
    rows: Samples,
    examples: Sequence[tuple[AttackBatch, Said]],
    victims: Mapping[str, nn.Module],
    classes: Sequence[str],
) -> dict[str, Figure]:
    """Images that were attacked: what a restorer made of them, what a detector, identifier or labeler said."""
    if not examples:
        return {}
    batch = AttackBatch.cat([pairs for pairs, _ in examples])
    said = {name: torch.cat([part[name] for _, part in examples]) for name in examples[0][1]}
    images = [batch.clean, batch.adv, *([said["restored"]] if "restored" in said else [])]
    judged = torch.stack([_answers(batch, part, victims) for part in images])
    names = list(victims)
    found = {}
    if "restored" in said:
        shown = torch.tensor(_shown(batch, judged == batch.label))
        some, answers = batch[shown], judged[:, shown]
        found["restoration"] = restoration_grid(
            some.clean,
            some.adv,
            said["restored"][shown],
            labels=some.label,
            predictions=(answers[0], answers[1], answers[2]),
            attacks=[_attack(rows, said, i) for i in shown.tolist()],
            victims=[names[v] for v in some.victim.tolist()],
            class_names=classes,
        )
    if captions := _captions(rows, batch, said, classes):
        verdicts = zip(captions, (said["right"] > 0).tolist(), strict=True)
        right = torch.tensor([whole if caption.right is None else caption.right for caption, whole in verdicts])
        right = torch.stack([*(judged[:2] == batch.label), right])
        shown = torch.tensor(_shown(batch, right))
        some, answers = batch[shown], judged[:, shown]
        found["verdicts"] = verdict_grid(
            some.clean,
            some.adv,
            labels=some.label,
            predictions=(answers[0], answers[1]),
            verdicts=[captions[i] for i in shown.tolist()],
            attacks=[_attack(rows, said, i) for i in shown.tolist()],
            victims=[names[v] for v in some.victim.tolist()],
            class_names=classes,
        )
    return found


def _attack(rows: Samples, said: Said, row: int) -> str:
    attack, setting = (rows.names[name][int(said[name][row])] for name in ("attack", "setting"))
    return f"{attack} {setting}".strip()


def _captions(rows: Samples, batch: AttackBatch, said: Said, classes: Sequence[str]) -> list[Caption]:
    """What a defence said of each image: its class, else the attack that it named, else its alarm; or nothing."""
    found = []
    for i in range(len(batch)):
        if "answer" in said:
            answer = int(said["answer"][i])
            found.append(Caption(classes[answer], answer == int(batch.label[i])))
        elif "said" in said:
            name, right = rows.names["said"][int(said["said"][i])], float(said["identified"][i])
            found.append(Caption(NONE if name == "clean" else name, None if right != right else right > 0))
        elif "alarm" in said:
            alarm, score = bool(said["alarm"][i] > 0), float(said[f"score_{score_names(rows)[0]}"][i])
            found.append(Caption(f"{'alarm' if alarm else 'no alarm'}, {score:.2f}", alarm))
    return found


def _answers(batch: AttackBatch, images: Tensor, victims: Mapping[str, nn.Module]) -> Tensor:
    """(B,) the class that each image is to the victim that was attacked."""
    answers = torch.full_like(batch.label, -1)
    for v, victim in enumerate(victims.values()):
        mine = (batch.victim == v).nonzero()[:, 0]
        device = next((t.device for t in victim.parameters()), torch.device("cpu"))
        if len(mine):
            with torch.no_grad():
                answers[mine] = victim(images[mine].to(device)).argmax(1).cpu()
    return answers


def _shown(batch: AttackBatch, right: Tensor) -> list[int]:
    """Rows for the figure: of each attack as many that were put right as not, on different images and victims.

    Args:
        batch: B pairs.
        right: (3, B) bool, whether the victim is right on the clean and the attacked image, and the defence.
    """
    fooled = right[0] & ~right[1]
    repaired, failed = (fooled & right[2]).tolist(), (fooled & ~right[2]).tolist()
    index, victim = batch.index.tolist(), batch.victim.tolist()
    attacks = sorted(set(batch.attack.tolist()))
    rows: list[int] = []
    for attack in attacks:
        left = (batch.attack == attack).nonzero()[:, 0].tolist()
        for place in range(max(2, 4 // len(attacks))):
            first, second = (repaired, failed) if place % 2 == 0 else (failed, repaired)

            def rank(row: int, first: list[bool] = first, second: list[bool] = second) -> tuple[int, bool, int]:
                kind = 0 if first[row] else 1 if second[row] else 2
                return kind, index[row] in {index[r] for r in rows}, sum(victim[r] == victim[row] for r in rows)

            if left:
                rows.append(min(left, key=rank))
                left.remove(rows[-1])
    return rows


def _csv_rows(out: Path) -> list[dict[str, str]]:
    """The rows of the CSV logger, of all sessions of a run that was stopped and resumed."""
    rows = []
    for path in sorted(out.glob("csv/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return rows
