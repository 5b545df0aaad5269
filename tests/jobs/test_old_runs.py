"""A run that an earlier version left (``fixtures/run_0``: points in the plane, 20 steps)."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import toy2d
from diffusion_jax import jobs
from diffusion_jax.train.checkpoint import restore_params, steps

pytestmark = pytest.mark.whole

OLD = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0"


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(OLD, tmp_path / "run")


def _config(**changes):
    config = toy2d.get_config("moons")
    config.model.mlp.update(width=8, depth=1)
    config.train.update(
        steps=20, steps_per_call=1, batch_size=16, checkpoint_every=10, log_every=10
    )
    config.train.update(sample_every=0, **changes)
    config.sampler.update(n=50, steps=4)
    return config


def test_its_parameters_load(run):
    assert steps(run) == [20]
    loaded = restore_params(run, "params")
    assert set(loaded) == {"net", "terms"}
    samples = jobs.sample(jobs.run_config(run), run)
    assert samples.images.shape == (50, 2) and np.isfinite(samples.images).all()


def test_it_goes_on(run):
    state = jobs.train(_config(steps=30), run)
    assert int(state.step) == 30 and steps(run)[-1] == 30
    before, after = restore_params(OLD, "params"), restore_params(run, "params")
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert all(0 < size < 1 for size in jax.tree.leaves(moved))  # from where it was, not anew


def test_what_its_parameters_mean_may_not_change(run):
    config = _config()
    config.model.mlp.width = 16
    with pytest.raises(ValueError, match=r"model\.mlp\.width is 8 there and 16 here"):
        jobs.train(config, run)
