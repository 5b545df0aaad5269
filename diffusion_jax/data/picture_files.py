"""The one way to read a picture: a file of pixels -> upright 8-bit grey or colour, over white.

- It is turned as its EXIF says, transparency lies over white, and of several frames or pages the
  first is read.
- Numbers are scaled by their range: 16 bits by 65535, a TIFF's 9 to 15 bits by theirs.  Floats and
  32-bit integers state none; theirs is the smallest of 1 (floats alone), 255 and 65535 (integers
  alone) that holds them all, and numbers beyond, below 0 or not finite are refused.
- Colours with a profile that is not sRGB are converted to sRGB; a profile that cannot be read, or
  that is of another kind than the pixels, is ignored.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

FORMATS = (
    "PNG", "JPEG", "WEBP", "MPO", "GIF", "TIFF", "AVIF", "BMP", "DIB", "ICO", "JPEG2000", "PCX",
    "PPM", "PSD", "TGA",
)  # fmt: skip
"""Those that are read, the likeliest first; none of them starts another program, as EPS does."""

PictureSource = str | os.PathLike | bytes
"""A path, or the bytes of a file."""


def read(source: PictureSource) -> np.ndarray:
    """A picture as uint8 [h, w, 1 | 3]; grey has one channel unless it is transparent.

    Raises:
        ValueError: if it is no picture, or its numbers have no known range; the message says why,
            and leaves the file's name to the caller.
    """
    try:
        with _opened(source) as picture:
            most, dark = _range(picture), _is_dark(picture)
            transparent = _transparent(picture)
            picture.load()
            flat = _flat(picture, most, transparent)
            flat = Image.eval(flat, lambda value: 255 - value) if dark else flat
            turned = _turned(flat, _orientation(picture))
    except Exception as error:  # a decoder may raise anything
        raise ValueError(_reason(error)) from None
    pixels = np.asarray(turned)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def size_of(source: PictureSource) -> tuple[int, int]:
    """(height, width) of what ``read`` gives, from the header alone.

    Raises:
        Exception: whatever Pillow does if it cannot be read.
    """
    with _opened(source) as picture:
        width, height = picture.size
        # Of a TIFF, Pillow's size is the turned one already.
        sideways = picture.format != "TIFF" and _orientation(picture) in (5, 6, 7, 8)
        return (width, height) if sideways else (height, width)


def _opened(source: PictureSource) -> Image.Image:
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(file, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    """What a decoder says, in one line."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels that are read"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture of a known format"
    said = getattr(error, "strerror", None) or " ".join(str(error).split()) or "no reason given"
    return said if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {said}"


def _orientation(picture: Image.Image) -> int:
    """The EXIF tag, 1 to 8; 1 where there is none, or none that can be read."""
    if picture.format == "PNG" and not _EXIF_OF_PNG & picture.info.keys():
        return 1  # else Pillow would decode all of the file to look for it
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as broken as it likes: viewers show such a picture as it lies
        return 1


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    method = _TURNS.get(orientation)
    return picture if method is None else picture.transpose(method)


def _range(picture: Image.Image) -> int | None:
    """The number that is white, where the header says it; None where it does not."""
    if picture.mode.startswith("I;16"):
        bits = _tiff(picture, ExifTags.Base.BitsPerSample, 16)
        return 2**bits - 1 if 8 < bits < 16 else 65535
    return 65535 if picture.mode == "I" and picture.format in ("PNG", "PPM") else None


def _is_dark(picture: Image.Image) -> bool:
    """Whether 0 is white: Pillow turns round a TIFF's 8 bits or fewer, and leaves its others."""
    numbers = picture.mode == "F" or picture.mode.startswith("I;16")
    return numbers and _tiff(picture, ExifTags.Base.PhotometricInterpretation, 1) == 0


def _tiff(picture: Image.Image, tag: int, default: int) -> int:
    value = getattr(picture, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _transparent(picture: Image.Image) -> Any:
    """The transparent grey or colour of a PNG, at the depth that Pillow gives; None for none."""
    value = picture.info.get("transparency")
    tile: Any = getattr(picture, "tile", None)
    deep = bool(tile) and str(tile[0][3]) == "RGB;16B"
    return tuple(part >> 8 for part in value) if deep and isinstance(value, tuple) else value


def _flat(picture: Image.Image, most: int | None, transparent: Any) -> Image.Image:
    """A loaded picture as mode L or RGB."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _grey(np.asarray(picture), most, transparent)
    profile = picture.info.get("icc_profile")
    straight = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
    picture = picture.convert(straight) if straight else picture
    if transparent is not None:
        picture.info["transparency"] = transparent
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        alpha = over.getchannel("A")
        over = _in_srgb(over.convert("RGB"), profile)
        over.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    if picture.mode in ("L", "RGB", "CMYK"):
        picture = _in_srgb(picture, profile)
    elif picture.mode != "1":
        picture = _in_srgb(picture.convert("RGB"), profile)
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _grey(values: np.ndarray, most: int | None, transparent: Any) -> Image.Image:
    """Numbers of whatever range as 8-bit grey."""
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    least, largest = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    ranges = (most,) if most else (1, 255) if values.dtype.kind == "f" else (255, 65535)
    most = next((each for each in ranges if largest <= each), None)
    if least < 0 or not most:
        raise ValueError(
            f"its numbers go from {least:g} to {largest:g}, and the ranges that are known are "
            f"{' and '.join(f'0 to {each}' for each in ranges)}; save it with 8 or 16 bits"
        )
    scaled = np.round(values.astype(np.float64) * (255 / most)).astype(np.uint8)
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode L, RGB or CMYK without transparency, by its colour profile in sRGB."""
    convert = _conversion(profile, picture.mode) if profile else None
    if convert is None:
        return picture
    converted = convert(picture)
    return converted.convert("L") if picture.mode == "L" else converted


@functools.lru_cache(maxsize=64)
def _conversion(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """By what a picture of that mode is converted; None where it is to be left as it is."""
    try:
        known: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        same = "sRGB" in ImageCms.getProfileDescription(known)
        if same or known.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(known, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return lambda picture: transform.apply(picture)


_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_EXIF_OF_PNG = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
