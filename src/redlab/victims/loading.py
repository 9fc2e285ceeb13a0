"""Victims from files: our own checkpoints, which say how to rebuild themselves, and anybody's state dicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from redlab.victims import architectures
from redlab.victims.victim import Victim

CHECKPOINT_KEY = "redlab_victim"
"""Where a checkpoint of ``redlab.methods.Classifier`` keeps the description of its network."""

_WEIGHTS = "net.backbone."


def load(
    path: str | Path,
    backbone: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    input_size: int | None = None,
    feature_layer: str | None = None,
    name: str | None = None,
) -> Victim:
    """A frozen victim from a checkpoint of ``Classifier``, or from a state dict (.pt, .pth, .safetensors).

    Nothing in the file is executed: tensors and plain values are read, and of code only the functions listed in
    ``architectures.__all__`` can be named by it.

    Args:
        path: the file, or the folder of a run with ``checkpoints/best.ckpt`` in it.
        backbone: the module to fill, or a function that makes it; needed for a state dict and for a
            checkpoint of a user's own module.
        num_classes: needed for a state dict; must agree with the checkpoint otherwise.
        mean: here and below, see ``Victim``. Given values take the place of the checkpoint's; of a state dict, None
            means what is known of the architecture.
        std: see ``Victim``.
        input_size: see ``Victim``.
        feature_layer: see ``Victim``.
        name: see ``Victim``.

    Raises:
        ValueError: the file is missing, empty, truncated or of another kind, or does not fit what is asked.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    asked: dict[str, Any] = {"num_classes": num_classes, "mean": mean, "std": std, "input_size": input_size}
    asked |= {"feature_layer": feature_layer, "name": name}
    asked = {k: v for k, v in asked.items() if v is not None}
    content = _read(path)
    # Neither the caller's grad mode nor the random state of the process has to do with a network that is loaded.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        if not (backbone is None or isinstance(backbone, nn.Module)):
            backbone = backbone()
        if CHECKPOINT_KEY in content:
            return _from_checkpoint(path, content, backbone, asked)
        return _from_state_dict(path, content, backbone, asked)


def _from_checkpoint(
    path: Path, content: Mapping[str, Any], backbone: nn.Module | None, asked: dict[str, Any]
) -> Victim:
    try:
        said = dict(content[CHECKPOINT_KEY])
        settings = {k: said[k] for k in ("num_classes", "mean", "std", "input_size", "feature_layer", "name")}
        state = {k.removeprefix(_WEIGHTS): v for k, v in content["state_dict"].items() if k.startswith(_WEIGHTS)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is a classifier checkpoint that lacks {error}") from error
    if asked.get("num_classes", said["num_classes"]) != said["num_classes"]:
        raise ValueError(f"{path} tells {said['num_classes']} classes apart, not {asked['num_classes']}")
    if backbone is None:
        if said.get("architecture") is None:
            raise ValueError(f"{path} holds the user's module {said.get('class')}: pass it as backbone=")
        backbone = _rebuild(path, said["architecture"], state)
    _fill(path, backbone, state)
    return Victim(backbone, clean_accuracy=said.get("clean_accuracy"), **(settings | asked))


def _from_state_dict(
    path: Path, content: Mapping[str, Any], backbone: nn.Module | None, asked: dict[str, Any]
) -> Victim:
    if backbone is None:
        raise ValueError(f"{path} is not a checkpoint of method=classifier; for a plain state dict pass backbone=")
    if "num_classes" not in asked:
        raise ValueError(f"{path} does not say its number of classes: pass num_classes=")
    for key in ("state_dict", "model"):  # how training scripts mostly wrap the weights
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {str(k): v for k, v in content.items()}
    if state and all(k.startswith("module.") for k in state):  # saved from DataParallel
        state = {k.removeprefix("module."): v for k, v in state.items()}
    _fill(path, backbone, state)
    return Victim(backbone, **asked)


def fault(path: Path) -> str | None:
    """Why a file cannot be read as one of weights; None if it can."""
    try:
        _read(path)
    except ValueError as error:
        return str(error)
    return None


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything: EOFError, RuntimeError, UnpicklingError, ...
        raise ValueError(f"{path} is truncated, or no file of weights ({type(error).__name__})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint or state dict")
    return content


def _rebuild(path: Path, architecture: Any, state: Mapping[str, Any]) -> nn.Module:
    name = architecture.get("name") if isinstance(architecture, Mapping) else architecture
    if name not in architectures.__all__:
        raise ValueError(
            f"{path} names the architecture {name!r}, which redlab.victims.architectures does not have: it must be one "
            f"of {', '.join(architectures.__all__)}, or your own module, passed as backbone="
        )
    offline = {"weights": None, "pretrained": False}  # the weights come from the file
    build = getattr(architectures, name)
    with _said_in_one_sentence(path, name):
        kwargs = {k: offline.get(k, v) for k, v in architecture["kwargs"].items()}
        check_builder_arguments(kwargs)
        shell = _without_memory(build, kwargs)
    if shell is not None:
        _check_fit(path, shell, state)
    with _said_in_one_sentence(path, name):
        module: nn.Module = build(**kwargs)
    return module


@contextmanager
def _said_in_one_sentence(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, ArithmeticError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} gives settings that {name} does not take: {what}") from error


def _without_memory(build: Callable[..., nn.Module], kwargs: Mapping[str, Any]) -> nn.Module | None:
    """The shapes of a network, whatever sizes a file gives; None of one that cannot be made without values."""
    try:
        with torch.device("meta"):
            return build(**kwargs)
    except RuntimeError:
        return None


def check_builder_arguments(arguments: Mapping[str, Any]) -> None:
    """Arguments of a function of ``architectures`` that a file gives: numbers, and names of models and weights.

    A text could be a path or an address, which timm would follow.

    Raises:
        ValueError: there is another; the message names it.
    """
    for key, value in arguments.items():
        named = {"name": r"[^:]*", "weights": r"\w*", "shortcut": "[AB]"}.get(key)
        parts = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, str) and named is not None and re.fullmatch(named, value):
            continue
        if not all(part is None or isinstance(part, (bool, int, float)) for part in parts):
            raise ValueError(f"the argument {key}={value!r}, where a file may give numbers and names of models only")


def _fill(path: Path, backbone: nn.Module, state: Mapping[str, Any]) -> None:
    """``load_state_dict`` whose complaint is one sentence."""
    _check_fit(path, backbone, state)
    backbone.load_state_dict(state)


def _check_fit(path: Path, backbone: nn.Module, state: Mapping[str, Any]) -> None:
    own = backbone.state_dict()
    # A count of batches decides nothing in eval mode; files from before torch 0.4.1, and from elsewhere, lack it.
    missing = [k for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    strange = [k for k in own if k in state and not isinstance(state[k], Tensor)]
    if missing or unknown or strange:
        parts = [("lacks", missing), ("has the unknown", unknown), ("has no tensor at", strange)]
        said = " and ".join(f"{verb} {keys[0]} ({len(keys)} in all)" for verb, keys in parts if keys)
        raise ValueError(f"{path} does not fit the {type(backbone).__name__}: it {said}")
    for key, tensor in own.items():
        if key in state and state[key].shape != tensor.shape:
            shapes = f"{tuple(state[key].shape)} in the file, {tuple(tensor.shape)} in the network"
            raise ValueError(f"{path} does not fit the {type(backbone).__name__}: {key} is {shapes}")
