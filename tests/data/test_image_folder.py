import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import DataSpec, info, load_captions, load_images, make_dataset
from diffusion_jax.data.builders import image_folder
from diffusion_jax.data.prepare import Options, prepare


@pytest.fixture
def folder(tmp_path):
    """Ten images a class, of differing sizes: cats are dark red, dogs are bright blue."""
    for name, colour in [("cat", (90, 0, 0)), ("dog", (0, 0, 250))]:
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20 + i, 16), colour).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def make(folder, **options):
    return prepare("image_folder", folder.parent / "sets", Options(folder=str(folder), **options))


def test_subfolders_are_classes(folder):
    make(folder)
    sets = folder.parent / "sets"
    known = [info("image_folder/pets", split, sets) for split in ("train", "test")]
    assert [each.num_examples for each in known] == [18, 2]
    assert known[0].class_names == ("cat", "dog") and known[0].shape == (None, None, 3)
    batch = make_dataset(DataSpec("image_folder/pets", "train", 9, (8, 8), data_dir=sets))[0]
    assert batch["image"].shape == (9, 8, 8, 3)
    blue = batch["image"][:, 0, 0, 2] > 0
    np.testing.assert_array_equal(blue, batch["label"] == 1)
    with pytest.raises(ValueError, match=r"differ in size; give \(height, width\)"):
        make_dataset(DataSpec("image_folder/pets", data_dir=sets))


def test_resizing_now_and_no_classes(folder):
    make(folder / "cat", image_size=(8, 12), test_fraction=0.0, set_name="cats")
    known = info("image_folder/cats", "train", folder / "sets")
    assert known.shape == (8, 12, 3) and known.num_classes is None
    images, labels = load_images("image_folder/cats", "train", data_dir=folder / "sets")
    assert images.shape == (10, 8, 12, 3) and labels is None
    with pytest.raises(ValueError, match="its splits are train"):
        info("image_folder/cats", "test", folder / "sets")


def test_an_unreadable_image_stops_with_its_path(folder):
    whole = (folder / "cat" / "3.png").read_bytes()
    (folder / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "4.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"(cat/3|dog/4).png' cannot be read .*--skip_unreadable"):
        make(folder, skip_unreadable=1)
    assert not (folder.parent / "sets" / "image_folder").exists()
    make(folder, skip_unreadable=2)
    sizes = [
        info("image_folder/pets", split, folder.parent / "sets").num_examples
        for split in ("train", "test")
    ]
    assert sum(sizes) == 18


def test_the_same_folder_again_is_nothing_but_a_changed_one_is_refused(folder):
    path = make(folder)
    assert make(folder) == path
    with pytest.raises(ValueError, match="--overwrite"):
        make(folder, image_size=(8, 8))
    (folder / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match="made from other files"):
        make(folder)


def test_folders_that_make_no_set(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images; names must end in one of"):
        make(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="absent' does not exist"):
        make(tmp_path / "absent")
    with pytest.raises(ValueError, match="test_fraction is 1"):
        make(folder, test_fraction=1.0)
    Image.new("L", (4, 4)).save(folder / "stray.png")
    with pytest.raises(
        ValueError, match=r"'stray\.png' lies beside class subfolders such as 'cat'"
    ):
        make(folder)


def test_pictures_are_upright_and_opaque(tmp_path):
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was turned: height and width change places
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=rotated)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "b.png")
    assert image_folder.read_image(tmp_path / "a.jpg", None).size == (4, 8)
    assert image_folder.read_image(tmp_path / "b.png", None).getpixel((0, 0)) == (255, 255, 255)


def test_hidden_files_are_left_out_and_order_is_fixed(folder):
    (folder / "cat" / ".thumbnails").mkdir()
    Image.new("L", (4, 4)).save(folder / "cat" / ".thumbnails" / "0.png")
    paths = image_folder.list_images(folder)
    assert len(paths) == 20 and paths == sorted(paths)
    one = image_folder.split_paths(paths, 0.25)
    two = image_folder.split_paths(paths[::-1], 0.25)
    assert one == two and len(one["test"]) == 5 and not set(one["train"]) & set(one["test"])


def test_texts_beside_images_are_their_captions(folder):
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"a {path.parent.name},\n number {path.stem} 猫 ")
    make(folder)
    sets = folder.parent / "sets"
    assert "a cat, number 3 猫" in load_captions("image_folder/pets", "train", None, sets)
    spec = DataSpec("image_folder/pets", "train", 9, (8, 8), data_dir=sets, captions=True)
    batch = make_dataset(spec)[0]
    told = [caption.split(",")[0] for caption in batch["caption"]]
    assert told == [("a cat", "a dog")[label] for label in batch["label"]]
    (folder / "dog" / "3.txt").unlink()
    with pytest.raises(
        ValueError, match=r"19 of 20 images have a caption and 'dog/3.png' has none"
    ):
        make(folder, set_name="again")


def test_captions_in_one_file(folder):
    lines = [{"file_name": f"{i}.png", "text": f"cat {i}"} for i in range(10)]
    (folder / "cat" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    make(folder / "cat", test_fraction=0.0, set_name="cats")
    found = load_captions("image_folder/cats", "train", None, folder / "sets")
    assert sorted(found) == [f"cat {i}" for i in range(10)]
    (folder / "cat" / "metadata.jsonl").write_text('{"file_name": "0.png"}')
    with pytest.raises(ValueError, match=r"line 1 of .*metadata.jsonl is not"):
        make(folder / "cat", set_name="more")
