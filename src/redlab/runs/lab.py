"""Studies: runs trained or found, and the card of a paper's table or figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from redlab.report import console as table_for_console
from redlab.report import save_figure
from redlab.runs.build import content, shared_data, victim_identities
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, conf_dir, finalise
from redlab.runs.console import console, filter_known_warnings
from redlab.runs.dry import rehearse
from redlab.runs.identity import run_identity
from redlab.runs.train import show_plan, train
from redlab.studies.study import Card, Study, card_figure, card_markdown, card_tables


def study(
    name: str, scale: str, seeds: Sequence[int], overrides: Sequence[str], out: Path, *, dry: bool = False
) -> Card | None:
    """Makes a table or figure of a paper: trains or finds its runs, prints ours beside the paper's, writes the card.

    Args:
        name: ``<paper>/<table>``, a file under ``conf/study``.
        scale: a scale of the study.
        seeds: each run is made once per seed.
        overrides: for every run.
        out: the card goes to ``<out>/<paper>/<table>_<data>_<scale>.json``, markdown and figure beside it.
        dry: check all that can be checked, say what would be run, and stop.

    Returns:
        The card; none of a dry run.

    Raises:
        ConfigError: there is no such study, or something is wrong with one of its runs.
    """
    file = conf_dir() / "study" / f"{name}.yaml"
    if not file.is_file():
        known = sorted(
            str(p.relative_to(conf_dir() / "study").with_suffix("")) for p in file.parents[1].rglob("*.yaml")
        )
        raise ConfigError(f"study={name}: there is no such study. Studies: {', '.join(known)}.")
    paper_study: Study = instantiate(OmegaConf.load(file))
    # before anything is trained, so that a mistake in the overrides costs nothing
    filter_known_warnings()
    for column in paper_study.runs:
        cfg = finalise(compose(paper_study.overrides(column, scale, overrides)))
        plan, _ = rehearse(cfg)
        if dry:
            show_plan({"column": f"{column}, seeds {', '.join(map(str, seeds))}"} | plan)
    if dry:
        return None
    card = paper_study.run(
        train_or_find,
        overrides,
        scale,
        seeds,
        data=cfg.data.name,
        device=_device_name(),
        values_per_image=cfg.data.channels * cfg.data.image_size**2,
    )
    path = card.save(out / f"{name}_{card.data}_{scale}.json")
    for table in card_tables(card):
        console.print(table_for_console(table))
    path.with_suffix(".md").write_text(card_markdown(card), encoding="utf-8")
    save_figure(card_figure(card), path.with_suffix(".png"))
    console.print(f"Card: [bold]{path}[/] (.md and .png beside it)")
    return card


def train_or_find(overrides: Sequence[str]) -> dict[str, float]:
    """The numbers of a run: read where it is finished under ``outputs/runs``, else trained (or resumed) there."""
    cfg = finalise(compose(overrides))
    images = content(cfg, shared_data(cfg))
    identity = run_identity(cfg, images, victim_identities(cfg, images))
    out = Path("outputs/runs") / f"{cfg.choices.method}_{cfg.data.name}_seed{cfg.seed}_{identity[:10]}"
    if (out / "metrics.json").is_file():
        console.print(f"Found {out}")
        numbers: dict[str, float] = json.loads((out / "metrics.json").read_text())
        return numbers
    return train(cfg, out)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
