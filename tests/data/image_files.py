"""Image files written byte by byte, so that no reader of images is compared with itself."""

import struct
import zlib

import numpy as np


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(values, bits):
    """Rows of values (H, W) or (H, W, C), highest bit first, each row filled up to whole bytes."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in values]
    rows = values.reshape(len(values), -1)
    digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in digits]


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(values, bits=8, colour=0, before=b"", level=-1, interlaced=False):
    """PNG: ``colour`` 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA; ``before``: chunks ahead of the pixels."""
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    parts = [values[row::down, column::right] for row, column, down, right in ADAM7] if interlaced else [values]
    pixels = zlib.compress(b"".join(b"\0" + row for part in parts for row in packed(part, bits)), level)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif(orientation):
    """The EXIF block of an orientation: a little-endian TIFF directory of one entry."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def tiff(pixels, width, height, bits, photometric, order="<", tags=None):
    """Uncompressed TIFF. ``bits``: of each channel; ``photometric``: 0 white is zero, 1 black is zero, 2 RGB, ..."""
    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, bits), 259: (3, [1]), 262: (3, [photometric])}
    entries |= {273: (4, [0]), 277: (3, [len(bits)]), 278: (4, [height]), 279: (4, [len(pixels)])} | (tags or {})

    def data(kind, values):
        return struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)

    after = 8 + 2 + 12 * len(entries) + 4  # header, directory; then the values that do not fit into it, then the pixels
    entries[273] = (4, [after + sum(len(data(*entry)) for entry in entries.values() if len(data(*entry)) > 4)])
    directory, tail = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        value = data(kind, values)
        if len(value) > 4:
            value, tail = struct.pack(order + "I", after + len(tail)), tail + value
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return start + directory + struct.pack(order + "I", 0) + tail + pixels


def bmp(rgb):
    """24-bit BMP of (H, W, 3): rows from the bottom up, blue first, filled up to four bytes."""
    height, width = rgb.shape[:2]
    rows = [row[:, ::-1].tobytes() for row in rgb[::-1]]
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + head + data


def gif(indices, palette, transparent=None, frames=1):
    """GIF of (H, W) indices below 128 and a palette of 128 colours; its codes are never compressed."""
    height, width = indices.shape
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80 | 6, 0, 0) + palette.tobytes()
    codes = []
    for place, value in enumerate(indices.reshape(-1)):
        codes += ([128] if place % 100 == 0 else []) + [int(value)]  # clears before codes grow beyond 8 bits
    data = bytes([*codes, 129])
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    for _ in range(frames):
        keyed = 0 if transparent is None else 1
        out += b"\x21\xf9\x04" + struct.pack("<BHBB", keyed, 0, transparent or 0, 0)
        out += b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x07" + blocks + b"\0"
    return out + b";"
