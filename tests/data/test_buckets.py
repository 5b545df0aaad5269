"""Aspect buckets: what lies where, whose turn it is, and what a batch then holds."""

import warnings
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import (
    DataSpec,
    batches,
    make_dataset,
    picture_files,
    sizes,
    sources,
    to_uint8,
)
from diffusion_jax.data.buckets import Turns, assign_buckets, buckets, by_bucket, match_buckets
from diffusion_jax.data.prepare import Options, prepare

SIZES = ((4, 8), (6, 6), (8, 4))
SHAPES = [(10, 21)] * 9 + [(14, 13)] * 17 + [(30, 16)] * 6  # of the pictures, (height, width)


def test_sizes_cannot_grow_and_have_about_one_area():
    found = buckets(1024 * 1024, 64, 2.0)
    assert (1024, 1024) in found and (832, 1216) in found and (1216, 832) in found
    assert set(found) == {(w, h) for h, w in found}  # as many tall ones as wide ones
    for h, w in found:
        assert h % 64 == w % 64 == 0 and h * w <= 1024**2 and max(h / w, w / h) <= 2
        assert (h + 64) * w > 1024**2 and h * (w + 64) > 1024**2
    assert min(h * w for h, w in found) > 0.9 * 1024**2
    assert [w / h for h, w in found] == sorted((w / h for h, w in found), reverse=True)
    assert buckets(32 * 32, 8, 1.0) == ((32, 32),)
    for wrong in ({"area": 60, "multiple": 8}, {"area": 2048, "multiple": 32, "most_ratio": 1.5}):
        with pytest.raises(ValueError, match=r"multiple"):
            buckets(**wrong)


def test_an_image_lies_in_the_nearest_ratio_and_small_buckets_give_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = assign_buckets(np.array(SHAPES), SIZES, 4)
    assert [bucket.size for bucket in found] == list(SIZES)
    assert [len(bucket.members) for bucket in found] == [9, 17, 6]
    np.testing.assert_array_equal(found[2].members, np.arange(26, 32))
    # In logarithms 18:10 is nearer to 3 than to 1, as 10:18 is to 1/3.
    with pytest.warns(UserWarning, match=r"10x10 \(0\)"):
        found = assign_buckets(np.array([[10, 18], [18, 10]]), [(10, 10), (10, 30), (30, 10)], 1)
    assert [(bucket.size, *bucket.members) for bucket in found] == [((10, 30), 0), ((30, 10), 1)]
    with pytest.warns(UserWarning, match=r"left out.*2x16 \(0\), 8x4 \(6\)") as told:
        found = assign_buckets(np.array(SHAPES), [(2, 16), *SIZES], 8)
    assert len(told) == 1
    assert [len(bucket.members) for bucket in found] == [9, 23]
    with pytest.raises(ValueError, match=r"batch_size is 18, but the largest .* 6x6, has only 17"):
        assign_buckets(np.array(SHAPES), SIZES, 18)


def test_a_set_beside_another_lies_in_its_buckets_and_lends_to_empty_ones():
    led = assign_buckets(np.array(SHAPES), SIZES, 4)
    found = match_buckets(np.array([(9, 17), (14, 14), (16, 8), (15, 14)]), led)
    assert [(bucket.size, *bucket.members) for bucket in found] == [
        ((4, 8), 0), ((6, 6), 1, 3), ((8, 4), 2),
    ]  # fmt: skip
    square = match_buckets(np.array([(14, 14), (30, 29)]), led)
    assert [tuple(bucket.members) for bucket in square] == [(0, 1)] * 3
    tall = match_buckets(
        np.array([(14, 14), (9, 4)]), led
    )  # the widest is nearer to the square one
    assert [tuple(bucket.members) for bucket in tall] == [(0,), (0,), (1,)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_turns_are_fair_whole_and_shuffled(shuffle):
    turns = Turns((9, 17, 6), 4, 3, shuffle)
    seen = [turns.at(step) for step in range(8 * 24)]
    for j, n in enumerate(turns.counts):  # four epochs fill whole batches: n of each bucket
        assert [number for whose, number in seen if whose == j] == list(range(6 * n))
    assert Counter(whose for whose, _ in seen[:32]) == {0: 9, 1: 17, 2: 6}
    first, later = ([whose for whose, _ in seen[i : i + 7]] for i in (0, 32))
    assert (first == sorted(first)) == (later == sorted(later)) == (not shuffle)
    far = 2**39  # in closed form, wherever
    assert turns.at(far)[1] < turns.at(far + 200)[1] <= turns.at(far)[1] + 200


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of one colour each, which tells their number."""
    root = tmp_path_factory.mktemp("sets")
    (root / "files").mkdir()
    for i, (height, width) in enumerate(SHAPES):
        Image.new("RGB", (width, height), (8 * i, 0, 255)).save(root / "files" / f"{i:02}.png")
        (root / "files" / f"{i:02}.txt").write_text(f"picture {i}")
    options = Options(folder=str(root / "files"), set_name="many", test_fraction=0.0)
    prepare("image_folder", root, options)
    return root


@pytest.fixture(scope="module")
def spec(root):
    return DataSpec(
        "image_folder/many", "train", 4, data_dir=root, buckets=SIZES, captions=True, seed=5
    )


def shown(batch):
    return [int(caption.split()[1]) for caption in batch["caption"]]


def test_batches_are_of_one_shape_and_each_bucket_shows_all_before_any_again(spec):
    dataset, of_bucket = make_dataset(spec), {size: [] for size in SIZES}
    for step in range(64):  # eight epochs
        batch = dataset[step]
        size = batch["image"].shape[1:3]
        assert batch["image"].shape == (4, *size, 3) and batch["image"].dtype == np.float32
        assert np.isfinite(batch["image"]).all()
        colours = to_uint8(batch["image"])[:, 0, 0, 0] / 8
        np.testing.assert_array_equal(colours, shown(batch))
        of_bucket[size] += shown(batch)
    own = {(4, 8): range(9), (6, 6): range(9, 26), (8, 4): range(26, 32)}
    for size, seen in of_bucket.items():
        n = len(own[size])
        assert len(seen) == 8 * n  # as often as any other
        passes = [seen[i : i + n] for i in range(0, len(seen), n)]
        assert all(sorted(one) == list(own[size]) for one in passes)
        assert passes[0] != passes[1]


def test_the_first_epoch_shows_each_at_most_once(spec):
    once = make_dataset(spec._replace(repeat=False))
    seen = [i for step in range(len(once)) for i in shown(once[step])]
    assert len(once) == 2 + 4 + 1 and len(set(seen)) == len(seen) == 28


def test_any_step_at_once_and_processes_agree(spec):
    spec = spec._replace(flip=True, crop="random", framing=True, batch_size=6)
    dataset, later = make_dataset(spec), batches(make_dataset(spec), start_step=37)
    for step in (37, 38):
        batch = next(later)
        for key, expected in dataset[step].items():
            np.testing.assert_array_equal(batch[key], expected)
    for step in (0, 5, 11):
        parts = [
            make_dataset(spec._replace(process_index=k, process_count=2))[step] for k in (0, 1)
        ]
        for key, expected in dataset[step].items():
            joined = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(joined, expected)
    other = make_dataset(spec._replace(seed=6))
    assert any(shown(other[step]) != shown(dataset[step]) for step in range(3))


def test_a_set_beside_another_takes_its_turns(spec, root):
    for i in range(3):  # fewer than a batch, and none is tall
        (root / "kind").mkdir(exist_ok=True)
        size = [(30, 16), (20, 20), (20, 20)][i]
        Image.new("RGB", size, (80 * i, 0, 0)).save(root / "kind" / f"{i}.png")
    options = Options(folder=str(root / "kind"), set_name="kind", test_fraction=0.0)
    prepare("image_folder", root, options)
    own, spec_of_own = make_dataset(spec), spec
    spec = spec._replace(name="image_folder/kind", beside=spec.name, captions=False)
    kind, seen = make_dataset(spec), {size: Counter() for size in SIZES}
    assert kind[0]["image"].shape == own[0]["image"].shape
    for step in range(32):
        size = kind[step]["image"].shape[1:3]
        assert size == own[step]["image"].shape[1:3]
        seen[size].update((to_uint8(kind[step]["image"])[:, 0, 0, 0] / 80).round().astype(int))
    # 9, 17 and 6 batches of 4; those of a bucket as often as one another.
    assert seen == {(4, 8): {0: 36}, (6, 6): {1: 34, 2: 34}, (8, 4): {1: 12, 2: 12}}
    halves = [make_dataset(spec._replace(process_index=k, process_count=2))[7] for k in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([h["image"] for h in halves]), kind[7]["image"])
    # Where the other set counts variants as one, its turns are those of its things.
    change = {"balance": r"(?<=[12])\d\b", "batch_size": 2}
    own, kind = (make_dataset(each._replace(**change)) for each in (spec_of_own, spec))
    shapes = [[each[step]["image"].shape for step in range(24)] for each in (own, kind)]
    assert shapes[0] == shapes[1] and len(set(shapes[0])) == 3


def test_variants_of_one_thing_lie_in_one_bucket_and_are_shown_as_one(spec):
    # Two things of eleven pictures, 1 and 10 to 19, 2 and 20 to 29: wide, square and tall ones.
    spec = spec._replace(balance=r"(?<=[12])\d\b", batch_size=2)
    things = [[2, *range(20, 30)], [1, *range(10, 20)], *([i] for i in (0, *range(3, 10), 30, 31))]
    dataset, sizes, seen = make_dataset(spec), {}, Counter()
    for step in range(40 * len(things) // 2):
        batch = dataset[step]
        seen.update(shown(batch))
        sizes.update(dict.fromkeys(shown(batch), batch["image"].shape[1:3]))
    assert [sum(seen[i] for i in thing) for thing in things] == [40] * len(things)
    for thing in things[:2]:  # one of eleven, forty times
        found = [i for i in thing if seen[i]]
        assert len(found) >= 8 and max(seen[i] for i in found) <= 10
        assert {sizes[i] for i in found} == {(6, 6)}
    assert sizes[0] == (4, 8) and sizes[30] == (8, 4)
    halves = [make_dataset(spec._replace(process_index=k, process_count=2))[9] for k in (0, 1)]
    assert [i for half in halves for i in shown(half)] == shown(dataset[9])


def test_framing_tells_the_first_size_and_the_corner_of_the_crop(tmp_path):
    """Pictures of a horizontal ramp, so that a crop's first column tells where it lies."""
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (20, 1))
    records = [{"image": np.stack([ramp] * 3, -1)}] * 8
    info = sources.Info("ramps", "train", 8, (20, 40, 3), None, (), False)
    read = lambda indices: [records[i] for i in indices]
    fixed = lambda: np.tile((20, 40), (8, 1))
    spec = DataSpec("ramps", batch_size=8, crop="random", flip=True, framing=True)
    spec = spec._replace(buckets=((20, 32),), seed=2)
    batch_at, _ = by_bucket(sources.Source(info, read, fixed), spec)
    batch = batch_at(0)
    rows, found = to_uint8(batch["image"])[:, 0, :, 0].astype(int), batch["framing"]
    assert found.dtype == np.int32 and (found[:, :2] == (20, 40)).all() and (found[:, 2] == 0).all()
    flipped = rows[:, 0] > rows[:, -1]
    assert 0 < flipped.sum() < 8 and len(set(found[:, 3])) > 2
    whole = np.where(flipped[:, None], ramp[0, ::-1], ramp[0])
    for row, told, (_, _, _, left) in zip(rows, whole, found, strict=True):
        np.testing.assert_array_equal(row, told[left : left + 32])
    centred = by_bucket(sources.Source(info, read, fixed), spec._replace(crop="center"))[0](0)
    assert (centred["framing"] == (20, 40, 0, 4)).all()


def test_sizes_are_read_from_headers_once(root, monkeypatch):
    source = sources.open_source("image_folder/many", "train", root)
    examples = source.read(np.arange(32))
    monkeypatch.setattr(picture_files, "read", None)  # never needed
    found = source.sizes()
    np.testing.assert_array_equal(found, [example["image"].shape[:2] for example in examples])
    monkeypatch.setattr(sizes, "_measured", None)  # nor a second look
    again = sources.open_source("image_folder/many", "train", root)
    np.testing.assert_array_equal(again.sizes(), found)


def test_a_header_that_cannot_be_read_has_the_size_of_the_next():
    class Records(list):
        def __getitems__(self, which):
            return [self[i] for i in which]

    def encoded(height, width):
        out = BytesIO()
        Image.new("L", (width, height)).save(out, "PNG")
        return out.getvalue()

    records = Records({"image": x} for x in (encoded(3, 5), b"no", encoded(7, 2), b""))
    np.testing.assert_array_equal(
        sizes._measured(records, "image"), [[3, 5], [7, 2], [7, 2], [3, 5]]
    )
    with pytest.raises(ValueError, match="none of 1 images"):
        sizes._measured(Records([{"image": b"no"}]), "image")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"buckets": ((4, 8), 6)}, r"buckets has 6; give pairs"),
        ({"buckets": ((4, -8),)}, r"buckets has \(4, -8\)"),
        ({"balance": "("}, "is no regular expression"),
        ({"repeat": False, "drop_remainder": False}, "with buckets every batch is full"),
        ({"name": "toy2d:moons"}, "holds points"),
        ({"buckets": (), "beside": "mnist"}, "give sizes, or set beside = ''"),
        ({"batch_size": 20}, "choose a smaller batch, or fewer buckets"),
    ],
)
def test_what_cannot_be(spec, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_dataset(spec._replace(**change))
