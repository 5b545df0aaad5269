"""Consistency trajectory models (Kim et al. 2024), without the adversarial term; any gamma.

python main.py --config=configs/distill/ctm.py --config.teacher=runs/mnist --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "trajectory(steps=4, scale=1.0)"
    config.sampler.solver = "jump(gamma=0.0)"
    return config
