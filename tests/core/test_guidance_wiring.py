"""From ``config.sampler`` to guidance, and the sentences on the way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from configs import mnist, toy2d
from diffusion_jax.apps.plan import Request, Sampler, Weights
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import runs, sampling
from diffusion_jax.core import guidance, targets
from diffusion_jax.core.types import Prediction
from diffusion_jax.jobs import drawing
from diffusion_jax.jobs.requests import settings_of


def _tiny(**sampler):
    config = mnist.get_config()
    config.model.unet.channels = 8
    config.model.unet.channel_mults = (1,)
    config.sampler.update(steps=2, **sampler)
    return config


def _points(**sampler):
    config = toy2d.get_config()
    config.model.mlp.update(width=16, depth=1)
    config.data.num_classes = 3
    config.sampler.update(steps=3, **sampler)
    return config


def _params(experiment, label):
    batch = {"image": jnp.zeros((2, *experiment.shape)), "label": label}
    tree = jax.eval_shape(experiment.recipe.init, jax.random.key(0), batch)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), tree)


LABELS = jnp.array([1, 2])


def _draw(config, scale=2.0):
    """(the jitted sampler, its arguments, what it belongs to)."""
    experiment = experiments.experiment(config)
    generator = experiment.generator._replace(weights=Weights(_params(experiment, LABELS), {}))
    sampler = drawing.open_sampler(settings_of(config, ""), generator)
    wanted = [Request(label=int(label)) for label in LABELS]
    inputs = drawing.inputs_of(sampler.generator, sampler.settings, (), wanted)
    inputs = inputs._replace(scale=jnp.float32(scale))
    return sampler.draw, (drawing.with_reference(sampler), jax.random.key(0), inputs), sampler


def _sampler_of(config, reference=None):
    generator = experiments.experiment(config).generator
    section = sampling.settled(settings_of(config, "").sampler, generator)
    return sampling.sampler_of(section, generator, reference)


def _sampler(config) -> Sampler:
    return _sampler_of(config)(experiments.experiment(config).model, Weights({}, {}))


def test_every_name_of_the_table_says_something_of_its_own():
    specs = ["cfg()", "interval(low=-3, high=-1)", "cfg_plus_plus()", "apg(eta=0.2, threshold=1)"]
    specs += ["rescaled(0.7)", "zero_star()"]
    assert {spec.split("(")[0] for spec in specs} | {
        *("autoguidance", "perturbed_attention", "skip_layers")
    } == set(guidance.GUIDANCES)
    model = experiments.experiment(_points()).model
    points = lambda spec: _points(guidance=spec, guidance_scale=0.8)
    weigh = [_sampler(points(spec)).guidance for spec in specs]
    params = _params(experiments.experiment(_points()), LABELS)

    @jax.jit
    def run(x, scale):
        level, conds = model.process.at(0.5), ({"label": LABELS}, {"label": jnp.full(2, 3)})
        plain = targets.denoiser(model, params)
        return [each(plain, *conds, scale)(x, level)[:2] for each in weigh]

    each = np.asarray(run(jnp.ones((2, 2)), 0.8))
    assert np.isfinite(each).all()
    for i in range(len(specs)):
        assert all(not np.allclose(each[i], each[j], rtol=1e-4) for j in range(i)), specs[i]


def test_a_new_scale_compiles_nothing():
    draw, arguments, _ = _draw(_points(guidance="apg()", guidance_scale=2.0))
    other = arguments[-1]._replace(scale=jnp.float32(4.0))
    first, second = draw(*arguments), draw(*arguments[:-1], other)
    assert draw._cache_size() == 1
    assert not np.allclose(first, second)


@pytest.mark.parametrize("spec", ["perturbed_attention(scale=2)", "skip_layers(2, layers=[0])"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_perturbed_networks_are_asked_with_and_without_a_null(spec, scale):
    config = _tiny(guidance=spec, guidance_scale=scale)
    draw, arguments, _ = _draw(config, scale)
    assert jax.eval_shape(draw, *arguments).shape == (2, 28, 28, 1)
    batches = []

    def net(x, level, cond):
        batches.append(len(x))
        return Prediction(x, x)

    null = {"label": jnp.full(2, 10)} if _sampler(config).guided else None
    weigh = _sampler(config).guidance
    level = experiments.experiment(config).model.process.at(0.5)
    denoise = weigh(net, {"label": LABELS}, null, scale if null else None)
    assert denoise(jnp.zeros((2, 28, 28, 1)), level).x0.shape == (2, 28, 28, 1)
    assert batches == [4 if scale == 1.0 else 6]


def test_a_reference_guides_and_is_no_constant_of_the_program(monkeypatch):
    config = _points(guidance="autoguidance()", reference="elsewhere", guidance_scale=1.7)
    experiment = experiments.experiment(config)
    params = _params(experiment, LABELS)
    worse = jax.tree.map(lambda leaf: 0.5 * leaf, params)
    run = runs.Run(config, experiment, worse, 1)
    monkeypatch.setattr(drawing, "open_reference", lambda section, generator: run)
    draw, arguments, sampler = _draw(config, 1.7)
    jax.tree.map(np.testing.assert_array_equal, sampler.reference, worse)
    assert arguments[0].frozen == {sampling.REFERENCE: sampler.reference}
    got = draw(*arguments)
    placed = arguments[0].params
    same = draw(Weights(placed, {sampling.REFERENCE: placed}), *arguments[1:])
    assert draw._cache_size() == 1
    monkeypatch.setattr(drawing, "open_reference", lambda section, generator: None)
    plain = _points(guidance_scale=1.0)
    alone, arguments, _ = _draw(plain)
    assert_allclose(same, alone(*arguments), rtol=1e-3, atol=1e-3)
    assert not np.allclose(got, same, rtol=1e-2)


def test_bounds_are_around_the_guidance():
    posts = ("clip(-0.5, 0.5)", "dynamic_threshold(percentile=0.9, limit=0.25)")
    for scale in (1.0, 3.0):
        draw, arguments, _ = _draw(_points(post=posts, guidance_scale=scale), scale)
        assert np.abs(draw(*arguments)).max() <= 0.25 + 1e-6


def test_the_scale_of_1_is_the_plain_model_at_half_the_cost():
    for spec in guidance.GUIDANCES:
        config = _tiny(guidance=f"{spec}()", guidance_scale=1.0)
        experiment = experiments.experiment(config)
        worse = experiment.generator if spec == "autoguidance" else None
        weights = Weights({}, {sampling.REFERENCE: {}})
        found = _sampler_of(config, worse)(experiment.model, weights)
        assert found.guided == (spec == "cfg_plus_plus")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guidance": "cgf()"}, ["sampler.guidance", "known are apg"]),
        ({"guidance": "apg(theta=1)"}, ["sampler.guidance", "theta", "eta"]),
        ({"guidance": "rescaled(phi='x')"}, ["phi must be of type float"]),
        ({"guidance": "cfg_plus_plus()"}, ["guidance_scale = 2.0", "0 to 1"]),
        ({"guidance": "autoguidance()"}, ["sampler.reference", "folder of a worse run"]),
        ({"guidance": "perturbed_attention(layers='up_7')"}, ["sampler.guidance", "up_7", "0 mid"]),
        ({"guidance": "skip_layers(layers=99)"}, ["sampler.guidance", "99", "mid"]),
        ({"post": ("dynamic()",)}, ["sampler.post", "dynamic_threshold"]),
    ],
)
def test_a_wrong_field_is_named_with_its_mend(fields, words):
    config = _tiny(**fields)
    with pytest.raises(ValueError) as error:
        _sampler_of(config)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_network_without_attention_has_none_to_perturb():
    config = _points(guidance="perturbed_attention()")
    with pytest.raises(ValueError, match=r"sampler.guidance = 'perturbed_attention\(\)'.*has none"):
        _sampler_of(config)


def test_a_reference_that_nothing_reads_or_of_other_data_is_a_sentence(tmp_path):
    config = _tiny(reference=str(tmp_path))
    with pytest.raises(ValueError, match="nothing else reads one"):
        _sampler_of(config, experiments.experiment(config).generator)
    other = _tiny()
    other.data.num_classes = 5
    (tmp_path / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(ValueError, match=r"data.num_classes = 5, and this one has 10"):
        runs.open_reference(config.sampler, experiments.experiment(config).generator)


def test_a_run_older_than_a_field_takes_its_default(tmp_path):
    held = _tiny().to_dict()
    for name in ("guidance", "post", "reference", "reference_params"):
        del held["sampler"][name]
    del held["evaluate"]["quality"]
    held["sampler"]["steps"] = 7
    (tmp_path / "config.json").write_text(json.dumps(held))
    config = runs.run_config(tmp_path, {"sampler.guidance": "apg()"})
    assert (config.sampler.guidance, config.sampler.post, config.sampler.steps) == ("apg()", (), 7)
    assert config.evaluate.quality is True
