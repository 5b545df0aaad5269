"""What the report of few-step methods trains can be built: a typo fails before hours of it."""

import importlib

import pytest

from diffusion_jax.build.few_step.methods import METHODS
from diffusion_jax.spec import build
from scripts.few_steps.rows import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_every_setting_names_a_method_and_fields(name):
    row = ROWS[name]
    for setting in row.settings.values():
        for stage in setting.stages:
            config = importlib.import_module(f"configs.distill.{stage.config}").get_config()
            build(METHODS, stage.distill, "distill", total=600)
            config.update_from_flattened_dict(dict(stage.fields))
        assert set(row.sampler) <= set(config.sampler)
    for stage in (row.stage or {}).values():
        assert all(abs(stage) <= len(setting.stages) for setting in row.settings.values())
