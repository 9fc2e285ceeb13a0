"""Asks an exported program about image files: python infer.py <image> ...

Needs numpy, Pillow, and onnxruntime (model.onnx) or torch (model.pt2); not redlab. Images must be of the size that the
program takes: resizing changes what an attack has left in them.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "model.json").read_text())


def load(path):
    """(1, C, H, W) float32 in [0, 1]."""
    image = Image.open(path).convert("L" if FACTS["channels"] == 1 else "RGB")
    if image.size != (FACTS["size"], FACTS["size"]):
        raise SystemExit(f"{path}: {image.width}x{image.height}, the program takes {FACTS['size']}x{FACTS['size']}")
    pixels = np.asarray(image, np.float32) / 255
    return pixels[None, None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[None]


def program():
    """Images -> outputs by name."""
    if (HERE / "model.onnx").is_file():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda x: dict(zip(FACTS["outputs"], session.run(None, {"images": x})))
    import torch

    module = torch.export.load(HERE / "model.pt2").module()
    return lambda x: {k: v.detach().numpy() for k, v in zip(FACTS["outputs"], module(torch.from_numpy(x)))}


def main(paths):
    """Prints a line on each image, and writes <image>.restored.png where the program restores."""
    ask = program()
    for path in map(Path, paths):
        said, words = ask(load(path)), []
        if "score" in said:
            score = float(said["score"][0])
            words.append(f"{'attacked' if score > FACTS['threshold'] else 'no sign of an attack'} (score {score:.3g})")
        if "attack_probabilities" in said:
            best = int(said["attack_probabilities"][0].argmax())
            words.append(f"most like {FACTS['attacks'][best]}, {said['attack_probabilities'][0][best]:.0%}")
        if "class_logits" in said:
            words.append(f"class {FACTS['classes'][int(said['class_logits'][0].argmax())]}")
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
