"""Time inputs and input scales are finite everywhere and mean what their papers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.network_io import SCALE_INPUTS, TIME_INPUTS
from diffusion_jax.core.types import NoiseLevel


def level(log_snr, t=0.5):
    log_snr = jnp.asarray(log_snr, jnp.float32)
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    return NoiseLevel(jnp.full_like(log_snr, t), log_snr, alpha, sigma)


@pytest.mark.parametrize("table", [TIME_INPUTS, SCALE_INPUTS])
def test_every_entry_is_finite_at_the_ends_and_shaped_as_the_level(table):
    for name, factory in table.items():
        ends = level(jnp.array([-jnp.inf, 0.0, jnp.inf]))
        for some in (ends, level(-jnp.inf, 1.0), level(jnp.inf, 0.0)):
            out = factory()(some)
            assert out.shape == some.t.shape and out.dtype == jnp.float32, name
            assert jnp.isfinite(out).all(), name


def test_discrete_counts_the_table_from_zero():
    t = jnp.arange(1, 1001, dtype=jnp.float32) / 1000
    out = TIME_INPUTS["discrete"](1000)(level(jnp.zeros(1000))._replace(t=t))
    np.testing.assert_allclose(out, np.arange(1000), atol=2e-4)


def test_continuous_and_log_snr_span_their_scale():
    assert TIME_INPUTS["continuous"]()(level(0.0, 1.0)) == 1000
    of = TIME_INPUTS["log_snr"](scale=100.0)
    np.testing.assert_allclose(
        of(level(jnp.array([30.0, 20, 10, 0, -20, -30]))), [0, 0, 25, 50, 100, 100]
    )


def test_edm_noise_is_a_quarter_of_log_sigma():
    sigma = jnp.array([0.002, 1.0, 80.0])
    ve = NoiseLevel(sigma * 0, -2 * jnp.log(sigma), jnp.ones(3), sigma)
    np.testing.assert_allclose(TIME_INPUTS["edm"]()(ve), jnp.log(sigma) / 4, rtol=1e-5, atol=1e-7)


def test_edm_scale_gives_unit_variance_on_any_path():
    rng = np.random.default_rng(0)
    some = level(jnp.array([-3.0, 0.0, 5.0]))
    x0, eps = 0.5 * rng.normal(size=(2, 200_000)) * [[1], [2]]
    x = some.alpha[:, None] * x0 + some.sigma[:, None] * eps
    scaled = SCALE_INPUTS["edm"](sigma_data=0.5)(some)[:, None] * x
    np.testing.assert_allclose(scaled.std(axis=1), 1, atol=0.01)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TIME_INPUTS["discrete"](0), "steps=0"),
        (lambda: SCALE_INPUTS["edm"](0.0), "sigma_data=0.0"),
    ],
)
def test_impossible_options_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
