"""`redlab diagnose --demo`: what comes with the package, and that the command that made it still does."""

import json

import pytest

import redlab
from redlab.runs.cli import diagnose
from redlab.runs.demo import make
from redlab.runs.diagnose import DEMO, diagnose_files
from redlab.runs.examiners import asked


def test_the_demo(call, tmp_path):
    """No data set is read and nothing is trained; what the files are called is what is found of them."""
    code, said, error = call(diagnose, "--demo", "out=out")
    assert code == 0, error
    assert "8 images: 6 attacked, 2 without a sign of it." in said
    assert "Calibrating" not in said
    assert "Training" not in said
    records = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["images"]
    assert len(records) == 8
    for record in records:
        name, _, label = record["file"].removesuffix(".png").partition("_of_a_")
        (before, _), (after, _) = record["before"]["small_cnn"], record["after"]["small_cnn"]
        if name in ("clean", "noise"):
            assert (record["attacked"], before, after) == (False, label, label)
        else:
            known = "pgd" if name == "aware_pgd" else name
            assert (record["attacked"], record["attack"]) == (True, known)
            assert before != label
            # who knows the method is found, and not put right
            assert (after == label) == (name != "aware_pgd")


def test_it_is_small_and_names_no_machine():
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    text = (DEMO / "redlab.json").read_text() + (DEMO / "README.md").read_text()
    assert not any(f'"/{root}/' in text for root in ("home", "root", "tmp", "work", "Users"))
    assert "commit" in (DEMO / "README.md").read_text()
    assert 'redlab.load("demo")' in (DEMO / "README.md").read_text()  # wherever it was made


@pytest.mark.slow
def test_it_can_be_made_again(tmp_path, monkeypatch, victim_root):
    """In small: another network, from the same command; the images are wrong to the victim, and as many."""
    monkeypatch.chdir(tmp_path)
    words = [f"victim_root={victim_root}", "victim_training.max_epochs=3", "trainer.max_epochs=1"]
    words += ["data.limit_train=64", "data.limit_val=32", "data.limit_test=32", "data.batch_size=32"]
    words += ["mix.components.pgd.attack.steps=10", "mix.components.cw_linf.attack.steps=20"]
    words += ["mix.components.cw_l2.attack.steps=30", "method.recogniser_width=4", "trainer.enable_progress_bar=false"]
    words += ["mix.components.patch.settings=[{eps:128/255,size:16}]"]
    folder = make(tmp_path / "demo", words)
    assert {path.name for path in folder.iterdir()} == {path.name for path in DEMO.iterdir()}
    assert sum(p.numel() for p in redlab.load(folder).recogniser.parameters()) < 100_000
    known = asked([folder])
    assert known.examiners[0].clean == 32
    records = diagnose_files([folder / "images"], known, tmp_path / "out")
    names = {record["file"].partition("_of_a_")[0] for record in records}
    assert names == {"clean", "noise", "pgd", "deepfool", "cw_l2", "cw_linf", "patch", "aware_pgd"}
    for record in records:
        label = record["file"].removesuffix(".png").rpartition("_")[2]
        if not record["file"].startswith(("clean", "noise", "aware")):
            assert record["before"]["small_cnn"][0] != label
