"""Everything that can be drawn from, at toy size: a run, its release, a student, checkpoints."""

import numpy as np
from PIL import Image

from configs import mnist
from configs.distill import ect
from diffusion_jax import jobs
from diffusion_jax.build.releases import release
from diffusion_jax.convert import families, single_file, stable_diffusion
from diffusion_jax.convert.folders import read_json, read_weights
from diffusion_jax.convert.tensors import write_safetensors


def run(folder, change=lambda config: None):
    """A run on digits, of two steps; ``change`` alters its config."""
    config = mnist.get_config()
    config.model.unet.channels, config.model.unet.channel_mults = 8, (1, 1)
    config.train.update(steps=2, batch_size=8, log_every=1, sample_every=0, checkpoint_every=2)
    config.optimizer.warmup = 1
    config.sampler.update(steps=4, n=4, batch_size=4)
    change(config)
    jobs.train(config, folder)
    return folder


def released(folder, of):
    """The release of a run."""
    return release(of, folder)


def student(folder, teacher):
    """A student of a run, by easy consistency tuning, of one step."""
    config = ect.get_config()
    config.teacher = str(teacher)
    config.train.update(steps=1, batch_size=8, log_every=1, sample_every=0, checkpoint_every=1)
    config.sampler.update(n=4, batch_size=4)
    jobs.train(config, folder)
    return folder


def one_file(folder, of, monkeypatch):
    """A Stable Diffusion folder's tensors as a single file; its tiny sizes are made a family."""
    parts = {part: read_json(of, f"{part}/config.json") for part in ("unet", "vae", "text_encoder")}
    unet = single_file.unet_from_diffusers(read_weights(of, "unet"), parts["unet"])
    vae = single_file.vae_from_diffusers(read_weights(of, "vae"), parts["vae"])
    text = dict(read_weights(of, "text_encoder"))
    prefix = next(iter(single_file.TEXT_LAYOUTS))
    state = single_file.join(single_file.Split(unet, vae, {prefix: text}))
    path = folder / "model.safetensors"
    write_safetensors(path, {name: np.asarray(array) for name, array in state.items()})
    scheduler = read_json(of, stable_diffusion.SCHEDULER)
    family = families.Family(parts["unet"], parts["vae"], (parts["text_encoder"],), scheduler)
    monkeypatch.setattr(families, "detect", lambda shapes: "tiny")
    monkeypatch.setattr(families, "configs", lambda *given: family)
    return path


def pictures(folder, side):
    """Paths of a picture, and of a mask of its right half."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[:, side // 2 :] = 255
    for name, array in (("picture", picture), ("mask", mask)):
        Image.fromarray(array).save(folder / f"{name}_{side}.png")
    return [str(folder / f"{name}_{side}.png") for name in ("picture", "mask")]
