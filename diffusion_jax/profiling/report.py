"""Reports of a program's costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from diffusion_jax.profiling.chips import GIB, Chip
from diffusion_jax.profiling.compiled import Costs, Memory, bounds
from diffusion_jax.profiling.roofline import mfu

LIMITS = {
    "compute": "the chips' arithmetic bounds the time, as it should",
    "memory": "the bandwidth of HBM bounds the time: bfloat16 in place of float32 "
    "halves it, and a larger batch thins only the share of parameters and moments",
    "network": "the links bound the time: give each chip more examples, or lower config.mesh.fsdp",
}
MEND = "config.model.unet.remat = 'full' or a larger config.train.accumulate"
# Executed FLOPs over a fair share: elementwise operations alone do not reach it.
REPEATED = 1.5


def lines(costs: Costs, chip: Chip, useful: float) -> list[str]:
    """A report of one program on one kind of chip.

    Args:
        costs: costs of one call.
        chip: chip of each device.
        useful: FLOPs over all devices that MFU counts, without rematerialisation.
    """
    limits, each = bounds(costs, chip), costs.flops / costs.devices
    return [
        f"memory a chip: {_memory(costs.memory)}; {_share(costs, chip)} of "
        f"{chip.memory / GIB:.0f} GiB",
        f"products and convolutions: {costs.flops:.4g} FLOP, {each:.4g} a chip; "
        f"with all else a chip executes {costs.executed:.4g}",
        f"a chip's operations read and write {costs.bytes_accessed / 1e9:.4g} GB",
        *communication(costs),
        f"at least {_time(limits.seconds)}: compute {_time(limits.compute)}, HBM "
        f"{_time(limits.memory)}, links {_time(limits.network)}; "
        f"MFU at most {_utilisation(costs, chip, useful)}",
    ]


def communication(costs: Costs) -> list[str]:
    """A line for each kind of collective."""
    if not costs.collectives:
        return ["collectives: none"]
    found = []
    for kind, total in costs.collectives.items():
        more = "" if total.known else ", more: a loop of unknown length counts once"
        found.append(
            f"{kind}: {total.count:,} of {total.bytes / 1e6:,.4g} MB together, a chip sends "
            f"{total.wire / 1e6:,.4g} MB{more}"
        )
    return found


def row(costs: Costs, chip: Chip, useful: float) -> dict[str, str]:
    """The report as cells of a table."""
    limits, memory = bounds(costs, chip), costs.memory
    short = {"all-reduce": "AR", "all-gather": "AG", "reduce-scatter": "RS", "all-to-all": "A2A"}
    kinds = {short.get(kind, "CP"): total.count for kind, total in costs.collectives.items()}
    return {
        "arguments GiB": f"{memory.arguments / GIB:.2f}",
        "temporaries GiB": f"{memory.temporaries / GIB:.2f}",
        "peak GiB (of HBM)": f"{memory.most / GIB:.2f} ({_share(costs, chip)})",
        "TFLOP a chip": f"{costs.flops / costs.devices / 1e12:.3g}",
        "GB accessed": f"{costs.bytes_accessed / 1e9:.3g}",
        "collectives": ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()) or "none",
        "MB sent": f"{costs.sent / 1e6:,.3g}",
        "compute / HBM / links": " / ".join(_time(t) for t in limits),
        "MFU at most": _utilisation(costs, chip, useful),
    }


def advice(costs: Costs, chip: Chip, train: bool) -> str:
    """One sentence: whether it fits, what bounds it, and what to change."""
    bound, used = bounds(costs, chip).bound, costs.memory.most / chip.memory
    repeats, room = costs.executed * costs.devices / costs.flops, ""
    if used > 0.9:
        room = "; it is tight, which " + (MEND if train else "a smaller batch") + " mends"
    elif used < 0.5 and bound != "compute":
        room = "; there is room for a larger batch"
    limit = (
        LIMITS[bound]
        if repeats < REPEATED
        else (
            f"every chip does {repeats:.1f} times its share, for the batch is not split, or the "
            "network is too small for its products to matter"
        )
    )
    return f"It fits, in {_share(costs, chip)} of HBM; {limit}{room}."


def refusal(needed: float, there: float, arguments: int, train: bool) -> str:
    """One sentence for a program that does not fit in memory, with what to change.

    Args:
        needed, there: bytes of HBM needed and available, NaN if unknown.
        arguments: bytes of the arguments alone.
        train: whether the program is a training step, not a sampler.
    """
    sized = "" if math.isnan(needed) else f": {needed / GIB:.1f} GiB of {there / GIB:.1f}"
    if not train:
        mend = "lower batch_size, config.sampler.batch_size of a training's config"
    elif arguments > 0.5 * there:
        mend = f"state and batch alone are {arguments / GIB:.1f} GiB, so raise config.mesh.fsdp"
    else:
        mend = f"activations take it, so set {MEND}"
    return f"It does not fit{sized}; {mend}, or take more chips."


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a Markdown table with the columns of the longest; a missing cell is a dash."""
    heads = list(max(rows, key=len))
    wide = {head: max(len(head), *(len(row.get(head, "-")) for row in rows)) for head in heads}
    line = lambda cells: "| " + " | ".join(cells) + " |"
    body = [line([row.get(head, "-").ljust(wide[head]) for head in heads]) for row in rows]
    rule = line(["-" * wide[head] for head in heads])
    return "\n".join([line([head.ljust(wide[head]) for head in heads]), rule, *body])


def _memory(memory: Memory) -> str:
    parts = {
        "arguments": memory.arguments, "outputs": memory.outputs, "of these in place":
        memory.aliased, "temporaries": memory.temporaries, "peak": memory.most,
    }  # fmt: skip
    return ", ".join(f"{name} {size / GIB:.3f} GiB" for name, size in parts.items())


def _share(costs: Costs, chip: Chip) -> str:
    return f"{100 * costs.memory.most / chip.memory:.2g}%"


def _utilisation(costs: Costs, chip: Chip, useful: float) -> str:
    return f"{mfu(useful, bounds(costs, chip).seconds, chip, costs.devices):.0%}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
