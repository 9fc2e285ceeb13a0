"""Studies: runs trained or found, evaluations of them made or found, and the card of a paper's table or figure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from redlab.crafting import AttackMix
from redlab.metrics import Samples
from redlab.report import console as table_for_console
from redlab.report import save_figure
from redlab.report.tables import Table
from redlab.runs.banks import open_bank
from redlab.runs.build import content, shared_data, victim_identities
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import run_record
from redlab.runs.config import compose, conf_dir, finalise
from redlab.runs.console import console, filter_known_warnings
from redlab.runs.dry import rehearse
from redlab.runs.evaluations import run_test
from redlab.runs.identity import run_identity
from redlab.runs.stopping import StopOnSignal, Stopped
from redlab.runs.train import opened, show_plan, train
from redlab.runs.trainer import make_trainer
from redlab.spelling import suggest
from redlab.studies import Card, Evaluation, Scale, Seen, Study, Trained, card_markdown, card_tables, draw, find
from redlab.studies.card import card as make_card
from redlab.studies.study import merge_overrides

RUNS = Path("outputs/runs")
"""Where runs of studies are kept."""

_OF_RUN = re.compile(r"(?P<key>init|victims\.\w+\.weights)=@(?P<run>.+)")
"""A word that stands for the weights of another run of the study: ``init=@<run>``."""


def studies(
    pattern: str, scale: str, seeds: Sequence[int], overrides: Sequence[str], out: Path, *, dry: bool = False
) -> list[Card]:
    """Makes tables and figures of papers: trains or finds their runs, prints ours beside the paper's, writes cards.

    Args:
        pattern: ``<paper>/<table>``, or one for several, such as ``cdd_red/*``. Of several, one that fails is reported,
            and the others are made all the same.
        scale: a scale of the paper.
        seeds: each run is made once per seed.
        overrides: for every run.
        out: a card goes to ``<out>/<paper>/<table>_<data>_<scale>.json``, markdown and figure beside it.
        dry: check all that can be checked, say what would be run, and stop.

    Returns:
        The cards; none of a dry run.

    Raises:
        ConfigError: there is no such study or scale, something is wrong with one of the runs, or a study failed.
    """
    filter_known_warnings()
    try:
        found = find(pattern)
    except ValueError as error:
        raise ConfigError(f"study={pattern}: {error}.") from error
    labs = [Lab(study, scale, overrides) for study in found]
    rehearsed: set[tuple[str, ...]] = set()
    for lab in labs:  # before anything is trained, so that a mistake in the overrides costs nothing
        for name in lab.study.runs:
            words = lab.words(name)
            if tuple(words) not in rehearsed:
                rehearsed.add(tuple(words))
                plan, _ = rehearse(finalise(compose(words)))
                if dry:
                    show_plan({"study": lab.study.id, "run": f"{name}, seeds {', '.join(map(str, seeds))}"} | plan)
    if dry:
        return []
    cards, failures = [], {}
    for lab in labs:
        try:
            cards.append(lab.make(seeds, out))
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as error:
            if len(labs) == 1:
                raise
            failures[lab.study.id] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            console.print(f"[red]{lab.study.id} failed:[/] {failures[lab.study.id]}", markup=True, highlight=False)
    if len(labs) > 1:
        console.print(table_for_console(summary(cards, failures)))
    if failures:
        raise ConfigError(f"{len(failures)} of {len(labs)} studies failed: {', '.join(failures)}; see above.")
    return cards


def summary(cards: Sequence[Card], failures: Mapping[str, str]) -> Table:
    """How many conclusions of each study hold, tie or fail."""
    kinds = ("holds", "tie", "fails", "no number")
    rows = [(card.study, *(str(sum(c["verdict"] == kind for c in card.claims)) for kind in kinds)) for card in cards]
    rows += [(name, *("–",) * len(kinds)) for name in failures]
    return Table("Conclusions of the papers", ("study", *kinds), tuple(rows))


class Lab:
    """Makes one study at one scale.

    Args:
        study: what to make.
        scale: name of its scale.
        overrides: the user's, for every run.

    Raises:
        ConfigError: the paper has no such scale.
    """

    def __init__(self, study: Study, scale: str, overrides: Sequence[str]) -> None:
        self.study, self.scale, self.extra = study, scale, list(overrides)
        paper = study.id.split("/")[0]
        node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / f"{paper}.yaml"))
        if scale not in node["scales"]:
            hint = suggest(scale, list(node["scales"]))
            raise ConfigError(
                f"scale={scale}: {paper} has no scale {scale!r}; it has {', '.join(node['scales'])}.{hint}"
            )
        self.words_of = Scale.of(node["scales"][scale])

    def words(self, name: str, seed: int = 0) -> list[str]:
        """Overrides of a run. Its attacks come out of a bank, unless they are on the method itself."""
        words = merge_overrides(self.study.overrides(name, self.words_of, self.extra), [f"seed={seed}"])
        plain = [word for word in words if not _OF_RUN.fullmatch(word)]
        components = compose(plain).mix.components
        whole = any(component.knowledge == "defence" for component in components.values())
        return plain if whole or any(word.startswith("bank=") for word in plain) else [*plain, "bank=auto"]

    def make(self, seeds: Sequence[int], out: Path) -> Card:
        """Trains or finds the runs, makes or finds the evaluations, and writes the card."""
        started = time.perf_counter()
        seen, runs = [], {name: [self.run(name, seed) for seed in seeds] for name in self.study.runs}
        for place, seed in enumerate(seeds):
            console.print(f"[bold]{self.study.id}[/], seed {seed}", highlight=False)
            evaluations = self.study.evaluations.items()
            seen.append({name: self.see(runs[asked.run][place], asked) for name, asked in evaluations})
        table = self.study.table(seen)
        data = "+".join(dict.fromkeys(finalise(compose(self.words(name))).data.name for name in self.study.runs))
        if any("data.test_on=val" in self.words_of.words(asked.overrides) for asked in self.study.evaluations.values()):
            data += "_validation"
        found = make_card(
            self.study,
            table,
            scale=self.scale,
            runs={
                name: [self._trained(name, s, f) for s, f in zip(seeds, of, strict=True)] for name, of in runs.items()
            },
            data=data,
            device=_device_name(),
            seconds=time.perf_counter() - started,
            seen=seen[0],
        )
        path = found.save(out / ("_".join(filter(None, (self.study.id, data, self.scale))) + ".json"))
        for each in card_tables(found):
            console.print(table_for_console(each))
        path.with_suffix(".md").write_text(card_markdown(found), encoding="utf-8")
        if (figure := draw(self.study, seen[0], table, found)) is not None:
            save_figure(figure, path.with_suffix(".png"))
        console.print(f"Card: [bold]{path}[/] (.md beside it{', and .png' if figure is not None else ''})")
        return found

    def run(self, name: str, seed: int) -> Path:
        """The folder of a run: found where it is finished, else trained (or resumed) there."""
        words = self.words(name, seed)
        weights = filter(None, map(_OF_RUN.fullmatch, self.study.runs[name]))
        words += [f"{found['key']}={self.run(found['run'], seed)}" for found in weights]
        cfg = finalise(compose(words))
        images = content(cfg, shared_data(cfg))
        identity = run_identity(cfg, images, victim_identities(cfg, images))
        out = RUNS / f"{cfg.choices.method}_{cfg.data.name}_seed{cfg.seed}_{identity[:10]}"
        if (out / "metrics.json").is_file():
            console.print(f"Found {out}")
        else:
            train(cfg, out)
        return out

    def see(self, run: Path, asked: Evaluation) -> Seen:
        """An evaluation of a run; of its own test, the rows that it left."""
        if asked.own_test:
            try:
                return Seen(rows=Samples.load(run / "samples.npz"))
            except ValueError as error:
                console.print(f"[yellow]{error}: tested again.[/]")
        opening = opened(run, [*self.words_of.words(asked.overrides), "logger=none"])
        cfg, method, data = opening.cfg, opening.method, opening.data
        if asked.attacks is not None:
            own = data.mix
            data.mix = AttackMix(
                asked.attacks,
                deal=own.deal,
                quantize=own.quantize,
                rounding=own.rounding,
                only_fooled=own.only_fooled,
                only_right=own.only_right,
                adaptive={} if cfg.mix.diagnosis else None,
                diagnosis=cfg.mix.diagnosis,
                seed=own.seed,
            )
        data.attach(method, judges=cfg.get("judges"), probe=asked.probe, keep_images=asked.keep_images)
        cfg.bank = "auto" if all(c.knowledge == "victim" for c in data.mix.components.values()) else None
        data.bank = open_bank(cfg, data, stages=("test",))
        trainer = make_trainer(cfg, Path("outputs"), [StopOnSignal()], [], testing=True)
        run_test(cfg, trainer, method, data, opening.checkpoint)
        return Seen(rows=method.samples or Samples({}), pictures=method.pictures, of=method.pictured)

    def _trained(self, name: str, seed: int, folder: Path) -> Trained:
        record = run_record(folder)
        last = record["trained_with"][-1]
        words = self.study.overrides(name, self.words_of, self.extra)
        return Trained(
            seed=seed,
            overrides=words,
            identity=record["identity"],
            commit=last["commit"],
            versions=last["versions"],
            device=last.get("device"),  # not in checkpoints of before
        )


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
