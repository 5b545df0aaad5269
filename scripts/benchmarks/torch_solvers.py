"""PyTorch's side of ``solvers.py``: k-diffusion's and diffusers' sampling loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from load_k_diffusion import k_diffusion_sampling


def jobs(
    rows: Mapping[str, tuple[int, str, str]], batch: int, levels: int, threads: int
) -> dict[str, Callable[[], Any]]:
    """One job for each row and side, and "torch call", a bare network call; {} without torch.

    Args:
        rows: our solver -> (calls a step, k-diffusion's function or "", diffusers' class or "").
        batch: images.
        levels: of a sample, so ``levels`` - 1 steps and the last one to x0.
        threads: of PyTorch.
    """
    try:
        import diffusers
        import torch
        from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
    except ImportError:
        print("PyTorch is not timed: torch or diffusers is absent; see requirements-parity.txt")
        return {}
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # About the size of configs/mnist.py: 28x28 in 2x2 patches, two levels, a middle with attention.
    unet = UNet2DModel(
        sample_size=14, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), attention_head_dim=32, norm_num_groups=8,
        num_class_embeds=11,
    ).eval()  # fmt: skip
    label, x = torch.zeros(batch, dtype=torch.long), torch.randn(batch, 4, 14, 14)
    net = torch.no_grad()(lambda x, t: unet(x, t, label).sample)
    made: dict[str, Callable[[], Any]] = {"torch call": lambda: net(x, 500)}
    sampling = k_diffusion_sampling()
    sigmas = torch.cat([torch.linspace(4.4, -4.0, levels).exp(), torch.zeros(1)])
    model = lambda x, sigma: net(x / (1 + sigma[0] ** 2) ** 0.5, 500)
    for name, (_, function, scheduler) in rows.items():
        if function and sampling is not None:
            made[f"k-diffusion {name}"] = _k_diffusion(
                getattr(sampling, function), model, x, sigmas, "sde" in function
            )
        if scheduler:
            made[f"diffusers {name}"] = _diffusers(getattr(diffusers, scheduler), net, x, levels)
    return made


def _k_diffusion(function: Callable, model: Callable, x: Any, sigmas: Any, noisy: bool):
    import torch

    # Its Brownian tree is a cost of its own; plain noise is what ours draws.
    extra = {"noise_sampler": lambda sigma, sigma_next: torch.randn_like(x)} if noisy else {}
    return lambda: function(model, x * sigmas[0], sigmas, disable=True, **extra)


def _diffusers(scheduler_class: type, net: Callable, x: Any, levels: int) -> Callable[[], Any]:
    def run():
        scheduler = scheduler_class()
        scheduler.set_timesteps(levels)
        y = x
        for t in scheduler.timesteps:
            out = net(scheduler.scale_model_input(y, t), t)
            y = scheduler.step(out, t, y).prev_sample
        return y

    return run
