"""The one sampler: what of its values goes where, and whose key is whose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.apps.draw import make_sampler
from diffusion_jax.apps.plan import (
    Edit,
    Generator,
    Geometry,
    Inputs,
    Request,
    Sampler,
    Weights,
    noise_of,
)
from diffusion_jax.core import grids, network_io, process, schedules, targets
from diffusion_jax.core.sampling import STARTS, sample
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Model, Prediction
from diffusion_jax.models.autoencoders.codec import IDENTITY

SHAPE = (2, 3, 5, 1)
PROCESS = process.Process(schedules.cosine(), process.vp)
LEVELS = grids.uniform_log_snr(PROCESS, 4)
NOISE = jax.random.normal(jax.random.key(8), SHAPE)
START = NOISE * STARTS["prior"](jax.tree.map(lambda leaf: leaf[0], LEVELS))


def model_of(codec):
    return Model(
        net=lambda params, x, time, cond, *, key=None: 0.3 * x,
        process=PROCESS,
        target=targets.x0(),
        scale_in=network_io.unit(),
        time_in=network_io.log_snr(),
        codec=codec,
        condition=lambda frozen, batch: {},
        null=lambda frozen, cond: cond,
    )


def drawn(key, codec):
    sampler, inputs = Sampler(SOLVERS["ddim"](eta=1.0), LEVELS), Inputs({}, None, NOISE, 1.0)
    generator = Generator(
        model_of(codec), None, lambda requests: ({}, None), Geometry(SHAPE[1:]), None, {}
    )
    return make_sampler(generator, lambda model, weights: sampler)(Weights({}, {}), key, inputs)


def test_a_decoder_that_draws_changes_nothing_before_it():
    key = jax.random.key(3)
    of_solver, of_codec = jax.random.split(key)
    denoise = lambda x, level: targets.denoiser(model_of(IDENTITY), {})(x, level, {})
    wanted = sample(of_solver, SOLVERS["ddim"](eta=1.0), denoise, START, LEVELS)
    np.testing.assert_array_equal(drawn(key, IDENTITY), wanted)
    noise = lambda frozen, x, key: x + jax.random.normal(key, x.shape)
    added = drawn(key, IDENTITY._replace(decode=noise)) - wanted
    again = drawn(key, IDENTITY._replace(decode=noise)) - wanted
    np.testing.assert_array_equal(added, again)
    for other in (key, of_solver, of_codec, jax.random.split(of_codec)[0]):
        assert np.abs(added - jax.random.normal(other, SHAPE)).max() > 1e-2
    assert jnp.std(added) > 0.5


def planned(model, edits=(), inputs=None, **sampler):
    """make_sampler's pixels, of this model, with settings of the sampler."""
    settings = Sampler(SOLVERS["ddim"](), LEVELS, **sampler)
    generator = Generator(model, None, lambda requests: ({}, None), Geometry(SHAPE[1:]), None, {})
    inputs = Inputs({}, None, NOISE, 1.0) if inputs is None else inputs
    draw = make_sampler(generator, lambda model, weights: settings, edits)
    return draw(Weights({}, {"shift": 1.0}), jax.random.key(3), inputs)


def test_a_sampler_has_its_start_its_end_and_its_contrast():
    denoise = lambda x, level: targets.denoiser(model_of(IDENTITY), {})(x, level, {})
    first = jax.tree.map(lambda leaf: leaf[0], LEVELS)
    sampled = lambda x, end=None: sample(
        jax.random.key(0), SOLVERS["ddim"](), denoise, x, LEVELS, end
    )
    name = next(name for name in STARTS if name != "prior")
    deviation = lambda level: 3.0 * STARTS[name](level)
    end = PROCESS.at_log_snr(jnp.float32(1.0))
    codec = IDENTITY._replace(decode=lambda frozen, x, key: x + frozen["shift"])
    got = planned(model_of(codec), deviation=deviation, contrast=0.5, end=end)
    wanted = 0.5 * (sampled(NOISE * deviation(first), end) + 1)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert np.abs(sampled(NOISE, end) - sampled(NOISE)).max() > 1e-2
    # From a picture: alpha of it and sigma of the noise.
    picture = jnp.linspace(-1, 1, NOISE.size).reshape(SHAPE)
    edit = Edit(lambda *_: (), lambda drawing, arrays: drawing._replace(picture=arrays))
    inputs = Inputs({}, None, NOISE, 1.0, (picture,))
    got = planned(model_of(IDENTITY), (edit,), inputs, deviation=deviation)
    wanted = sampled(first.alpha * picture + first.sigma * NOISE)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_each_edit_has_its_arrays():
    edit = Edit(lambda *_: (), lambda drawing, arrays: drawing)
    with pytest.raises(ValueError, match="shorter"):
        planned(model_of(IDENTITY), (edit, edit), Inputs({}, None, NOISE, 1.0, ((),)))


@pytest.mark.parametrize(
    ("guided", "negative", "wanted"),
    [
        (True, {"n": 2.0}, ({"c": 2.0}, {"c": 3.0}, 7.0)),
        (True, None, ({"c": 2.0}, {"c": -2.0}, 7.0)),
        (False, None, ({"c": 2.0}, None, None)),
        (False, {"n": 2.0}, ({"c": 2.0}, {"c": 3.0}, None)),
    ],
)
def test_guidance_has_the_condition_the_negative_and_the_scale(guided, negative, wanted):
    seen = []

    def guidance(denoiser, cond, null, scale):
        seen.append((cond, null, scale))
        return lambda x, level: denoiser(x, level, cond)

    model = model_of(IDENTITY)._replace(
        condition=lambda frozen, rows: {"c": frozen["shift"] + rows["n"]},
        null=lambda frozen, cond: {"c": -frozen["shift"] - 1 + 0 * cond["c"]},
    )
    inputs = Inputs({"n": 1.0}, negative, NOISE, 7.0)
    planned(model, inputs=inputs, guidance=guidance, guided=guided)
    assert seen == [wanted]


def test_a_model_without_conditions_is_not_contrasted_and_a_student_gets_every_scale():
    seen = []
    guidance = lambda denoiser, cond, null, scale: (
        seen.append((null, scale)) or (lambda x, level: denoiser(x, level, cond))
    )
    planned(model_of(IDENTITY), guidance=guidance)
    assert seen == [(None, 1.0)]

    def student(model, params, cond, scale):
        seen.append((params, cond, scale))
        return lambda x, now, end=None: Prediction(0.3 * x, x)

    seen.clear()
    model = model_of(IDENTITY)._replace(student=student)
    inputs = Inputs({}, None, NOISE, 4.0)
    planned(model, inputs=inputs, guided=False, guidance=guidance)
    assert seen == [({}, {}, 4.0)]


def test_a_codec_encodes_and_decodes_with_keys_of_its_own():
    keys = {}
    codec = IDENTITY._replace(
        encode=lambda frozen, x, key: keys.update(encode=key) or frozen["shift"] * x,
        decode=lambda frozen, x, key: keys.update(decode=key) or x,
    )
    edit = Edit(
        lambda *_: (), lambda drawing, arrays: drawing._replace(picture=drawing.encode(arrays))
    )
    planned(model_of(codec), (edit,), Inputs({}, None, NOISE, 1.0, (NOISE,)))
    data = {name: jax.random.key_data(key).tolist() for name, key in keys.items()}
    assert data["encode"] != data["decode"]


def test_noise_of_an_image_is_that_of_its_seed_alone():
    got = noise_of([Request(seed=5), Request("a", seed=0)], (2, 3, 1))
    wanted = [jax.random.normal(jax.random.key(seed), (2, 3, 1)) for seed in (5, 0)]
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_learned_schedule_is_that_of_the_parameters():
    generator = Generator(model_of(IDENTITY), None, None, Geometry(SHAPE[1:]), None, {})
    assert generator.model_of({"a": 1}) is generator.model
    learned = generator._replace(process_of=lambda params: ("process of", params))
    assert learned.model_of({"a": 1}).process == ("process of", {"a": 1})
