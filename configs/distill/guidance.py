"""Guidance distillation (Meng et al. 2023): one network evaluation in place of two.

python main.py --config=configs/distill/guidance.py --config.teacher=runs/mnist --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = "guidance(low=1.0, high=4.0)"
    config.sampler.solver = "ddim()"
    config.sampler.steps = 50
    config.sampler.guidance_scale = 2.0
    return config
