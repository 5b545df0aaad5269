"""Improved consistency training (Song & Dhariwal 2024), from the teacher's weights.

python main.py --config=configs/distill_ict.py --config.teacher=runs/mnist --workdir=runs/ict
"""

from ml_collections import ConfigDict

from configs import distill


def get_config() -> ConfigDict:
    config = distill.get_config()
    config.distill = "improved_consistency(last=160)"
    return config
