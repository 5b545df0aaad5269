"""Improved consistency training (Song & Dhariwal 2024), from the teacher's weights.

python main.py --config=configs/distill/ict.py --config.teacher=runs/mnist --workdir=runs/ict
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "improved_consistency(last=40, mean=0.5)"
    config.sampler.grid = "karras(s_min=0.6, s_max=20.0)"  # noisier levels are rarely trained
    return config
