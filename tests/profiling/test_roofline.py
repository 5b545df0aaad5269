import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.profiling import report
from diffusion_jax.profiling.chips import CHIPS, GIB, Chip, named, of_kind
from diffusion_jax.profiling.collectives import Total
from diffusion_jax.profiling.compiled import Costs, Memory, bounds, bytes_of, costs, out_of_memory
from diffusion_jax.profiling.flops import count
from diffusion_jax.profiling.roofline import mfu, roofline

# 100 FLOP/s, 10 bytes/s of HBM, 1 byte/s of links.
TOY = Chip("toy", "Toy", memory=4 * GIB, flops=100.0, bandwidth=10.0, links=1.0)


def test_the_slowest_part_bounds_the_time():
    limits = roofline(TOY, flops=400, bytes_accessed=50, bytes_sent=2)
    assert limits == (4.0, 5.0, 2.0)
    assert limits.seconds == 5.0
    assert limits.bound == "memory"


def test_mfu_is_one_at_the_peak():
    assert mfu(400, seconds=2.0, chip=TOY, devices=2) == 1.0
    assert mfu(100, seconds=2.0, chip=TOY, devices=2) == 0.25


def test_the_chips_are_plausible():
    assert len({chip.name for chip in CHIPS}) == len({chip.kind for chip in CHIPS}) == len(CHIPS)
    for chip in CHIPS:
        assert 16 * GIB <= chip.memory <= 192 * GIB
        assert 100 < chip.flops / chip.bandwidth < 1000, "FLOP a byte of HBM"
        assert 2 < chip.bandwidth / chip.links < 12
        assert of_kind(chip.kind) is named(chip.name) is chip


def test_a_device_finds_its_chip():
    assert of_kind("TPU v5 lite") is named("v5e")
    assert of_kind("TPU v5") is named("v5p")
    assert of_kind("cpu") is None
    assert of_kind(jax.devices("cpu")[0].device_kind) is None
    with pytest.raises(ValueError, match="'v9' is unknown; known are v4, v5e"):
        named("v9")


def test_costs_of_a_compiled_program():
    def f(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=10)[0]

    shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 2
    traced = jax.jit(f).trace(*shapes)
    found = costs(traced.lower().compile(), count(traced.jaxpr), devices=1)
    assert found.flops == 10 * 2 * 64**3
    assert found.executed >= found.flops
    assert found.memory.arguments == 2 * 64 * 64 * 4
    assert found.memory.outputs == 64 * 64 * 4
    assert found.collectives == {}
    assert found.sent == 0


def test_bytes_of_arguments_that_lie_on_a_mesh():
    mesh = AbstractMesh((4, 2), ("data", "fsdp"))
    at = lambda *axes: NamedSharding(mesh, P(*axes))
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = {
        "w": jax.ShapeDtypeStruct((6, 8), np.float32, sharding=at(None, "fsdp")),
        "x": jax.ShapeDtypeStruct((16, 3), jnp.bfloat16, sharding=at(("data", "fsdp"))),
        "key": jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=at()),
    }
    assert bytes_of(arguments) == 6 * 4 * 4 + 2 * 3 * 2 + 8


COSTS = Costs(
    Memory(GIB, GIB, GIB, 2 * GIB, 3 * GIB), flops=400, executed=250, bytes_accessed=10,
    collectives={"all-reduce": Total(3, 4_000_000, 6.0, True)}, devices=2,
)  # fmt: skip


def test_the_report_names_what_bounds():
    assert bounds(COSTS, TOY) == (2.5, 1.0, 6.0)
    text = "\n".join(report.lines(COSTS, TOY, useful=300))
    assert "peak 3.000 GiB; 75% of 4 GiB" in text
    assert "all-reduce: 3 of 4 MB together" in text
    assert "at least 6 s: compute 2.5 s, HBM 1 s, links 6 s; MFU at most 25%" in text
    assert "lower config.mesh.fsdp" in report.advice(COSTS, TOY, train=True)


def test_work_that_every_chip_repeats_is_named():
    repeated = COSTS._replace(executed=400, collectives={})
    assert "every chip does 2.0 times its share" in report.advice(repeated, TOY, train=False)


def test_a_refusal_names_the_mend():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm."
    )
    needed, there = out_of_memory(RuntimeError(message)) or (0, 0)
    assert (needed / GIB, there / GIB) == (21.5, 15.75)
    said = report.refusal(needed, there, arguments=GIB, train=True)
    assert said.startswith("It does not fit: 21.5 GiB of 15.8")
    assert "remat" in said
    assert "config.mesh.fsdp" in report.refusal(needed, there, 10 * GIB, train=True)
    assert "config.sampler.batch_size" in report.refusal(math.nan, math.nan, GIB, train=False)
    assert out_of_memory(RuntimeError("INVALID_ARGUMENT")) is None
    assert all(map(math.isnan, out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: full")) or ()))


def test_a_table_has_a_dash_where_a_row_lacks_a_column():
    assert report.table([{"a": "1"}, {"a": "22", "b": "x"}]).splitlines() == [
        "| a  | b |",
        "| -- | - |",
        "| 1  | - |",
        "| 22 | x |",
    ]
