"""A run in one precision goes on, and samples, in another: parameters are float32 in both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mnist
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import runs, training
from diffusion_jax.spec import plain
from diffusion_jax.train.checkpoint import restore_params
from diffusion_jax.train.loop import train

pytestmark = pytest.mark.whole

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


def _config(dtype, steps):
    config = mnist.get_config()
    config.data.image_size = (8, 8)
    config.model.unet.update(channels=8, channel_mults=(1,), num_res_blocks=1, dtype=dtype)
    config.train.update(steps=steps, batch_size=8, log_every=1, checkpoint_every=0)
    config.optimizer.update(warmup=1, schedule="constant()")  # two steps change what the net says
    return config


def _data(start):
    while True:
        draw = np.random.default_rng(start)
        image = draw.normal(size=(8, 8, 8, 1)).astype(np.float32)
        yield {"image": image, "label": draw.integers(0, 10, 8).astype(np.int32)}
        start += 1


def _train(folder, dtype, steps):
    config = _config(dtype, steps)
    recipe, settings = experiments.experiment(config).recipe, training.training(config)
    return train(recipe, data=_data, folder=folder, config=plain(config), **settings)


@pytest.fixture(scope="module", params=OTHER)
def run(request, tmp_path_factory):
    """Two steps in one precision: folder, its name, the state."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, request.param, _train(folder, request.param, 2)


def _predicted(folder, dtype):
    """What the sampler's network says, in a precision."""
    config = runs.run_config(folder, {"model.unet.dtype": dtype, "sampler.params": "params"})
    opened = runs.open_run(config, folder)
    model = opened.experiment.model_of(opened.params)
    batch = next(_data(7))
    cond = {"label": jnp.asarray(batch["label"])}
    said = jax.jit(model.net)(opened.params, batch["image"], jnp.full(8, 0.5), cond)
    return np.asarray(said, np.float32)


def test_it_samples_in_the_other(run):
    folder, dtype, _ = run
    own, other = _predicted(folder, dtype), _predicted(folder, OTHER[dtype])
    assert np.isfinite(other).all() and np.std(own) > 0
    apart = np.sqrt(np.mean((own - other) ** 2) / np.mean(own**2))
    assert 0 < apart < 0.03  # bfloat16 has 8 bits


def test_it_goes_on_in_the_other(run, tmp_path):
    """From the same numbers bit for bit, by a step that rounds otherwise."""
    folder, dtype, state = run
    jax.tree.map(np.testing.assert_array_equal, restore_params(folder, "params"), state.params)
    further = _train(folder, OTHER[dtype], 3)
    alone = _train(tmp_path, dtype, 3)
    for ours, theirs in zip(*map(jax.tree.leaves, (further.params, alone.params)), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=2.1 * 2e-3)  # a step of Adam either way
    moved = lambda a, b: np.concatenate(
        [np.ravel(x - y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    )
    one, two = moved(further.params, state.params), moved(alone.params, state.params)
    assert np.dot(one, two) > 0.9 * np.linalg.norm(one) * np.linalg.norm(two)
