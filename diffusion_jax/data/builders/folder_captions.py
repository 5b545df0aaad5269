"""Captions of a folder of images: lines of metadata, or a text beside each image.

An image's caption is, of these, the first that there is:

1. its line in a ``metadata.jsonl`` or ``metadata.csv``, in its own folder or one above, whose
   ``file_name`` is relative to the folder of the metadata;
2. ``NAME.txt`` beside it;
3. ``NAME.caption`` beside it.

Texts are UTF-8, or UTF-16 with a byte-order mark; runs of white space become one space.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

METADATA = ("metadata.jsonl", "metadata.csv")
BESIDE = (".txt", ".caption")

_FILE, _TEXT = "file_name", "text"


class FolderCaptions(NamedTuple):
    """What a folder says of its images.

    Attributes:
        texts: image -> caption, of all images or of none.
        notes: sentences on what was passed over, and on captions that are empty.
        files: those that were read, relative to the folder.
    """

    texts: dict[Path, str]
    notes: tuple[str, ...]
    files: frozenset[Path]


class _Told(NamedTuple):
    """A caption, and where it is written, for messages."""

    text: str
    where: str


def read_captions(folder: Path, paths: list[Path]) -> FolderCaptions:
    """The captions of images; no texts if the folder has none.

    Args:
        folder: of the images.
        paths: theirs, relative to it.

    Raises:
        ValueError: if some images have a caption and others none, an image has two that differ, or
            a file cannot be read, naming it and the line or byte.
    """
    listed, files = _of_metadata(folder)
    beside = {ending: _beside(folder, paths, ending) for ending in BESIDE}
    known = {**beside[".caption"], **beside[".txt"], **listed}
    texts = {path: known[path].text for path in paths if path in known}
    there = set(paths)
    absent = [path for path in listed if path not in there]
    if listed and len(absent) == len(listed):
        raise ValueError(
            f"{next(iter(listed.values())).where} names {str(absent[0])!r}, and no line names an "
            f"image that is there; {_FILE} is relative to the folder of the metadata"
        )
    lacking = [path for path in paths if path not in texts]
    if texts and lacking:
        raise ValueError(
            f"{len(paths) - len(lacking)} of {len(paths)} images have a caption and "
            f"{str(lacking[0])!r} has none; give each one, as {lacking[0].stem}.txt beside it or a "
            f"line of {METADATA[0]}, or give none"
        )
    if texts and not any(texts.values()):
        raise ValueError(
            f"the captions of all {len(texts)} images are empty, such as that of "
            f"{str(paths[0])!r}; write what they show, or remove the files"
        )
    twice = [p for p in paths if sum(p in source for source in (listed, *beside.values())) > 1]
    notes = {
        "captions are empty": [path for path, text in texts.items() if not text],
        "lines of metadata name no image that is there": absent,
        "images have several captions, of which metadata goes before .txt, and .txt before "
        ".caption": twice,
    }
    read = {path.with_suffix(ending) for ending, of in beside.items() for path in of}
    said = tuple(f"{what} ({len(of)}): {listing(of)}" for what, of in notes.items() if of)
    return FolderCaptions(texts, said, frozenset({*files, *read}))


def listing(paths: Sequence[Path], most: int = 5) -> str:
    """Some of the names of files, as in "a.txt, b.txt and 7 more"."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(path.as_posix() for path in paths[:most]) + more


def _of_metadata(folder: Path) -> tuple[dict[Path, _Told], list[Path]]:
    """What all metadata of a folder says, and its files.

    Raises:
        ValueError: if two lines on one image differ.
    """
    found: dict[Path, _Told] = {}
    files = sorted(
        path.relative_to(folder)
        for name in METADATA
        for path in folder.rglob(name)
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    for file in files:
        for number, name, text in _READERS[file.suffix](folder / file):
            image = Path(os.path.normpath(file.parent / name))
            told = _Told(text, f"line {number} of {folder / file}")
            before = found.setdefault(image, told)
            if before.text != text:
                raise ValueError(
                    f"{told.where} says {text!r} of {image.as_posix()!r}, and {before.where} says "
                    f"{before.text!r}; keep one"
                )
    return found, files


def _beside(folder: Path, paths: list[Path], ending: str) -> dict[Path, _Told]:
    files = {path: folder / path.with_suffix(ending) for path in paths}
    return {
        path: _Told(_words(_decoded(file)), str(file))
        for path, file in files.items()
        if file.is_file()
    }


def _words(text: str) -> str:
    return " ".join(text.split())


def _decoded(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: naming the file and the byte that is not of its encoding.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error.strerror})") from None
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{str(path)!r} cannot be read as {encoding.upper()} text: its byte {error.start} "
            f"(line {line}) is {raw[error.start]:#04x}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{str(path)!r} cannot be read as text: its character {text.index(chr(0))} is NUL; "
            "save it as UTF-8"
        )
    return text


def _json_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Lines {"file_name": "a.png", "text": "a cat"}: (number, file_name, text) of each."""
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _wrong(path, number, f"it is no JSON: {error}") from None
        yield number, *_checked(record, path, number)


def _table(path: Path) -> Iterator[tuple[int, str, str]]:
    """Rows under a header with file_name and text: (line, file_name, text) of each."""
    rows = csv.DictReader(io.StringIO(_decoded(path), newline=""), strict=True)
    try:
        for row in rows:
            yield rows.line_num, *_checked(row, path, rows.line_num)
    except csv.Error as error:
        raise _wrong(path, rows.reader.line_num, f"it is no CSV: {error}") from None


def _checked(record: object, path: Path, number: int) -> tuple[str, str]:
    if not isinstance(record, dict):
        raise _wrong(path, number, f"it is of type {type(record).__name__}")
    for field in (_FILE, _TEXT):
        if field not in record:
            raise _wrong(path, number, f"it has no {field!r}, but {sorted(map(str, record))}")
        value = record[field]
        if not isinstance(value, str):
            raise _wrong(path, number, f"{field} is {value!r:.60}, which is no text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(path, number, f"{field} holds half of a character") from None
    if not record[_FILE].strip() or "\0" in record[_FILE]:
        raise _wrong(path, number, f"{_FILE} is {record[_FILE]!r:.60}, which names no file")
    return record[_FILE], _words(record[_TEXT])


def _wrong(path: Path, number: int, why: str) -> ValueError:
    return ValueError(f'line {number} of {path} is not {{"{_FILE}": ..., "{_TEXT}": ...}} ({why})')


_READERS = {".jsonl": _json_lines, ".csv": _table}

# UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
