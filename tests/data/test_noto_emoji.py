import io
import re

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import info, load_captions, load_images
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
def test_the_real_font(tmp_path):
    prepare("noto_emoji", tmp_path)
    known = [info("noto_emoji", split, tmp_path) for split in ("train", "test")]
    assert all(each.captions and each.shape == (64, 64, 3) for each in known)
    assert sum(each.num_examples for each in known) > 3500
    images, names = {}, {}
    for split in ("train", "test"):
        pictures, labels = load_images("noto_emoji", split, data_dir=tmp_path)
        assert labels is None
        images[split] = {picture.tobytes() for picture in pictures}
        names[split] = load_captions("noto_emoji", split, data_dir=tmp_path)
        assert len(names[split]) == len(pictures)
    assert not images["train"] & images["test"]
    assert "grinning face" in names["train"] + names["test"]
    plain = [{plain_name(name) for name in names[split]} for split in ("train", "test")]
    assert plain[0] & plain[1] == set()
