"""Every config builds, and its training step has consistent shapes: a typo fails in seconds."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import sampling, training
from diffusion_jax.train.state import abstract_state
from diffusion_jax.train.step import make_step

pytestmark = pytest.mark.whole

CONFIGS = [
    "mnist",
    "fashion_mnist",
    "emoji",
    "cifar10:ddpm",
    "cifar10:edm",
    "toy2d",
    "toy2d:checkerboard",
    "emoji_text_pixel",
    "emoji_autoencoder",
    "imagenet256_dit",
]


EMPTY = SimpleNamespace(example={})  # the condition of a first stage


def load(name):
    file, _, argument = name.partition(":")
    get = importlib.import_module(f"configs.{file}").get_config
    return get(argument) if argument else get()


@pytest.fixture(scope="module")
def small():
    """Batches of two: shapes alone are looked at."""

    def of(config):
        config.train.batch_size = 2
        return config

    return of


@pytest.mark.parametrize("name", CONFIGS)
def test_the_step_of_every_config_has_consistent_shapes(name, small):
    config = small(load(name))
    experiment, settings = experiments.experiment(config), training.training(config)
    batch = {"image": jax.ShapeDtypeStruct((2, *experiment.shape), jnp.float32)}
    for name, one in getattr(experiment, "conditioning", EMPTY).example.items():
        batch[name] = jax.ShapeDtypeStruct((2, *one.shape[1:]), one.dtype)
    state = abstract_state(experiment.recipe, settings["tx"], settings["ema"], batch)
    step = make_step(experiment.recipe, settings["tx"], settings["ema"], seed=0)
    frozen = jax.eval_shape(experiment.frozen)
    after, metrics = jax.eval_shape(step, state, frozen, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "emoji_autoencoder"])
def test_the_sampler_of_every_config_can_be_built(name):
    config = load(name)
    _, levels = sampling.solver_and_levels(config.sampler, experiments.experiment(config).model)
    assert levels.t.shape == (config.sampler.steps,)
    assert bool(jnp.all(jnp.diff(levels.log_snr) > 0))


def test_the_ddpm_network_has_the_size_of_the_paper():
    config = load("cifar10:ddpm")
    experiment = experiments.experiment(config)
    batch = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(experiment.recipe.init, key, batch)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(count / 35.7e6 - 1) < 0.005  # Ho et al. 2020, appendix B: 35.7 million


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("process.schedule", "cosin()", ["process.schedule", "cosin", "known are", "cosine"]),
        ("process.path", "xp", ["process.path", "known are", "rectified"]),
        ("model.target", "noise", ["model.target", "known are", "eps"]),
        ("model.name", "vit", ["model.name", "unet"]),
        ("loss.weight", "min_snr(gama=5)", ["loss.weight", "gama"]),
        ("loss.terms", (), ["loss.terms", "regression"]),
        ("loss.terms", ("variational()",), ["variational(steps=1000)"]),
        ("optimizer.schedule", "cos", ["optimizer.schedule", "cosine"]),
        ("optimizer.learning_rate", -1.0, ["optimizer.learning_rate", "-1.0"]),
        ("ema", "warmup(decay=2)", ["ema", "decay"]),
        ("sampler.solver", "eulr", ["sampler.solver", "ddim"]),
        ("sampler.solver", "ddpm('large')", ["fixed_large"]),
        ("sampler.grid", "karass()", ["sampler.grid", "trailing"]),
        ("sampler.grid", "karras(roh=3)", ["sampler.grid", "rho"]),
        ("sampler.grid", "restart(rounds=30)", ["levels for the descent", "sampler.steps"]),
        ("sampler.solver", "heun(eta=1)", ["eta", "heun()"]),
        ("sampler.solver", "lms(order=7)", ["lms(order=7)", "1 to 4"]),
        ("sampler.solver", "unipc(variant='bh3')", ["bh1, bh2"]),
        ("sampler.steps", 0, ["sampler.steps", "at least 1"]),
        ("mesh.data", 7, ["config.mesh", "devices"]),
        ("data.image_size", (30, 30), ["30x30", "28x28 or 32x32"]),
    ],
)
def test_a_wrong_field_is_named_with_its_mend(field, value, words):
    config = load("mnist")
    config.unlock()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError) as error:
        experiment, settings = experiments.experiment(config), training.training(config)
        sampling.solver_and_levels(config.sampler, experiment.model)
        batch = {
            "image": jax.ShapeDtypeStruct((2, *experiment.shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((2,), jnp.int32),
        }
        state = abstract_state(experiment.recipe, settings["tx"], settings["ema"], batch)
        step = make_step(experiment.recipe, settings["tx"], settings["ema"], seed=0)
        jax.eval_shape(step, state, {}, batch)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_more_steps_than_the_table_has():
    config = load("cifar10:ddpm")
    config.sampler.steps = 1001
    with pytest.raises(ValueError, match="more than the 1000 steps"):
        sampling.solver_and_levels(config.sampler, experiments.experiment(config).model)


def test_eps_from_pure_noise_is_refused():
    config = load("mnist")
    config.model.target = "eps()"
    config.process.schedule = "linear()"
    config.process.zero_terminal_snr = True
    with pytest.raises(ValueError, match="says nothing of x0 at t = 1"):
        experiments.experiment(config)
