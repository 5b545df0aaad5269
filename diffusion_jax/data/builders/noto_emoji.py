"""Noto Color Emoji with their English names: about 3,800 captioned pictures out of one font file.

The pictures are the bitmaps (table CBDT) of the font, which Debian packages as
fonts-noto-color-emoji and its authors publish as NotoColorEmoji.ttf; names are the Unicode CLDR
short names, from the Python package ``emoji``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import picture_files
from diffusion_jax.data.builders.progress import with_progress
from diffusion_jax.data.images import as_picture, with_channels

DEBIAN_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_VARIABLE = "NOTO_EMOJI_FONT"
SIZE = 64
TEST_SHARE = 10  # one base emoji in ten


def base_emoji(sequence: str) -> str:
    """What an emoji is a variant of: without skin tone, gender, hair and facing direction.

    Pictures of one base differ in details only, so a split must keep them together.
    """
    plain = "".join(_SAME_PERSON.get(char, char) for char in sequence if char not in _DROPPED)
    first, *rest = plain.split(_JOINER)
    parts = [first, *(part for part in rest if part not in _MODIFIERS)]
    if len(parts) > 1 and all(part in _FAMILY for part in parts):
        return "👪"
    joined = _JOINER.join(parts) or sequence  # a skin tone by itself
    return _SAME_GROUP.get(joined, joined)


def in_test(base: str) -> bool:
    """Whether a base emoji belongs to the test split: a hash, so that new emoji move no others."""
    return hashlib.sha256(base.encode()).digest()[0] % TEST_SHARE == 0


def _glyphs(font) -> dict[tuple[str, ...], str]:
    """Ligatures of the font: glyph names of the characters -> glyph name of the picture."""
    found = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for subtable in lookup.SubTable:
            table = getattr(subtable, "ExtSubTable", subtable)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                found |= {(first, *each.Component): each.LigGlyph for each in ligatures}
    return found


def read_font(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (sequence, caption, PNG bytes), in the order of the Unicode list.

    Raises:
        ValueError: if the file is not a font with colour bitmaps.
    """
    import emoji
    from fontTools.ttLib import TTFont, TTLibError

    try:
        font = TTFont(path, lazy=True)
        bitmaps = font["CBDT"].strikeData[0]
    except (TTLibError, KeyError) as error:
        raise ValueError(
            f"font {path} has no colour bitmaps (table CBDT: {error}); give NotoColorEmoji.ttf."
        ) from error
    names, ligatures = font.getBestCmap() or {}, _glyphs(font)
    for sequence, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != emoji.STATUS["fully_qualified"]:
            continue
        for spelling in (sequence, sequence.replace(_VARIATION, "")):
            glyphs = tuple(names.get(ord(char), "") for char in spelling)
            glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(glyphs)
            if glyph in bitmaps:
                yield sequence, caption_of(sequence, entry["en"]), bitmaps[glyph].imageData
                break


def caption_of(sequence: str, name: str) -> str:
    """The CLDR short name, ":red_heart:" -> "red heart"; of a flag, "flag: Japan"."""
    caption = name.strip(":").replace("_", " ")
    letters = all("\U0001f1e6" <= char <= "\U0001f1ff" for char in sequence)
    parts = "\U000e007f" in sequence  # England, Scotland, Wales: spelled in tag characters
    return f"flag: {caption}" if letters or parts else caption


def share_out(
    entries: Iterable[tuple[str, str, bytes]],
) -> dict[str, list[tuple[str, str, bytes]]]:
    """Entries of ``read_font`` by split, ``train`` and ``test``; variants stay together."""
    splits: dict[str, list] = {"train": [], "test": []}
    drawn: dict[bytes, str] = {}  # some flags share one picture: they must not be split either
    for sequence, caption, png in entries:
        base = drawn.setdefault(png, base_emoji(sequence))
        splits["test" if in_test(base) else "train"].append((sequence, caption, png))
    return splits


def draw(png: bytes) -> Image.Image:
    """Centre a bitmap in a white square and resize it: RGB, 64 by 64."""
    picture = as_picture(with_channels(picture_files.read(png), 3))
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


class NotoEmoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Colour emoji, 64 by 64 RGB on white, each with its English name; split by base emoji."""

    name = "noto_emoji"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, font: Path, data_dir: str):
        self.font = font
        self.source = f"font {hashlib.sha256(font.read_bytes()).hexdigest()}, captions 2"
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__ or "",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(source=self.source),
            homepage="https://github.com/googlefonts/noto-emoji",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        splits = share_out(read_font(self.font))
        return {name: self._generate_examples(name, members) for name, members in splits.items()}

    def _generate_examples(self, split, members):
        for sequence, caption, png in with_progress(members, self.name, split):
            yield sequence, {"image": draw(png), "caption": caption}


_JOINER, _VARIATION = "\u200d", "\ufe0f"
_DROPPED = frozenset("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff\ufe0f")  # tones
_FAMILY = frozenset("🧑🧒")
_MODIFIERS = frozenset("♀♂➡\U0001f9b0\U0001f9b1\U0001f9b2\U0001f9b3")  # gender, facing right, hair
_SAME_PERSON = {  # woman and man -> person, and so on, where each has a character of its own
    char: variants[0]
    for variants in ("🧑👩👨", "🧒👧👦", "🧓👵👴", "🤴👸🫅", "🎅🤶", "💃🕺", "🫄🤰🫃", "🧔🧔")
    for char in variants
}
_SAME_GROUP = {  # groups that are one character or a sequence of persons
    "🧑‍🤝‍🧑": "👫",
    "👬": "👫",
    "👭": "👫",
    "🧑‍❤‍🧑": "💑",
    "🧑‍❤‍💋‍🧑": "💏",
    "🧑‍🐰‍🧑": "👯",
    "🧑\u200d\U0001faef\u200d🧑": "🤼",
    "🫱‍🫲": "🤝",
    "🚺": "🚹",
    "🧑‍🎄": "🎅",
    "🧑‍👑": "🤴",
}
