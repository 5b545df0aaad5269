"""Easy consistency tuning (Geng et al. 2024): from a diffusion model's weights to one step.

python main.py --config=configs/distill/ect.py --config.teacher=runs/mnist --workdir=runs/ect
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "easy(stages=3, mean=0.0)"
    config.sampler.grid = "karras(s_min=0.6, s_max=20.0)"  # noisier levels are rarely trained
    return config
