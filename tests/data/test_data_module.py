import functools
import os
from dataclasses import fields, replace
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from torch import nn

from redlab.attacks import FGSM, PGD
from redlab.batch import AttackBatch, RawBatch
from redlab.crafting import AttackMix, Cell, Component
from redlab.data import AttackDataModule, Splits, TensorSource
from redlab.runs.config import compose


@functools.cache
def splits(train=60, test=23):
    g = torch.Generator().manual_seed(0)
    parts = []
    for count in (train, test):
        images = torch.randint(0, 256, (count, 1, 6, 6), generator=g, dtype=torch.uint8)
        parts.append(TensorSource(images, torch.randint(0, 4, (count,), generator=g), "abcd"))
    return Splits(*parts)


def victim(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 4))
    return net.eval().requires_grad_(False)


def mix(**options):
    eps = {"eps": {"uniform": [0.05, 0.2]}}
    components = {
        "clean": Component(attack=None),
        "fgsm": Component(attack=FGSM(), params=eps),
        "pgd": Component(attack=PGD(eps=0.1, steps=2), victims=["b"]),
    }
    return AttackMix(components, seed=7, **options)


def module(mix_=None, **options):
    options = {"batch_size": 12, "eval_batch_size": 8, "seed": 1} | options
    return AttackDataModule(splits(), mix=mix_ or mix(), victims={"a": victim(1), "b": victim(2)}, **options)


def trainer(**options):
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 1,
        "max_epochs": 1,
    }
    return L.Trainer(**(settings | options))


class Recorder(L.LightningModule):
    """Keeps every batch it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "sanity": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append((self.current_epoch, batch))
        return self.weight * batch.adv.mean()

    def validation_step(self, batch, batch_idx):
        self.seen["sanity" if self.trainer.sanity_checking else "val"].append(batch)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen["test"].append((dataloader_idx, batch))

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen["predict"].append((dataloader_idx, batch))
        return batch.label

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class RestoringRecorder(Recorder):
    def restore(self, x):
        return (x + 0.05 * torch.tanh(x + self.weight)).clamp(0, 1)


def same(a, b, tolerance=0.0):
    """Equal in every field; images up to a tolerance where another batching may change the last bits."""
    for field in fields(AttackBatch):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x is None or y is None:
            assert x is y, field.name
        elif x.is_floating_point():
            assert (x - y).abs().max() <= tolerance, field.name
        else:
            assert torch.equal(x, y), field.name


def by_sample(batches):
    """All rows in the order of the samples."""
    batch = AttackBatch.cat(list(batches))
    batch = batch[batch.valid]
    return batch[batch.index.argsort()]


# splits --------------------------------------------------------------------------------------------------------------


def indices(data, part):
    data.setup_data()
    loaders = {"train": lambda: [data.train_dataloader()], "val": data.val_dataloader, "test": data.test_dataloader}
    return torch.cat([raw.index for raw in loaders[part]()[0]]).tolist()


def test_validation_is_carved_out_of_training_by_seed():
    data = module(batch_size=1, val_size=0.1)
    train, val = indices(data, "train"), indices(data, "val")
    assert (len(train), len(val)) == (54, 6)
    assert sorted(train + val) == list(range(60))
    assert indices(module(val_size=0.1), "val") == val
    assert indices(module(val_size=6), "val") == val
    assert indices(module(val_size=0.1, seed=2), "val") != val


def test_the_test_part_is_whole_and_never_depends_on_the_seed():
    assert indices(module(), "test") == list(range(23))
    limited = indices(module(limit_test=5), "test")
    assert len(set(limited)) == 5
    assert indices(module(limit_test=5, seed=9), "test") == limited
    assert set(limited) < set(indices(module(limit_test=10), "test"))


def test_limits_are_subsets_of_the_parts():
    whole = module(batch_size=1, val_size=20)
    small = module(batch_size=1, val_size=20, limit_train=7, limit_val=5)
    for part, count in (("train", 7), ("val", 5)):
        kept = indices(small, part)
        assert len(kept) == count
        assert set(kept) < set(indices(whole, part))


def test_held_out_images_are_those_of_no_victim_and_the_same_for_every_seed():
    def used(use, seed=1):
        data = module(batch_size=1, val_size=4, hold_out=20, use=use, seed=seed)
        return set(indices(data, "train") + indices(data, "val"))

    assert len(used("held_out")) == 20
    assert used("held_out") == used("held_out", seed=2)
    assert used("seen") == set(range(60)) - used("held_out")
    assert used("all") == set(range(60))
    plain = module(batch_size=1, val_size=4)
    assert indices(module(batch_size=1, val_size=4, hold_out=20), "val") == indices(plain, "val")


def test_no_validation():
    data = module(val_size=0)
    data.setup_data()
    assert data.val_dataloader() == []
    recorder = Recorder()
    with pytest.warns(UserWarning, match="Total length of `list` across ranks is zero"):
        trainer(num_sanity_val_steps=0).fit(recorder, datamodule=data)
    assert len(recorder.seen["train"]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size must be at least 1, got -1"),
        ({"val_size": 1.5}, "data.val_size must be .* got 1.5"),
        ({"val_size": -0.1}, "got -0.1"),
        ({"val_size": 60}, "val_size=60 leaves nothing of 60 images"),
        ({"limit_val": 0}, "limit_val must be at least 1, or null for all images, got 0"),
        ({"num_classes": 10, "name": "mine"}, "data.num_classes is 10, but mine has 4: set data.num_classes=4"),
        ({"channels": 3}, "data.channels is 3, but the data set has 1"),
        ({"image_size": 28}, "data.image_size is 28, but the data set has 6"),
        ({"hold_out": -1}, "data.hold_out must be a number of images, or 0 for none, got -1"),
        ({"hold_out": 60}, "data.hold_out=60 leaves nothing of 60 images to train victims on"),
        ({"use": "rest"}, r"data.use must be one of \('all', 'held_out', 'seen'\), got 'rest'"),
        ({"use": "held_out"}, "data.use=held_out needs images that are held out: set data.hold_out"),
        (
            {"hold_out": 8, "use": "held_out"},
            "batch_size=12 is more than the 7 training images, which are left of 8 by",
        ),
        ({"test_on": "train"}, r"data.test_on must be one of \('test', 'val'\), got 'train'"),
        ({"test_on": "val", "val_size": 0}, "data.test_on=val needs validation images: set data.val_size"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, .* got -1"),
        ({"val_size": float("nan")}, "data.val_size must be .* got nan"),
        ({"val_size": 0.001}, r"data.val_size=0.001 of 60 training images is less than one: .* data.val_size=1"),
        ({"batch_size": 55}, r"data.batch_size=55 is more than the 54 training images, .* set data.batch_size=54$"),
        (
            {"limit_train": 5},
            r"the 5 training images, which are left of 60 by data.val_size=0.1 and data.limit_train=5: set "
            r"data.batch_size=5$",
        ),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        indices(module(**options), "train")


def test_a_test_on_validation_images_sees_those_of_the_validation_and_no_test_image():
    plain, chosen = module(val_size=9, limit_val=7), module(val_size=9, limit_val=7, test_on="val")
    plain.setup_data()
    chosen.setup_data()
    assert chosen.indices["test"].tolist() == chosen.indices["val"].tolist() == plain.indices["val"].tolist()
    seen = torch.cat(
        [chosen.craft(raw, stage="test", cell=chosen.test_cells[0]).clean for raw in chosen._loader("test")]
    )
    assert torch.equal(seen[:7], splits().train.images[plain.indices["val"]].float() / 255)
    assert torch.equal(chosen.clean_images(7, "test")[0], plain.clean_images(7)[0])
    # the attacks are those of a test, whatever they are made on
    limited = module(val_size=9, limit_val=7, limit_test=3, test_on="val")
    limited.setup_data()
    assert set(limited.indices["test"].tolist()) < set(plain.indices["val"].tolist())
    assert len(limited.indices["test"]) == 3


def test_attacks_told_by_lot_are_those_of_nobody_and_a_test_tells_the_truth():
    """And so does the validation; what is crafted, of which a bank may be made, knows nothing of it."""
    plain, shuffled = Recorder(), Recorder()
    for recorder, lot in ((plain, False), (shuffled, True)):
        data = module(batch_size=54, shuffle_attacks=lot)
        trainer(max_epochs=2).fit(recorder, datamodule=data)
        trainer().test(recorder, datamodule=data, verbose=False)
    for stage in ("val", "test"):
        pairs = zip(plain.seen[stage], shuffled.seen[stage], strict=True)
        for one, other in ((a, b) if stage == "val" else (a[1], b[1]) for a, b in pairs):
            same(one, other)
    told = []
    for (_, truth), (_, lot) in zip(plain.seen["train"], shuffled.seen["train"], strict=True):
        same(truth, replace(lot, attack=truth.attack, attacked=truth.attacked))
        assert torch.equal(lot.attacked, lot.attack > 0)
        agreeing = float((truth.attack == lot.attack).double().mean())
        assert abs(agreeing - 1 / 3) < 0.26  # of 54 images: four standard deviations
        assert set(lot.attack.tolist()) == {0, 1, 2}
        told.append(lot.attack[lot.index.argsort()])  # each epoch has another order
    assert not torch.equal(*told)
    raw = next(iter(data.train_dataloader()))
    same(data.craft(raw, stage="train"), module(batch_size=54).craft(raw, stage="train"))


def test_a_batch_larger_than_the_data_is_refused_before_anything_runs():
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"data.batch_size=55 is more than the 54 training images"):
        trainer().fit(recorder, datamodule=module(batch_size=55))
    assert not recorder.seen["sanity"]
    trainer().test(recorder, datamodule=module(batch_size=55), verbose=False)  # which trains nothing


# the hook ------------------------------------------------------------------------------------------------------------


def test_crafting_without_a_trainer():
    data = module()
    data.setup_data()
    raw = next(iter(data.val_dataloader()[0]))
    batch = data.craft(raw, stage="val", want_fooled=True)
    assert torch.equal(batch.clean, raw.image.float() / 255)
    assert set(batch.attack.tolist()) == {0, 1, 2}
    attacked = batch.attack > 0
    assert torch.equal(batch.adv[~attacked], batch.clean[~attacked])
    assert (batch.adv != batch.clean).flatten(1).any(1)[attacked].all()
    assert (batch.adv - batch.clean).abs().max() <= 0.2 + 1e-6
    assert data.classes == ("a", "b", "c", "d")


def test_float_images_pass_unscaled():
    data = module()
    x = torch.rand(3, 1, 6, 6)
    ids = torch.arange(3)
    for dtype, tolerance in ((torch.float32, 0), (torch.bfloat16, 0.01)):
        raw = RawBatch(x.to(dtype), torch.zeros(3, dtype=torch.long), ids, ids, torch.ones(3, dtype=torch.bool))
        batch = data.craft(raw, stage="val")
        assert batch.adv.dtype == batch.clean.dtype == torch.float32
        assert (batch.clean - x).abs().max() <= tolerance


@pytest.mark.parametrize("inference_mode", [True, False])
def test_every_stage_gives_what_craft_gives(inference_mode):
    data, recorder = module(), Recorder()
    run = trainer(max_epochs=2, inference_mode=inference_mode)
    run.fit(recorder, datamodule=data)

    plain = module()
    plain.setup_data()
    loader = plain.train_dataloader()
    expected = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        expected += [(epoch, plain.craft(raw, stage="train", epoch=epoch)) for raw in loader]
    assert len(expected) == len(recorder.seen["train"]) == 8
    for (e1, b1), (e2, b2) in zip(expected, recorder.seen["train"], strict=True):
        assert e1 == e2
        same(b1, b2)
    assert not any(b.adv.requires_grad for _, b in recorder.seen["train"])

    val = [plain.craft(raw, stage="val", want_fooled=True) for raw in plain.val_dataloader()[0]]
    assert len(recorder.seen["sanity"]) == len(val) == 1
    for batch in recorder.seen["sanity"] + recorder.seen["val"]:
        same(batch, val[0])  # the sanity check and every epoch see one fixed validation set
    recorder.seen["val"].clear()
    run.validate(recorder, datamodule=data, verbose=False)
    same(recorder.seen["val"][0], val[0])

    run.test(recorder, datamodule=data, verbose=False)
    run.predict(recorder, datamodule=data, return_predictions=False)
    cells = [Cell(0, 0, 0, 0), Cell(0, 0, 1, 0), Cell(1, 0, 0, 0), Cell(1, 0, 1, 0), Cell(2, 0, 1, 0)]
    assert data.test_cells == cells
    tests = [
        (i, plain.craft(raw, stage="test", cell=cell, want_fooled=True))
        for i, cell in enumerate(cells)
        for raw in plain.test_dataloader()[i]
    ]
    for stage in ("test", "predict"):
        assert [i for i, _ in recorder.seen[stage]] == [i for i, _ in tests]
        for (_, batch), (_, wanted) in zip(recorder.seen[stage], tests, strict=True):
            same(batch, wanted)
            kept = [value for value in vars(batch).values() if value is not None]
            assert not any(value.is_inference() for value in kept)  # or a step could never take gradients
    for i, batch in recorder.seen["test"]:
        assert (batch.attack == cells[i].attack).all()
        assert (batch.victim == cells[i].victim).all()


def test_training_epochs_differ_and_other_stages_do_not():
    data = module()
    data.setup_data()
    raw = next(iter(data.train_dataloader()))
    train = [data.craft(raw, stage="train", epoch=e).adv for e in (0, 1)]
    assert not torch.equal(*train)
    val = [data.craft(raw, stage="val", epoch=e).adv for e in (0, 1)]
    assert torch.equal(*val)


def test_adaptive_cells_are_those_of_a_defence_that_can_anything():
    mix_ = AttackMix(
        {"fgsm": Component(attack=FGSM(eps=0.1)), "whole": Component(attack=FGSM(eps=0.1), knowledge="defence")},
        adaptive={"aware": Component(attack=FGSM(eps=0.1), knowledge="defence")},
    )
    data, recorder = module(mix_), RestoringRecorder()
    plain = [Cell(0, 0, v, 0) for v in (0, 1)] + [Cell(1, 0, v, 0) for v in (0, 1)] + [Cell(2, 0, v, 1) for v in (0, 1)]
    assert data.test_cells == plain  # nobody is attached
    data.attach(Recorder())
    assert data.test_cells == plain  # which can nothing
    data.attach(recorder)
    assert data.test_cells == [*plain, Cell(3, 0, 0, 1), Cell(3, 0, 1, 1)]
    trainer().test(recorder, datamodule=data, verbose=False)

    of = {cell: by_sample(b for i, b in recorder.seen["test"] if i == n) for n, cell in enumerate(data.test_cells)}
    for v in (0, 1):
        grey, adaptive, whole = of[Cell(1, 0, v, 0)], of[Cell(3, 0, v, 1)], of[Cell(2, 0, v, 1)]
        assert torch.equal(grey.clean, adaptive.clean)
        net = nn.Sequential()
        net.forward = lambda x, v=v: list(data.victims.values())[v](recorder.restore(x))
        expected = FGSM(eps=0.1)(net, adaptive.clean, adaptive.label)
        assert (adaptive.adv - expected).abs().max() <= 1e-6
        assert (whole.adv - expected).abs().max() <= 1e-6
        assert not torch.equal(grey.adv, adaptive.adv)
        assert [bool(b.knowledge.any()) for b in (grey, adaptive, whole)] == [False, True, True]
    assert recorder.weight.grad is None


def test_victims_stay_as_they_are_and_come_back_to_the_cpu():
    data = module()
    before = {name: [p.clone() for p in net.parameters()] for name, net in data.victims.items()}
    trainer().fit(Recorder(), datamodule=data)
    for name, net in data.victims.items():
        assert not net.training
        for old, new in zip(before[name], net.parameters(), strict=True):
            assert torch.equal(old, new)
            assert new.grad is None
            assert new.device.type == "cpu"
            assert not new.is_inference()


def test_victims_move_in_setup():
    data = module()
    data.trainer = type("FakeTrainer", (), {"global_rank": 0, "world_size": 1})()
    data.trainer.strategy = type("FakeStrategy", (), {"root_device": torch.device("meta")})()
    data.setup("fit")
    assert {p.device.type for net in data.victims.values() for p in net.parameters()} == {"meta"}


# independence of batches and processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("deal", ["random", "stratified"])
def test_crafting_is_the_same_for_any_batch_size(deal):
    results = []
    for size in (1, 7, 64):
        data = module(mix(deal=deal), eval_batch_size=size, batch_size=size if size < 50 else 54)
        data.setup_data()
        val = by_sample(data.craft(raw, stage="val") for raw in data.val_dataloader()[0])
        cell = Cell(2, 0, 1, 0)
        test = by_sample(data.craft(raw, stage="test", cell=cell) for raw in data.test_dataloader()[0])
        results.append((val, test))
    for val, test in results[1:]:
        same(val, results[0][0], 1e-6)
        same(test, results[0][1], 1e-6)


class Saver(Recorder):
    """Leaves what it saw in files for fit and for test, since forked processes do not hand their module back."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def teardown(self, stage):
        parts = {"train": [b for _, b in self.seen["train"]], "val": self.seen["val"]}
        parts["test"] = [b for cell, b in self.seen["test"] if cell == 4]
        rows = {part: [vars(batch) for batch in batches] for part, batches in parts.items()}
        torch.save(rows, self.folder / f"{stage == 'fit'}-{self.global_rank}.pt")


@pytest.fixture
def _own_processes():
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("_own_processes")
def test_crafting_is_the_same_for_one_and_two_processes(tmp_path):
    for count in (1, 2):
        options = {"strategy": "ddp_fork", "devices": 2} if count == 2 else {}
        folder = tmp_path / str(count)
        folder.mkdir()
        trainer(**options).fit(Saver(folder), datamodule=module(val_size=7))
        trainer(**options).test(Saver(folder), datamodule=module(val_size=7), verbose=False)

    def load(count, rank, stage):
        rows = torch.load(tmp_path / str(count) / f"{stage != 'test'}-{rank}.pt", weights_only=True)[stage]
        return [AttackBatch(**batch) for batch in rows]

    for stage, count in (("val", 7), ("test", 23)):
        one, ranks = load(1, 0, stage), [load(2, rank, stage) for rank in (0, 1)]
        assert [len(batch) for batch in ranks[0]] == [len(batch) for batch in ranks[1]]
        both = AttackBatch.cat(ranks[0] + ranks[1])
        assert len(both) == count + 1  # one duplicate fills up
        assert int(both.valid.sum()) == count  # and does not count
        same(by_sample([both]), by_sample(one), 1e-6)
    one, ranks = load(1, 0, "train"), [load(2, rank, "train") for rank in (0, 1)]
    assert len(one) == len(ranks[0]) == 4
    for whole, first, second in zip(one, *ranks, strict=True):
        assert len(first) == len(second) == 6
        same(AttackBatch.cat([first, second]), whole, 1e-6)  # contiguous slices of the same global batch


def test_a_batch_size_that_does_not_divide_is_refused():
    data = module(batch_size=13)
    data.setup_data()
    data.trainer = type("FakeTrainer", (), {"global_rank": 1, "world_size": 2})()
    with pytest.raises(ValueError, match=r"data.batch_size=13 is not a multiple of the 2 processes: .*batch_size=14$"):
        data.train_dataloader()


# resuming ------------------------------------------------------------------------------------------------------------


class SaveAt(L.Callback):
    """Saves in the middle of a run, as ModelCheckpoint does."""

    def __init__(self, path, step, hook="on_train_batch_end"):
        self.path, self.step = path, step
        setattr(self, hook, self.save)

    def save(self, run, *_):
        if run.global_step == self.step:
            run.save_checkpoint(self.path)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # and test_data_loader.py
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 12}])
def test_a_resumed_run_sees_the_rest_of_the_uninterrupted_one(tmp_path, num_workers, limit):
    whole = Recorder()
    saves = {"middle": (6, "on_train_batch_end"), "last": (8, "on_train_batch_end")}
    saves |= {"val": (8, "on_validation_end"), "epoch": (8, "on_train_epoch_end")}
    callbacks = [SaveAt(tmp_path / f"{name}.ckpt", *save) for name, save in saves.items()]
    trainer(**limit, callbacks=callbacks).fit(whole, datamodule=module(num_workers=num_workers))
    assert [epoch for epoch, _ in whole.seen["train"]] == [0] * 4 + [1] * 4 + [2] * 4
    for name, (step, _) in saves.items():
        if num_workers and name != "middle":
            continue  # workers change nothing at the end of an epoch, and take their time
        resumed = Recorder()
        data = module(num_workers=num_workers)
        trainer(**limit).fit(resumed, datamodule=data, ckpt_path=tmp_path / f"{name}.ckpt")
        rest = whole.seen["train"][step:]
        assert [epoch for epoch, _ in resumed.seen["train"]] == [epoch for epoch, _ in rest], name
        for (_, batch), (_, wanted) in zip(resumed.seen["train"], rest, strict=True):
            same(batch, wanted)
        assert torch.equal(resumed.weight, whole.weight)


# configuration -------------------------------------------------------------------------------------------------------

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_build(path, tmp_path):
    config = compose([f"data={path.stem}"]).data
    reads_files = "root" in list(config)  # also where it has no value yet
    if reads_files:
        config.root = str(tmp_path)
    if path.stem == "image_folder":
        config.num_classes = 2
    nets, dealt = {"a": victim(1), "b": victim(2)}, mix()
    data = instantiate(config, mix=dealt, victims=nets, seed=0)
    assert data.mix is dealt
    assert list(data.victims) == ["a", "b"]
    assert all(data.victims[name] is net for name, net in nets.items())
    assert len(config.mean) == len(config.std) == config.channels
    if reads_files:  # when first needed, and only from the configured place
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            data.prepare_data()
        return
    assert len(indices(data, "test")) == len(data.splits.test)
    assert path.stem != "digits" or len(data.splits.test) == 359
    pixels = data.splits.train.images / 255
    assert abs(float(pixels.mean()) - config.mean[0]) < 1e-3
    assert abs(float(pixels.std()) - config.std[0]) < 1e-3


def test_an_oracle_is_attacked_by_nobody():
    """It is shown the clean image, which no attacker can follow; any other identifier is."""

    class Identifier(nn.Module):
        attack_names = ("clean", "fgsm", "pgd")

        def __init__(self, oracle):
            super().__init__()
            self.oracle = oracle

        def attack_logits(self, x, clean=None):
            return x.flatten(1)[:, :3]

    known = {}
    for oracle in (False, True):
        data = module()
        data.attach(Identifier(oracle))
        known[oracle] = {cell.knowledge for cell in data.test_cells}
    assert known == {False: {0, 1}, True: {0}}


def test_a_probe_sees_clean_validation_images_first():
    """Not those of the test, and never more than there are."""
    seen = []

    class Probe:
        def ready(self, victims, clean):
            seen.append((list(victims), *clean(4), *clean(100)))
            return "ready"

    data, method = module(val_size=6), Recorder()
    data.attach(method, probe=Probe())
    assert method.evaluator.probe == "ready"
    ((names, x, label, more, _),) = seen
    assert names == ["a", "b"]
    places = data.indices["val"]
    whole = splits().train.images[places].float() / 255
    assert torch.equal(x, whole[:4])
    assert torch.equal(more, whole)
    assert torch.equal(label, splits().train.labels[places][:4])
