"""Builds all that a config names before anything is trained or written, so that a mistake in it costs nothing.

What can be wrong with a value is known to the code that takes it. So there is no second set of rules here: mix, data,
victims, method, schedules and Trainer are made as a run makes them (victims without weights where that is possible),
and what their constructors say is put beside the key whose value they refuse (``blame.py``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from filelock import FileLock
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from redlab.attacks.feature import FeatureAttack
from redlab.batch import CLEAN, attackable, capabilities
from redlab.crafting import AttackMix
from redlab.data import AttackDataModule
from redlab.evaluation import answers
from redlab.methods import Method
from redlab.metrics import BESIDE_CLEAN
from redlab.runs.blame import attempt
from redlab.runs.build import (
    content,
    helpers_of,
    make_method,
    make_mix,
    offers,
    settings_of,
    untrained,
    victim_data,
    victim_file,
)
from redlab.runs.check import ConfigError, trains_victim
from redlab.runs.checkpoints import own_victims
from redlab.runs.identity import recipe, victim_identity
from redlab.runs.loading import start_from
from redlab.runs.loggers import check_packages
from redlab.runs.trainer import make_trainer
from redlab.spelling import nearest
from redlab.victims import load
from redlab.victims.victim import ImageClassifier

T = TypeVar("T")
_MAX_EPOCHS = 1000  # of a schedule that is tried out


def rehearse(
    cfg: DictConfig, *, record: Mapping[str, Any] | None = None, trained: DictConfig | None = None
) -> tuple[dict[str, str], AttackDataModule | None]:
    """Builds everything, trains and writes nothing, and says what would be run.

    Args:
        cfg: a finalised config.
        record: what a checkpoint holds of the run that it is of.
        trained: for an evaluation, the config that the method was trained with.

    Returns:
        Lines of a summary, by their titles; and the data, for the run to use, or None if they are still to be fetched.

    Raises:
        ConfigError: a value that something refuses: one sentence with the key, the value and what it may be.
        ImportError: a logger needs a package that is not there.
    """
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said is said when it counts
            return _rehearse(cfg, record or {}, trained)
    finally:  # a Trainer sets these for the whole process
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.benchmark = benchmark


def _rehearse(
    cfg: DictConfig, record: Mapping[str, Any], trained: DictConfig | None
) -> tuple[dict[str, str], AttackDataModule | None]:
    check_packages(cfg)
    world = attempt(cfg, "trainer", lambda c: _world_size(c, testing=trained is not None))
    mix = attempt(cfg, "mix", make_mix)
    data = attempt(cfg, "data", lambda c: _data(c, mix, training=trained is None))
    own = own_victims(cfg, record, data)
    stored = {name for name, entry in own.items() if entry.get("state_dict") is not None}
    victims, origins = {}, {}
    for name in map(str, cfg.victims):
        victims[name], origins[f"victim {name}"] = _known_victim(cfg, name, name in stored, data)
    helpers, embedded = {}, {k for k, v in record.get("helpers", {}).items() if v.get("state_dict") is not None}
    for name in map(str, helpers_of(trained or cfg).victims):
        helpers[name], origins[f"helper {name}"] = _known_victim(
            trained or cfg, name, name in embedded, data, "helpers"
        )
    names = record.get("attacks", mix.names)
    if trained is None:
        method = attempt(cfg, "method", lambda c: _method(c, c, victims, helpers, names))
        attempt(cfg, "trainer", lambda c: make_trainer(c, Path(), [], [], method=method))
        attempt(cfg, "trainer", lambda c: _limits(c, mix, data, method.monitor))
        if cfg.init is not None and not record:
            origins["init"] = start_from(method, Path(cfg.init))
    else:
        method = _trained_method(cfg, trained, victims, helpers, names)
    attempt(cfg, "mix", lambda c: _fits(make_mix(c), method, victims))
    epochs = f", {cfg.trainer.max_epochs} epochs of {_limits(cfg, mix, data)} steps" if trained is None and data else ""
    cells = mix.cells(victims, adaptive=attackable(method))
    sizes = {part: len(rows) for part, rows in data.indices.items()} if data else {}
    plan = {
        "method": f"{cfg.choices.method}{epochs}",
        "data": f"{cfg.data.name}: " + (", ".join(f"{n} {part}" for part, n in sizes.items()) or "to be downloaded"),
        **origins,
        "mix": f"{cfg.choices.mix}: {', '.join(mix.names)}; {len(cells)} cells of attack and victim",
        "trainer": f"{cfg.trainer.accelerator}, {world} process{'es' * (world > 1)}, precision {cfg.trainer.precision}",
    }
    return plan, data


# ---- the parts, as a run makes them ---------------------------------------------------------------------------------


def _world_size(cfg: DictConfig, *, testing: bool) -> int:
    world = make_trainer(cfg, Path(), [], [], testing=testing).world_size
    if cfg.data.batch_size % world:
        more = -(-cfg.data.batch_size // world) * world
        raise ConfigError(
            f"data.batch_size={cfg.data.batch_size} is not a multiple of the {world} processes of "
            f"trainer.devices={cfg.trainer.devices}: give one that is, such as data.batch_size={more}."
        )
    return world


def _data(cfg: DictConfig, mix: AttackMix, *, training: bool) -> AttackDataModule | None:
    """The data, read but not every image looked at; None where the files are still to be downloaded."""
    node = cfg.data.copy()
    for part in (node, node.source):
        if part.get("download"):
            part.download = False
    victims = {str(name): nn.Identity() for name in cfg.victims}
    data: AttackDataModule = instantiate(node, _partial_=True)(mix=mix, victims=victims, seed=cfg.seed)
    fetching = Path(cfg.victim_root) / f"{cfg.data.name}.lock"  # another process may be at it, see build.content
    try:
        with FileLock(fetching) if fetching.exists() else nullcontext():
            data.setup_data()
    except FileNotFoundError:
        if cfg.data.get("download"):
            return None
        raise
    if training:
        data.train_dataloader()
        data.val_dataloader()
    data.test_dataloader()
    return data


def _limits(cfg: DictConfig, mix: AttackMix, data: AttackDataModule | None, monitor: str = "") -> int:
    """Whether shares of the batches leave any, and what to validate with; the number of training steps."""
    steps = 0
    if data is None:
        return steps
    loaders = {"train": [data.train_dataloader()], "val": data.val_dataloader(), "test": data.test_dataloader()[:1]}
    for part, (loader, *_) in ((part, found) for part, found in loaders.items() if found):
        limit = cfg.trainer.get(f"limit_{part}_batches")
        batches = len(loader)
        if isinstance(limit, float):  # 1.0 is all
            if limit > 0 and int(batches * limit) == 0:
                raise ValueError(f"limit_{part}_batches must leave one of {batches} batches, got the share {limit}")
            batches = int(batches * limit)
        elif limit is not None:
            batches = min(batches, limit)
        if part == "train":
            steps = batches
        if part == "val" and batches and not trains_victim(cfg):
            rows = data.indices["val"][: batches * data.eval_batch_size]
            names = list(map(str, cfg.victims))
            plan = mix.plan(rows, torch.arange(len(rows)), stage="val", epoch=0, victim_names=names)
            if any(name in monitor for name in BESIDE_CLEAN) and bool((plan.attack != CLEAN).all()):
                raise ConfigError(
                    f"mix={cfg.choices.mix} leaves none of the {len(rows)} validation images clean, against which "
                    f"{monitor} is measured: add clean images by +component@mix.components.clean=base."
                )
            if not bool((plan.attack != CLEAN).any()):
                raise ConfigError(
                    f"mix={cfg.choices.mix} attacks none of the {len(rows)} validation images, by which the best "
                    f"checkpoint is known: give more of them by data.val_size={cfg.data.val_size}, "
                    f"data.limit_val={cfg.data.get('limit_val')} or trainer.limit_val_batches={limit}, or none by "
                    "data.val_size=0."
                )
    every = cfg.trainer.get("val_check_interval")
    if isinstance(every, int) and every > steps and cfg.trainer.get("check_val_every_n_epoch", 1) is not None:
        raise ValueError(f"val_check_interval must be at most {steps}, the steps of an epoch, got {every}")
    return steps


def _known_victim(
    whole: DictConfig, name: str, stored: bool, data: AttackDataModule | None, place: str = "victims"
) -> tuple[nn.Module, str]:
    """A stand-in, and where the victim, or the helper, will come from."""
    helper = place == "helpers"

    def view(config: DictConfig) -> DictConfig:
        return helpers_of(config) if helper else config

    cfg, where = view(whole), f"method.helpers.{name}" if helper else f"victims.{name}"
    net: nn.Module = attempt(whole, where, lambda c: _victim(view(c), name, stored))
    weights = cfg.victims[name].get("weights")
    if trains_victim(cfg) and not helper:
        return net, "trained by this run" if name == next(iter(cfg.victims)) else "not used"
    if stored:
        return net, "in the checkpoint"
    if weights is not None:
        return net, "comes with its weights" if weights == "builtin" else f"in {weights}"
    attempt(whole, "victim_training", lambda c: _recipe(view(c), name, data))
    root = Path(cfg.victim_root) / str(cfg.data.name)
    if any(place.exists() and not place.is_dir() for place in (root, *root.parents)):
        raise ConfigError(f"victim_root={cfg.victim_root} must be a folder, or none yet: a file is in the way.")
    if data is not None:
        file = victim_file(cfg, name, victim_identity(cfg, name, content(cfg, data).train))
        if file.exists():
            return net, f"found, {file}"
    return net, f"to be trained{'' if data else ' or found'}, {recipe(cfg, name).max_epochs} epochs"


def _victim(cfg: DictConfig, name: str, stored: bool) -> nn.Module:
    """A victim of the right shapes; where the weights are in a file, the victim itself."""
    spec, device = cfg.victims[name], _device(cfg, name)
    if spec.get("weights") not in (None, "builtin") and not stored:
        net: ImageClassifier = load(spec.weights, instantiate(spec.backbone), **settings_of(cfg, name))
        device = "cpu"
    else:
        with torch.device(device):
            net = untrained(cfg, name).eval()
    _answer(net, net.features if net.feature_layer else net.forward, _image(cfg, device))
    return net


def _device(cfg: DictConfig, name: str) -> str:
    """Our own architectures can be made without memory; of anybody else's that is not known."""
    target = str(cfg.victims[name].backbone._target_)
    return "meta" if target.startswith("redlab.victims.architectures.") else "cpu"


def _image(cfg: DictConfig, device: str = "cpu") -> Tensor:
    return torch.zeros(1, cfg.data.channels, cfg.data.image_size, cfg.data.image_size, device=device)


def _answer(module: nn.Module, function: Callable[[Tensor], T], image: Tensor) -> T:
    """What a network makes of an image; torch's complaint about shapes says which network, and what image."""
    try:
        with torch.no_grad():
            return function(image)
    except RuntimeError as error:
        name, shape = type(module).__name__, " x ".join(map(str, image.shape[1:]))
        raise ValueError(f"{name} cannot take an image of {shape}: {error}") from error


def _recipe(cfg: DictConfig, name: str, data: AttackDataModule | None) -> None:
    training = recipe(cfg, name)
    with torch.device(_device(cfg, name)):
        classifier = make_method(training.classifier, {"network": lambda: untrained(cfg, name)})
    if data is not None:
        victim_data(cfg, name, {}, data)
    _try_schedules(classifier.configure_optimizers(), training.max_epochs, watched=training.val_size > 0)


def _method(
    cfg: DictConfig,
    trained: DictConfig,
    victims: Mapping[str, nn.Module],
    helpers: Mapping[str, nn.Module],
    attack_names: Sequence[str],
) -> Method:
    """The method, as it was or will be trained, in front of an image of ``cfg``."""
    device = _device(cfg, str(next(iter(cfg.victims)))) if trains_victim(cfg) else "cpu"
    with torch.device(device):
        method = make_method(cfg.method, offers(trained, victims, helpers, attack_names)).eval()
    for name, part in list(method.named_children()):  # a victim that was made without memory, or a copy of one
        if any(p.is_meta for p in part.parameters()):
            own = copy.deepcopy(part) if name in method.frozen else part
            setattr(method, name, own.to_empty(device=device))
    image, restorer = _image(cfg, device), cast(Any, method)
    if "restorer" in capabilities(method):
        restored = _answer(method, restorer.restore, image)
        if restored.shape != image.shape:
            raise ValueError(f"restore must keep the shape {tuple(image.shape)} of images, got {tuple(restored.shape)}")
    _answer(method, lambda x: answers(method, x, x), image)
    watched = cfg.data.val_size > 0 and cfg.trainer.limit_val_batches != 0
    _try_schedules(method.configure_optimizers(), cfg.trainer.max_epochs, watched=watched)
    return method


def _trained_method(
    cfg: DictConfig,
    trained: DictConfig,
    victims: Mapping[str, nn.Module],
    helpers: Mapping[str, nn.Module],
    attack_names: Sequence[str],
) -> Method:
    """Of an evaluation: as it was trained, in front of other images."""
    if cfg.victims != trained.victims or cfg.data != trained.data:
        victims = {name: _victim(trained, name, stored=True) for name in map(str, trained.victims)}
    try:
        return _method(cfg, trained, victims, helpers, attack_names)
    except ValueError as error:
        raise ConfigError(
            f"data={cfg.choices.data} does not fit the method of this run: {error}; choose data with images of "
            f"{trained.data.channels} x {trained.data.image_size} x {trained.data.image_size}."
        ) from error


def _try_schedules(configured: Any, epochs: int | None, *, watched: bool) -> None:
    """Goes through the learning rates of all epochs: some schedules divide by zero, or end, only then."""
    for schedule in _schedules(configured):
        if isinstance(schedule, ReduceLROnPlateau):
            if not watched:
                raise ValueError(
                    "there is no number for ReduceLROnPlateau to watch: it must be another, such as StepLR"
                )
            continue
        for epoch in range(min(epochs or 1, _MAX_EPOCHS)):
            lowest = min(float(group["lr"]) for group in schedule.optimizer.param_groups)
            if not 0 <= lowest < float("inf"):
                raise ValueError(f"the schedule gives a learning rate of {lowest:g} in epoch {epoch}")
            schedule.step()


def _schedules(configured: Any) -> Iterator[LRScheduler]:
    """Those in what ``configure_optimizers`` returned."""
    if isinstance(configured, LRScheduler):
        yield configured
    elif isinstance(configured, (list, tuple, dict)):
        for part in configured.values() if isinstance(configured, dict) else configured:
            yield from _schedules(part)


def _fits(mix: AttackMix, method: LightningModule, victims: Mapping[str, nn.Module]) -> None:
    """Whether method and victims are what they must be for the components that attack them."""
    can = capabilities(method)
    classifies = type(method).forward is not LightningModule.forward
    for name, component in mix.components.items():
        if component.knowledge == "defence" and not can and not classifies:
            raise ValueError(
                f"{name}.knowledge must be 'victim', got 'defence': {type(method).__name__} is nothing that could be "
                "attacked"
            )
    for name, component in {**mix.components, **(mix.adaptive if can else {})}.items():
        if component.gradient == "bpda" and ("restorer" not in can or "labeler" in can or hasattr(method, "surface")):
            raise ValueError(f"{name}.gradient must be 'exact', got 'bpda': {type(method).__name__} restores nothing")
        layer = getattr(component.attack, "layer", None) if isinstance(component.attack, FeatureAttack) else None
        for victim in (component.victims or victims) if component.knowledge == "victim" else ():
            modules = [module for module, _ in victims[victim].named_modules()]
            if layer is not None and layer not in modules:
                near = ", ".join(nearest(layer, modules, cutoff=0) or modules[-3:])
                raise ValueError(f"{name}.attack.layer must be a module of {victim}, such as {near}, got {layer!r}")
