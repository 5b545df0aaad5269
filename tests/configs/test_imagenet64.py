import jax
import jax.numpy as jnp
import pytest

from configs import imagenet64
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import sampling, training


def test_the_network_has_the_size_of_the_paper():
    config = imagenet64.get_config()
    recipe = experiments.experiment(config).recipe
    shape = jax.ShapeDtypeStruct
    batch = {"image": shape((2, 64, 64, 3), jnp.float32), "label": shape((2,), jnp.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(recipe.init, key, batch)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(count / 296e6 - 1) < 0.001  # Dhariwal & Nichol 2021, table 12


def test_it_samples_at_250_of_its_1000_levels():
    config = imagenet64.get_config()
    _, levels = sampling.solver_and_levels(config.sampler, experiments.experiment(config).model)
    assert levels.t.shape == (250,)
    assert (float(levels.t[0]), float(levels.t[-1])) == (1.0, pytest.approx(1e-3))


def test_absent_images_are_named_with_their_command(tmp_path):
    config = imagenet64.get_config()
    config.data.dir = str(tmp_path)
    with pytest.raises(
        ValueError, match=r"image_folder/imagenet is not prepared .* run `python sc"
    ):
        training.training_data(config)
