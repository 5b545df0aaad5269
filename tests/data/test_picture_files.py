"""Every kind of picture file, read as every viewer shows it, or refused by a sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffusion_jax.data import picture_files, to_uint8
from diffusion_jax.data.builders import image_folder
from diffusion_jax.pictures import read_picture

# Orientation of EXIF -> how a camera that was held so stores an upright picture.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: lambda x: np.rot90(x, -1),
}
UPRIGHT = np.kron(
    np.array([[[200, 30, 30], [10, 200, 90], [0, 0, 250]], [[255, 255, 0], [0] * 3, [90] * 3]]),
    np.ones((16, 16, 1), int),
).astype(np.uint8)


def saved(picture, form, **options):
    encoded = io.BytesIO()
    picture.save(encoded, form, **options)
    return encoded.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_it_is_upright_however_it_was_stored(form, tmp_path):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    for tag, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        picture = Image.fromarray(np.ascontiguousarray(stored(UPRIGHT)))
        encoded = saved(picture, form, exif=exif, **options.get(form, {}))
        read = picture_files.read(encoded)
        assert picture_files.size_of(encoded) == read.shape[:2] == UPRIGHT.shape[:2], tag
        assert np.abs(read.astype(int) - UPRIGHT).max() <= (4 if form == "JPEG" else 0), tag
    (tmp_path / "a.png").write_bytes(encoded)
    # Training, records and sampling read the same.
    prepared = np.asarray(image_folder.read_image(tmp_path / "a.png", None))
    np.testing.assert_array_equal(prepared, read)
    drawn = read_picture(str(tmp_path / "a.png"), read.shape[:2], 3, "edits")
    np.testing.assert_array_equal(to_uint8(drawn), read)


def palette(alpha):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    if alpha:
        picture.info["transparency"] = bytes([255, 0])
    return picture


def ramp(dtype, *values):
    return Image.fromarray(np.array([values], dtype))


WHITE = [255] * 3
CASES = {
    "1": (Image.new("1", (2, 1), 1), "PNG", [[255], [255]]),
    "L": (ramp(np.uint8, 7, 200), "PNG", [[7], [200]]),
    "LA": (Image.merge("LA", [ramp(np.uint8, 9, 9), ramp(np.uint8, 255, 0)]), "PNG",
           [[9] * 3, WHITE]),
    "LA, half": (Image.new("LA", (1, 1), (0, 51)), "PNG", [[204] * 3]),
    "P": (palette(False), "PNG", [[10, 20, 30], [200, 100, 50]]),
    "P, transparent": (palette(True), "PNG", [[10, 20, 30], WHITE]),
    "RGBA": (Image.new("RGBA", (1, 1), (255, 0, 0, 51)), "PNG", [[255, 204, 204]]),
    "I;16": (ramp(np.uint16, 257 * 40, 65535), "PNG", [[40], [255]]),
    "I;16 TIFF": (ramp(np.uint16, 257 * 40, 0), "TIFF", [[40], [0]]),
    "I;16 PPM": (ramp(np.uint16, 257 * 40, 0), "PPM", [[40], [0]]),
    "I of 8 bits": (ramp(np.int32, 40, 255), "TIFF", [[40], [255]]),
    "I of 16 bits": (ramp(np.int32, 257 * 40, 65535), "TIFF", [[40], [255]]),
    "F of 1": (ramp(np.float32, 0.4, 1), "TIFF", [[102], [255]]),
    "F of 255": (ramp(np.float32, 40.3, 255), "TIFF", [[40], [255]]),
    "CMYK": (Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF", [[0, 255, 255]]),
    "YCbCr": (Image.new("YCbCr", (1, 1), (80, 99, 213)), "TIFF", [[199, 29, 28]]),
    "LAB": (Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF", [WHITE]),
    "GIF": (palette(False), "GIF", [[10, 20, 30], [200, 100, 50]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_modes_and_depths(name):
    picture, form, expected = CASES[name]
    read = picture_files.read(saved(picture, form))
    assert read.dtype == np.uint8 and read.shape == (1, *np.shape(expected))
    np.testing.assert_allclose(read[0].astype(int), expected, atol=1)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, colour, row, *chunks):
    """A PNG of one row, as bytes, of a depth that Pillow does not write."""
    width = len(row) * 8 // depth // {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (png(16, 2, struct.pack(">3H", 65535, 257 * 40, 0)), [[255, 40, 0]]),
        (png(16, 4, struct.pack(">4H", 257 * 9, 65535, 257 * 9, 0)), [[9] * 3, WHITE]),
        (png(16, 6, struct.pack(">8H", 257 * 9, 0, 0, 65535, 0, 0, 0, 0)), [[9, 0, 0], WHITE]),
        (png(16, 0, struct.pack(">2H", 257, 514), chunk(b"tRNS", b"\1\1")), [[255], [2]]),
        (png(8, 0, bytes([7, 8]), chunk(b"tRNS", b"\0\7")), [WHITE, [8] * 3]),
        (png(8, 2, bytes([1, 2, 3, 4, 5, 6]), chunk(b"tRNS", b"\0\1\0\2\0\3")), [WHITE, [4, 5, 6]]),
        (png(16, 2, struct.pack(">6H", 513, 770, 1027, 9, 9, 9),
             chunk(b"tRNS", struct.pack(">3H", 513, 770, 1027))), [WHITE, [0, 0, 0]]),
    ],
)  # fmt: skip
def test_sixteen_bits_and_transparent_colours(encoded, expected):
    np.testing.assert_array_equal(picture_files.read(encoded)[0], expected)


def tiff(bits, photometric, data, width, *more):
    """A grey TIFF of one row of unsigned numbers; ``more`` are entries of its directory."""
    entries = {
        256: (3, 1, width), 257: (3, 1, 1), 258: (3, 1, bits), 259: (3, 1, 1),
        262: (3, 1, photometric), 273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, 1),
        279: (4, 1, len(data)), 339: (3, 1, 1), **dict(more),
    }  # fmt: skip
    pack = lambda tag: struct.pack("<HHII", tag, *entries[tag])
    directory = struct.pack("<H", len(entries)) + b"".join(map(pack, sorted(entries)))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0" * 4


def test_a_tiff_of_twelve_bits_and_one_whose_zero_is_white():
    twelve = tiff(12, 1, bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00]), 4)
    np.testing.assert_array_equal(picture_files.read(twelve)[0, :, 0], [255, 0, 128, 0])
    inverted = tiff(16, 0, struct.pack("<2H", 0, 257 * 40), 2)
    np.testing.assert_array_equal(picture_files.read(inverted)[0, :, 0], [255, 215])


def test_alpha_that_is_in_the_colours_already():
    """20 of grey under an alpha of 0.2, premultiplied, is 20 above the 0.8 of white."""
    two, premultiplied = (258, (3, 2, 8 | 8 << 16)), (338, (3, 1, 1))
    data = bytes([20, 51, 0, 255])
    encoded = tiff(8, 1, data, 2, two, (277, (3, 1, 2)), premultiplied, (339, (3, 2, 1 | 1 << 16)))
    np.testing.assert_allclose(picture_files.read(encoded)[0], [[224] * 3, [0] * 3], atol=1)


def test_the_first_of_several_frames_is_read(tmp_path):
    frames = [Image.new("RGB", (5, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        encoded = saved(frames[0], form, save_all=True, append_images=frames[1:])
        assert np.abs(picture_files.read(encoded).astype(int) - (255, 0, 0)).max() <= 4, form


def test_a_colour_profile_is_brought_to_srgb():
    """A linear profile: half the light is 188 of sRGB; sRGB itself and broken ones change none."""
    names = ("sRGB", "LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile(names[0])).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile(names[1])).tobytes()
    picture = Image.new("RGB", (1, 1), (128, 128, 128))
    for profile in (srgb, lab, b"no profile", b""):
        encoded = saved(picture, "PNG", icc_profile=profile)
        np.testing.assert_array_equal(picture_files.read(encoded)[0, 0], [128] * 3)
    read = picture_files.read(saved(picture, "PNG", icc_profile=linear_profile()))
    np.testing.assert_allclose(read[0, 0], [188] * 3, atol=1)
    over = Image.new("RGBA", (1, 1), (128, 128, 128, 0))
    read = picture_files.read(saved(over, "PNG", icc_profile=linear_profile()))
    np.testing.assert_array_equal(read[0, 0], WHITE)


def linear_profile():
    """sRGB's primaries (ICC.1, adapted to D50) with curves of gamma 1, as a profile's bytes."""
    number = lambda x: struct.pack(">i", round(x * 65536))
    xyz = lambda *values: b"XYZ \0\0\0\0" + b"".join(map(number, values))
    text = b"linear light"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + b"\0" * 8)
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header += b"\0" * 28 + number(0.9642) + number(1.0) + number(0.8249)
    return header.ljust(128, b"\0") + table + body


def test_what_is_no_picture_is_a_sentence(tmp_path):
    whole = saved(Image.fromarray(UPRIGHT), "PNG")
    huge = bytearray(whole)
    huge[16:24] = struct.pack(">II", 60000, 60000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    cases = {
        "truncated": (whole[: len(whole) // 2], "truncated"),
        "text": (b"not a picture", "it is no picture of a known format"),
        "empty": (b"", "it is no picture of a known format"),
        "bomb": (bytes(huge), "it has more than the 178956970 pixels that are read"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture of"),
        "floats": (saved(ramp(np.float32, -1, 1), "TIFF"), "its numbers go from -1 to 1"),
        "nan": (saved(ramp(np.float32, np.nan, 1), "TIFF"), "numbers that are not finite"),
        "far": (saved(ramp(np.int32, 70000, 1), "TIFF"), "its numbers go from 1 to 70000"),
    }
    for name, (encoded, said) in cases.items():
        with pytest.raises(ValueError, match=said):
            picture_files.read(encoded)
        path = tmp_path / f"{name}.png"
        path.write_bytes(encoded)
        with pytest.raises(ValueError, match=rf"config.edits: '.*{name}.png' cannot .*{said}"):
            read_picture(str(path), (4, 4), 3, "edits")
        with pytest.raises(ValueError, match=rf"image '.*{name}.png' cannot be read .*{said}"):
            image_folder.read_image(path, None)
    for path, said in ((tmp_path, "Is a directory"), (tmp_path / "absent.png", "No such file")):
        with pytest.raises(ValueError, match=said):
            picture_files.read(path)


def test_grey_is_the_same_luma_everywhere_and_any_size_is_read(tmp_path):
    Image.new("RGB", (1, 1), (200, 30, 90)).save(tmp_path / "a.png")
    small = read_picture(str(tmp_path / "a.png"), (2, 3), 1, "edits")
    assert small.shape == (2, 3, 1)
    np.testing.assert_array_equal(to_uint8(small), round(0.299 * 200 + 0.587 * 30 + 0.114 * 90))


@pytest.mark.filterwarnings("ignore::UserWarning")  # TIFFs and EXIF that are broken
def test_any_bytes_are_a_picture_or_a_sentence():
    """Random bytes, and files with random bytes changed, cut out or put in."""
    rng = np.random.default_rng(7)
    seeds = [saved(picture, form) for picture, form, _ in CASES.values()]
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds.append(saved(Image.fromarray(UPRIGHT), "JPEG", exif=exif))
    seeds.append(saved(Image.fromarray(UPRIGHT), "WEBP", exif=exif))
    seeds.append(saved(Image.fromarray(UPRIGHT), "PNG", icc_profile=linear_profile()))
    read = 0
    for i in range(3000):
        encoded = bytearray(seeds[i % len(seeds)] if i % 10 else rng.bytes(i))
        for _ in range(rng.integers(1, 5)):
            at, n = rng.integers(0, len(encoded) + 1), rng.integers(0, 6)
            encoded[at : at + rng.integers(0, 6)] = rng.bytes(n)
        try:
            pixels = picture_files.read(bytes(encoded))
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            continue
        read += 1
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] in (1, 3)
    assert read > 200
