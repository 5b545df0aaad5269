"""Captions of a folder as tools of all kinds leave them: read, or refused by a sentence."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import load_captions
from diffusion_jax.data.builders.folder_captions import read_captions
from diffusion_jax.data.prepare import Options, prepare

NAMES = [Path("a.png"), Path("b.png"), Path("sub/c.png")]


def folder(root, files):
    """A folder with these files, of text or bytes; returns it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def lines(*records):
    return "\n".join(json.dumps(dict(zip(("file_name", "text"), r, strict=True))) for r in records)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]
)
def test_texts_of_any_unicode_have_no_mark(tmp_path, encoding):
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    told = marks.get(encoding, b"") + "a red  square\r\n猫".encode(encoding)
    root = folder(tmp_path, {"a.txt": told, "b.caption": told, "sub/c.txt": told})
    found = read_captions(root, NAMES)
    assert set(found.texts.values()) == {"a red square 猫"} and not found.notes
    assert found.files == {Path("a.txt"), Path("b.caption"), Path("sub/c.txt")}
    table = f'text,file_name\n{lines(("a.png", "x"))!r:.0}"a, b",a.png\n猫,b.png\nc,sub/c.png\n'
    root = folder(tmp_path, {"metadata.csv": marks.get(encoding, b"") + table.encode(encoding)})
    assert list(read_captions(root, NAMES).texts.values()) == ["a, b", "猫", "c"]


def test_metadata_may_lie_in_any_folder_and_names_files_from_there(tmp_path):
    root = folder(
        tmp_path,
        {
            "metadata.jsonl": "\n" + lines(("a.png", "one"), ("sub/../b.png", "two")),
            "sub/metadata.jsonl": lines(("c.png", "three\u2028lines"), ("gone.png", "four")),
            ".hidden/metadata.jsonl": "never read",
            "a.txt": "not this", "b.caption": "nor this",
        },
    )  # fmt: skip
    found = read_captions(root, NAMES)
    assert [found.texts[name] for name in NAMES] == ["one", "two", "three lines"]
    assert found.notes == (
        "lines of metadata name no image that is there (1): sub/gone.png",
        "images have several captions, of which metadata goes before .txt, and .txt before "
        ".caption (2): a.png, b.png",
    )


def test_an_empty_file_is_an_empty_caption_and_that_is_said(tmp_path):
    root = folder(tmp_path, {"a.txt": "", "b.txt": " \n", "sub/c.txt": "a cat"})
    found = read_captions(root, NAMES)
    assert list(found.texts.values()) == ["", "", "a cat"]
    assert found.notes == ("captions are empty (2): a.png, b.png",)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.txt": "a café".encode("latin-1")}, r"a.txt' cannot be read as UTF-8 text: its byte 5 "
         r"\(line 1\) is 0xe9; save it as UTF-8"),
        ({"a.txt": "a cat".encode("utf-16-le")}, "a.txt' cannot be read as text: its character 1"),
        ({"a.txt": b"\xff\xfea"}, "a.txt' cannot be read as UTF-16 text"),
        ({"a.txt": "", "b.txt": "", "sub/c.txt": ""}, "captions of all 3 images are empty"),
        ({"a.txt": "x"}, "1 of 3 images have a caption and 'b.png' has none"),
        ({"metadata.jsonl": lines(("a.png", "x")) + "\n\n{oops"}, "line 3 of .*it is no JSON"),
        ({"metadata.jsonl": "[1, 2]"}, "line 1 of .*it is of type list"),
        ({"metadata.jsonl": "[" * 100000}, "line 1 of .*it is no JSON"),
        ({"metadata.jsonl": '{"file_name": "a.png"}'}, r"it has no 'text', but \['file_name'\]"),
        ({"metadata.jsonl": lines(("a.png", 5))}, "text is 5, which is no text"),
        ({"metadata.jsonl": lines(("a.png", None))}, "text is None, which is no text"),
        ({"metadata.jsonl": lines(("a.png", ["x"]))}, r"text is \['x'\], which is no text"),
        ({"metadata.jsonl": lines((7, "x"))}, "file_name is 7, which is no text"),
        ({"metadata.jsonl": lines(("", "x"))}, "file_name is '', which names no file"),
        ({"metadata.jsonl": lines(("a.png", "\ud800"))}, "text holds half of a character"),
        ({"metadata.jsonl": lines(("a.png", "x"), ("a.png", "y"))}, "line 2 of .* says 'y' of "
         "'a.png', and line 1 of .* says 'x'; keep one"),
        ({"metadata.jsonl": lines(("z.png", "x"))}, "line 1 of .* names 'z.png', and no line"),
        ({"metadata.csv": "file_name\na.png\n"}, "line 2 of .*it has no 'text'"),
        ({"metadata.csv": "file_name,text\na.png\n"}, "line 2 of .*text is None"),
        ({"metadata.csv": 'file_name,text\na.png,"x\n'}, "line 2 of .*it is no CSV"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_and_the_line(tmp_path, files, said):
    with pytest.raises(ValueError, match=said):
        read_captions(folder(tmp_path, files), NAMES)


def test_what_is_passed_over_is_said_once_when_a_set_is_made(tmp_path, caplog):
    root = folder(tmp_path / "pets", {f"{i}.txt": "a cat" * (i > 0) for i in range(4)})
    for i in range(3):
        Image.new("RGB", (4, 4)).save(root / f"{i}.png")
    folder(root, {"photo.heic": "", "readme.md": "", ".hidden": ""})
    options = Options(folder=str(root), test_fraction=0.0)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            prepare("image_folder", tmp_path / "sets", options)
    said = [record.getMessage() for record in caplog.records if record.name != "absl"]
    assert said == [
        "note: captions are empty (1): 0.png",
        "note: files are neither pictures nor captions of any (3): 3.txt, photo.heic, readme.md",
    ]
    assert load_captions("image_folder/pets", "train", None, tmp_path / "sets") == [
        "",
        *["a cat"] * 2,
    ]


def test_any_bytes_are_captions_or_a_sentence(tmp_path):
    rng = np.random.default_rng(11)
    whole = {
        "metadata.jsonl": lines(("a.png", "é"), ("b.png", "x"), ("sub/c.png", "y")).encode(),
        "metadata.csv": b'file_name,text\na.png,"x, y"\nb.png,"z"\nsub/c.png,w\n',
        "a.txt": "﻿a red 猫".encode("utf-16"),
    }
    read = 0
    for i in range(900):
        name = list(whole)[i % 3]
        content = bytearray(whole[name])
        for _ in range(rng.integers(0, 4)):
            at, n = rng.integers(0, len(content) + 1), rng.integers(0, 5)
            made = bytes(rng.choice(list(b'",{}[]\n\\u0d8:1\0\xff\xfe'), n).astype(np.uint8))
            content[at : at + rng.integers(0, 5)] = made if i % 2 else rng.bytes(n)
        path = folder(tmp_path, {name: bytes(content)}) / name
        try:
            found = read_captions(tmp_path, NAMES)
            read += 1
            assert all(isinstance(text, str) for text in found.texts.values())
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
        path.unlink()
    assert read > 50
