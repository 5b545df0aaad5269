"""The recipe of a learned schedule: its loss and gradients in closed form, and a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from configs import toy2d
from diffusion_jax import jobs
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build import sampling
from diffusion_jax.build.runs import open_run
from diffusion_jax.core import (
    continuous_bound,
    learned_schedule,
    network_io,
    proposals,
    targets,
)
from diffusion_jax.core.process import Process, vp
from diffusion_jax.core.types import Context, Model
from diffusion_jax.jobs.requests import settings_of
from diffusion_jax.models.autoencoders.codec import IDENTITY
from diffusion_jax.recipes.variational import variational

B, D, LOW, HIGH = 8192, 2, -10.0, 8.0


def _loss(net):
    """(params, key) -> (loss, metrics) on x0 ~ N(0, 1/4)."""
    learned = learned_schedule.learned(LOW, HIGH, 8)
    process_of = lambda params: Process(learned.schedule(params), vp)
    model = Model(
        net=net,
        process=None,
        target=targets.eps(),
        scale_in=network_io.unit(),
        time_in=network_io.log_snr(),
        codec=IDENTITY,
        condition=lambda frozen, batch: {},
        null=lambda frozen, cond: {},
    )
    decoder = continuous_bound.gaussian_direct()
    recipe = variational(
        model, lambda *a: {}, learned.init, process_of, proposals.stratified(), decoder
    )
    batch = {"image": 0.5 * jax.random.normal(jax.random.key(1), (B, D))}
    params = recipe.init(jax.random.key(0), batch)
    context = Context(jnp.int32(0), {}, {}, recipe.carry())
    return params, jax.jit(
        jax.value_and_grad(lambda params: recipe.loss(params, context, batch, jax.random.key(2)),
        has_aux=True)
    )  # fmt: skip


def test_the_loss_of_the_exact_denoiser_is_the_entropy_of_the_data():
    def best(params, x, time, cond, key=None):
        alpha, sigma = vp(20 - 40 * time / 1000)
        return (sigma / (alpha**2 / 4 + sigma**2))[:, None] * x

    params, loss = _loss(best)
    (value, report), _ = loss(params)
    entropy = 0.5 * np.log(2 * np.pi * np.e / 4)
    # One draw for each example: the steps are of mean 3.7 and of deviation about 4.
    assert abs(float(value) - entropy) < 4 * 4 / np.sqrt(B)
    bits = sum(float(report.metrics[f"bits_{name}"]) for name in ("prior", "steps", "decoder"))
    assert_allclose(bits, value / np.log(2), rtol=1e-4)
    assert_allclose(float(report.metrics["log_snr_high"]), HIGH, rtol=1e-5)


def test_the_ends_follow_the_bound():
    """With eps_hat = 0 steps cost ½·(high - low), and the decoder ½·log(2πe) - ½·high."""
    params, loss = _loss(lambda params, x, time, cond, key=None: jnp.zeros_like(x))
    (_, report), gradient = loss(params)
    assert abs(float(report.metrics["bits_steps"]) * np.log(2) - (HIGH - LOW) / 2) < 0.5
    ends = gradient["schedule"]["ends"]
    # Both ends move with low: -½ of the decoder, and the little that the prior asks for.
    assert abs(float(ends["low"]) + 0.5) < 0.05
    # With the span only high moves: ½ of the steps and -½ of the decoder.
    assert abs(float(ends["log_span"])) < (HIGH - LOW) * 0.05
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient["schedule"])) > 0


def _config(steps=30):
    config = toy2d.get_config("checkerboard")
    config.process.schedule = "learned(low=-9, high=9, width=8)"
    config.loss.weight = "elbo()"
    config.train.update(steps=steps, batch_size=64, sample_every=steps, checkpoint_every=steps)
    config.train.update(log_every=10)
    config.optimizer.update(learning_rate=0.02, warmup=1)
    config.sampler.update(steps=4, n=20, batch_size=20)
    config.evaluate.update(likelihood="continuous_bound(n=4)", likelihood_n=10)
    config.evaluate.likelihood_batch_size = 4
    return config


@pytest.mark.whole
def test_a_run_trains_its_schedule_and_samples_and_evaluates_by_it(tmp_path):
    jobs.train(_config(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"bits_steps", "log_snr_high"} <= set(lines[-1])
    config = jobs.run_config(tmp_path)
    assert jobs.sample(config, tmp_path).images.shape == (20, 2)
    run = open_run(config, tmp_path)
    model, first = run.experiment.model_of(run.params), run.experiment.model.process
    process = model.process
    low = run.params["schedule"]["ends"]["low"]
    assert_allclose(process.at(1.0).log_snr, low, rtol=1e-5)
    assert abs(float(process.at(1.0).log_snr - first.at(1.0).log_snr)) > 0.01
    assert float(first.at(1.0).log_snr) == pytest.approx(-9, abs=1e-4)
    generator = run.generator()
    section = sampling.settled(settings_of(config, tmp_path).sampler, generator)
    levels = sampling.sampler_of(section, generator)(model, generator.weights).levels
    assert_allclose(levels.log_snr, process.at(levels.t).log_snr, rtol=1e-6)
    figures = jobs.evaluate(config, tmp_path)  # 10 points in batches of 4: the last is cut
    bits = figures["bits/dim (continuous bound)"]
    assert bits.n == 10 and np.isfinite(bits.value)
    assert_allclose(figures["nats of a point"].value, bits.value * 2 * np.log(2), rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("loss.weight", "simple()", "set config.loss.weight = 'elbo"),
        ("loss.proposal", "logit_normal()", "does not draw t uniformly"),
        ("process.zero_terminal_snr", True, "no meaning for a learned schedule"),
        ("process.schedule", "learned(low=2, high=1)", "low must be below high"),
        ("process.schedule", "lerned()", "known are .*learned"),
    ],
)
def test_wrong_requests_are_sentences(field, value, words):
    config = _config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=words):
        experiments.experiment(config)
