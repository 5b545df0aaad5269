"""PyTorch's side of ``benchmark.py``: diffusers' ``UNet2DModel`` in eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.process import Process


def torch_unet(config: dict[str, Any], threads: int) -> Any:
    """The network with random weights, or None where torch or diffusers is absent."""
    try:
        import torch
        from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
    except ImportError:
        return None
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return UNet2DModel(**config)


def jobs(
    unet: Any, image: np.ndarray, label: np.ndarray, process: Process, steps: int
) -> dict[str, Callable[[], Any]]:
    """A training step, a network call, and a DDIM walk, in eager mode.

    Args:
        unet: of ``torch_unet``.
        image: float32 [b, h, w, c] in [-1, 1].
        label: int [b].
        process: 1000 levels, on the variance preserving path.
        steps: of the walk.
    """
    import torch

    x0 = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(label).long()
    adamw = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.0)
    table = process.at(jnp.arange(1, 1001) / 1000)
    alphas, sigmas = (torch.from_numpy(np.array(z)) for z in (table.alpha, table.sigma))
    wide = lambda z: z[:, None, None, None]
    when = torch.full((len(label),), 500)

    def train():
        t, eps = torch.randint(0, 1000, (len(label),)), torch.randn_like(x0)
        x = wide(alphas[t]) * x0 + wide(sigmas[t]) * eps
        adamw.zero_grad()
        loss = ((unet(x, t, labels).sample - eps) ** 2).mean()
        loss.backward()
        adamw.step()
        return loss.item()

    @torch.no_grad()
    def network():
        return unet(x0, when, labels).sample

    @torch.no_grad()
    def walk():
        x = x0
        for i in range(steps, 0, -1):
            now = 1000 * i // steps - 1
            nxt = 1000 * (i - 1) // steps - 1
            eps = unet(x, torch.full((len(label),), now), labels).sample
            clean = (x - sigmas[now] * eps) / alphas[now]
            x = clean if nxt < 0 else alphas[nxt] * clean + sigmas[nxt] * eps
        return x

    return {"train": train, "network": network, "sampler": walk}


def flops(theirs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Floating-point operations by definition (a convolution directly), so faster forms show."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    for name, job in theirs.items():
        with FlopCounterMode(display=False) as counter:
            job()
        counts[name] = float(counter.get_total_flops())
    return counts
