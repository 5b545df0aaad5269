"""Consistency training (Song et al. 2023), initialised from the teacher's weights, no more.

python main.py --config=configs/distill/ct.py --config.teacher=runs/mnist --workdir=runs/ct
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "consistency_training(last=80, distance='pseudo_huber')"
    return config
