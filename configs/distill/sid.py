"""Score identity distillation (Zhou et al. 2024): a one-step student, without data.

python main.py --config=configs/distill/sid.py --config.teacher=runs/mnist --workdir=runs/sid
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "score_identity(ratio=1, a=1.0, fake=3.0)"
    config.optimizer.learning_rate = 3e-4
    config.sampler.steps = 1
    return config
