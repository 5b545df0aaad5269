"""Train, sample from or evaluate a diffusion model.

    python main.py --config=configs/mnist.py --workdir=runs/mnist
    python main.py --mode=sample --workdir=runs/mnist --config.sampler.guidance_scale=3
    python main.py --mode=sample --config.checkpoint=DIR --config.prompt="a red house"
    python main.py --mode=evaluate --workdir=runs/mnist

Any field of the config is a flag.  Sampling takes configs/sample.py, whatever it draws from;
evaluating takes the run's own config.
Several processes, on one or many hosts, each run the same command with --coordinator=HOST:PORT
--processes=N --process=I, or with --distributed=auto where the cluster tells them.
"""

from __future__ import annotations

import sys

try:
    from diffusion_jax.command import run
except ModuleNotFoundError as error:
    python = ".".join(map(str, sys.version_info[:2]))
    print(
        f"error: {error.name} is not installed for this Python {python}; of 3.11, 3.12 and 3.13 "
        "any will do: python3 -m venv .venv && . .venv/bin/activate && pip install -r "
        "requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    run(__doc__)
