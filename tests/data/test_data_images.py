"""Every kind of image file: read with the pixels that were written, or refused by its path."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from image_files import bmp, chunk, exif, gif, packed, png, tiff
from PIL import Image

from redlab.batch import Key
from redlab.data import FolderSource
from redlab.data.images import network_input

SIZE = 8
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (SIZE, SIZE), np.uint8)
RGB = RNG.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (SIZE, SIZE, 3)).astype(np.uint16)
PALETTE = RNG.integers(0, 256, (128, 3), np.uint8)
INDEX = RNG.integers(0, 128, (SIZE, SIZE), np.uint8)
ASYMMETRIC = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) * 4


def read(folder, data, name="x.png", channels=3):
    (folder / "cat").mkdir(exist_ok=True)
    (folder / "cat" / name).write_bytes(data)
    source = FolderSource(folder, image_size=SIZE, channels=channels)
    image = source.__getitems__([Key(0, 0, True)]).image[0]
    assert image.dtype == torch.uint8
    return image.numpy()


def planes(pixels):
    """What is to be handed out as RGB for (H, W) or (H, W, 3)."""
    return np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def scaled(values, bits):
    return np.rint(values.astype(np.float64) * 255 / (2**bits - 1)).astype(np.uint8)


def with_alpha(pixels, alpha):
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.concatenate([pixels, np.full_like(pixels[..., :1], alpha)], axis=2)


def saved(pixels, kind, mode=None, **options):
    """By Pillow, which is not what reads: redlab is."""
    out = io.BytesIO()
    image = Image.fromarray(pixels) if mode is None else pixels
    image.save(out, kind, **options)
    return out.getvalue()


def of_bits(bits):
    return RNG.integers(0, 2**bits, (SIZE, SIZE))


def le(values, kind="<u2"):
    return values.astype(kind).tobytes()


B1, B2, B4 = of_bits(1), of_bits(2), of_bits(4)
PLTE = chunk(b"PLTE", PALETTE.tobytes())
COLOURS = {320: (3, [int(v) * 257 for v in np.pad(PALETTE, ((0, 128), (0, 0))).T.reshape(-1)])}
CMYK = RNG.integers(0, 256, (SIZE, SIZE, 4), np.uint8)
INK = np.rint((255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255).astype(np.uint8)
BIG = RNG.integers(0, 1001, (SIZE, SIZE))

READ = {
    "png grey 1": (png(B1, 1), scaled(B1, 1)),
    "png grey 2": (png(B2, 2), scaled(B2, 2)),
    "png grey 4": (png(B4, 4), scaled(B4, 4)),
    "png grey 8": (png(GREY), GREY),
    "png grey 16": (png(DEEP, 16), scaled(DEEP, 16)),
    "png rgb 8": (png(RGB, 8, 2), RGB),
    "png interlaced": (png(RGB, 8, 2, interlaced=True), RGB),
    "png rgb 16": (png(DEEP_RGB, 16, 2), DEEP_RGB >> 8),
    "png palette 1": (png(B1, 1, 3, PLTE), PALETTE[B1]),
    "png palette 2": (png(B2, 2, 3, PLTE), PALETTE[B2]),
    "png palette 4": (png(B4, 4, 3, PLTE), PALETTE[B4]),
    "png palette 8": (png(INDEX, 8, 3, PLTE), PALETTE[INDEX]),
    "png palette, opaque": (png(INDEX, 8, 3, PLTE + chunk(b"tRNS", b"\xff" * 128)), PALETTE[INDEX]),
    "png grey alpha 8": (png(with_alpha(GREY, 255), 8, 4), GREY),
    "png grey alpha 16": (png(with_alpha(DEEP, 65535), 16, 4), DEEP >> 8),
    "png rgba 8": (png(with_alpha(RGB, 255), 8, 6), RGB),
    "png rgba 16": (png(with_alpha(DEEP_RGB, 65535), 16, 6), DEEP_RGB >> 8),
    "png transparent colour that no pixel has": (
        png(RGB, 8, 2, chunk(b"tRNS", struct.pack(">3H", *((int(RGB[0, 0, 0]) + 1) % 256, 0, 0)))),
        RGB,
    ),
    "png with gamma": (png(RGB, 8, 2, chunk(b"gAMA", struct.pack(">I", 100_000))), RGB),
    "png 16 with gamma": (png(DEEP_RGB, 16, 2, chunk(b"gAMA", struct.pack(">I", 45_455))), DEEP_RGB >> 8),
    "png with a colour profile": (
        png(RGB, 8, 2, chunk(b"iCCP", b"wide\0\0" + zlib.compress(b"a profile that is not applied"))),
        RGB,
    ),
    "tiff grey 1": (tiff(b"".join(packed(B1, 1)), SIZE, SIZE, [1], 1), scaled(B1, 1)),
    "tiff grey 1, white is zero": (tiff(b"".join(packed(1 - B1, 1)), SIZE, SIZE, [1], 0), scaled(B1, 1)),
    "tiff grey 2": (tiff(b"".join(packed(B2, 2)), SIZE, SIZE, [2], 1), scaled(B2, 2)),
    "tiff grey 4": (tiff(b"".join(packed(B4, 4)), SIZE, SIZE, [4], 1), scaled(B4, 4)),
    "tiff grey 8": (tiff(GREY.tobytes(), SIZE, SIZE, [8], 1), GREY),
    "tiff grey 8, white is zero": (tiff((255 - GREY).tobytes(), SIZE, SIZE, [8], 0), GREY),
    "tiff grey 16, little endian": (tiff(le(DEEP), SIZE, SIZE, [16], 1), scaled(DEEP, 16)),
    "tiff grey 16, big endian": (tiff(le(DEEP, ">u2"), SIZE, SIZE, [16], 1, ">"), scaled(DEEP, 16)),
    "tiff rgb": (tiff(RGB.tobytes(), SIZE, SIZE, [8] * 3, 2), RGB),
    "tiff rgb, big endian": (tiff(RGB.tobytes(), SIZE, SIZE, [8] * 3, 2, ">"), RGB),
    "tiff palette": (tiff(INDEX.tobytes(), SIZE, SIZE, [8], 3, tags=COLOURS), PALETTE[INDEX]),
    "tiff rgba": (tiff(with_alpha(RGB, 255).tobytes(), SIZE, SIZE, [8] * 4, 2, tags={338: (3, [2])}), RGB),
    "tiff rgba, premultiplied": (
        tiff(with_alpha(RGB, 255).tobytes(), SIZE, SIZE, [8] * 4, 2, tags={338: (3, [1])}),
        RGB,
    ),
    "tiff grey alpha": (tiff(with_alpha(GREY, 255).tobytes(), SIZE, SIZE, [8, 8], 1, tags={338: (3, [2])}), GREY),
    "tiff cmyk": (tiff(CMYK.tobytes(), SIZE, SIZE, [8] * 4, 5), INK),
    "tiff packed by deflate": (saved(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB),
    "tiff grey 16 packed by lzw": (saved(DEEP, "TIFF", compression="tiff_lzw"), scaled(DEEP, 16)),
    "bmp rgb": (bmp(RGB), RGB),
    "bmp palette": (saved(GREY, "BMP"), GREY),
    "gif": (gif(INDEX, PALETTE), PALETTE[INDEX]),
    "gif, its transparent colour unused": (gif(INDEX % 100, PALETTE, transparent=101), PALETTE[INDEX % 100]),
    "pbm": (b"P4 8 8\n" + b"".join(packed(1 - B1, 1)), scaled(B1, 1)),
    "pgm": (b"P5 8 8 255\n" + GREY.tobytes(), GREY),
    "pgm of text": (b"P2 8 8 255\n" + " ".join(map(str, GREY.reshape(-1))).encode(), GREY),
    "pgm 16": (b"P5 8 8 65535\n" + le(DEEP, ">u2"), scaled(DEEP, 16)),
    "pgm to 1000": (b"P5 8 8 1000\n" + le(BIG, ">u2"), np.rint(BIG * 255 / 1000).astype(np.uint8)),
    "ppm": (b"P6 8 8 255\n" + RGB.tobytes(), RGB),
    "ppm 16": (b"P6 8 8 65535\n" + le(DEEP_RGB, ">u2"), scaled(DEEP_RGB, 16)),
    "webp": (saved(RGB, "WEBP", lossless=True), RGB),
    "webp, opaque alpha": (saved(with_alpha(RGB, 255), "WEBP", lossless=True, exact=True), RGB),
}


@pytest.mark.parametrize("kind", READ)
def test_pixels_are_those_that_were_written(tmp_path, kind):
    data, pixels = READ[kind]
    name = "x.jpg"  # its content counts, not its suffix
    assert np.array_equal(read(tmp_path, data, name), planes(pixels))
    grey = read(tmp_path, data, name, channels=1)
    if pixels.ndim == 2:
        assert np.array_equal(grey[0], pixels)
    else:
        luma = pixels @ [0.299, 0.587, 0.114]
        assert np.abs(grey[0] - luma).max() <= 1


def test_sixteen_bits_of_an_eight_bit_image_keep_its_mean(tmp_path):
    pixels = np.full((SIZE, SIZE), 78, np.uint16)
    assert read(tmp_path, png(pixels * 257, 16)).mean() == 78
    assert np.array_equal(read(tmp_path, png(GREY.astype(np.uint16) * 257, 16))[0], GREY)
    assert np.array_equal(read(tmp_path, png(RGB.astype(np.uint16) * 257, 16, 2)), planes(RGB))
    assert np.abs(read(tmp_path, png(DEEP_RGB, 16, 2)) - planes(DEEP_RGB) / 257).max() < 1


JPEG = np.kron(np.array([[200, 30], [90, 140]], np.uint8), np.ones((16, 16), np.uint8))  # flat blocks survive JPEG
JPEG_RGB = np.stack([JPEG, JPEG.T, 255 - JPEG], axis=2)


def jpeg(pixels, mode=None, **options):
    return saved(pixels, "JPEG", mode, quality=95, subsampling=0, **options)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (jpeg(JPEG), JPEG),
        (jpeg(JPEG_RGB), JPEG_RGB),
        (jpeg(JPEG_RGB, progressive=True), JPEG_RGB),
        (jpeg(Image.fromarray(JPEG_RGB).convert("CMYK"), "CMYK"), JPEG_RGB),
        (saved(JPEG_RGB, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95), JPEG_RGB),
        (saved(JPEG_RGB, "TIFF", compression="jpeg", quality=95), JPEG_RGB),
        (saved(JPEG_RGB, "WEBP", quality=95), JPEG_RGB),
    ],
    ids=["grey", "rgb", "progressive", "cmyk", "several pictures", "in tiff", "webp"],
)
def test_lossy_kinds(tmp_path, data, pixels):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.JPG").write_bytes(data)
    image = FolderSource(tmp_path, image_size=32).__getitems__([Key(0, 0, True)]).image[0].numpy().astype(int)
    inner = np.s_[:, 2::16, 2::16]
    assert np.abs(image - planes(pixels).astype(int))[inner].max() <= 6
    assert np.abs(image - planes(pixels).astype(int)).mean() <= 6


# Row and column 0 of what is stored, by the words of the EXIF standard: what is seen, from what is stored.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[:, ::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(tmp_path, orientation):
    seen = UPRIGHT[orientation](ASYMMETRIC)
    block = chunk(b"eXIf", exif(orientation))
    assert np.array_equal(read(tmp_path, png(ASYMMETRIC, before=block))[0], seen)
    deep = ASYMMETRIC.astype(np.uint16) * 257
    assert np.array_equal(read(tmp_path, png(deep, 16, before=block))[0], seen)
    assert np.array_equal(read(tmp_path, png(np.stack([deep] * 3, 2), 16, 2, before=block))[0], seen)
    tag = {274: (3, [orientation])}
    assert np.array_equal(read(tmp_path, tiff(ASYMMETRIC.tobytes(), SIZE, SIZE, [8], 1, tags=tag))[0], seen)
    assert np.array_equal(read(tmp_path, tiff(le(deep), SIZE, SIZE, [16], 1, tags=tag))[0], seen)
    coloured = np.stack([ASYMMETRIC] * 3, 2)
    webp = saved(coloured, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(orientation))
    assert np.array_equal(read(tmp_path, webp)[0], seen)
    blocks = np.kron(ASYMMETRIC, np.ones((8, 8), np.uint8))
    photo = read(tmp_path, saved(blocks, "JPEG", quality=95, exif=b"Exif\0\0" + exif(orientation)))
    assert np.abs(photo[0].astype(int) - seen).max() <= 7  # the borders of the blocks; another orientation is 28 away


def holed(pixels, top=255):
    out = with_alpha(pixels, top)
    out[3, 4, -1] = 0
    return out


def flipped(data, place, bit=1):
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


FRAMES = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
SAMPLE = {339: (3, [3])}
FLOAT = RNG.random((SIZE, SIZE)).astype("<f4")

REFUSED = {
    "png grey, transparent": (png(holed(GREY), 8, 4), "parts of it are transparent"),
    "png grey 16, transparent": (png(holed(DEEP, 65535), 16, 4), "parts of it are transparent"),
    "png rgba, transparent": (png(holed(RGB), 8, 6), "parts of it are transparent"),
    "png rgba 16, transparent": (png(holed(DEEP_RGB, 65535), 16, 6), "parts of it are transparent"),
    "png palette, transparent": (png(INDEX, 8, 3, PLTE + chunk(b"tRNS", b"\xff\x80" * 64)), "are transparent"),
    "png rgb, a transparent colour": (
        png(RGB, 8, 2, chunk(b"tRNS", struct.pack(">3H", *map(int, RGB[1, 2])))),
        "parts of it are transparent",
    ),
    "png grey 2, a transparent grey": (png(B2, 2, 0, chunk(b"tRNS", b"\0\1")), "a transparent colour"),
    "png rgb 16, a transparent colour": (
        png(DEEP_RGB, 16, 2, chunk(b"tRNS", struct.pack(">3H", *map(int, DEEP_RGB[1, 2])))),
        "a transparent colour",
    ),
    "gif, transparent": (gif(INDEX, PALETTE, transparent=int(INDEX[0, 0])), "parts of it are transparent"),
    "gif, its frame a part of it": (
        gif(INDEX[:4, :4], PALETTE).replace(b"9a\4\0\4", b"9a\10\0\10"),
        "parts of it are transparent",
    ),
    "webp, transparent": (saved(holed(RGB), "WEBP", lossless=True), "parts of it are transparent"),
    "tiff, transparent": (
        tiff(holed(RGB).tobytes(), SIZE, SIZE, [8] * 4, 2, tags={338: (3, [2])}),
        "parts of it are transparent",
    ),
    "gif, two frames": (gif(INDEX, PALETTE, frames=2), "it has 2 frames"),
    "png, two frames": (saved(FRAMES[0], "PNG", "RGB", **ANIMATED), "it has 2 frames"),
    "webp, two frames": (saved(FRAMES[0], "WEBP", "RGB", **ANIMATED), "it has 2 frames"),
    "tiff, two pages": (saved(FRAMES[0], "TIFF", "RGB", **ANIMATED), "it has 2 frames"),
    "tiff, floats": (tiff(FLOAT.tobytes(), SIZE, SIZE, [32], 1, tags=SAMPLE), "signed or floating point"),
    "tiff, signed bytes": (tiff(GREY.tobytes(), SIZE, SIZE, [8], 1, tags={339: (3, [2])}), "signed or floating point"),
    "tiff, signed 16": (tiff(le(DEEP), SIZE, SIZE, [16], 1, tags={339: (3, [2])}), "signed or floating point"),
    "tiff, 32 bits": (tiff(le(DEEP, "<u4"), SIZE, SIZE, [32], 1), "it has 1 x 32 bits a pixel"),
    "tiff, 12 bits": (tiff(b"".join(packed(of_bits(12), 12)), SIZE, SIZE, [12], 1), "it has 1 x 12 bits a pixel"),
    "tiff rgb 16": (tiff(le(DEEP_RGB), SIZE, SIZE, [16] * 3, 2), "it has 3 x 16 bits a pixel"),
    "tiff grey 16, white is zero": (tiff(le(DEEP), SIZE, SIZE, [16], 0), "from white to black"),
    "tiff, a fourth channel": (
        tiff(CMYK.tobytes(), SIZE, SIZE, [8] * 4, 2, tags={338: (3, [0])}),
        "4 channels, one of no stated meaning",
    ),
    "tiff lab": (tiff(RGB.tobytes(), SIZE, SIZE, [8] * 3, 8), "its mode is LAB"),
    "tiff ycbcr": (tiff(RGB.tobytes(), SIZE, SIZE, [8] * 3, 6), "its mode is YCbCr"),
    "pfm": (b"Pf\n8 8\n-1.0\n" + FLOAT.tobytes(), "its mode is F"),
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404 not found</html>", "it is no BMP, GIF"),
    "a format that is not read": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "it is no BMP, GIF"),
    "png, cut in its header": (png(RGB, 8, 2)[:20], ""),
    "png, cut in its pixels": (png(RGB, 8, 2)[:-60], ""),
    "png, broken": (flipped(png(RGB, 8, 2), 80, 255), ""),
    "jpeg, cut": (jpeg(np.tile(RGB, (9, 9, 1)))[:-500], "truncated"),
    "bmp, cut": (bmp(RGB)[:-50], "truncated"),
    "gif, cut": (gif(INDEX, PALETTE)[:-50], ""),
    "tiff, cut": (tiff(GREY.tobytes(), SIZE, SIZE, [8], 1)[:-20], ""),
    "webp, cut": (saved(RGB, "WEBP", lossless=True)[:-50], ""),
    "too large": (b"P5 60000 60000 255\n" + bytes(100), "more than"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_right_is_refused_with_its_path(tmp_path, kind):
    data, message = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"cat/x\.png: not a readable image: .*{message}") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"cat/x\.png: not a readable image: No such file"):
        FolderSource(tmp_path, image_size=SIZE).__getitems__([Key(0, 0, True)])


@pytest.mark.parametrize("side", [9, 60])  # Pillow warns of the first, and raises at the second
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_an_oversized_image_is_named(tmp_path, monkeypatch, side, action):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ValueError, match=r"x\.png: .* more than 80 pixels .*: scale it down"):
            read(tmp_path, png(np.zeros((side, side), np.uint8)))


def test_an_elongated_image_is_named(tmp_path):
    """A strip of 20,000 pixels would take gigabytes once its shorter side is as long as the image size."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.png").write_bytes(png(np.zeros((20_000, 1), np.uint8)))
    with pytest.raises(ValueError, match=r"x\.png: 1x20000 is too elongated to be resized to 224 pixels across"):
        FolderSource(tmp_path, image_size=224).__getitems__([Key(0, 0, True)])


def picture(folder, size, name="x.png", grey=True, **options):
    """A file of smooth random pixels."""
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_what_has_the_networks_size_is_taken_as_it_is(tmp_path, channels):
    pixels = picture(tmp_path, (8, 8))
    x, note = network_input(tmp_path / "x.png", channels=channels, size=8)
    assert note == ""
    assert torch.equal(x, torch.from_numpy(np.stack([pixels] * channels)).float() / 255)


def test_another_size_becomes_what_a_run_would_train_on(tmp_path):
    (tmp_path / "cat").mkdir()
    picture(tmp_path / "cat", (33, 31), grey=False)
    x, note = network_input(tmp_path / "cat" / "x.png", channels=3, size=8)
    source = FolderSource(tmp_path, image_size=8, channels=3)
    assert torch.equal(x, source.__getitems__([Key(0, 0, True)]).image[0].float() / 255)
    assert note == "resized from 33x31"


@pytest.mark.parametrize(
    ("size", "grey", "channels", "says"),
    [
        ((9, 8), True, 1, "9x8 is not square: crop it"),
        ((65, 65), True, 1, "over 8 times the network's 8x8"),
        ((3, 3), True, 1, "under 1/2 of the network's 8x8"),
        ((8, 8), False, 1, "it has colours"),
    ],
)
def test_what_would_say_nothing_is_refused(tmp_path, size, grey, channels, says):
    picture(tmp_path, size, grey=grey)
    with pytest.raises(ValueError, match=says) as error:
        network_input(tmp_path / "x.png", channels=channels, size=8)
    assert str(error.value).startswith(f"{tmp_path / 'x.png'}: ")


@pytest.mark.parametrize("size", [(64, 64), (4, 4), (11, 10)])
def test_what_is_just_within_is_not(tmp_path, size):
    picture(tmp_path, size)
    assert network_input(tmp_path / "x.png", channels=1, size=8)[0].shape == (1, 8, 8)


def test_a_jpeg_of_a_grey_image_has_no_colours(tmp_path):
    grey = np.random.default_rng(2).integers(0, 256, (8, 8), np.uint8)
    for name, quality in (("a.jpg", 95), ("b.jpg", 30)):
        Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / name, quality=quality)
        network_input(tmp_path / name, channels=1, size=8)
