"""Images of ADD-Defense: attacked, and restored by it and by APE-GAN, with what the target says of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from redlab.probes import Perturbations
from redlab.report.plots import image_grid
from redlab.studies.add_defense.restoring import ADD, APE, CLEAN, NAMES, trained
from redlab.studies.numbers import average
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

SHOWN = 4


def _pictures(seen: Seen, attack: str, picture: str) -> Tensor:
    """Pictures of the kept images of an attack; the same images of every attack, in the order of the data."""
    places = (seen.of["attack"] == seen.of.names["attack"].index(attack)).nonzero()[:, 0]
    order = seen.of["image"][places].argsort()
    return seen.pictures[picture][places[order]][:SHOWN]


def images() -> Study:
    """Figs. 8 to 11: attacked images, and what each defence makes of them."""
    runs = trained("@fmnist")

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            for (attack,), rows in each.rows.where(knowledge="victim").groups("attack"):
                column = NAMES.get(attack, CLEAN)
                table[f"{name}, PSNR", column] = rows.mean("psnr")
                table[f"{name}, right", column] = rows.mean("right_restored")
        return table

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        columns: dict[str, Tensor] = {}
        shown = [a for a in ("clean", *NAMES) if a in seen[ADD].rows.attacks]
        for head, name, picture in (("attacked", ADD, "adv"), (ADD, ADD, "restored"), (APE, APE, "restored")):
            of = torch.stack([_pictures(seen[name], attack, picture) for attack in shown], dim=1)
            columns |= {f"{head}: {place + 1}": pictures for place, pictures in enumerate(of)}
        rows = [NAMES.get(attack, "clean") for attack in shown]
        return image_grid(columns, rows=rows, title="Attacked images, and what the defences make of them")

    return Study(
        id="add_defense/images",
        title="Attacked and restored images (Figs. 8 to 11)",
        runs=runs,
        evaluations={
            name: Evaluation(run=name, overrides=("@test_fmnist", *DIAGNOSIS), probe=Perturbations(), keep_images=SHOWN)
            for name in runs
        },
        numbers=numbers,
        claims={
            f"{ADD} is nearer to the original than {APE}, on average": lambda t: (
                average([*t.row(f"{APE}, PSNR").values()]) < average([*t.row(f"{ADD}, PSNR").values()])
            )
        },
        figure=figure,
        units={f"{name}, PSNR": "dB" for name in runs},
        notes=("The measures are ours; the paper shows images alone.",),
    )


STUDIES = {study.__name__: study for study in (images,)}
