"""The script, on a network of one level."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from diffusion_jax.profiling.flops import count
from diffusion_jax.profiling.topology import slice_of
from diffusion_jax.train import sharding
from scripts import compile_for_tpu

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "mnist.py")
SCRIPT = ROOT / "scripts" / "compile_for_tpu.py"
TINY = (
    "--config=configs/mnist.py",
    "--config.data.image_size=(8, 8)",
    "--config.model.unet.channel_mults=(1,)",
    "--config.model.unet.channels=8",
    "--config.model.unet.head_dim=8",
)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs requirements-tpu.txt"
)


def script(*arguments):
    command = [sys.executable, SCRIPT, *TINY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])


@needs_libtpu
def test_a_training_step_on_two_meshes():
    done = script("--topology=v5e:2x2", "--quick", "--compare", "--mesh=data=4", "--mesh=fsdp=4")
    assert done.returncode == 0, done.stderr
    data, fsdp = done.stdout.splitlines()[-2:]
    assert "| v5e:2x2 | data=4 |" in data
    assert "AR" in data
    assert "| fsdp=4 |" in fsdp
    assert "AG" in fsdp


@needs_libtpu
def test_a_sampler():
    done = script("--topology=v5e:2x2", "--quick", "--mode=sample", "--config.sampler.steps=7")
    assert done.returncode == 0, done.stderr
    assert "MFU at most" in done.stdout
    assert "It fits" in done.stdout


def test_cuda_is_lowered_without_a_gpu():
    done = script("--platform=cuda", "--devices=4", "--mesh=data=2,fsdp=2")
    assert done.returncode == 0, done.stderr
    assert "lowered for CUDA" in done.stdout
    assert "serialised" in done.stdout


def test_a_mistake_ends_it_with_one_sentence():
    done = script("--topology=v5e-16")
    assert done.returncode == 2
    said = "--topology=v5e-16 is unknown; write a chip, of v4, v5e, v5p, v6e, and the sides"
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config.train.bach=3"], "no such field: .*bach"),
        (["--steps=3"], "argument '--steps=3' is not understood"),
        (["--config.train.steps=many"], "train.steps"),
    ],
)
def test_a_wrong_flag_is_named(words, says):
    with pytest.raises(ValueError, match=says):
        compile_for_tpu.load_config(CONFIG, words)


def test_a_wrong_mesh_is_named():
    config = compile_for_tpu.load_config(CONFIG, ["--config.train.batch_size=12"])
    with pytest.raises(ValueError, match="--mesh=data is not of the form data=4,fsdp=4"):
        compile_for_tpu.mesh_of(config, "data", jax.devices())
    with pytest.raises(ValueError, match="does not multiply to the"):
        compile_for_tpu.mesh_of(config, "data=3,fsdp=5", jax.devices())


def test_a_config_of_a_mesh_that_is_not_here_is_no_mistake():
    config = compile_for_tpu.load_config(CONFIG, ["--config.mesh.fsdp=4", "--config.mesh.data=4"])
    mesh = AbstractMesh((4, 4, 1, 1), sharding.AXES, (AxisType.Auto,) * 4)
    step = compile_for_tpu.job(config, "train", mesh)
    state, _, batch = step.arguments
    assert batch["image"].sharding.shard_shape(batch["image"].shape) == (4, 28, 28, 1)
    assert state.step.sharding.mesh == mesh


@pytest.mark.parametrize("name", ["sample", "checkpoints/lora"])
def test_the_training_of_a_checkpoint_is_refused_in_a_sentence(name):
    config = compile_for_tpu.load_config(str(ROOT / "configs" / f"{name}.py"), [])
    config.checkpoint = "DIR"
    with pytest.raises(ValueError, match=r"'DIR' can be compiled to draw with, .*--mode=sample"):
        compile_for_tpu.job(
            config, "train", AbstractMesh((1, 1, 1, 1), sharding.AXES, (AxisType.Auto,) * 4)
        )


@pytest.mark.parametrize(("mode", "batch"), [("train", 7), ("sample", 5)])
def test_the_batch_of_a_compilation_is_that_of_its_program(mode, batch):
    words = ["--config.model.unet.channel_mults=(1,)", "--config.model.unet.channels=8"]
    words += ["--config.sampler.steps=2", "--config.train.batch_size=7"]
    words += ["--config.train.steps_per_call=2"]
    config = compile_for_tpu.load_config(CONFIG, [*words, "--config.sampler.batch_size=5"])
    mesh = compile_for_tpu.mesh_of(config, "data=1", jax.devices()[:1])
    assert compile_for_tpu.compile_for(config, mode, mesh, {}).batch == batch


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_rematerialisation_is_not_useful_work(mode):
    words = ["--config.model.unet.channel_mults=(1,)", "--config.model.unet.channels=8"]
    words += ["--config.model.unet.head_dim=8", "--config.sampler.steps=3"]
    mesh = AbstractMesh((4, 1, 1, 1), sharding.AXES, (AxisType.Auto,) * 4)

    def counted(*more):
        config = compile_for_tpu.load_config(CONFIG, [*words, *more])
        made = compile_for_tpu.job(config, mode, mesh)
        all_of_it = count(made.jitted.trace(*made.arguments).jaxpr)
        return all_of_it.total, compile_for_tpu.useful_flops(config, mode, mesh, all_of_it)

    plain, useful = counted()
    assert plain == useful
    again, same = counted("--config.model.unet.remat=full")
    assert same == useful
    assert (again > useful) == (mode == "train")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_a_missing_compiler_is_named():
    with pytest.raises(ValueError, match=r"pip install -r requirements-tpu\.txt"):
        slice_of("v5e:2x2")
