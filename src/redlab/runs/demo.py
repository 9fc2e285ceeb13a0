"""``python -m redlab.runs.demo``: makes what ``redlab diagnose --demo`` shows, a small trained method and eight images.

    python -m redlab.runs.demo <folder> [override ...]

REDRL on the embedded digits, as narrow as fits into a megabyte with its victim. The images are of the test part: two as
they are, and of each attack the first that was right and is not any more, whatever the method says of it; of the
attacker who knows the method the first that is wrong after it was restored.
The folder that comes with the package is ``src/redlab/demo``; it is replaced where it is given.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from redlab.batch import CLEAN, Key
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.report.canvas import to_uint8
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise
from redlab.runs.examiners import asked
from redlab.runs.loading import load
from redlab.runs.pretrained import save_pretrained
from redlab.runs.train import train

WORDS = (
    *("method=redrl", "mix=redrl_digits", "bank=auto", "logger=none"),
    *("method.recogniser_width=6", "method.helpers.features.backbone.width_divisor=16"),
)
_UNTOUCHED = 2


def make(folder: Path, words: Sequence[str] = ()) -> Path:
    """Trains the method and writes the folder.

    Args:
        folder: to write; replaced if it is there.
        words: overrides, for a smaller one.

    Raises:
        ConfigError: an attack fools the victim on no image.
    """
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "demo"
        train(finalise(compose([*WORDS, *words])), run)
        asked([run])  # leaves the threshold beside the run
        if folder.exists():
            shutil.rmtree(folder)
        save_pretrained(run, folder)
        (folder / "images").mkdir()
        for name, image in _images(load(run)):
            Image.fromarray(to_uint8(image)[..., 0]).save(folder / "images" / f"{name}.png", optimize=True)
    return folder


def _images(method: Method) -> Iterator[tuple[str, Tensor]]:
    """Names that say what was done, and images (1, H, W) in [0, 1], each of another test image."""
    data: AttackDataModule = method.run.data
    data.setup("test")
    data.attach(method)
    victim, source = next(iter(data.victims.values())), data.splits.test
    left = iter(data.indices["test"].tolist())
    attacks = {cell.attack: cell for cell in data.test_cells}  # in its last setting, the strongest
    for attack, cell in attacks.items():
        name = data.mix.attack_names[attack]
        for number in range(_UNTOUCHED if attack == CLEAN else 1):
            for index in left:
                batch = data.craft(source.__getitems__([Key(index, 0, True)]), stage="test", cell=cell)
                aimed = cast(Any, method).restore(batch.adv) if cell.knowledge else batch.adv
                with torch.no_grad():
                    right = [bool((victim(x).argmax(1) == batch.label).all()) for x in (batch.clean, aimed)]
                if right == [True, attack == CLEAN]:
                    yield f"{name}{f'_{number}' if attack == CLEAN else ''}_of_a_{int(batch.label)}", batch.adv[0]
                    break
            else:
                raise ConfigError(f"{name} fools the victim on no test image that is left.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]), sys.argv[2:])
