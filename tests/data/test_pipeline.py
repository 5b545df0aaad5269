import numpy as np
import pytest

from diffusion_jax.data import DataSpec, batches, info, load_captions, load_images, make_dataset
from diffusion_jax.data.pixels import to_uint8


@pytest.fixture(scope="module")
def spec(data_dir):
    return DataSpec("mnist5k", "train", 32, crop="random", flip=True, seed=7, data_dir=data_dir)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_mnist5k_is_balanced_and_disjoint(data_dir):
    seen = []
    for split, per_class in [("train", 400), ("test", 100)]:
        images, labels = load_images("mnist5k", split, data_dir=data_dir)
        assert images.shape == (per_class * 10, 28, 28, 1) and images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), [per_class] * 10)
        seen += [image.tobytes() for image in images]
    assert len(set(seen)) == 5000
    known = info("mnist5k", "test", data_dir)
    assert known.num_examples == 1000 and known.num_classes == 10 and not known.captions
    assert known.shape == (28, 28, 1) and known.class_names == tuple("0123456789")


def test_a_batch_is_in_the_promised_form(spec):
    batch = make_dataset(spec._replace(image_size=(32, 24), channels=3))[0]
    assert batch.keys() == {"image", "label"}
    assert batch["image"].shape == (32, 32, 24, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (32,) and batch["label"].dtype == np.int32
    assert batch["image"].min() == -1 and 0.5 < batch["image"].max() <= 1


def test_batches_hold_the_sets_own_images_with_their_labels(spec, data_dir):
    images, labels = load_images("mnist5k", "train", data_dir=data_dir)
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    batch = make_dataset(spec._replace(flip=False))[200]  # in the second epoch
    found = [known[image.tobytes()] for image in to_uint8(batch["image"])]
    np.testing.assert_array_equal(found, batch["label"])


def test_a_step_is_a_pure_function_of_seed_and_step(spec):
    spec = spec._replace(batch_size=48)
    one, two = make_dataset(spec), make_dataset(spec._replace(cache_bytes=0))
    for step in (0, 83, 3):  # 83 begins in one epoch of 4000 and ends in the next
        same(one[step], two[step])
        same(one[step], one[step])
    other = make_dataset(spec._replace(seed=8))[0]
    assert (other["label"] != one[0]["label"]).any()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_make_the_single_batch(spec, count):
    spec = spec._replace(image_size=(20, 14))
    whole = make_dataset(spec)[9]
    parts = [
        make_dataset(spec._replace(process_index=k, process_count=count))[9] for k in range(count)
    ]
    for key, expected in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), expected)


def test_starting_at_a_step_equals_skipping_to_it(spec):
    dataset = make_dataset(spec)
    skipped, started = batches(dataset), batches(dataset, start_step=124, threads=2)
    for _ in range(124):
        next(skipped)
    for _ in range(3):
        same(next(skipped), next(started))
    assert started.get_state() == skipped.get_state() == {"step": 127}


def test_state_goes_back_and_forth(spec):
    stream = batches(make_dataset(spec))
    state = stream.get_state()
    first = next(stream)
    stream.set_state({"step": 10**9})
    same(next(stream), make_dataset(spec)[10**9])
    stream.set_state(state)
    same(next(stream), first)


def test_flips_mirror_about_half_anew_each_epoch(spec):
    plain = make_dataset(spec._replace(flip=False, shuffle=False, batch_size=1000))
    flipped = make_dataset(spec._replace(shuffle=False, batch_size=1000))
    masks = []
    for step in (0, 4):  # the same thousand images
        a, b = plain[step]["image"], flipped[step]["image"]
        mirrored = (b == a[:, :, ::-1]).all((1, 2, 3)) & (b != a).any((1, 2, 3))
        untouched = (b == a).all((1, 2, 3))
        assert (mirrored ^ untouched).all()
        assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)
        masks.append(mirrored)
    assert (masks[0] != masks[1]).any()


def test_random_crops_move_and_centre_crops_do_not(spec):
    spec = spec._replace(shuffle=False, flip=False, batch_size=200, image_size=(28, 20))
    epoch = 4000 // 200
    full = make_dataset(spec._replace(image_size=None))[0]["image"]
    centre = make_dataset(spec._replace(crop="center"))
    np.testing.assert_array_equal(centre[0]["image"], full[:, :, 4:24])
    random = make_dataset(spec)
    lefts = []
    for image, crop in zip(full, random[0]["image"], strict=True):
        places = [left for left in range(9) if (image[:, left : left + 20] == crop).all()]
        assert places
        lefts += places if len(places) == 1 else []
    assert set(lefts) >= {1, 3, 5, 7}
    assert (random[0]["image"] != random[epoch]["image"]).any()
    stretched = make_dataset(spec._replace(crop="stretch"))[0]["image"]
    assert stretched.shape == centre[0]["image"].shape


@pytest.mark.parametrize("drop, lengths", [(True, [300] * 3), (False, [300] * 3 + [100])])
def test_one_epoch_in_the_sets_order(data_dir, drop, lengths):
    spec = DataSpec(
        "mnist5k", "test", 300, shuffle=False, repeat=False, drop_remainder=drop, data_dir=data_dir
    )
    labels = [batch["label"] for batch in batches(make_dataset(spec))]
    assert [len(each) for each in labels] == lengths
    _, expected = load_images("mnist5k", "test", sum(lengths), data_dir=data_dir)
    np.testing.assert_array_equal(np.concatenate(labels), expected)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 30, "process_count": 4}, "multiple of the number of processes, 4"),
        ({"process_index": 1}, "process_index is 1"),
        ({"crop": "middle"}, "choose one of center, random, stretch"),
        ({"channels": 2}, "channels is 2"),
        ({"image_size": (32,)}, r"give \(height, width\)"),
        ({"batch_size": 5000, "repeat": False}, "has only 4000 examples"),
        ({"split": "dev"}, "its splits are .*train"),
        ({"name": "nosuch"}, "known are fashion_mnist, mnist5k, noto_emoji"),
    ],
)
def test_a_spec_that_cannot_be_followed(spec, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_dataset(spec._replace(**change))


def test_images_that_cannot_be_had(data_dir):
    for change, sentence in (
        ({"image_size": (32,)}, r"give \(height, width\)"),
        ({"channels": 2}, "channels is 2"),
        ({"split": "dev"}, "its splits are"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_images("mnist5k", data_dir=data_dir, **change)


def test_captions_of_a_set_without(data_dir):
    with pytest.raises(ValueError, match="mnist5k has no captions"):
        load_captions("mnist5k", data_dir=data_dir)
