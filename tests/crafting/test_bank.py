"""An attack bank gives back what was crafted, goes on where it was cut off, and refuses what it was not made of."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from redlab.batch import AttackBatch, RawBatch
from redlab.crafting.bank import KEPT, Bank, Part, build
from redlab.crafting.describe import described

MADE_OF = {"mix": {"fgsm": {"eps": 0.1}}, "victims": {"net": "ab12"}, "seed": 0}


def crafted(images, copies=1):
    """Made-up rows of some images: their values tell where they come from."""
    index = torch.tensor(images).repeat_interleave(copies)
    copy = torch.arange(copies).repeat(len(images))
    adv = ((index * 7 + copy)[:, None, None, None] % 256 / 255).expand(-1, 1, 2, 2).float()
    zero = torch.zeros_like(index)
    valid = index % 5 != 0
    return AttackBatch(adv / 2, adv, zero, copy + 1, copy, zero, zero, zero - 1, index, valid, ~valid, valid)


def part(images, name="train-0", size=3, copies=1, calls=None):
    chunks = [images[i : i + size] for i in range(0, len(images), size)]

    def craft(chunk):
        if calls is not None:
            calls.append((name, chunk))
        return crafted(chunks[chunk], copies)

    return Part(name, len(chunks), len(chunks[0]), craft)


def raw(index):
    index = torch.tensor(index)
    valid = torch.ones_like(index, dtype=torch.bool)
    return RawBatch(torch.zeros(len(index), 1, 2, 2), index % 3, index, index, valid)


@pytest.mark.parametrize("copies", [1, 3])
def test_rows_are_what_was_crafted_in_any_order(tmp_path, copies):
    images = [9, 4, 0, 11, 2, 5, 30]
    bank = build(tmp_path / "bank", MADE_OF, [part(images, copies=copies)])
    wanted, asked = [2, 30, 9], raw([2, 30, 9])
    clean = torch.rand(3, 1, 2, 2)
    found, expected = Bank(bank.folder).rows("train-0", asked, clean), crafted(wanted, copies)
    for name in KEPT:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.clean, clean.repeat_interleave(copies, dim=0))
    assert torch.equal(found.label, asked.label.repeat_interleave(copies))


def test_padding_is_not_valid(tmp_path):
    bank = build(tmp_path, MADE_OF, [part([1, 2, 3])])
    asked = raw([1, 2])._replace(valid=torch.tensor([True, False]))
    assert bank.rows("train-0", asked, asked.image).valid.tolist() == [True, False]


def test_a_build_that_was_cut_off_goes_on_with_the_next_file(tmp_path):
    def cut(chunk):
        if chunk == 1:
            raise KeyboardInterrupt
        return crafted([0, 1, 2])

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, MADE_OF, [Part("train-0", 3, 3, cut)])
    assert Bank(tmp_path).missing() == 2
    calls, ticks = [], []
    bank = build(tmp_path, MADE_OF, [part(list(range(9)), calls=calls)], tick=ticks.append)
    assert calls == [("train-0", 1), ("train-0", 2)]
    assert len(ticks) == 3  # a bar begins where the work was left
    assert bank.missing() == 0


def test_eight_bit_images_lose_nothing(tmp_path):
    images = list(range(20))
    bank = build(tmp_path, MADE_OF | {"quantize": 8}, [part(images)])
    stored = load_file(next(tmp_path.glob("*.safetensors")))
    assert stored["adv"].dtype == torch.uint8
    clean = torch.rand(20, 1, 2, 2)
    assert torch.equal(bank.rows("train-0", raw(images), clean).adv, crafted(images).adv)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"mix": {"fgsm": {"eps": 0.2}}}, r"made with mix.fgsm.eps=0.1, not mix.fgsm.eps=0.2"),
        ({"victims": {"net": "ff"}}, r"victims.net=ab12, not victims.net=ff"),
        ({"seed": 1}, r"seed=0, not seed=1"),
        ({"data": "x"}, r"data=None, not data=x"),
    ],
)
def test_a_bank_of_something_else_is_refused(tmp_path, other, message):
    bank = build(tmp_path, MADE_OF, [part([1, 2, 3])])
    bank.check(MADE_OF)
    with pytest.raises(ValueError, match=message):
        bank.check(MADE_OF | other)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, MADE_OF | other, [part([1, 2, 3])])


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no attack bank: there is no manifest"):
        Bank(tmp_path)
    bank = build(tmp_path, MADE_OF, [part([1, 2, 3])])
    with pytest.raises(ValueError, match="no image 7"):
        bank.rows("train-0", raw([1, 7]), torch.rand(2, 1, 2, 2))
    with pytest.raises(ValueError, match=r"no part val; it has train-0"):
        bank.rows("val", raw([1]), torch.rand(1, 1, 2, 2))
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="missing or damaged"):
        Bank(tmp_path).rows("train-0", raw([1]), torch.rand(1, 1, 2, 2))
    save_file({"adv": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="missing or damaged"):
        Bank(tmp_path).rows("train-0", raw([1]), torch.rand(1, 1, 2, 2))
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match="cannot be read"):
        Bank(tmp_path)


def test_described_values_are_plain_and_tell_apart():
    from redlab.attacks import FGSM, PGD, FeatureAttack
    from redlab.crafting import Component
    from redlab.data import Guides, digits

    parts = [
        Component(attack=PGD(eps=0.1)),
        Component(attack=PGD(eps=0.2)),
        Component(attack=PGD(eps=torch.tensor(0.1))),
        Component(attack=FGSM(eps=0.1)),
        Component(attack=FGSM(eps=0.1), victims=["a"]),
        Component(attack=FeatureAttack(guides=Guides(digits))),
        Component(attack=FeatureAttack(guides=Guides(digits, per_class=3))),
    ]
    told = [repr(described(component)) for component in parts]
    assert len(set(told)) == len(told)
    assert not [text for text in told if " at 0x" in text]
    with pytest.raises(ValueError, match="cannot be told"):
        described(lambda x: x)
