"""Groups of variants: each thing once an epoch, its variants in turn by chance."""

import numpy as np
import pytest

from diffusion_jax.data import DataSpec, make_dataset
from diffusion_jax.data.balance import groups_of, members
from diffusion_jax.data.prepare import Options, prepare

TONE = r"(light|dark) tone"


def test_captions_that_differ_in_the_words_alone_are_one_thing():
    captions = ["nurse", "apple", "nurse dark tone", "nurse  light tone", "toned apple"]
    groups = groups_of(captions, TONE)
    assert [group.tolist() for group in groups] == [[0, 2, 3], [1], [4]]
    with pytest.raises(ValueError, match="no regular expression"):
        groups_of(captions, "(")


def test_a_variant_is_drawn_uniformly_and_by_position_alone():
    groups = [np.array([0, 2, 3]), np.array([1])]
    where = np.arange(6000)
    drawn = members(groups, where % 2, where, seed=3)
    assert set(drawn[1::2]) == {1}
    counts = np.bincount(drawn[::2], minlength=4)[[0, 2, 3]]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 2 / 3)
    again = members(groups, (where % 2)[500:600], where[500:600], seed=3)
    np.testing.assert_array_equal(again, drawn[500:600])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("sets")
    (root / "files").mkdir()
    captions = [f"nurse {tone} tone" for tone in ("light", "dark")] * 4 + ["apple", "pear"]
    for i, caption in enumerate(captions):
        Image.new("RGB", (4, 4), (i * 20, 0, 0)).save(root / "files" / f"{i}.png")
        (root / "files" / f"{i}.txt").write_text(caption)
    options = Options(folder=str(root / "files"), set_name="few", test_fraction=0.0)
    prepare("image_folder", root, options)
    return root


def test_an_epoch_shows_each_thing_once(root):
    spec = DataSpec(
        "image_folder/few", "train", 3, (4, 4), data_dir=root, captions=True, balance=TONE
    )
    dataset = make_dataset(spec)
    seen = [dataset[step]["caption"].tolist() for step in range(20)]
    for batch in seen:  # an epoch is a batch here
        assert sorted(caption.split()[0] for caption in batch) == ["apple", "nurse", "pear"]
    assert len({caption for batch in seen for caption in batch}) == 4
    halves = [
        make_dataset(spec._replace(batch_size=6, process_index=i, process_count=2))[4]
        for i in (0, 1)
    ]
    whole = make_dataset(spec._replace(batch_size=6))[4]
    joined = np.concatenate([half["image"] for half in halves])
    np.testing.assert_array_equal(joined, whole["image"])
    assert len(make_dataset(spec._replace(repeat=False))) == 1


def test_a_set_without_captions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no captions"):
        make_dataset(DataSpec("toy2d:moons", batch_size=4, balance="a"))
