"""One stage of progressive distillation (Salimans & Ho 2022); its student teaches the next.

python main.py --config=configs/distill/progressive.py --config.teacher=runs/mnist --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "progressive(steps=8, scale=1.0)"  # half of its teacher's steps
    config.sampler.solver = "ddim()"
    config.sampler.steps = 8
    return config
