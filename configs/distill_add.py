"""Adversarial distillation (Sauer et al. 2023), on frozen features of pixels.

python main.py --config=configs/distill_add.py --config.teacher=runs/mnist --workdir=runs/add
"""

from ml_collections import ConfigDict

from configs import distill


def get_config() -> ConfigDict:
    config = distill.get_config()
    config.distill = "adversarial(steps=1, scale=1.0)"  # features="waves" for points
    config.optimizer.learning_rate = 3e-4
    config.optimizer.b1 = 0.0  # a momentum swings with the two players
    config.sampler.steps = 1  # as many as the method's
    return config
