"""Exported programs say what redlab says, and need nothing of it."""

import contextlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import redlab
from faults.kill import METHODS
from redlab.runs import export as exporting
from redlab.runs import infer
from redlab.runs.build import Trained, build, build_helpers, shared_data
from redlab.runs.check import ConfigError
from redlab.runs.cli import export
from redlab.runs.config import compose, finalise
from redlab.runs.diagnose import DEMO

SHOWN = {"restored": "restorer", "score": "detector", "attack_probabilities": "identifier", "class_logits": "labeler"}


def untrained(method, victim_root):
    words = [f"method={method}", *METHODS[method], f"victim_root={victim_root}", "victim_training.max_epochs=1"]
    cfg = finalise(compose([*words, "victim_training.limit_train=96"]))
    images = shared_data(cfg)
    with contextlib.redirect_stdout(None):
        helpers = build_helpers(cfg, None, images)
        made, _ = build(cfg, {}, trained=Trained(cfg=cfg, attack_names=None, helpers=helpers), data=images)
    return made.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("gred", "redrl_delta")])
def test_every_kind_of_method_runs_elsewhere(method, to, victim_root, tmp_path):
    """On other images, and another number of them, than the program was made from, within 1e-4."""
    made = untrained(method, victim_root)
    images = torch.rand(3, 1, 32, 32)
    program = exporting.Program(made, images)
    make = exporting._as_onnx if to == "onnx" else exporting._as_torch
    path = make(program, images, tmp_path)
    exporting._compare(path, program, images)
    told = {SHOWN[name] for name in program.names}
    assert told - {"detector"} == made.capabilities - {"detector"}
    said = infer.program(path, program.names)(images.numpy())
    with torch.no_grad():
        for name, one in zip(program.names, program(images), strict=True):
            far = float((one - torch.from_numpy(said[name])).abs().max())
            assert far <= 1e-4 * max(1, float(one.abs().max())), name
    # a check that could not fail would be none
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.1)
    with pytest.raises(ConfigError, match="from what redlab says"):
        exporting._compare(path, program, images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("to", "file"), [("onnx", "model.onnx"), ("torch", "model.pt2")])
def test_the_script_beside_a_program_needs_no_redlab(call, clean_env, tmp_path, to, file):
    """What it prints of an image of the demo is what a diagnosis says, in a Python that cannot import redlab."""
    code, _, error = call(export, f"run={DEMO}", f"to={to}", "out=program")
    assert code == 0, error
    assert {path.name for path in (tmp_path / "program").iterdir()} == {file, "model.json", "infer.py"}
    image = next((DEMO / "images").glob("pgd_*"))
    shutil.copy(image, tmp_path / "photo.png")
    block = "import sys, runpy; sys.modules['redlab'] = None; sys.argv = ['infer.py', 'photo.png']; "
    block += "runpy.run_path('program/infer.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=clean_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    x = torch.from_numpy(np.asarray(Image.open(image)).copy())[None, None].float() / 255
    (found,) = redlab.diagnose(x, DEMO).findings.values()
    verdict = "attacked" if bool(found.attacked[0]) else "no sign"
    assert f"photo.png: {verdict} (score {float(found.score[0]):.3g})" in done.stdout
    assert f"most like {found.attack(0)[0]}" in done.stdout
    restored = np.asarray(Image.open(tmp_path / "photo.restored.png"))
    np.testing.assert_allclose(restored, found.restored[0, 0].numpy() * 255, atol=0.51)
    facts = json.loads((tmp_path / "program" / "model.json").read_text())
    assert facts["outputs"] == ["restored", "score", "attack_probabilities"]
    assert facts["attacks"][0] == "clean"


@pytest.mark.slow
def test_what_takes_gradients_is_refused_in_one_sentence(call, victim_root, tmp_path, monkeypatch):
    method = untrained("gred", victim_root)
    monkeypatch.setattr(exporting, "asked", lambda run, allow: known(method))
    code, _, error = call(export, f"run={DEMO}", "to=torch")
    assert code == 1
    assert "GRED cannot be exported to=torch" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def known(method):
    examiner = redlab.diagnosis.Examiner(name="run", method=method, victims={})
    return exporting.Asked(examiners=[examiner], classes=list("0123456789"), channels=1, size=32, said=[])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([f"run={DEMO}", "to=onxn"], "to=onxn must be one of onnx, torch, pretrained"),
        (["to=onnx"], "Give one run="),
        (["run=nowhere"], "nowhere: no such checkpoint"),
        ([f"run={DEMO}", "too=onnx"], "no key 'too'. Did you mean 'to'?"),
    ],
)
def test_a_mistake_is_one_sentence(call, tmp_path, words, says):
    code, _, error = call(export, *words)
    assert code == 1
    assert says in error
    assert not (tmp_path / "outputs").exists()


def test_a_missing_package_is_named(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, error = call(export, f"run={DEMO}")
    assert code == 1
    assert "onnxruntime: pip install 'redlab[export]'" in error


def test_to_pretrained(call, tmp_path):
    code, _, error = call(export, f"run={DEMO}", "to=pretrained", "out=again")
    assert code == 0, error
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (DEMO / "model.safetensors").read_bytes()
