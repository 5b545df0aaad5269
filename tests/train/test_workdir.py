import json

import pytest

from diffusion_jax.train import workdir

CONFIG = {"seed": 3, "model": {"dims": (8, 8), "width": 4}, "train": {"steps": 10, "batch_size": 2}}


def _changed(**fields):
    config = json.loads(json.dumps(CONFIG))
    for field, value in fields.items():
        section, _, name = field.partition("__")
        config[section] = {**config.get(section, {}), name: value} if name else value
    return config


def test_a_new_folder_is_made_and_the_same_config_is_welcome(tmp_path):
    folder = tmp_path / "runs" / "new"
    workdir.claim(folder, CONFIG)
    workdir.claim(folder, CONFIG)
    assert workdir.read_config(folder) == json.loads(json.dumps(CONFIG))
    assert [p.name for p in folder.iterdir()] == [workdir.CONFIG]


@pytest.mark.parametrize(
    "free", [{"train__steps": 20}, {"sampler__guidance_scale": 3.0}, {"mesh__fsdp": 2}]
)
def test_what_changes_no_step_may_change(tmp_path, free):
    workdir.claim(tmp_path, CONFIG)
    workdir.claim(tmp_path, _changed(**free))
    assert workdir.read_config(tmp_path) == _changed(**free)


def test_another_config_is_refused_by_its_fields_and_nothing_is_lost(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    other = _changed(seed=1, model__width=5, extra=3, train__steps=7)
    says = "extra is 'absent' there and 3 here; model.width is 4 there and 5 here; seed is 3 there"
    with pytest.raises(ValueError, match=says):
        workdir.claim(tmp_path, other)
    assert workdir.read_config(tmp_path) == json.loads(json.dumps(CONFIG))


def test_many_differences_are_counted(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="and 2 more differ; give a new --workdir"):
        workdir.claim(tmp_path, {"a": 1})


@pytest.mark.parametrize("empty", ["", 0, None, [], False])
def test_a_field_that_an_older_run_lacks_may_be_empty(tmp_path, empty):
    workdir.claim(tmp_path, CONFIG)
    workdir.claim(tmp_path, _changed(text__encoder=empty))
    with pytest.raises(ValueError, match=r"text\.encoder is .* there and 'minilm\(\)' here"):
        workdir.claim(tmp_path, _changed(text__encoder="minilm()"))


def test_a_folder_without_a_run_or_with_a_broken_one(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: config\.json is missing"):
        workdir.read_config(tmp_path)
    (tmp_path / workdir.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        workdir.claim(tmp_path, CONFIG)
