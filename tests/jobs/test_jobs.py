"""A whole trip on real digits at toy size: train, resume, sample, evaluate; and what goes wrong."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import mnist, toy2d
from diffusion_jax import jobs
from diffusion_jax.build import runs
from diffusion_jax.jobs import run_samples

pytestmark = pytest.mark.whole

ROOT = pathlib.Path(__file__).parents[2]


def tiny(steps=4):
    config = mnist.get_config()
    config.model.unet.channels = 8
    config.model.unet.channel_mults = (1, 1)
    config.train.update(steps=steps, batch_size=8, log_every=1, sample_every=4, checkpoint_every=2)
    config.optimizer.warmup = 1
    config.sampler.update(steps=3, n=10, batch_size=10)
    config.evaluate.update(n=20, quality=True, class_accuracy=False)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, jobs.train(tiny(), folder)


def test_a_run_leaves_what_it_promises(run):
    folder, state = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 4
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "4"]
    assert int(state.step) == 4
    stored = np.load(folder / "samples" / "step_0000004.npz")
    assert stored["images"].shape == (10, 28, 28, 1) and stored["images"].dtype == np.uint8
    assert stored["labels"].tolist() == list(range(10))
    for picture in ("step_0000004.png", "strip.png", "strip.gif"):
        assert min(Image.open(folder / "samples" / picture).size) > 50
    way = np.load(folder / "samples" / "strip.npz")
    assert way["x_t"].shape == way["x0"].shape == (3, 28, 28, 1) and way["t"].shape == (3,)
    assert any((folder / "tensorboard").iterdir())
    assert not list(folder.rglob(".*.png")) and not list(folder.rglob("*.tmp"))


def test_sampling_reads_the_average_and_repeats_itself(run):
    folder, state = run
    config = jobs.run_config(folder, {"sampler.n": 5, "sampler.labels": (3,)})
    first, second = jobs.sample(config, folder), jobs.sample(config, folder)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.labels.tolist() == [3] * 5
    from diffusion_jax.build.runs import open_run

    opened = open_run(config, folder).params["net"]
    jax.tree.map(np.testing.assert_array_equal, opened, jax.device_get(state.ema["net"]))
    other = jobs.sample(jobs.run_config(folder, {"sampler.n": 5, "sampler.seed": 1}), folder)
    assert not np.array_equal(first.images, other.images)


def test_evaluation_prints_each_figure_with_its_count_and_spread(run, capsys):
    folder, _ = run
    config = jobs.run_config(folder, {"evaluate.likelihood": "variational_bound(n=2)"})
    config.evaluate.likelihood_n = config.evaluate.likelihood_batch_size = 10
    figures = jobs.evaluate(config, folder)
    printed = capsys.readouterr().out
    distance = "Fréchet distance (EfficientNet-Lite0, 64 px)"
    assert distance in printed and "FID" not in printed and "n = 20" in printed
    assert figures[distance].value > 0 and figures[distance].spread > 0
    bits = figures["bits/dim (variational bound)"]
    assert bits.n == 10 and np.isfinite(bits.value)
    parts = [figures[f"  of which {part}"].value for part in ("prior", "steps", "decoder")]
    assert abs(sum(parts) - bits.value) < 1e-3
    terms = json.loads((folder / "likelihood.json").read_text())
    assert len(terms["steps"]) == 2
    assert json.loads((folder / "evaluation.json").read_text())["step"] == 4


def test_another_config_in_the_folder_is_refused(run):
    folder, _ = run
    config = tiny()
    config.optimizer.learning_rate = 1e-3
    with pytest.raises(ValueError, match=r"another config: optimizer.learning_rate is 0.002 there"):
        jobs.train(config, folder)
    with pytest.raises(ValueError, match=r"process\.schedule says what the parameters"):
        jobs.run_config(folder, {"process.schedule": "linear()"})
    other = tiny()
    other.model.target = "x0()"
    with pytest.raises(ValueError, match=r"another model: config.model.target is 'v\(\)' there"):
        jobs.sample(other, folder)


def test_wrong_requests_are_sentences(run, tmp_path):
    folder, _ = run
    with pytest.raises(ValueError, match="labels are 0 to 9"):
        jobs.sample(jobs.run_config(folder, {"sampler.labels": (10,)}), folder)
    with pytest.raises(ValueError, match=r"config.json is missing; train there first"):
        jobs.sample(tiny(), tmp_path)
    nothing = {"evaluate.quality": False, "evaluate.class_accuracy": False}
    with pytest.raises(ValueError, match="chooses nothing"):
        jobs.evaluate(jobs.run_config(folder, nothing), folder)
    missing = tiny()
    missing.data.update(name="fashion_mnist", dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"prepare_data.py fashion_mnist"):
        jobs.train(missing, tmp_path / "run")
    none = tiny(steps=0)
    with pytest.raises(ValueError, match=r"config.train.steps = 0"):
        jobs.train(none, tmp_path / "none")


def test_points_in_the_plane_take_the_same_road(tmp_path):
    config = toy2d.get_config("ring")
    config.train.update(steps=20, sample_every=20, checkpoint_every=20)
    config.sampler.update(steps=4, n=50, batch_size=50)
    jobs.train(config, tmp_path)
    assert np.load(tmp_path / "samples" / "step_0000020.npz")["images"].shape == (50, 2)
    assert (tmp_path / "samples" / "strip.png").exists()
    config.evaluate.quality = True
    with pytest.raises(ValueError, match="has no images"):
        jobs.evaluate(config, tmp_path)


@pytest.mark.filterwarnings("ignore:posthoc")  # two snapshots are few
def test_a_width_chosen_after_training_is_sampled_from(tmp_path):
    from diffusion_jax.build.runs import open_run

    config = toy2d.get_config("ring")
    config.ema = "power(sigma_rel=(0.05, 0.2))"
    config.train.update(steps=20, sample_every=0, checkpoint_every=20, snapshot_every=10)
    config.sampler.update(steps=4, n=50, batch_size=50)
    state = jobs.train(config, tmp_path)
    opened = lambda params: open_run(
        jobs.run_config(tmp_path, {"sampler.params": params}), tmp_path
    )
    same = lambda a, b: jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b
    )
    same(opened("ema").params, state.ema["0.05"])  # the first is the one sampled from
    same(opened("posthoc(sigma_rel=0.2)").params, state.ema["0.2"])
    assert opened("posthoc(sigma_rel=0.1, step=10)").step == 10
    with pytest.raises(ValueError, match=r"no snapshot of step 13; the nearest are \[10, 20\]"):
        opened("posthoc(sigma_rel=0.1, step=13)")
    of = lambda params: jobs.run_config(tmp_path, {"sampler.params": params})
    images = [jobs.sample(of(p), tmp_path).images for p in ("ema", "posthoc(sigma_rel=0.1)")]
    assert np.isfinite(images).all() and not np.array_equal(*images)
    with pytest.warns(UserWarning, match="% off as a profile; it needs more snapshots"):
        opened("posthoc(sigma_rel=0.01)")
    with pytest.raises(ValueError, match=r"sampler\.params.*known are ema, params, posthoc"):
        opened("average")
    config.ema = "warmup()"
    with pytest.raises(ValueError, match=r"snapshot_every = 10 is of averages .* 'warmup\(\)'"):
        jobs.train(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode=sample"], "--workdir is missing"),
        (["--workdir=w", "stray"], "'stray' is not understood"),
        (["--workdir=nowhere", "--mode=sample"], "holds no run"),
        (["--config.train.stepz=1"], "no field 'stepz'; did you mean 'steps'?"),
        (["--config.samplr.steps=1"], "no field 'samplr'; did you mean 'sampler'?"),
        (["--config.train.rounds=1"], "no field 'rounds'; configs/base.py has them all"),
    ],
)
def test_the_command_line_ends_with_one_sentence(arguments, words, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), f"--config={ROOT}/configs/mnist.py", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_contrast_cuts_grain_off_black_and_white(run):
    folder, _ = run
    drawn = jobs.sample(jobs.run_config(folder, {"sampler.n": 4}), folder).images
    config = jobs.run_config(folder, {"sampler.n": 4, "sampler.contrast": 1.25})
    images = jobs.sample(config, folder).images
    wanted = np.clip(1.25 * (drawn / 127.5 - 1) * 127.5 + 127.5, 0, 255)
    assert np.abs(images - wanted).max() <= 1.2 and np.abs(images - drawn.astype(float)).max() > 5
    config.sampler.contrast = 0.0
    with pytest.raises(ValueError, match=r"config\.sampler\.contrast = 0\.0 must be above 0"):
        jobs.sample(config, folder)


def test_a_solver_that_diverges_is_a_sentence(run):
    folder, _ = run
    config = jobs.run_config(folder)
    sampler = run_samples.sampler_of_run(runs.open_run(config, folder))
    diverging = lambda weights, key, inputs: np.full((2, 28, 28, 1), np.nan)
    with pytest.raises(FloatingPointError, match=r"'ddim\(\)' on grid 'trailing' gave values"):
        run_samples.draw_samples(sampler._replace(draw=diverging), 2)
