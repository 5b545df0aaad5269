"""Inductive moment matching (Zhou et al. 2025), from a diffusion model's weights.

python main.py --config=configs/distill/imm.py --config.teacher=runs/mnist --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "moment_matching(particles=4, gap=0.1, to_clean=0.25, follow='teacher')"
    config.sampler.grid = "karras(s_min=0.6, s_max=20.0)"  # noisier levels are rarely trained
    return config
