"""Captions of a folder of images: NAME.txt beside NAME.png, or one metadata.jsonl for all."""

from __future__ import annotations

import json
from pathlib import Path

METADATA = "metadata.jsonl"


def read_captions(folder: Path, paths: list[Path]) -> dict[Path, str]:
    """What each image shows, {} if the folder says nothing.

    Args:
        folder: of the images.
        paths: theirs, relative to it.

    Raises:
        ValueError: if some images have a caption and others none, or a file cannot be read.
    """
    if (folder / METADATA).is_file():
        known = _metadata_captions(folder / METADATA)
    else:
        text_files = {path: folder / path.with_suffix(".txt") for path in paths}
        known = {path: _text(file) for path, file in text_files.items() if file.is_file()}
    lacking = [path for path in paths if not known.get(path)]
    if known and lacking:
        raise ValueError(
            f"{len(paths) - len(lacking)} of {len(paths)} images have a caption and "
            f"{str(lacking[0])!r} has none; give each one, as {lacking[0].stem}.txt beside it or a "
            f"line of {METADATA}, or give none"
        )
    return {path: known[path] for path in paths} if known else {}


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"caption {str(path)!r} cannot be read as UTF-8 text ({error})") from None


def _metadata_captions(path: Path) -> dict[Path, str]:
    """Lines {"file_name": "a.png", "text": "a cat"}, as other libraries' image folders have."""
    found = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            record = json.loads(line)
            found[Path(record["file_name"])] = " ".join(str(record["text"]).split())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {path} is not {{"file_name": ..., "text": ...}} ({error!r})'
            ) from None
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text ({error})") from None
