"""``python -m redlab.runs.demo``: makes what ``redlab diagnose --demo`` shows, a small trained method and eight images.

    python -m redlab.runs.demo <folder> [override ...]

REDRL on the embedded digits, as narrow as fits into a megabyte with its victim, and shown noise as well, so that it
is no detector of noise. The images are of the test part: one as it is, one with noise, and of each attack the first
that was right and is not any more, whatever the method says of it; of the attacker who knows the method the first
that is wrong after it was restored.
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

from redlab.batch import Key
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.report.canvas import to_uint8
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise
from redlab.runs.examiners import asked
from redlab.runs.loading import load
from redlab.runs.pretrained import save_pretrained
from redlab.runs.train import train
from redlab.studies import merge_overrides

WORDS = (
    *("method=redrl", "mix=redrl_digits", "bank=auto", "logger=none"),
    *("method.recogniser_width=6", "method.helpers.features.backbone.width_divisor=16"),
    *("trainer.max_epochs=45", "bank_epochs=12", "method.scheduler.milestones=[30,38]"),
    *("+component@mix.components.noise=base", "+attack@mix.components.noise.attack=gaussian_noise"),
    "+mix.components.noise.params.sigma.uniform=[4/255,24/255]",
)


def make(folder: Path, words: Sequence[str] = ()) -> Path:
    """Trains the method and writes the folder.

    Args:
        folder: to write; replaced if it is there.
        words: overrides, for a smaller one.

    Raises:
        ConfigError: an attack fools the victim on no image, or noise on every one.
    """
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "demo"
        train(finalise(compose(merge_overrides(WORDS, words))), run)
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
        for index in left:
            batch = data.craft(source.__getitems__([Key(index, 0, True)]), stage="test", cell=cell)
            aimed = cast(Any, method).restore(batch.adv) if cell.knowledge else batch.adv
            with torch.no_grad():
                right = [bool((victim(x).argmax(1) == batch.label).all()) for x in (batch.clean, aimed)]
            if right == [True, not batch.attacked.all()]:
                yield f"{name}_of_a_{int(batch.label)}", batch.adv[0]
                break
        else:
            raise ConfigError(f"{name} does to no test image that is left what it is to do.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]), sys.argv[2:])
