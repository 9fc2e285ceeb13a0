"""Asks an exported program about image files: ``python infer.py <image> ...``, beside ``model.json``.

Needs numpy, Pillow, and onnxruntime (model.onnx) or torch (model.pt2); not redlab. Images must be of the size that the
program takes: resizing changes what an attack has left in them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent


def load(path: Path, facts: dict[str, Any]) -> np.ndarray:
    """(1, C, H, W) float32 in [0, 1]."""
    image = Image.open(path).convert("L" if facts["channels"] == 1 else "RGB")
    if image.size != (facts["size"], facts["size"]):
        raise SystemExit(f"{path}: {image.width}x{image.height}, the program takes {facts['size']}x{facts['size']}")
    pixels = np.asarray(image, np.float32) / 255
    return pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]


def program(path: Path, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Images (B, C, H, W) in [0, 1] -> outputs by name."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x: dict(zip(names, session.run(None, {"images": x}), strict=True))
    import torch

    module = torch.export.load(path).module()
    return lambda x: {k: v.detach().numpy() for k, v in zip(names, module(torch.from_numpy(x)), strict=True)}


def main(paths: Sequence[str]) -> None:
    """Prints a line on each image, and writes <image>.restored.png where the program restores."""
    facts = json.loads((HERE / "model.json").read_text())
    onnx = HERE / "model.onnx"
    ask = program(onnx if onnx.is_file() else HERE / "model.pt2", facts["outputs"])
    for path in map(Path, paths):
        said, words = ask(load(path, facts)), []
        if "score" in said:
            score = float(said["score"][0])
            words.append(f"{'attacked' if score > facts['threshold'] else 'no sign of an attack'} (score {score:.3g})")
        if "attack_probabilities" in said:
            shares = said["attack_probabilities"][0]
            words.append(f"most like {facts['attacks'][int(shares.argmax())]}, {shares.max():.0%}")
        if "class_logits" in said:
            words.append(f"class {facts['classes'][int(said['class_logits'][0].argmax())]}")
        if "restored" in said:
            pixels = np.rint(said["restored"][0].transpose(1, 2, 0) * 255).astype(np.uint8)
            out = path.with_name(f"{path.stem}.restored.png")
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out)
            words.append(f"restored in {out}")
        print(f"{path}: {'; '.join(words)}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
