import io
import re

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import DataSpec, info, load_captions, load_images, make_dataset
from diffusion_jax.data.builders import noto_emoji
from diffusion_jax.data.prepare import prepare

WORDS = {  # what the names of variants differ in
    r"(medium-light|medium-dark|light|medium|dark) skin tone": "",
    r"\b(woman|man|women|men)\b": "person",
    r"\b(boy|girl)\b": "child",
    r" facing right": "",
}


def plain_name(name):
    for pattern, replacement in WORDS.items():
        name = re.sub(pattern, replacement, name)
    return " ".join(name.replace(":", " ").replace(",", " ").split())


@pytest.mark.parametrize(
    "family",
    [
        ["👍", "👍🏻", "👍🏿"],
        ["🧑‍⚕️", "👩‍⚕️", "👨🏽‍⚕️"],
        ["🏃", "🏃‍♀️", "🏃🏾‍♂️", "🏃‍♀️‍➡️"],
        ["👫", "👬🏻", "🧑‍🤝‍🧑", "👩🏻‍🤝‍👨🏿"],
        ["💑", "👩‍❤️‍👨", "👨🏻‍❤️‍👨🏿", "🧑🏻‍❤️‍🧑🏿"],
        ["🧑‍🦰", "👩‍🦱", "👨", "🧑🏿"],
        ["👪", "👨‍👩‍👧", "👩‍👩‍👦‍👦", "🧑‍🧑‍🧒"],
    ],
)
def test_variants_share_their_base(family):
    assert len({noto_emoji.base_emoji(member) for member in family}) == 1


def test_unrelated_emoji_do_not_share_a_base():
    others = ["👍", "👎", "🧑‍⚕️", "🧑‍🍳", "🐈", "🐈‍⬛", "🇫🇷", "🇩🇪", "❤️", "❤️‍🔥", "♀️", "♂️", "➡️", "🏻"]
    assert len({noto_emoji.base_emoji(each) for each in others}) == len(others)


def test_emoji_that_are_named_alike_share_a_base():
    emoji = pytest.importorskip("emoji")
    bases = {}
    for sequence, entry in emoji.EMOJI_DATA.items():
        name = plain_name(entry["en"].strip(":").replace("_", " "))
        bases.setdefault(name or sequence, set()).add(noto_emoji.base_emoji(sequence))
    assert len(bases) > 1500
    assert [name for name, found in bases.items() if len(found) > 1] == []


@pytest.mark.parametrize(
    ("sequence", "name", "caption"),
    [
        ("🇯🇵", ":Japan:", "flag: Japan"),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", ":Wales:", "flag: Wales"),
        ("🗾", ":map_of_Japan:", "map of Japan"),
        ("🏴‍☠️", ":pirate_flag:", "pirate flag"),
    ],
)
def test_flags_are_captioned_as_flags(sequence, name, caption):
    assert noto_emoji.caption_of(sequence, name) == caption


def test_bitmaps_are_drawn_centred_on_white():
    encoded = io.BytesIO()
    Image.new("RGBA", (136, 128), (255, 0, 0, 255)).save(encoded, "PNG")
    drawn = np.asarray(noto_emoji.draw(encoded.getvalue()))
    assert drawn.shape == (64, 64, 3)
    np.testing.assert_array_equal(drawn[32], np.tile([255, 0, 0], (64, 1)))
    assert (drawn[[0, -1], :, 1] > 200).all()


@pytest.mark.skipif(
    not noto_emoji.DEBIAN_FONT.is_file(), reason="needs Debian's fonts-noto-color-emoji"
)
def test_the_real_font(tmp_path, monkeypatch):
    every = list(noto_emoji.read_font(noto_emoji.DEBIAN_FONT))
    splits = noto_emoji.share_out(every)
    train, test = ({plain_name(name) for _, name, _ in splits[side]} for side in splits)
    assert 0.05 < len(splits["test"]) / len(every) < 0.15 and len(every) > 3500
    assert train & test == set()
    train, test = ({png for _, _, png in splits[side]} for side in splits)
    assert train & test == set()

    monkeypatch.setattr(noto_emoji, "read_font", lambda path: every[::9])
    prepare("noto_emoji", tmp_path)
    names = []
    for split in ("train", "test"):
        known = info("noto_emoji", split, tmp_path)
        assert known.captions and known.shape == (64, 64, 3) and known.num_classes is None
        pictures, labels = load_images("noto_emoji", split, 50, data_dir=tmp_path)
        assert labels is None and len(pictures) == min(50, known.num_examples)
        names += load_captions("noto_emoji", split, data_dir=tmp_path)
    assert sorted(names) == sorted(caption for _, caption, _ in every[::9])
    spec = DataSpec("noto_emoji", batch_size=4, captions=True, data_dir=tmp_path)
    batch = make_dataset(spec)[0]
    assert batch.keys() == {"image", "caption"} and set(batch["caption"]) <= set(names)
    assert "caption" not in make_dataset(spec._replace(captions=False))[0]
