"""What an image file can be, and which of it is read: one picture of 8 or 16 bits whose values mean one thing only.

Everything else (floating point, several frames, transparency, ...) is refused by its path, never read as something that
it is not.
"""

from __future__ import annotations

from os import PathLike
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# How image files are named. What of them cannot be read is refused, not left out: no class is smaller than its folder.
SUFFIXES = {".apng", ".avif", ".bmp", ".dib", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg"}
SUFFIXES |= {".jpg", ".jxl", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
# Not the other formats that Pillow knows: some are programs (EPS), and nobody has compared their pixels here.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_TRANSPARENT = "parts of it are transparent: save it on the background that is meant"
_MOST, _MOST_ENLARGED, _GREY = 8, 2, 12  # `network_input`; a JPEG of a grey image may have a few levels of colour
_EIGHT_BITS = ("1", "L", "P", "RGB", "CMYK", *_ALPHA)


def read_image(path: str | PathLike[str], *, channels: int, verify: bool = False) -> Image.Image:
    """Reads one picture as 8-bit grey or RGB, upright as its EXIF orientation says.

    Read are 1 to 8 bits, palettes, and 16 bits: grey as ``round(value / 257)``, the colours of a PNG or PPM by Pillow,
    less than one level of 255 away. An alpha channel that is opaque everywhere is dropped. Values are taken as stored:
    neither a colour profile nor PNG's gamma is applied, and CMYK becomes RGB by ``(255 - c) * (255 - k) / 255``, as in
    the pipelines that ImageNet classifiers are trained with. Grey becomes RGB by repetition, RGB becomes grey by the
    luma weights of ITU-R 601. Of a JPEG with several pictures (MPO) the first is read, the picture itself.

    Args:
        path: a BMP, GIF, JPEG, PNG, PNM, TIFF or WebP file; its content counts, not its suffix.
        channels: 1 for grey, 3 for RGB.
        verify: also compare a PNG with its checksums.

    Returns:
        An image of mode ``L`` or ``RGB``.

    Raises:
        ValueError: the file is damaged, has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, or holds something that is
            not one opaque picture of up to 16 bits; the message names file, fault and remedy.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, channels, verify)
    except UnidentifiedImageError as error:
        raise _unreadable(path, "it is no BMP, GIF, JPEG, PNG, PNM, TIFF or WebP image that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(path, _too_large()) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except Exception as error:  # on damaged files Pillow raises many types: SyntaxError, struct.error, IndexError, ...
        raise _unreadable(path, str(error) or type(error).__name__) from error


def fitted(image: Image.Image, size: int) -> Tensor:
    """The shorter side resized (bilinear, antialiased) and the centre cut out: (C, size, size) uint8."""
    from torchvision.transforms import functional as TF

    pixels: Tensor = TF.pil_to_tensor(TF.center_crop(TF.resize(image, size), [size, size]))
    return pixels


def network_input(path: str | PathLike[str], *, channels: int, size: int) -> tuple[Tensor, str]:
    """One image file as a network takes it, where that leaves of it what an attack could have changed.

    What has another size is resized as in `fitted`. Refused is what the network would not see: an image that is a tenth
    longer than wide or more, one of more than `_MOST` pixels to one of the network's along a side, one that would have
    to be enlarged more than `_MOST_ENLARGED` times, and colours where the network takes grey.

    Args:
        path: the file, see `read_image`.
        channels: of the network, 1 or 3.
        size: height and width of its images.

    Returns:
        (C, size, size) float32 in [0, 1], and what was done to the image; nothing where it has the size already.

    Raises:
        ValueError: the file cannot be read, or is refused; the message names it, says why, and what to do.
    """
    image = read_image(path, channels=3)
    wide, high = image.size
    short, long = min(image.size), max(image.size)
    if channels == 1 and (spread := _colour(image)) > _GREY:
        raise ValueError(f"{path}: it has colours (channels differ by {spread}/255), and the network takes grey images")
    if long > 1.1 * short:
        raise ValueError(f"{path}: {wide}x{high} is not square: crop it to what the network is to see")
    if short > _MOST * size:
        raise ValueError(
            f"{path}: {wide}x{high} is over {_MOST} times the network's {size}x{size}: what an attack did to pixels "
            "would be averaged away; crop it, or give the image that the network was shown"
        )
    if short * _MOST_ENLARGED < size:
        raise ValueError(
            f"{path}: {wide}x{high} is under 1/{_MOST_ENLARGED} of the network's {size}x{size}: most of its pixels "
            "would be made up; give the image that the network was shown"
        )
    pixels = fitted(image if channels == 3 else image.convert("L"), size).float() / 255
    return pixels, "" if (wide, high) == (size, size) else f"resized from {wide}x{high}"


def _colour(image: Image.Image) -> int:
    """By how much the channels of a pixel differ, at most."""
    pixels = np.asarray(image).astype(np.int16)
    return int((pixels.max(2) - pixels.min(2)).max())


def _read(file: IO[bytes], channels: int, verify: bool) -> Image.Image:
    header = file.read(25)
    if not header:
        raise ValueError("the file is empty")
    file.seek(0)
    image: Image.Image = Image.open(file, formats=_FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(_too_large(image.size))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it has {frames} frames: save the one that is meant as an image of its own")
    if verify:
        image.verify()
        file.seek(0)
        image = Image.open(file, formats=_FORMATS)
    if image.format == "TIFF":
        _refuse_odd_tiff(image)
    depth = header[24] if image.format == "PNG" else 8
    if "transparency" in image.info and image.mode != "P" and depth != 8:
        raise ValueError("it has a transparent colour: save it without transparency")  # Pillow compares it unscaled
    if image.format == "GIF" and any(part[1] != (0, 0, *image.size) for part in getattr(image, "tile", [])):
        raise ValueError(_TRANSPARENT)  # around its frame
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _eight_bits(image)
    if image.mode not in _EIGHT_BITS:
        raise ValueError(f"its mode is {image.mode}, which is not read: save it as 8-bit grey or RGB")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError(_TRANSPARENT)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    wanted = "RGB" if channels == 3 else "L"
    return image if image.mode == wanted else image.convert(wanted)


def _refuse_odd_tiff(image: Image.Image) -> None:
    """Refuses what Pillow opens in a mode that does not say what it is."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, formats = tags.get(258, (1,)), tags.get(339, (1,))
    if set(formats) != {1}:
        raise ValueError("its values are signed or floating point and have no fixed range: save it as 8 or 16 bits")
    if max(bits) not in (1, 2, 4, 8, 16) or (max(bits) == 16 and len(bits) > 1):
        raise ValueError(f"it has {len(bits)} x {max(bits)} bits a pixel: save it as 8-bit grey or RGB")
    if max(bits) == 16 and tags.get(262) == 0:
        raise ValueError("its 16 bits count from white to black: save it from black to white")
    if 0 in tags.get(338, ()):
        raise ValueError(f"it has {len(bits)} channels, one of no stated meaning: save it as grey or RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 0..65535 to 0..255; the metadata stay, since the orientation is among them."""
    out = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    out.info = image.info
    return out


def _too_large(size: tuple[int, int] | None = None) -> str:
    limit = f"{Image.MAX_IMAGE_PIXELS} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
    return f"{f'{size[0]}x{size[1]} is' if size else 'it has'} more than {limit}: scale it down"


def _unreadable(path: str | PathLike[str], fault: str) -> ValueError:
    return ValueError(f"{path}: not a readable image: {fault}")
