import gzip
import os
import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from redlab.batch import Key
from redlab.data import TensorSource, cifar10, digits, fashion_mnist, image_folder, mnist, svhn


def keys(*indices):
    return [Key(index, position, True) for position, index in enumerate(indices)]


def write_idx(folder, train=6, test=2, labels=None, compress=True):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + rng.integers(0, 256, count * 784, np.uint8).tobytes()
        given = bytes(labels or [i % 10 for i in range(count)])
        for kind, data in (
            ("images-idx3", images),
            ("labels-idx1", struct.pack(">4BI", 0, 0, 8, 1, len(given)) + given),
        ):
            name = f"{prefix}-{kind}-ubyte"
            (folder / (name + ".gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)


# digits --------------------------------------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_digits_once():
    train, test = digits()
    assert (len(train), len(test)) == (1438, 359)
    raw = load_digits()
    # bilinear, written out: pixel centres of the large image in units of the small one, clamped at the border
    places = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    across = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(8)))
    large = np.rint(255 * (across @ (raw.images / 16) @ across.T)).astype(np.uint8)
    place = {image.tobytes(): i for i, image in enumerate(large)}
    assert len(place) == 1797
    found = [place[image.numpy().tobytes()] for image in torch.cat([train.images, test.images])]
    assert sorted(found) == list(range(1797))
    assert torch.cat([train.labels, test.labels]).tolist() == raw.target[found].tolist()


def test_digits_split_is_a_constant():
    torch.manual_seed(1)
    first = digits()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = digits()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.test.images, second.test.images)
    # published results hang on which images these are
    assert first.test.labels[:12].tolist() == [0, 3, 8, 0, 4, 3, 9, 0, 7, 7, 8, 2]


# files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_fashion_mnist_from_the_files_as_distributed(tmp_path, inside, compress):
    write_idx(tmp_path / inside, compress=compress)
    train, test = fashion_mnist(tmp_path)
    assert (len(train), len(test), train.channels, train.image_size) == (6, 2, 1, 28)
    batch = train.__getitems__([Key(4, 9, False), Key(1, 10, True)])
    assert batch.image.shape == (2, 1, 28, 28)
    assert batch.label.tolist() == [4, 1]
    assert batch.index.tolist() == [4, 1]
    assert batch.position.tolist() == [9, 10]
    assert batch.valid.tolist() == [False, True]
    assert train.classes[9] == "Ankle boot"


def test_mnist_looks_in_torchvisions_folder(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    assert len(mnist(tmp_path).train) == 6


@pytest.mark.parametrize("load", [fashion_mnist, mnist, cifar10, svhn, lambda root: image_folder(root, image_size=8)])
def test_the_tilde_of_a_root_is_the_home_folder(tmp_path, monkeypatch, load):
    """A shell leaves it alone in data.root=~/pictures."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(f"looked for {tmp_path}/pictures/")):
        load("~/pictures")


def test_labels_must_fit(tmp_path):
    write_idx(tmp_path, labels=[1, 2, 3])
    with pytest.raises(ValueError, match=r"holds 6 images, but .*train-labels-idx1-ubyte\.gz 3 labels"):
        mnist(tmp_path)
    write_idx(tmp_path, train=1, test=1, labels=[10])
    with pytest.raises(ValueError, match=r"label 10, but MNIST has 10 classes"):
        mnist(tmp_path)


@pytest.mark.parametrize("load", [fashion_mnist, mnist, cifar10, svhn])
def test_missing_folder_says_what_where_and_how(tmp_path, load):
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / "nowhere")
    message = str(caught.value)
    assert str(tmp_path / "nowhere") in message
    assert "data.download=true" in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (load is fashion_mnist)
    assert message.endswith(".")
    assert "\n" not in message


def test_one_missing_file(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        fashion_mnist(tmp_path)


def write_cifar(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = np.zeros((2, 3073), np.uint8)
        records[:, 0], records[:, 1:] = number, number + 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def test_cifar10_binary_version(tmp_path):
    write_cifar(tmp_path)
    train, test = cifar10(tmp_path)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert test.labels.tolist() == [5, 5]
    assert test.images.unique().tolist() == [15]
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin"):
        cifar10(tmp_path)


def test_cifar10_pickles_of_strangers_are_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="cifar-10-batches-py: a file is missing or fails its checksum"):
        cifar10(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_svhn_parts(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        content = {"X": np.zeros((32, 32, 3, count), np.uint8), "y": np.full((count, 1), 10)}
        savemat(tmp_path / f"{split}_32x32.mat", content)
    train, test = svhn(tmp_path)
    assert (len(train), len(test), train.channels) == (3, 2, 3)
    assert train.classes[int(train.labels[0])] == "0"


# folders of images ---------------------------------------------------------------------------------------------------


def write_images(root, parts=("train", "test"), classes=("cat", "dog"), size=(12, 8)):
    for part in parts:
        for place, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", size, (place * 100, i * 50, 7)).save(folder / f"{i}.png")


def test_image_folder(tmp_path):
    write_images(tmp_path, classes=("dog", "cat", "ant"))
    train, test = image_folder(tmp_path, image_size=8)
    assert train.classes == ("ant", "cat", "dog")
    assert (len(train), len(test)) == (6, 6)
    batch = train.__getitems__(keys(5, 0))
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (2, 3, 8, 8)
    assert batch.label.tolist() == [2, 0]
    assert batch.image[0, :, 0, 0].tolist() == [0, 50, 7]  # written as class number 0, second image
    assert batch.image[1, :, 4, 4].tolist() == [200, 0, 7]
    assert image_folder(tmp_path, image_size=8, channels=1).train.__getitems__(keys(0)).image.shape == (1, 1, 8, 8)


def test_image_folder_takes_the_centre(tmp_path):
    write_images(tmp_path)
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255  # three squares in a row, the middle one white
    Image.fromarray(pixels).save(tmp_path / "train" / "cat" / "0.png")
    train, _ = image_folder(tmp_path, image_size=8)
    assert train.__getitems__(keys(0)).image.min() == 255


def test_image_folder_without_test_uses_val(tmp_path):
    write_images(tmp_path, parts=("train", "val"))
    assert len(image_folder(tmp_path, image_size=8).test) == 4
    with pytest.raises(FileNotFoundError, match="other"):
        image_folder(tmp_path, image_size=8, test="other")


def test_image_folder_faults(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train.*<root>/train/<class>"):
        image_folder(tmp_path, image_size=8)
    write_images(tmp_path, parts=("train",))
    write_images(tmp_path, parts=("test",), classes=("cat", "cow"))
    with pytest.raises(ValueError, match=r"differ in the classes \['cow', 'dog'\]: give both the same"):
        image_folder(tmp_path, image_size=8)
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "dog")
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cat/0\.png: not a readable image"):
        image_folder(tmp_path, image_size=8).train.__getitems__(keys(0))
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        image_folder(tmp_path, image_size=8, channels=2)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), "uint8"),
        (torch.zeros(2, 1, 4, 5, dtype=torch.uint8), torch.zeros(2), r"\(2, 1, 4, 5\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3), r"\(3,\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]), r"labels 0\.\.3, but 3 classes"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), r"labels -1\.\.0"),
    ],
)
def test_tensor_source_refuses(images, labels, message):
    with pytest.raises(ValueError, match=message):
        TensorSource(images, labels, "abc")


@pytest.mark.realdata
def test_real_fashion_mnist():
    train, test = fashion_mnist(os.environ.get("REDLAB_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    pixels = train.images.double() / 255
    assert abs(pixels.mean() - 0.2860) < 1e-4
    assert abs(pixels.std() - 0.3530) < 1e-4
