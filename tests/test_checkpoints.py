"""Checkpoints: safe to load, no larger than they need be, and enough to evaluate on their own."""

import json
import shutil
import sys
import warnings

import lightning
import pytest
import torch

import redlab
from redlab import provenance, victims
from redlab.runs import build, check, checkpoints, loading
from redlab.runs import train as training
from redlab.runs.config import compose, finalise
from redlab.runs.identity import digest, run_identity
from redlab.victims import architectures, state_hash

PAIR = ["victim=[small_cnn,lenet]", "mix=attunet"]
MB = 2**20


def train(overrides, out):
    return training.train(finalise(compose(overrides)), out)


def numbers(out):
    return json.loads((out / "metrics.json").read_text())


def checkpoint(out, name="best.ckpt"):
    return torch.load(out / "checkpoints" / name, map_location="cpu", weights_only=True)


def tensors(node):
    """All tensors in a tree."""
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from tensors(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from tensors(value)


def size(node):
    return sum(t.numel() * t.element_size() for t in tensors(node))


@pytest.fixture(scope="module")
def short():
    """Module-wide: no reports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redlab.runs.train.run_report", lambda out, **rest: out / "report.html")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny, short):
    """A run on two victims whose checkpoints hold them."""
    out = tmp_path_factory.mktemp("trained")
    train([*tiny, *PAIR], out)
    return out


@pytest.fixture(scope="module")
def lean(tmp_path_factory, tiny, short):
    """The same without the victims, whose cache is its own."""
    out = tmp_path_factory.mktemp("lean")
    train([*tiny, *PAIR, "save_victims=false", f"victim_root={out}/victims"], out)
    return out


def test_every_file_loads_safely(trained, lean, victim_root):
    files = [*trained.rglob("*.ckpt"), *lean.rglob("*.ckpt"), *victim_root.rglob("*.ckpt")]
    assert {"best.ckpt", "last.ckpt"} <= {f.name for f in files}
    assert {"small_cnn", "lenet"} <= {f.name.split("-")[0] for f in files}
    for file in files:
        assert isinstance(torch.load(file, weights_only=True), dict)


def test_a_checkpoint_says_what_it_is_and_what_trained_it(trained, lean, tiny):
    cfg = finalise(compose([*tiny, *PAIR]))
    content = build.content(cfg, build.shared_data(cfg))
    victims = build.victim_identities(cfg, content)
    record = checkpoints.run_record(trained)
    assert json.loads(json.dumps(record)) == record  # for a card: no tensors in it
    assert checkpoints.run_record(trained / "checkpoints" / "last.ckpt") == record
    assert record["identity"] == run_identity(cfg, content, victims)
    assert record["identity"] == digest(record["counted"])
    assert {name: entry["identity"] for name, entry in record["victims"].items()} == victims
    assert record["attacks"] == ["clean", "fgsm", "rfgsm"]
    assert record["trained_with"] == [
        {"commit": provenance.commit(), "versions": provenance.versions(), "device": "CPU"}
    ]
    # where victims are kept is no other run
    assert checkpoints.run_record(lean)["identity"] == record["identity"]


def test_a_session_of_another_version_is_noted(tiny, monkeypatch):
    cfg = finalise(compose(tiny))
    first = checkpoints.RunRecord(cfg, {}, {}).trained_with
    assert checkpoints.RunRecord(cfg, {}, {}, first).trained_with == first
    monkeypatch.setattr(checkpoints, "commit", lambda: "another")
    second = checkpoints.RunRecord(cfg, {}, {}, first).trained_with
    assert second == [*first, {"commit": "another", "versions": provenance.versions(), "device": "CPU"}]
    assert checkpoints.RunRecord(cfg, {}, {}, second).trained_with == second


def test_versions():
    """Of all that may make the same code give other numbers."""
    found = provenance.versions()
    assert found.keys() == {"python", "redlab", "torch", "lightning", "torchmetrics", "torchvision"}
    assert found["torch"] == torch.__version__
    assert found["lightning"] == lightning.__version__
    assert sys.version.startswith(found["python"])


def test_size_without_victims(trained, lean):
    for name in ("best.ckpt", "last.ckpt"):
        saved = checkpoint(lean, name)
        method = redlab.load(trained)
        trainable = sum(p.numel() * p.element_size() for p in method.denoiser.state_dict().values())
        limit = trainable + size(saved["optimizer_states"])
        assert (lean / "checkpoints" / name).stat().st_size <= limit + MB
        # exactly, and not only because these networks are small
        assert size(saved["state_dict"]) == trainable
        assert size(saved) - size(saved["state_dict"]) - size(saved["optimizer_states"]) < 1000
        assert not any(key.startswith("classifier") for key in saved["state_dict"])
        assert all("state_dict" not in entry for entry in saved["redlab"]["victims"].values())
        assert size(checkpoint(trained, name)["redlab"]["victims"]) > 0


def test_a_checkpoint_alone_gives_the_numbers_of_its_run(trained, tiny, short, tmp_path, monkeypatch):
    alone = tmp_path / "elsewhere" / "moved.ckpt"
    alone.parent.mkdir()
    shutil.copy(trained / "checkpoints" / "best.ckpt", alone)
    monkeypatch.setattr(build, "_trained_victim", lambda *args: pytest.fail("a victim was trained"))
    monkeypatch.chdir(alone.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        assert training.evaluate(alone, [], tmp_path / "out") == numbers(trained)
    assert numbers(tmp_path / "out") == numbers(trained)
    assert training.evaluate(trained, [], tmp_path / "again") == numbers(trained)


def test_another_mix(trained, short, tmp_path):
    other = training.evaluate(trained, ["mix=digits", "data.limit_test=8"], tmp_path)
    assert {"test/restored_accuracy/pgd", "test/adaptive_restored_accuracy/aware_pgd"} <= other.keys()
    assert "test/restored_accuracy/rfgsm" not in other
    assert other["test/count/pgd"] == 16  # 8 images on 2 victims


def test_another_victim_leaves_the_guide(trained, short, tmp_path):
    seen = []
    original = loading.load_weights

    def load_weights(method, path, stored):
        seen.append(method)
        original(method, path, stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_weights", load_weights)
        other = training.evaluate(trained, ["victim=fashion_cnn", "mix=attunet"], tmp_path)
    assert "test/restored_accuracy/fgsm/fashion_cnn" in other
    assert not any(key.endswith("/small_cnn") for key in other)
    assert state_hash(seen[0].classifier) == checkpoint(trained)["redlab"]["victims"]["small_cnn"]["sha256"]
    assert "test/restored_accuracy/fgsm/small_cnn" in numbers(trained)


def test_a_victim_of_the_run_is_its_own_from_any_folder(trained, short, tmp_path, monkeypatch, capsys):
    """Not one of the same name that is trained anew, as it would be where no cache of victims is found."""
    monkeypatch.setattr(build, "_trained_victim", lambda *args: pytest.fail("a victim was trained"))
    monkeypatch.chdir(tmp_path)
    seen, original = [], training.build
    monkeypatch.setattr(training, "build", lambda *args, **more: seen.append(original(*args, **more)) or seen[-1])
    words = ["victim=lenet", "mix=attunet", "victim_root=empty", "data.limit_test=8"]
    other = training.evaluate(trained, words, tmp_path / "out")
    attacked = seen[0][1].victims["lenet"]
    assert state_hash(attacked) == checkpoint(trained)["redlab"]["victims"]["lenet"]["sha256"]
    assert "Victims of the run itself: lenet. Others: none." in " ".join(capsys.readouterr().out.split())
    cells = {key.rsplit("/", 1)[-1] for key in other if key.startswith("test/restored_accuracy/fgsm/")}
    assert cells == {"lenet"}
    with pytest.raises(pytest.fail.Exception, match="a victim was trained"):
        training.evaluate(trained, ["victim=[lenet,fashion_cnn]", "mix=attunet"], tmp_path / "more")
    assert "Victims of the run itself: lenet. Others: fashion_cnn." in " ".join(capsys.readouterr().out.split())
    with pytest.raises(pytest.fail.Exception, match="a victim was trained"):
        training.evaluate(trained, ["+victims.lenet.training.max_epochs=2"], tmp_path / "longer")


@pytest.mark.slow
def test_another_victim_where_the_guide_was_named(tiny, short, tmp_path):
    train([*tiny, *PAIR, "method.classifier=lenet"], tmp_path / "run")
    other = training.evaluate(tmp_path / "run", ["victim=small_cnn"], tmp_path / "other")
    assert "test/restored_accuracy/fgsm/small_cnn" in other


@pytest.mark.slow
def test_victim_weights_by_path(trained, short, tmp_path):
    """The weights of the first victim as a plain state dict: the same numbers for it."""
    victim = redlab.load(trained).classifier
    file = tmp_path / "weights.pt"
    torch.save(victim.backbone.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        same = training.evaluate(trained, [f"victims.small_cnn.weights={file}"], tmp_path / "same")
    kept = {k: v for k, v in numbers(trained).items() if k.endswith("/small_cnn")}
    assert kept.items() <= same.items()


@pytest.mark.slow
def test_a_changed_victim_is_told(tiny, short, tmp_path):
    """The weights of the second victim, which is not its classifier, stay outside the checkpoint and change there."""
    file, out = tmp_path / "lenet.pt", tmp_path / "run"
    torch.manual_seed(1)
    torch.save(architectures.lenet(10, 1, 32).state_dict(), file)
    before = train([*tiny, *PAIR, "save_victims=false", f"victims.lenet.weights={file}"], out)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert training.evaluate(out, [], tmp_path / "same") == before
    torch.manual_seed(2)
    torch.save(architectures.lenet(10, 1, 32).state_dict(), file)
    with pytest.warns(UserWarning, match="lenet is not the one that the checkpoint"):
        changed = training.evaluate(out, [], tmp_path / "changed")
    cell = "test/logit_d_adv/fgsm/"
    assert changed[f"{cell}small_cnn"] == before[f"{cell}small_cnn"]
    assert changed[f"{cell}lenet"] != before[f"{cell}lenet"]


@pytest.mark.slow
def test_a_retrained_victim_is_the_same(lean, short, tmp_path):
    hashes = {name: entry["sha256"] for name, entry in checkpoint(lean)["redlab"]["victims"].items()}
    shutil.rmtree(lean / "victims")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert training.evaluate(lean, [], tmp_path) == numbers(lean)
    again = {p.name.split("-")[0]: victims.load(p) for p in (lean / "victims").rglob("*.ckpt")}
    assert {name: state_hash(victim) for name, victim in again.items()} == hashes


def test_load_for_notebooks(trained):
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    by_folder, by_file = redlab.load(str(trained)), redlab.load(trained / "checkpoints" / "last.ckpt")
    assert not by_folder.training
    with torch.no_grad():
        restored = by_folder.restore(x)
        assert torch.equal(restored, redlab.load(trained).restore(x))
        assert torch.equal(restored, by_file.restore(x))  # of one epoch, so that the last is the best
    saved = checkpoint(trained)["state_dict"]
    assert all(torch.equal(value, by_folder.state_dict()[key]) for key, value in saved.items())


@pytest.mark.slow
def test_no_validation(tiny, short, tmp_path):
    out = tmp_path / "run"
    found = train([*tiny, "mix=attunet", "data.val_size=0"], out)
    assert (out / "checkpoints" / "last.ckpt").is_file()
    assert checkpoints.find_checkpoint(out).name == "last.ckpt"
    assert training.evaluate(out, [], tmp_path / "again") == found


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign"])
def test_a_bad_file_is_one_sentence(trained, tmp_path, damage):
    file = tmp_path / "bad.ckpt"
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes()[:2000])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, file)
    with pytest.raises(check.ConfigError, match=str(file)):
        training.evaluate(file, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["method=classifier", "mix=clean"], "holds a CDDRED, not a Classifier"),
        ([*PAIR, "method=ds"], "method.lambda_benign=0.025, not 0.1"),
        ([*PAIR, "method.augment=[cutmix]"], r"method.augment=\['crop_pad', 'cutmix'\], not \['cutmix'\]"),
        ([*PAIR, "method.optimizer.lr=5e-3"], "method.optimizer.lr=0.002, not 0.005"),
        ([*PAIR, "method.scheduler=null"], "method.scheduler=None|method.scheduler._target_=torch"),
        ([*PAIR, "seed=1"], "method.seed=0, not 1"),
    ],
)
def test_checkpoint_of_another_method_is_not_resumed(trained, tiny, words, says):
    files = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    kept = [w for w in tiny if not w.startswith("method.")] if "method=classifier" in words else tiny
    with pytest.raises(check.ConfigError, match=says):
        train([*kept, *words, "trainer.max_epochs=2"], trained)
    assert files == {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
