"""Students by the training command: each config on a teacher in the plane, and mistakes."""

import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from configs import toy2d
from diffusion_jax import jobs
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.weights import averaged
from diffusion_jax.train.workdir import read_config

CONFIGS = (
    "add", "cd", "ct", "ctm", "dmd", "dmd2", "ect", "guidance", "ict", "imm", "improved_mean_flow",
    "ladd", "lcm", "mean_flow", "progressive", "reflow", "scd", "sct", "shortcut", "sid",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    config = toy2d.get_config()
    config.train.update(steps=20, sample_every=0, checkpoint_every=20)
    config.sampler.n = 64
    jobs.train(config, folder)
    return folder


def config_of(name, teacher, steps=2):
    config = importlib.import_module(f"configs.distill.{name}").get_config()
    config.teacher = str(teacher)
    config.train.update(steps=steps, sample_every=0, checkpoint_every=steps, log_every=1)
    config.train.batch_size = 64
    config.sampler.n = config.sampler.batch_size = 64
    if name == "add":
        config.distill = "adversarial(steps=2, features='waves')"  # points are no pixels
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_trains_a_student_that_is_sampled_alone(name, teacher, tmp_path):
    config = config_of(name, teacher)
    # A student's first step is from its teacher's parameters.
    config.optimizer.learning_rate, config.ema = 1e-12, "constant(decay=0.5)"
    state = jobs.train(config, tmp_path)
    teacher_net = averaged(teacher, read_config(teacher)["ema"])[0]["net"]
    ours = jax.device_get(state.params["net"])
    scalars = distillation.read_method(config).scalars
    for scalar in scalars:
        ours["embed"].pop(scalar)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), ours, teacher_net)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)

    held = read_config(tmp_path)
    held["teacher"] = "nowhere"  # a student needs no teacher any more
    (tmp_path / "config.json").write_text(json.dumps(held))
    student_config = jobs.run_config(tmp_path)
    samples = jobs.sample(student_config, tmp_path).images
    assert samples.shape == (64, 2) and np.isfinite(samples).all()
    if scalars:  # an untrained student ignores the scale: its embedding is still 0
        student_config.sampler.guidance_scale = 4.0
        np.testing.assert_allclose(jobs.sample(student_config, tmp_path).images, samples, atol=1e-5)
    with pytest.raises(ValueError, match=r"config\.distill says what the parameters of"):
        jobs.run_config(tmp_path, {"distill": "easy()"})


@pytest.mark.parametrize(
    ("name", "distill"),
    [
        ("mean_flow", "mean_flow(to_clean=0.25, follow='teacher', scale=2.0)"),
        ("improved_mean_flow", "improved_mean_flow(follow='teacher', distance='pseudo_huber')"),
        ("shortcut", "shortcut(follow='teacher', scale=2.0)"),
        ("imm", "moment_matching(to_clean=0.25, follow='teacher', scale=2.0)"),
    ],
)
def test_a_method_of_data_can_follow_its_teacher(teacher, tmp_path, name, distill):
    losses = {}
    for kind, says in (("teacher", distill), ("data", f"{distill.split('(')[0]}()")):
        config = config_of(name, teacher)
        config.distill = says
        jobs.train(config, tmp_path / kind)
        lines = (tmp_path / kind / "metrics.jsonl").read_text().splitlines()
        losses[kind] = [json.loads(line)["loss"] for line in lines]
    assert np.isfinite(losses["teacher"]).all() and losses["teacher"] != losses["data"]


def both_ways(config, folder):
    """The state of a run of four steps, and of one that was interrupted after two."""
    whole = jobs.train(config, folder / "whole")
    config.train.checkpoint_every = 2
    jobs.train(config, folder / "half")
    shutil.rmtree(folder / "half" / "checkpoints" / "4")
    return whole, jobs.train(config, folder / "half")


def test_several_networks_resume_bit_for_bit_in_their_turns(teacher, tmp_path):
    config = config_of("sid", teacher, 4)
    config.distill = "score_identity(ratio=3, fake=2.0)"
    whole, again = both_ways(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    jax.tree.map(np.testing.assert_array_equal, whole.opt_state, again.opt_state)
    turns = lambda held: {int(n) for _, n in optax.tree.get_all_with_path(held, "count")}
    states = whole.opt_state.inner_states
    assert {name: turns(held) for name, held in states.items()} == {"net": {1}, "fake": {4}}
    written = read_config(tmp_path / "whole")["optimizer"]["groups"]
    assert written == [["net", 1.0, 3], ["fake", 2.0, 1]]


def test_a_student_resumes_bit_for_bit_and_can_teach(teacher, tmp_path):
    whole, again = both_ways(config_of("progressive", teacher, 4), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    after = config_of("progressive", tmp_path / "whole")
    after.distill = "progressive(steps=4)"
    assert int(jobs.train(after, tmp_path / "next").step) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": ""}, r"config\.teacher is empty; name the folder of a trained run"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"distill": "eazy()"}, r"config\.distill = 'eazy\(\)': unknown name 'eazy'; known are"),
        ({"distill": "easy(stagez=3)"}, "config.distill"),
        ({"distill": "easy(stages='many')"}, "stages must be of type int"),
        ({"distill": "progressive()"}, "missing a required argument: 'steps'"),
        ({"distill": "progressive(steps=0)"}, r"progressive\(steps=0\) must be 1 or more"),
        ({"distill": "easy(stages=0)"}, r"easy\(stages=0\) must be 1 or more"),
        ({"distill": "latent_consistency(low=3, high=2)"}, "give the lower one first"),
        ({"distill": "mean_flow(follow='master')"}, "'master'\\); known are data, teacher"),
        ({"distill": "shortcut(scale=2.0)"}, "guides a teacher; give follow='teacher' too"),
        ({"distill": "moment_matching(scale=2.0)"}, "guides a teacher; give follow='teacher' too"),
        ({"distill": "mean_flow(to_clean=2.0)"}, "to_clean=2.0 is a share of the batch"),
        ({"distill": "continuous_training(c=0.0)"}, "c=0.0 a norm above 0"),
        ({"distill": "reflow(ends=-1.0)"}, r"config.distill = .*u_shaped\(a=-1.0\) must be"),
        ({"distill": "reflow(distance='lpips')"}, "distance='lpips' is not known"),
        ({"distill": "trajectory(solver='euler')"}, "'euler'\\); known are ddim, flow_heun, heun"),
        ({"distill": "trajectory(to_clean=2.0)"}, "to_clean=2.0 is a share of the batch"),
        ({"distill": "latent_adversarial(high=1.5)"}, "config.distill = .*times from 0.02 to 1.5"),
        ({"distill": "continuous_training(warm_up=-5)"}, "warm_up=-5 must be 0 or more steps"),
        ({"distill": "consistency_distillation(solver='ddmi')"}, "'ddmi'\\); known are"),
        (
            {"distill": "progressive(steps=4, distance='lpips')"},
            r"distance='lpips' is not known; take one of squared, absolute, pseudo_huber",
        ),
        ({"distill": "score_identity(ratio=0)"}, r"score_identity\(ratio=0\) must be 1 or more"),
        ({"distill": "adversarial(features='vgg')"}, "'vgg'\\); known are efficientnet, waves"),
        (
            {"distill": "score_identity()", "optimizer": {"groups": (("net", 1.0),)}},
            r"config\.optimizer\.groups = .* leave it empty and give that its ratio",
        ),
    ],
)
def test_mistakes_are_sentences(teacher, tmp_path, changes, says):
    config = config_of("ect", teacher)
    config.update(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        jobs.train(config, tmp_path / "new")


def test_a_student_with_scalar_conditions_is_no_teacher(teacher, tmp_path):
    jobs.train(config_of("lcm", teacher), tmp_path / "conditional")
    with pytest.raises(ValueError, match="was distilled by 'latent_consistency"):
        jobs.train(config_of("ect", tmp_path / "conditional"), tmp_path / "new")


@pytest.mark.parametrize("name", ["scd", "mean_flow", "sid"])
def test_a_student_starts_from_another(teacher, tmp_path, name):
    jobs.train(config_of("cd", teacher), tmp_path / "cd")
    config = config_of(name, teacher)
    config.student, config.ema = str(tmp_path / "cd"), "constant(decay=0.5)"
    config.optimizer.learning_rate = 1e-12
    params = jax.device_get(jobs.train(config, tmp_path / "next").params)
    of = lambda run: averaged(run, read_config(run)["ema"])[0]["net"]
    for scalar in distillation.read_method(config).scalars:
        params["net"]["embed"].pop(scalar)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9)
    jax.tree.map(close, params["net"], of(tmp_path / "cd"))
    if "fake" in params:
        jax.tree.map(close, params["fake"], of(teacher))


def test_a_student_of_another_network_is_refused_as_start(teacher, tmp_path):
    jobs.train(config_of("lcm", teacher), tmp_path / "conditional")
    config = config_of("ect", teacher)
    config.student = str(tmp_path / "conditional")
    says = "config.student = .* has another network than config.teacher = .*scalars is .*guidance"
    with pytest.raises(ValueError, match=says):
        jobs.train(config, tmp_path / "new")
    config.student = "nowhere"
    with pytest.raises(ValueError, match="nowhere holds no run"):
        jobs.train(config, tmp_path / "new")


def test_a_latent_release_teaches_with_its_first_stage_and_prompts():
    release = str(Path(__file__).parents[3] / "weights" / "emoji")
    config = config_of("lcm", release)
    whole = distillation.with_teacher(config)
    assert whole.model.autoencoder == f"{release}/autoencoder"
    assert whole.data.name == "latents/noto_emoji"  # training reads latents
    assert "red heart" in whole.sampler.prompts and not config.sampler.prompts
    asked = config_of("lcm", release)
    asked.sampler.prompts = ("a dog",)
    assert distillation.with_teacher(asked).sampler.prompts == ("a dog",)
