"""Signs of failure: each is made to happen, is told once, and healthy runs are left alone."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from diffusion_jax.train.log import METRICS
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.symptoms import SIGNS, Watch, spread

OLD = pathlib.Path(__file__).parents[1] / "fixtures" / "run_0"
RNG = np.random.default_rng(0)


def healthy(steps):
    """Loss and gradient of a run that learns, with the noise of batches; a game that is even."""
    for step in range(1, steps + 1):
        wobble = lambda size: float(np.exp(size * RNG.normal()))
        yield {
            "loss": (0.2 + np.exp(-step / 300)) * wobble(0.2),
            "grad_norm": (0.3 + 3 * np.exp(-step / 100)) * wobble(0.5),
            "param_norm": 10 + step / 1000,
            "logit_real": 1 + 0.3 * RNG.normal(),
            "logit_made": -1 + 0.3 * RNG.normal(),
            "generator": 1 + 0.1 * RNG.normal(),
            "spread": 0.8 * wobble(0.1),
        }


def told(stream, start=1):
    """Names of the signs, and the sentences."""
    watch, said = Watch(), []
    for step, metrics in enumerate(stream, start):
        said += watch.see(step, metrics)
    return watch.reported, said


def with_(changes, steps=2500, after=0):
    """A healthy run in which some metrics go another way."""
    for step, metrics in enumerate(healthy(steps), 1):
        own = {name: f(step) for name, f in changes.items()} if step > after else {}
        yield {**metrics, **own}


FAILURES = {
    "spikes": ({"grad_norm": lambda step: 50.0 if step % 30 == 0 else 0.3}, 600),
    "exploding": ({"loss": lambda step: 0.3 * 1.01 ** (step - 600)}, 600),
    "stuck": ({"param_norm": lambda step: 12.5}, 600),
    "flat": (
        {"loss": lambda step: 1.0 + 0.2 * RNG.normal(), "generator": lambda step: np.nan}, 0,
    ),  # of no game, whose losses balance
    "saturated": (
        {"logit_real": lambda step: 6.0, "logit_made": lambda step: -6.0 - step / 1000,
         "generator": lambda step: 6.0 + step / 1000}, 600,
    ),
    "constant": ({"spread": lambda step: 0.8 * 0.99 ** (step - 600)}, 600),
    "alike": ({"sample_spread": lambda step: 0.001}, 600),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNS)
def test_a_failure_is_told_once_and_says_what_to_try(name):
    changes, after = FAILURES[name]
    names, said = told(with_(changes, after=after))
    assert names == [name] and len(said) == 1
    step = int(said[0].split(":")[0].removeprefix("step "))
    assert after < step < 2500 and said[0].endswith(SIGNS[name].mend)


def test_a_healthy_run_is_left_alone():
    assert told(healthy(4000)) == ([], [])
    # Nor one with a moving loss of any sign, a weight that makes it 1, a start anew, or a NaN.
    signed = ({**m, "loss": m["loss"] - 0.5} for m in healthy(2500))
    assert told(signed) == ([], [])
    adaptive = ({**m, "error": m["loss"], "loss": 1.0} for m in healthy(2500))
    assert told(adaptive) == ([], [])
    resumed = ({**m, "loss": 0.2 + 0.01 * RNG.normal()} for m in healthy(2500))
    assert told(resumed, start=5001) == ([], [])
    assert told([{"loss": float("nan"), "grad_norm": float("inf")}] * 300) == ([], [])


def test_lines_of_a_run_are_healthy(tmp_path):
    tiny.run(tmp_path)
    for folder in (tmp_path, OLD):
        lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        assert len(lines) > 1 and not any("warnings" in line for line in lines)
        assert told(lines) == ([], [])


def test_a_run_tells_it_on_its_way_and_counts_it(tmp_path, capfd, monkeypatch):
    def damaged(params, context, batch, key, own=tiny.RECIPE.loss):
        loss, report = own(params, context, batch, key)
        return loss * jnp.where((context.step > 26) & (context.step % 2 == 1), 100.0, 1.0), report

    monkeypatch.setattr(tiny, "RECIPE", tiny.RECIPE._replace(loss=damaged))
    shown = {"sample_spread": np.float32(0.0), "image": np.zeros((2, 2, 1), np.uint8)}
    hook = Hook(40, lambda step, state: shown)
    tiny.run(tmp_path, hooks=[hook])
    err = capfd.readouterr().err
    assert err.count("grad_norm was over 10 times its median") == 1
    assert err.count("samples are all alike") == 1
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    counts = {line["step"]: line.get("warnings") for line in lines}
    assert counts[25] is None and counts[35] == 1.0 and counts[40] == 2.0


def test_the_spread_of_samples_is_within_what_was_asked_for():
    images = RNG.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    labels = np.arange(20) % 5
    assert abs(spread(images, labels) - 256 / np.sqrt(12) / 127.5) < 0.05
    classes = images[:5][labels]  # one picture of each class: different ones, and yet collapsed
    assert spread(classes, labels) == 0
    assert spread(classes[:5], labels[:5]) > 0.4  # of one each nothing more can be told
    points = np.stack([np.full(8, 2.0), np.linspace(-1, 1, 8)], 1)
    assert abs(spread(points, np.zeros(8)) - points.std(0, ddof=1)[1] / np.sqrt(2)) < 1e-9
    assert np.isnan(spread(images[:1], labels[:1]))
