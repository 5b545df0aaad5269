"""Shortcut models (Frans et al. 2025), from a diffusion model's weights.

python main.py --config=configs/distill/shortcut.py --config.teacher=runs/mnist --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "shortcut(finest=16, bootstrap=0.5, follow='teacher')"
    config.sampler.solver = "jump()"
    return config
