"""Reflow (Liu et al. 2023): a straighter flow, from pairs that the teacher generates.

python main.py --config=configs/distill/reflow.py --config.teacher=runs/mnist --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "reflow(steps=8, distance='pseudo_huber')"
    config.sampler.solver = "ddim()"
    return config
