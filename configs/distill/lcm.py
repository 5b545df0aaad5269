"""Latent consistency (Luo et al. 2023): a guided teacher, a student conditioned on the scale.

python main.py --config=configs/distill/lcm.py --config.teacher=runs/mnist --workdir=runs/lcm
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "latent_consistency(levels=20, low=1.0, high=4.0)"
    config.sampler.guidance_scale = 2.0  # within low and high
    config.sampler.steps = 4
    return config
