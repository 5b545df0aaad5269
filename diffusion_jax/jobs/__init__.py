"""What a person runs: train, sample from or evaluate a config in a folder.

from diffusion_jax.jobs import train, sample, evaluate, run_config
config = run_config("runs/mnist")
samples = sample(config, "runs/mnist")
"""

from diffusion_jax.build.runs import run_config
from diffusion_jax.jobs.evaluating import evaluate
from diffusion_jax.jobs.hosts import Hosts, connect
from diffusion_jax.jobs.sampling import sample
from diffusion_jax.jobs.training import train

JOBS = {"train": train, "sample": sample, "evaluate": evaluate}

__all__ = [
    "JOBS", "Hosts", "connect", "evaluate", "run_config", "sample", "train",
]  # fmt: skip
