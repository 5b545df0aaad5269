"""Continuous-time consistency distillation, sCD (Lu & Song 2025).

python main.py --config=configs/distill/scd.py --config.teacher=runs/mnist --workdir=runs/scd
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "continuous_distillation(scale=1.0, mean=0.0)"
    config.optimizer.learning_rate = 1e-4  # at 5e-4 digits come out as noise
    config.sampler.grid = "karras(s_min=0.6, s_max=20.0)"  # noisier levels are rarely trained
    return config
