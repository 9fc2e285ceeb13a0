"""``redlab export``: a trained method for programs without redlab, as ONNX or as a program of torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redlab.evaluation import answers
from redlab.runs import infer
from redlab.runs.check import ConfigError
from redlab.runs.console import console, filter_known_warnings
from redlab.runs.examiners import Asked, asked
from redlab.runs.pretrained import save_pretrained

FORMATS = ("onnx", "torch", "pretrained")
TOLERANCE = 1e-4
"""How far a number of the exported program may be from redlab's."""


class Program(nn.Module):
    """What a method says of images (B, C, H, W) in [0, 1], as a tuple, since that is all that a format can hold.

    Args:
        method: with one of the capabilities of ``redlab.batch``.
        images: to ask it about once.

    Attributes:
        names: of what is in the tuple, out of ``restored`` (B, C, H, W) in [0, 1]; ``score`` (B,), the larger the more
            likely attacked; ``attack_probabilities`` (B, A); ``class_logits`` (B, K).
    """

    def __init__(self, method: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.method = method
        self.eval()
        with torch.no_grad():
            self.names = tuple(self._said(images))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Says all that the method can."""
        return tuple(self._said(images).values())

    def _said(self, images: Tensor) -> dict[str, Tensor]:
        said = answers(self.method, images)
        found: dict[str, Tensor] = {}
        if said.restored is not None:
            found["restored"] = said.restored.clamp(0, 1)
        if said.scores is not None:
            found["score"] = said.scores[str(said.verdict)]
        if said.attack_logits is not None:
            found["attack_probabilities"] = said.attack_logits.softmax(1)
        if said.class_logits is not None:
            found["class_logits"] = said.class_logits
        return found


def export(run: str | Path, out: Path, to: str = "onnx", *, allow: Sequence[str] = ()) -> Path:
    """Writes ``model.onnx`` (or ``model.pt2``), ``model.json`` and ``infer.py``, and compares the program with redlab.

    ``model.json`` has the names of outputs, attacks and classes, the size of images, and the threshold of the score.
    ``infer.py`` asks the program about image files; it needs numpy, Pillow and onnxruntime (or torch) alone.

    Args:
        run: the folder or the checkpoint.
        out: folder to write; made where needed.
        to: ``onnx``, ``torch``, or ``pretrained``, see ``redlab.save_pretrained``.
        allow: see ``redlab.load``.

    Returns:
        ``out``.

    Raises:
        ConfigError: there is no such format, a package for it is missing, the method cannot be exported, or the
            program does not say what redlab says.
    """
    if to not in FORMATS:
        raise ConfigError(f"to={to} must be one of {', '.join(FORMATS)}.")
    if to == "pretrained":
        return save_pretrained(run, out)
    filter_known_warnings()
    known = asked([run], allow=allow)
    examiner = known.examiners[0]
    images = torch.rand(3, known.channels, known.size, known.size, generator=torch.Generator().manual_seed(0))
    program = Program(examiner.method.cpu(), images)
    out.mkdir(parents=True, exist_ok=True)
    try:
        path = _as_onnx(program, images, out) if to == "onnx" else _as_torch(program, images, out)
    except ImportError as error:
        raise ConfigError(f"to={to} needs the package {error.name}: pip install 'redlab[export]'.") from error
    except Exception as error:  # the exporters raise nearly anything
        kind = type(examiner.method).__name__
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{kind} cannot be exported to={to}: {text}. A method that takes gradients of its classifier when it is "
            "asked, such as GRED, can be handed on as to=pretrained alone."
        ) from error
    _compare(path, program, images)
    (out / "model.json").write_text(json.dumps(_facts(known, program), indent=1) + "\n")
    (out / "infer.py").write_text(Path(infer.__file__).read_text())
    return out


def _facts(known: Asked, program: Program) -> dict[str, Any]:
    examiner = known.examiners[0]
    return {
        "outputs": list(program.names),
        "channels": known.channels,
        "size": known.size,
        "attacks": list(getattr(examiner.method, "attack_names", [])),
        "classes": list(known.classes),
        "threshold": examiner.threshold if "score" in program.names else None,
        "said": list(known.said),
    }


def _as_onnx(program: Program, images: Tensor, out: Path) -> Path:
    import onnxruntime  # noqa: F401  # before the work, which is not to be in vain
    import onnxscript  # noqa: F401

    path = out / "model.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter
        made = torch.onnx.export(
            program,
            (images,),
            input_names=["images"],
            output_names=list(program.names),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        if made is None:
            raise ValueError("the exporter made nothing")
        made.save(str(path), external_data=False)
    return path


def _as_torch(program: Program, images: Tensor, out: Path) -> Path:
    path = out / "model.pt2"
    with torch.no_grad():
        made = torch.export.export(program, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
        torch.export.save(made, path)
    return path


def _compare(path: Path, program: Program, images: Tensor) -> None:
    """Other images, and another number of them, than those that the program was made from.

    Raises:
        ConfigError: a number differs.
    """
    other = 1 - images.flip(0)[:2]
    with torch.no_grad():
        wanted = program(other)
    worst = 0.0
    said = infer.program(path, program.names)(other.numpy())
    for name, one in zip(program.names, wanted, strict=True):
        scale = max(float(one.abs().max()), 1.0)
        far = float((one - torch.from_numpy(said[name])).abs().max()) / scale
        worst = max(worst, far)
        if not far <= TOLERANCE:
            raise ConfigError(f"{path}: {name} is {far:.2g} from what redlab says, more than {TOLERANCE:g}.")
    console.print(f"{path}: {', '.join(program.names)}; at most {worst:.1g} from redlab.", highlight=False)
