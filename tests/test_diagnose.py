"""`redlab diagnose`: image files in, a page, a table and records out."""

import csv
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import redlab
from redlab.runs import diagnose as command
from redlab.runs import examiners
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import find_checkpoint, read_checkpoint
from redlab.runs.cli import diagnose


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A finished run that these tests may write beside."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    shutil.copytree(finished_run[0], folder)
    return folder


@pytest.fixture(scope="module")
def digits():
    test = redlab.data.digits().test
    return test.__getitems__([redlab.batch.Key(i, 0, True) for i in range(12)]).image


def save(images, folder, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:02}{suffix}")
    return folder


def rows_of(out):
    with (out / "diagnosis.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_folder_of_images(call, run, digits, tmp_path):
    """What is in the files is what the method says of the pixels, one by one, whatever else is in the folder."""
    folder = save(digits[:5], tmp_path / "photos" / "a")
    save(digits[5:7], tmp_path / "photos", ".bmp")
    (tmp_path / "photos" / "broken.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (tmp_path / "photos" / "empty.png").write_bytes(b"")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    Image.new("L", (32, 64)).save(tmp_path / "photos" / "tall.png")
    code, said, error = call(diagnose, "photos", f"run={run}", "out=out", "floats=true")
    assert code == 0, error
    assert "10 images" in said
    assert "3 not examined" in said
    rows = {row["file"]: row for row in rows_of(tmp_path / "out")}
    assert set(rows) == {*(f"a/0{i}.png" for i in range(5)), "00.bmp", "01.bmp", "broken.png", "empty.png", "tall.png"}
    assert "not square" in rows["tall.png"]["fault"]
    assert all(rows[name]["fault"] and not rows[name]["score"] for name in ("broken.png", "empty.png", "tall.png"))
    method = redlab.load(run)
    victim = method.run.victims["small_cnn"]
    records = {r["file"]: r for r in json.loads((tmp_path / "out" / "diagnosis.json").read_text())["images"]}
    for name, image in zip([*(f"a/0{i}.png" for i in range(5)), "00.bmp", "01.bmp"], digits, strict=False):
        x = image[None].float() / 255
        with torch.no_grad():
            restored = method.restore(x)
            p, q = victim(x).double().softmax(1)[0], victim(restored).double().softmax(1)[0]
        row, record = rows[name], records[name]
        assert float(row["score"]) == pytest.approx(float((p - q).abs().sum() / 2), abs=1e-6)
        assert record["attacked"] == (record["score"] > record["threshold"])
        assert (row["before"], row["after"]) == (str(int(p.argmax())), str(int(q.argmax())))
        assert float(row["p_after"]) == pytest.approx(float(q.max()), abs=1e-5)
        assert float(row["linf"]) == pytest.approx(float((x - restored).abs().max()), abs=1e-5)
        here = tmp_path / "out"
        np.testing.assert_allclose(np.load(here / record["restored"]), restored[0].numpy(), atol=1e-5)
        shown = np.asarray(Image.open(here / record["pictures"]["image"]))
        assert (shown[..., 0] == image[0].numpy()).all()
        assert set(record["pictures"]) == {"image", "restored", "perturbation", "looks_before", "looks_after"}
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    assert all(name in page for name in rows)
    assert page.count("<img") == 7 * 5


def test_nothing_depends_on_what_is_examined_together(run, digits, tmp_path, monkeypatch):
    """Small batches, so that memory does not grow with the number of files, and the same answers."""
    asked = examiners.asked([run])
    folder, found = save(digits, tmp_path / "photos"), []
    for together in (32, 5):
        monkeypatch.setattr(command, "_TOGETHER", together)
        found.append(command.diagnose_files([folder], asked, tmp_path / f"{together}"))
    for one, two in zip(*found, strict=True):
        assert one["file"] == two["file"]
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        assert one["pictures"] == two["pictures"]


def test_what_is_done_is_not_lost(run, digits, tmp_path, monkeypatch):
    """A diagnosis that is stopped in the middle leaves the rows of what it has examined."""
    asked, original = examiners.asked([run]), command.network_input
    folder = save(digits, tmp_path / "photos")

    def stop(path, **how):
        if path.name == "09.png":
            raise KeyboardInterrupt
        return original(path, **how)

    monkeypatch.setattr(command, "network_input", stop)
    monkeypatch.setattr(command, "_TOGETHER", 4)
    with pytest.raises(KeyboardInterrupt):
        command.diagnose_files([folder], asked, tmp_path / "out")
    assert [row["file"] for row in rows_of(tmp_path / "out")] == [f"0{i}.png" for i in range(8)]


def test_the_threshold_is_kept_and_made_again(run, tmp_path, capsys):
    """Of the clean validation images; kept beside the run, by its weights; a damaged file is made again."""
    folder = shutil.copytree(run, tmp_path / "copy")
    kept = folder / "calibration.json"
    kept.unlink(missing_ok=True)
    first = examiners.asked([folder]).examiners[0]
    method = redlab.load(folder)
    images, _ = method.run.data.clean_images(1000)
    scores = examiners.Examiner(name="run", method=method, victims=method.run.victims)(images).score
    assert first.clean == len(images) == 16
    assert first.threshold == pytest.approx(float(scores.max()), abs=1e-6)  # one of 16 is more than 1 %
    written = kept.read_text()
    kept.write_text(json.dumps(json.loads(written) | {"threshold": 0.5}))
    assert examiners.asked([folder]).examiners[0].threshold == 0.5  # as it was kept
    for damaged in ("", "[]", written.replace("threshold", "limit"), written.replace('"weights": "', '"weights": "0')):
        kept.write_text(damaged)
        assert examiners.asked([folder]).examiners[0].threshold == first.threshold
    assert examiners.asked([folder], false_alarms=0.5).examiners[0].threshold < first.threshold


def test_without_the_clean_images_it_says_that_nothing_is_known_of_false_alarms(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "copy")
    (folder / "calibration.json").unlink(missing_ok=True)

    def gone(self, many):
        raise FileNotFoundError("no such data")

    monkeypatch.setattr(redlab.data.AttackDataModule, "clean_images", gone)
    asked = examiners.asked([folder])
    assert asked.examiners[0].threshold == 0
    assert "nothing is known of false alarms" in asked.said[0]
    assert not (folder / "calibration.json").exists()


def test_a_pretrained_method_is_the_run(run, digits, tmp_path):
    """Bit for bit, from files that hold no code; with a card that says what it is."""
    examiners.asked([run])
    folder = redlab.save_pretrained(run, tmp_path / "handed_on")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "redlab.json",
        "calibration.json",
        "README.md",
    }
    x = digits.float() / 255
    before, after = (redlab.diagnose(x, place) for place in (run, folder))
    (one,), (two,) = before.findings.values(), after.findings.values()
    assert torch.equal(one.score, two.score)
    assert torch.equal(one.attacked, two.attacked)
    assert torch.equal(one.restored, two.restored)
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("CDDRED", "digits", "small_cnn", "fgsm", "every attacker", "seed 0"))
    with pytest.raises(ConfigError, match="is there already"):
        redlab.save_pretrained(run, folder)
    stored, own = read_checkpoint(find_checkpoint(folder)), read_checkpoint(find_checkpoint(run))
    places = ("victim_root", "bank_root")  # which are nobody else's business
    before, after = ({k: v for k, v in c["redlab"]["config"].items() if k not in places} for c in (own, stored))
    assert before == after
    assert own["redlab"]["config"]["victim_root"] not in (folder / "redlab.json").read_text()
    assert stored["redlab"]["classes"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("name", ["model.safetensors", "redlab.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "pickle"])
def test_a_damaged_pretrained_method_is_one_sentence(call, run, tmp_path, name, damage):
    folder = redlab.save_pretrained(run, tmp_path / "handed_on")
    data = (folder / name).read_bytes()
    data = {"empty": b"", "cut": data[: len(data) // 2], "pickle": pickle.dumps(print)}[damage]
    (folder / name).write_bytes(data)
    save(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), tmp_path / "photos")
    code, _, error = call(diagnose, "photos", "run=handed_on")
    assert code == 1
    assert error.startswith("error: ")
    assert str(folder.name) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_several_runs_and_one_file(call, run, digits, tmp_path):
    folder = redlab.save_pretrained(run, tmp_path / "second")
    save(digits[:1], tmp_path / "photos")
    code, said, error = call(diagnose, "photos/00.png", f"run=[{run},{folder}]", "out=out")
    assert code == 0, error
    assert "digits: cdd_red" in said
    assert "second: cdd_red" in said
    (record,) = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["images"]
    assert record["file"] == "00.png"
    assert set(record["runs"]) == {"digits", "second"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run={run}"], "Give images to look at"),
        (["photos"], "Give run="),
        (["nowhere", "run={run}"], "nowhere: no such file or folder"),
        (["empty", "run={run}"], "empty holds no file that is named like an image"),
        (["photos", "run=nowhere"], "nowhere: no such checkpoint"),
        (["photos", "run={run}", "flaots=true"], "no key 'flaots'. Did you mean 'floats'?"),
        (["photos", "run={run}", "floats=yes"], "floats=yes must be true or false"),
        (["photos", "run={run}", "false_alarms=2"], "false_alarms=2 must be a share"),
        (["--demo", "run={run}"], "--demo has images and a run of its own"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(call, run, digits, tmp_path, words, says):
    save(digits[:1], tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    code, _, error = call(diagnose, *(word.format(run=run) for word in words))
    assert code == 1
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_in_a_notebook_images_of_another_size_are_refused(run):
    with pytest.raises(ValueError, match=r"must be \(B, 1, 32, 32\)"):
        redlab.diagnose(torch.zeros(2, 1, 28, 28), run)
