"""Adversarial distillation (Sauer et al. 2023), on frozen features of pixels.

python main.py --config=configs/distill/add.py --config.teacher=runs/mnist --workdir=runs/add
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = (  # features="waves" for points
        "adversarial(ratio=1, steps=4, scale=1.0, distillation=0.3, high=0.5, noise=0.3, "
        "discriminator=10.0)"
    )
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.0  # momentum makes the two networks oscillate
    config.sampler.steps = 4  # the method's steps
    return config
