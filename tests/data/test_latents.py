"""Sets of latents: written whole, read scaled, drawn from their posteriors."""

import numpy as np
import pytest

from diffusion_jax.data import DataMissing, DataSpec, info, load_captions, load_images, make_dataset
from diffusion_jax.data.latents import Contents, Scaling, write_latents
from diffusion_jax.data.sources import latents_scale

SHAPE = (2, 3, 4)
SCALE, SHIFT = [2.0, 1.0, 0.5, 4.0], [0.5, -1.0, 0.0, 3.0]
MEANS = np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float16)
LOG_VAR = np.full((12, *SHAPE), -2.0, np.float16)


def contents(source="one", variance=True, scaling=None):
    def examples(rows):
        for i in rows:
            codes = {"mean": MEANS[i]} | ({"log_var": LOG_VAR[i]} if variance else {})
            yield {**codes, "caption": f"picture {i} 猫", "label": i % 2}

    splits = {"train": lambda: examples(range(9)), "test": lambda: examples(range(9, 12))}
    scaling = scaling or Scaling(SCALE, SHIFT, 7)
    return Contents(splits, SHAPE, variance, True, ("a", "b"), source, scaling)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_latents("drawn", contents(), folder)
    write_latents("fixed", contents(variance=False), folder)
    return folder


def scaled(rows):
    return (MEANS[rows].astype(np.float32) - SHIFT) * SCALE


def plain(name, root, split="train", **more):
    return DataSpec(name, split, 3, shuffle=False, data_dir=root, captions=True, **more)


def test_codes_come_scaled_with_what_was_said_of_their_images(root):
    batch = make_dataset(plain("latents/fixed", root))[1]
    assert batch["image"].dtype == np.float32
    np.testing.assert_allclose(batch["image"], scaled([3, 4, 5]), rtol=1e-6)
    assert batch["label"].tolist() == [1, 0, 1]
    assert batch["caption"].tolist() == [f"picture {i} 猫" for i in (3, 4, 5)]
    known = info("latents/fixed", "test", root)
    assert (known.kind, known.shape, known.num_examples) == ("latents", SHAPE, 3)
    assert known.captions and known.class_names == ("a", "b")
    assert load_captions("latents/fixed", "test", 1, root) == ["picture 9 猫"]
    assert latents_scale("latents/fixed", root) == (SCALE, SHIFT, 7)


def test_each_epoch_draws_anew_and_a_step_repeats_itself(root):
    dataset = make_dataset(plain("latents/drawn", root))
    first, later = dataset[0]["image"], dataset[3]["image"]  # the same three examples
    np.testing.assert_array_equal(dataset[0]["image"], first)
    assert not np.allclose(first, later)
    draws = np.stack([dataset[3 * epoch]["image"] for epoch in range(200)])
    deviation = np.exp(-1.0) * np.asarray(SCALE)
    np.testing.assert_allclose(draws.mean(0), scaled([0, 1, 2]), atol=5 * deviation.max() / 14)
    np.testing.assert_allclose(draws.std((0, 1, 2, 3)).shape, (4,))
    ratio = (draws - scaled([0, 1, 2])).std((0, 1, 2, 3)) / deviation
    np.testing.assert_allclose(ratio, 1, atol=0.05)


def test_parts_of_processes_are_the_whole_batch(root):
    spec = DataSpec("latents/drawn", "train", 4, data_dir=root)
    whole = make_dataset(spec)[2]["image"]
    parts = [
        make_dataset(spec._replace(process_index=i, process_count=2))[2]["image"] for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_makes_no_sense_for_codes_is_said(root):
    with pytest.raises(ValueError, match=r"flip is True, .*set data\.flip = False"):
        make_dataset(plain("latents/drawn", root, flip=True))
    with pytest.raises(ValueError, match=r"crop is 'random', .*set data\.crop = 'center'"):
        make_dataset(plain("latents/drawn", root, crop="random"))
    with pytest.raises(ValueError, match="holds latents, not images"):
        load_images("latents/drawn", data_dir=root)
    with pytest.raises(DataMissing, match=r"encode_latents\.py .* --name=none"):
        info("latents/none", "train", root)


def test_a_set_of_another_source_stays(root):
    assert write_latents("drawn", contents(), root).parent.name == "drawn"
    with pytest.raises(ValueError, match="made from other files or with other settings"):
        write_latents("drawn", contents("two"), root)
    write_latents("fixed", contents("two", False, Scaling(1.0, 0.0, 1)), root, overwrite=True)
    assert latents_scale("latents/fixed", root) == (1.0, 0.0, 1)
    write_latents("fixed", contents(variance=False), root, overwrite=True)
