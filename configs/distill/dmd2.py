"""Improved distribution matching, DMD2 (Yin et al. 2024b), from a teacher and data.

python main.py --config=configs/distill/dmd2.py --config.teacher=runs/mnist --workdir=runs/dmd2
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "improved_distribution_matching(ratio=1, steps=1, scale=1.0, fake=3.0)"
    config.optimizer.learning_rate = 3e-4
    config.sampler.steps = 1  # the method's steps
    return config
