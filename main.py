"""The command ``diffusion-jax`` (``diffusion_jax.command``), from a checkout."""

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
    run()
