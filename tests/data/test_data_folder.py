"""Which files of a folder count, the look at all of them, and what a source's content is known by."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from image_files import png
from rich.console import Console

from redlab.crafting import AttackMix, Component
from redlab.data import AttackDataModule, FolderSource, TensorSource, digits, image_folder
from redlab.data import folder as folder_module
from redlab.data.folder import check_images
from redlab.data.loader import EpochLoader, EpochSampler

RNG = np.random.default_rng(0)


def write(root, name, size=8, data=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(RNG.integers(0, 256, (size, size, 3), np.uint8), 8, 2) if data is None else data)
    return path


def animals(root, classes=("cat", "dog"), parts=("train", "test"), count=4):
    for part in parts:
        for name in classes:
            for i in range(count):
                write(root, f"{part}/{name}/{i}.png")
    return root


def names(source):
    return [os.path.relpath(path, source.root) for path, _ in source.samples]


# which files count ---------------------------------------------------------------------------------------------------


def test_what_tools_leave_behind_is_no_data(tmp_path):
    animals(tmp_path, parts=("train",), count=1)
    left = [".ipynb_checkpoints/a.png", ".git/a.png", "__MACOSX/cat/a.png", "@eaDir/a.png", "cat/._0.png"]
    left += ["cat/.DS_Store", "cat/Thumbs.db", "dog/.ipynb_checkpoints/0-checkpoint.png", "dog/__MACOSX/a.png"]
    for name in [*left, "cat/labels.csv", "loose.png"]:
        write(tmp_path / "train", name)
    source = FolderSource(tmp_path / "train", image_size=8)
    assert source.classes == ("cat", "dog")
    assert names(source) == ["cat/0.png", "dog/0.png"]
    assert [label for _, label in source.samples] == [0, 1]


def test_suffixes_of_images(tmp_path):
    kept = ["A.PNG", "b.JPeG", "c.gif", "d.webp", "e.TIF", "f.heic", "g.avif"]
    for name in [*kept, "notes.txt", "x.npy", "readme", "h.png.bak"]:
        write(tmp_path, f"cat/{name}", data=b"x")
    source = FolderSource(tmp_path, image_size=8)
    assert names(source) == [f"cat/{name}" for name in kept]
    with pytest.raises(ValueError, match="7 of 7 image files"):  # an iPhone's pictures are refused, not left out
        check_images([source], progress=False)


def test_the_order_is_that_of_torchvision(tmp_path):
    """An image is known by its place."""
    from torchvision.datasets import ImageFolder

    for name in ("b/10.png", "b/9.png", "b/deep/1.png", "b/deep-er/1.png", "b/a/z/1.png", "A/1.PNG", "a/x.jpg"):
        write(tmp_path, name)
    assert FolderSource(tmp_path, image_size=8).samples == ImageFolder(str(tmp_path)).samples


def test_links_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path, "elsewhere/1.png")
    write(tmp_path, "root/cat/0.png")
    (tmp_path / "root" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    source = FolderSource(tmp_path / "root", image_size=8)
    assert names(source) == ["cat/0.png", "cat/more/1.png", "dog/1.png"]


def test_folders_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone is not a folder: lay your images out as <root>/<class>"):
        FolderSource(tmp_path / "gone", image_size=8)
    (tmp_path / ".git").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no class folder"):
        FolderSource(tmp_path, image_size=8)
    write(tmp_path, "cat/0.png")
    write(tmp_path, "dog/.ipynb_checkpoints/0.png")
    with pytest.raises(FileNotFoundError, match="dog is a class without images: put some into it, or remove it"):
        FolderSource(tmp_path, image_size=8)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        FolderSource(tmp_path, image_size=0)


def test_classes_of_both_parts_are_compared_after_leaving_out(tmp_path):
    animals(tmp_path, count=1)
    write(tmp_path, "train/.ipynb_checkpoints/a.png")
    write(tmp_path, "test/__MACOSX/a.png")
    assert image_folder(tmp_path, image_size=8).test.classes == ("cat", "dog")
    write(tmp_path, "test/cow/a.png")
    with pytest.raises(ValueError, match=r"differ in the classes \['cow'\]"):
        image_folder(tmp_path, image_size=8)


# the look at all images ----------------------------------------------------------------------------------------------


def data_module(root, **options):
    from functools import partial

    options = {"batch_size": 2, "val_size": 0.25} | options
    mix = AttackMix({"clean": Component(attack=None)})
    return AttackDataModule(partial(image_folder, root, image_size=8), mix=mix, victims={}, **options)


def damage(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_damaged_images_are_found_before_training(tmp_path):
    animals(tmp_path)
    data_module(tmp_path).prepare_data()
    bad = [tmp_path / name for name in ("test/dog/3.png", "train/cat/1.png", "train/dog/0.png", "train/dog/2.png")]
    for path in bad[1:]:
        damage(path)
    write(tmp_path, "test/dog/3.png", data=b"")
    with pytest.raises(ValueError, match="4 of 16 image files cannot be used; mend or remove them: ") as caught:
        data_module(tmp_path).prepare_data()
    message = str(caught.value)
    assert all(str(path) in message for path in bad[1:])
    assert str(bad[0]) not in message  # the first few
    assert message.endswith("; ...")
    assert "\n" not in message
    data_module(tmp_path, check_images=False).prepare_data()
    for path in bad[1:]:
        path.unlink()
    with pytest.raises(
        ValueError,
        match=r"1 of 13 image files cannot be used; mend or remove them: .*test/dog/3\.png: .*the file is empty",
    ):
        data_module(tmp_path).prepare_data()


def test_a_flipped_bit_of_a_png_is_found(tmp_path):
    """Decoding alone does not see it where the pixels are stored uncompressed."""
    pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    data = png(pixels, 8, 2, level=0)
    place = data.index(pixels[4].tobytes()) + 5
    write(tmp_path, "cat/0.png", data=data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    with pytest.raises(ValueError, match=r"cat/0\.png"):
        check_images([FolderSource(tmp_path, image_size=8)], progress=False)


def test_images_that_were_looked_at_are_not_read_again(tmp_path, monkeypatch):
    """Each victim of a run has a data module of its own."""
    animals(tmp_path)
    read = []
    original = folder_module.read_image
    monkeypatch.setattr(folder_module, "read_image", lambda path, **kw: (read.append(path), original(path, **kw))[1])
    data_module(tmp_path).prepare_data()
    assert len(read) == 16
    data_module(tmp_path).prepare_data()
    assert len(read) == 16
    write(tmp_path, "train/cat/1.png", size=9)
    data_module(tmp_path).prepare_data()
    assert len(read) == 24  # the part that changed


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_the_bar_is_shown_on_a_terminal(tmp_path, capsys, monkeypatch, terminal, progress):
    animals(tmp_path)
    monkeypatch.setattr("rich._console", Console(force_terminal=terminal))
    check_images(list(image_folder(tmp_path, image_size=8)), progress=progress)
    out = capsys.readouterr().out
    assert "Looking at the images" in out if terminal and progress else out == ""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_worker_says_one_sentence(tmp_path, num_workers):
    animals(tmp_path, parts=("train",))
    damage(tmp_path / "train" / "cat" / "2.png")
    source = FolderSource(tmp_path / "train", image_size=8)
    sampler = EpochSampler(torch.arange(8), batch_size=2)
    loader = EpochLoader(source, sampler, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"train/cat/2\.png: not a readable image") as caught:
        list(loader)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    if num_workers:
        assert "in read_image" in caught.value.__notes__[0]  # where it was, for debug=true


# fingerprints --------------------------------------------------------------------------------------------------------


def fingerprint(root, **options):
    return FolderSource(root, **({"image_size": 8} | options)).fingerprint()


@pytest.fixture(params=["whole", "large"])
def _limit(request, monkeypatch):
    if request.param == "large":
        monkeypatch.setattr(folder_module, "_WHOLE", 100)


@pytest.mark.usefixtures("_limit")
def test_a_folder_is_known_by_its_content(tmp_path):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        write(tmp_path / "a", name)
    first = fingerprint(tmp_path / "a")
    assert len(first) == 64
    # the same content elsewhere, with other times and written in another order, is the same
    for name in ("dog/0.png", "cat/1.png", "cat/0.png"):
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "a" / name, tmp_path / "b" / name)
        os.utime(tmp_path / "b" / name, (0, time.time() - 1000))
    assert fingerprint(tmp_path / "b") == first
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert fingerprint(tmp_path / "c") == first
    # what changes pixels or labels is not
    seen = {first, fingerprint(tmp_path / "a", channels=1), fingerprint(tmp_path / "a", image_size=7)}
    swapped = tmp_path / "swapped"
    shutil.copytree(tmp_path / "a", swapped)
    (swapped / "cat").rename(swapped / "x")
    (swapped / "dog").rename(swapped / "cat")
    (swapped / "x").rename(swapped / "dog")
    seen.add(fingerprint(swapped))
    (tmp_path / "b" / "dog").rename(tmp_path / "b" / "wolf")
    seen.add(fingerprint(tmp_path / "b"))
    write(tmp_path / "b", "cat/2.png")
    seen.add(fingerprint(tmp_path / "b"))
    (tmp_path / "b" / "cat" / "0.png").unlink()
    seen.add(fingerprint(tmp_path / "b"))
    assert len(seen) == 7


@pytest.mark.usefixtures("_limit")
def test_one_pixel_makes_another_folder(tmp_path):
    """Also where the file keeps its size, and where of a large folder only the ends of its files are read."""
    pixels = RNG.integers(0, 256, (90, 90, 3), np.uint8)
    before = write(tmp_path, "cat/0.png", data=png(pixels, 8, 2, level=0))
    first, size = fingerprint(tmp_path), before.stat().st_size
    assert size > 3 * folder_module._END
    pixels[45, 45, 1] ^= 1
    assert write(tmp_path, "cat/0.png", data=png(pixels, 8, 2, level=0)).stat().st_size == size
    assert fingerprint(tmp_path) != first


def test_a_fingerprint_is_worked_out_once(tmp_path):
    path = write(tmp_path, "cat/0.png")
    source = FolderSource(tmp_path, image_size=8)
    first = source.fingerprint()
    path.unlink()
    assert source.fingerprint() == first


def test_images_in_memory_are_known_by_their_pixels_labels_and_classes():
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(6) % 3
    first = TensorSource(images, labels, "abc").fingerprint()
    assert TensorSource(images.clone(), labels.clone(), ["a", "b", "c"]).fingerprint() == first
    other = images.clone()
    other[5, 0, 3, 3] ^= 1
    transposed = TensorSource(images.transpose(2, 3), labels, "abc")
    seen = {first, transposed.fingerprint(), TensorSource(other, labels, "abc").fingerprint()}
    seen |= {
        TensorSource(images, labels.flip(0), "abc").fingerprint(),
        TensorSource(images, labels, "abd").fingerprint(),
    }
    seen.add(TensorSource(images.view(6, 1, 4, 4)[:3], labels[:3], "abc").fingerprint())
    seen.add(TensorSource(images.view(24, 1, 2, 2), torch.arange(6).repeat(4) % 3, "abc").fingerprint())
    assert len(seen) == 7
    assert transposed.fingerprint() == TensorSource(images.transpose(2, 3).contiguous(), labels, "abc").fingerprint()


def test_digits_have_one_fingerprint_everywhere():
    train, test = digits()
    assert train.fingerprint() == "7362a17b8356bb8d667d26f4003d56aaf298f1bd3278afae6b333ae109818e6d"
    assert test.fingerprint() != train.fingerprint()
