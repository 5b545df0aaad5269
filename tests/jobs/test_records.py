"""Settings, records of pictures and file names: refused by a sentence, whatever they hold."""

import json
import string

import numpy as np
import pytest

from configs import sample
from diffusion_jax import files, pictures
from diffusion_jax.apps.plan import Generator, Geometry, Request
from diffusion_jax.jobs import image_files, records, requests, sampling
from diffusion_jax.jobs.settings import RULES

REQUEST = Request("a red cat", "dog", None, 2**63 + 5, (64, 72))


def settings_with(**changes):
    settings = sample.get_config().unlock()
    settings.checkpoint = "nowhere"
    settings.update_from_flattened_dict(changes)
    return settings


def generator(multiple=8, **sampling):
    geometry = Geometry((8, 8, 4), 8, multiple)
    inputs = lambda part: ({}, None)
    return Generator(None, None, inputs, geometry, None, sampling, classes=3)


def test_any_seed_is_drawn_and_the_last_is_followed_by_the_first():
    asked = lambda **c: requests.requests_of(requests.settings_of(settings_with(**c), ""), GIVEN)
    assert [r.seed for r in asked(seed=2**32 - 1, n=2)] == [2**32 - 1, 2**32]
    assert [r.seed for r in asked(seed=2**64 - 1, n=3)] == [2**64 - 1, 0, 1]
    two = [asked(seed=-1, n=2) for _ in range(2)]
    assert two[0][1].seed == two[0][0].seed + 1
    assert two[0][0].seed != two[1][0].seed and 0 <= two[0][0].seed < 2**32
    sizes = asked(image_size=(72, 40))
    assert {r.size for r in sizes} == {(72, 40)} and [r.label for r in sizes] == [0, 1, 2]


GIVEN = generator()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2**64}, r"seed = 18446744073709551616 must be at least 0 and below 2\*\*64"),
        ({"seed": -2}, r"config.seed = -2 must be at least 0 and below 2\*\*64, or -1 for any"),
        ({"prompts": ("cat", 5)}, r"config.prompts = \('cat', 5\) must be a list of texts"),
        ({"prompt": "\ud800"}, r"config.prompt = '\\ud800' must be a text"),
        ({"labels": (0.5,)}, r"config.labels = \(0.5,\) must be a list of whole"),
        ({"labels": (True,)}, r"config.labels = \(True,\) must be a list of whole"),
        ({"image_size": (64,)}, r"config.image_size = \(64,\) must be \(height, width\)"),
        ({"image_size": (64.0, 64.0)}, r"must be \(height, width\), such as"),
        ({"image_size": (0, 8)}, r"must be \(height, width\), such as"),
        ({"image_size": (60, 64)}, r"multiples of 8, such as \(56, 64\) or \(64, 64\)"),
        ({"image_size": (3, 64)}, r"multiples of 8, such as \(8, 64\)$"),
        ({"sampler.steps": 0}, "config.sampler.steps = 0 must be at least 1"),
        ({"sampler.guidance_scale": float("nan")}, "guidance_scale = nan must be a finite"),
        ({"edits": (5,)}, r"config.edits = \(5,\) must be a list of edits"),
        ({"edits": ("variation(2)",)}, r"variation\(amount=2.0\) is not in \[0, 1\]"),
        ({"edits": ("variation(0.1, seed=-1)",)}, r"variation\(seed=-1\) must be 0 to"),
        ({"batch_size": -2}, "config.batch_size = -2 must be at least 1, or 0"),
    ],
)
def test_settings_are_refused_before_anything_is_read(changes, said):
    with pytest.raises(ValueError, match=said):
        settings = requests.settings_of(settings_with(**changes), "")
        requests.requests_of(settings, GIVEN)


def test_any_settings_are_requests_or_a_sentence():
    """Random values of every kind in every field that a person writes."""
    rng = np.random.default_rng(3)
    scalars = [None, True, -1, 0, 7, 2**65, 1.5, float("nan"), "", "a\ud800", "cat", "f(x=1)", b"x",
               "\0", "(" * 300, "tiles(size='a')", "variation(" + "9" * 5000 + ")"]  # fmt: skip

    def value(depth=0):
        if depth < 2 and rng.random() < 0.4:
            kind = (tuple, list)[rng.integers(2)]
            return kind(value(depth + 1) for _ in range(rng.integers(0, 4)))
        return scalars[rng.integers(len(scalars))]

    passed = 0
    for _ in range(1500):
        settings = sample.get_config().unlock()
        for rule in rng.choice(np.arange(len(RULES)), rng.integers(1, 3)):
            section, _, name = RULES[rule].field.rpartition(".")
            holder = settings[section] if section else settings
            with holder.ignore_type():
                holder[name] = value()
                if name == "n" and isinstance(holder.n, int):
                    holder.n = min(holder.n, 100)
        try:
            requests.requests_of(requests.settings_of(settings, "run"), GIVEN)
            passed += 1
        except ValueError as error:
            assert "\n" not in str(error) and "config." in str(error)
    assert passed > 50


def recorded(path, record):
    text = {records.PARAMETERS: record if isinstance(record, str) else json.dumps(record)}
    pictures.save_image(path, np.zeros((4, 4, 3), np.uint8), text=text)
    return str(path)


def whole_record():
    place = records.Place(1, 2, 2**63 + 4)
    return records.record_of(settings_with(), REQUEST, (64, 72), place, "all", [])


def test_a_record_holds_a_request_of_any_seed(tmp_path):
    record = records.read_record(recorded(tmp_path / "a.png", whole_record()))
    assert records.request_of(record) == REQUEST
    assert records.place_of(record) == records.Place(1, 2, 2**63 + 4)
    assert records.with_record(settings_with(), record).checkpoint == "nowhere"


def test_any_record_is_one_or_a_sentence(tmp_path):
    """Of a picture that anyone may have made: fields of other types, and bytes changed."""
    rng = np.random.default_rng(5)
    odd = [None, -1, 2**70, 1.5, "x", "\0", [], {}, [1, 2], [["a", "b"], 3], [["/etc", "x"]], True]
    whole = whole_record()
    path, passed = tmp_path / "a.png", 0
    for i in range(400):
        record = dict(whole)
        name = list(record)[rng.integers(len(record))]
        record[name] = odd[rng.integers(len(odd))]
        if i % 4 == 1:
            del record[name]
        if i % 4 == 2:
            record["sampler"] = {**whole["sampler"], "steps": odd[rng.integers(len(odd))]}
        text = json.dumps(odd[rng.integers(len(odd))] if i % 40 == 0 else record)
        recorded(path, text[: i * 7] if i % 9 == 0 else text)
        encoded = bytearray(path.read_bytes())
        if i % 4 == 3:
            encoded[rng.integers(len(encoded))] = rng.integers(256)
        path.write_bytes(encoded)
        try:
            records.read_record(str(path))
            passed += 1
        except ValueError as error:
            assert str(error).startswith(f"config.again = {str(path)!r}")
    assert passed > 20
    for other in (tmp_path, tmp_path / "absent.png"):
        with pytest.raises(ValueError, match="holds no settings to draw it anew by"):
            records.read_record(str(other))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A (red:1.3) cat", "000007-a-red-1-3-cat"),
        ('a/b\\c:d*e?f"g<h>i|j.', "000007-a-b-c-d-e-f-g-h-i-j"),
        ("cafe\u0301", "000007-caf\xe9"),
        ("𝓪𝓫𝓬𝓭𝓮𝓯𝓰𝓱𝓲𝓳" * 6, "000007-" + ("𝓪𝓫𝓬𝓭𝓮𝓯𝓰𝓱𝓲𝓳" * 6)[:43]),
        ("猫" * 200, "000007-" + "猫" * 57),
        ("..", "000007"),
    ],
)
def test_names_are_cut_by_bytes_at_a_character(tmp_path, prompt, expected):
    name = image_files.file_name(Request(prompt, seed=7))
    assert name == expected and len(name.encode()) <= 180
    pictures.save_image(tmp_path / f"{name}.png", np.zeros((2, 2, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    with files.whole(tmp_path / ("猫" * 83 + "x.png")) as temporary:
        temporary.write_text("")
    assert len(list(tmp_path.iterdir())) == 1


def test_names_of_any_prompt_are_of_letters_and_digits():
    rng = np.random.default_rng(9)
    for _ in range(500):
        prompt = "".join(map(chr, rng.integers(1, 0x11000, rng.integers(1, 90))))
        name = image_files.file_name(Request(prompt, seed=int(rng.integers(2**63))))
        assert all(c.isalnum() or c == "-" for c in name) and len(name.encode()) <= 180
        assert name[0] in string.digits


class Sampler:
    """As much of an ``ImageSampler`` as saving reads."""

    settings, edits = settings_with(), ()
    generator = GIVEN


def test_what_is_drawn_is_kept_elsewhere_if_its_folder_fails(tmp_path, monkeypatch):
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    monkeypatch.setattr(image_files.tempfile, "tempdir", str(tmp_path))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_files.pictures, "save_image", full)
    with pytest.raises(ValueError, match=r"No space left on device.*pixels are kept in") as error:
        places = [records.Place(0, 1, 7)]
        image_files.save_drawn(Sampler, [REQUEST], images, places, tmp_path / "samples")
    kept = np.load(str(error.value).split("kept in ")[1])
    np.testing.assert_array_equal(kept["images"], images)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"samples cannot be written to .*; give a --workdir"):
        image_files.check_writable(tmp_path / "file" / "samples")


def test_what_is_drawn_is_kept_whatever_breaks_off_the_rest(tmp_path, monkeypatch):
    def broken_off(sampler, requests, size, done):
        done.append(np.full((2, 4, 4, 3), 9, np.uint8))
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "open_sampler", lambda settings, generator: Sampler)
    monkeypatch.setattr(sampling, "draw_requests", broken_off)
    settings = settings_with(prompts=("cat", "dog"), n=3, batch_size=2, seed=5)
    with pytest.raises(KeyboardInterrupt):
        sampling.SAMPLES[Generator](GIVEN, settings, tmp_path)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["000005-cat.png", "000006-dog.png", "all.npz", "all.png"]
    record = records.read_record(str(tmp_path / "samples" / names[1]))
    assert records.place_of(record) == records.Place(1, 2, 5)
