"""A folder as people have them: two hundred files of every sort, asked of the method that comes with the package."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from redlab.attacks import FGSM
from redlab.batch import Key
from redlab.crafting import AttackMix, Component
from redlab.runs import diagnose as command
from redlab.runs.examiners import asked

QUIET = ("clean", "noise")
KINDS = (".png", ".bmp", ".jpg")
DAMAGES = {
    "empty.png": lambda data: b"",
    "cut.png": lambda data: data[: len(data) // 2],
    "text.jpg": lambda data: b"not an image",
    "pickle.png": lambda data: b"\x80\x04cposix\nsystem\n",
    "head.bmp": lambda data: data[:8],
}


@pytest.fixture(scope="module")
def asked_demo():
    return asked([command.DEMO])


def attacked(run, per_attack):
    """Name of an attack -> images that are wrong by it and were right without; clean ones and noise beside them."""
    data = run.data
    data.setup("test")
    fgsm = AttackMix({"fgsm": Component(attack=FGSM(eps=24 / 255))})
    cells = {run.mix.attack_names[c.attack]: (run.mix, c) for c in run.mix.cells(data.victims, adaptive=False)}
    cells["fgsm"] = (fgsm, fgsm.cells(data.victims, adaptive=False)[-1])  # which the method does not know
    index = data.indices["test"]
    raw = data.splits.test.__getitems__([Key(int(i), 0, True) for i in index])
    x = raw.image.float() / 255
    for name, (mix, cell) in cells.items():
        plan = mix.plan(raw.index, raw.position, stage="test", epoch=0, victim_names=list(data.victims), cell=cell)
        batch = mix.craft(data.victims, x, raw.label, plan, want_fooled=True)
        chosen = batch.adv if name in QUIET else batch.adv[batch.fooled]
        yield name, (chosen[:per_attack, 0] * 255).round().to(torch.uint8).numpy()


@pytest.mark.slow
def test_two_hundred_files(asked_demo, tmp_path):
    """Nothing stops it, what is damaged is named, and lossless images of the right size are told apart."""
    folder, truth = tmp_path / "photos", {}
    folder.mkdir()
    for name, images in attacked(asked_demo.examiners[0].method.run, 25):
        for number, pixels in enumerate(images):
            kind, large = KINDS[number % 3], number % 5 == 4
            image = Image.fromarray(pixels)
            if large:
                image = image.resize((64, 64), Image.Resampling.NEAREST)
            path = folder / f"{name}_{number:02}{kind}"
            image.save(path, **({"quality": 95} if kind == ".jpg" else {}))
            truth[path.name] = (name, kind == ".jpg", large)
    sound = (folder / "clean_00.png").read_bytes()
    for name, damage in DAMAGES.items():
        (folder / name).write_bytes(damage(sound))
    records = {r["file"]: r for r in command.diagnose_files([folder], asked_demo, tmp_path / "out")}
    assert records.keys() == {*truth, *DAMAGES}
    assert len(records) == 8 * 25 + 5
    assert {name for name, record in records.items() if "fault" in record} == {*DAMAGES}
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text())["images"][0]["file"] in records
    for how, wanted in {"as it is": (False, False), "JPEG": (True, False), "64 pixels": (False, True)}.items():
        mine = [name for name, (_, jpeg, large) in truth.items() if (jpeg, large) == wanted]
        told = Counter((truth[n][0], records[n]["attack"] if records[n]["attacked"] else "clean") for n in mine)
        print(f"\n{how}, {len(mine)} files: truth -> told")
        for name in dict.fromkeys(name for name, *_ in truth.values()):
            print(f"  {name:9}", {said: count for (true, said), count in told.items() if true == name})
        alarms = {name: np.mean([records[n]["attacked"] for n in mine if truth[n][0] == name]) for name, _ in told}
        if how == "as it is":
            assert max(alarms.pop(name) for name in QUIET) <= 0.1  # one of 13
            assert min(alarms.values()) >= 0.9
            known = [told[name, name] for name in alarms if name != "fgsm"]
            assert sum(known) / sum(c for (true, _), c in told.items() if true not in (*QUIET, "fgsm")) >= 0.85
