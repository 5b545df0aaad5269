"""Reports to the letter, the published figures of chips, and loops of a program's text."""

import math
import re
from types import SimpleNamespace

import pytest

from diffusion_jax.profiling import compiled, report
from diffusion_jax.profiling.chips import CHIPS, GIB, Chip
from diffusion_jax.profiling.collectives import Collective, Total, parse, totals
from diffusion_jax.profiling.compiled import Costs, Memory, out_of_memory
from diffusion_jax.profiling.flops import Flops
from diffusion_jax.profiling.hlo import frequencies

TOY = Chip("toy", "Toy", memory=4 * GIB, flops=1e12, bandwidth=1e9, links=1e6)
COSTS = Costs(
    Memory(GIB, 2 * GIB, GIB // 2, 3 * GIB, 0), flops=4e12, executed=2.5e12, bytes_accessed=1e9,
    collectives={
        "all-reduce": Total(3, 4_000_000, 250.0, True),
        "all-gather": Total(1200, 2_500_000_000, 500.0, False),
        "collective-permute": Total(2, 10, 1.0, True),
    },
    devices=2,
)  # fmt: skip


def test_the_lines_of_a_report():
    assert report.lines(COSTS, TOY, useful=2.5e12) == [
        "memory a chip: arguments 1.000 GiB, outputs 2.000 GiB, of these in place 0.500 GiB, "
        "temporaries 3.000 GiB, peak 5.500 GiB; 1.4e+02% of 4 GiB",
        "products and convolutions: 4e+12 FLOP, 2e+12 a chip; "
        "with all else a chip executes 2.5e+12",
        "a chip's operations read and write 1 GB",
        "all-reduce: 3 of 4 MB together, a chip sends 0.00025 MB",
        "all-gather: 1,200 of 2,500 MB together, a chip sends 0.0005 MB, more: a loop of unknown "
        "length counts once",
        "collective-permute: 2 of 1e-05 MB together, a chip sends 1e-06 MB",
        "at least 2.5 s: compute 2.5 s, HBM 1 s, links 0.751 ms; MFU at most 50%",
    ]
    assert report.communication(COSTS._replace(collectives={})) == ["collectives: none"]


def test_the_row_of_a_table():
    assert report.row(COSTS, TOY, useful=2.5e12) == {
        "arguments GiB": "1.00",
        "temporaries GiB": "3.00",
        "peak GiB (of HBM)": "5.50 (1.4e+02%)",
        "TFLOP a chip": "2",
        "GB accessed": "1",
        "collectives": "3 AR, 1,200 AG, 2 CP",
        "MB sent": "0.000751",
        "compute / HBM / links": "2.5 s / 1 s / 0.751 ms",
        "MFU at most": "50%",
    }
    assert report.row(COSTS._replace(collectives={}), TOY, 1.0)["collectives"] == "none"


def costs(share, compute=0.0, memory=0.0, network=0.0, repeats=1.0):
    """Costs whose parts take so many seconds, with the peak at a share of HBM."""
    sent = {"all-gather": Total(1, 1, network * 1e6, True)}
    return Costs(
        Memory(0, 0, 0, 0, int(share * 4 * GIB)), flops=2 * compute * 1e12 / repeats,
        executed=compute * 1e12, bytes_accessed=memory * 1e9, collectives=sent, devices=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "train", "said", "unsaid"),
    [
        (costs(0.91, 2), True, "arithmetic bounds.*; it is tight, which config.model", "room"),
        (costs(0.91, 2), False, "it is tight, which a smaller batch mends", "room"),
        (costs(0.89, 1, 2), True, "bandwidth of HBM bounds the time", "tight|room"),
        (costs(0.49, 1, 2), True, "HBM bounds.*; there is room for a larger batch", "tight"),
        (costs(0.51, 1, 2), True, "HBM bounds", "tight|room"),
        (costs(0.49, 2, 1), True, "arithmetic bounds", "tight|room"),
        (costs(0.6, 1, 0, 3), True, r"in 60% of HBM; the links bound the time", "tight|room"),
        (costs(0.6, 1, repeats=1.5), True, "every chip does 1.5 times its share", "arithmetic"),
        (costs(0.6, 1, repeats=1.49), True, "arithmetic bounds", "its share"),
    ],
)
def test_advice_is_by_what_bounds_and_by_the_room(given, train, said, unsaid):
    text = report.advice(given, TOY, train)
    assert re.search(said, text) and not re.search(unsaid, text), text


def test_a_refusal_has_the_size_and_the_mend_for_what_takes_it():
    state = report.refusal(8.25 * GIB, 4 * GIB, int(2.1 * GIB), train=True)
    assert state == (
        "It does not fit: 8.2 GiB of 4.0; state and batch alone are 2.1 GiB, so raise "
        "config.mesh.fsdp, or take more chips."
    )
    assert "activations take it" in report.refusal(8 * GIB, 4 * GIB, int(1.9 * GIB), train=True)
    unknown = report.refusal(math.nan, math.nan, GIB, train=False)
    assert unknown.startswith("It does not fit; lower batch_size")


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("Out of memory: required space (64.00G) exceeds available HBM (15.75G)", (64, 15.75)),
        ("RESOURCE_EXHAUSTED: Used 512.0M of 2.00T hbm", (0.5, 2048)),
        ("RESOURCE_EXHAUSTED: Used 1048576.0K of 1.00G", (1, 1)),
    ],
)
def test_the_numbers_of_an_error_have_their_units(message, wanted):
    assert tuple(n / GIB for n in out_of_memory(RuntimeError(message)) or ()) == wanted


class Compiled:
    """Two devices' program, of which XLA says this."""

    def __init__(self, said):
        self.cost_analysis = lambda: said
        self.as_text = lambda: STARTED
        sizes = {"argument": 1, "output": 20, "alias": 4, "temp": 300}
        names = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
        self.memory_analysis = lambda: SimpleNamespace(**names, peak_memory_in_bytes=7)


def test_costs_have_each_iteration_of_a_loop():
    said = {"flops": 50.0, "bytes accessed": 30.0}
    found = compiled.costs(Compiled(said), Flops(400.0, 100.0), devices=4)
    assert found.memory == (1, 20, 4, 300, 7)
    assert (found.flops, found.executed, found.bytes_accessed) == (400, 200, 120)
    assert found.devices == 4 and "reduce-scatter" in found.collectives
    few = compiled.costs(Compiled({"flops": 10.0}), Flops(400.0, 100.0), devices=4)
    assert (few.executed, few.bytes_accessed) == (100, 0)  # at least a share of the products
    none = compiled.costs(Compiled(None), Flops(0.0, 0.0), devices=2)
    assert (none.flops, none.executed, none.bytes_accessed) == (0, 0, 0)
    elementwise = compiled.costs(Compiled(said), Flops(), devices=2)
    assert (elementwise.executed, elementwise.bytes_accessed) == (50, 30)


def test_memory_without_a_peak_is_the_sum_of_its_parts():
    assert Memory(1, 20, 4, 300, 0).most == 317 and Memory(1, 20, 4, 300, 7).most == 7


def test_chips_have_the_figures_of_their_makers():
    """GiB, TFLOP/s in bfloat16, GB/s of HBM, GB/s over all links in one direction."""
    found = {
        c.name: (c.memory / GIB, c.flops / 1e12, c.bandwidth / 1e9, c.links / 1e9) for c in CHIPS
    }
    h200 = found.pop("h200")
    assert (round(h200[0] * GIB / 1e9), *h200[1:]) == (141, 989, 4800, 450)
    assert found == {
        "v4": (32, 275, 1200, 300),
        "v5e": (16, 197, 819, 200),
        "v5p": (95, 459, 2765, 600),
        "v6e": (32, 918, 1638, 400),
        "a100": (40, 312, 1555, 300),
        "a100-80g": (80, 312, 2039, 300),
        "h100": (80, 989, 3350, 450),
    }


def test_totals_are_of_each_kind_and_of_groups_of_several():
    each = [
        Collective("all-gather", 12, group=3, times=2),
        Collective("all-gather", 8, group=4, known=False),
        Collective("all-reduce", 6, group=3),
        Collective("collective-permute", 5, group=2, times=4),
        Collective("all-to-all", 9, group=1),
    ]
    found = totals(each)
    assert list(found) == ["all-reduce", "all-gather", "collective-permute"]
    assert found["all-gather"] == (3, 32, 2 * 12 * 2 / 3 + 8 * 3 / 4, False)
    assert found["all-reduce"] == (1, 6, 6 * 2 * 2 / 3, True)
    assert found["collective-permute"] == (4, 20, 20.0, True)


STARTED = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %p = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a), \
source_target_pairs={{0,1},{1,0}}
  %q = (f32[8]{0}, f32[4]{0}) collective-permute-start(%a), source_target_pairs={{0,1}}
  %g = (f32[2]{0}, bf16[3]{0}, f32[8]{0}, bf16[12]{0}) all-gather-start(%a), \
replica_groups=[2,4]<=[8]
  %r = f32[16]{0} all-reduce-start(%a), replica_groups=mesh['x'=2,'y'=4]{'x','y'}
  %s = f32[2]{0} reduce-scatter(%a), replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}
  %d = f32[8]{0} collective-permute-done(%p)
}
"""


def test_what_is_started_counts_the_results_alone():
    assert parse(STARTED, devices=8) == [
        Collective("collective-permute", 32, group=8),
        Collective("collective-permute", 16, group=8),
        Collective("all-gather", 32 + 24, group=4),
        Collective("all-reduce", 64, group=8),
        Collective("reduce-scatter", 16, group=2),
    ]


LOOPS = """
%inner (p: f32[]) -> f32[] {
  ROOT %x = f32[] add(%p, %p)
}

%less (p: s32[]) -> pred[] {
  %bound = s32[] constant(7)
  ROOT %lt = pred[] compare(%p, %bound), direction=LT
}

%other (p: s32[]) -> pred[] {
  %bound = s32[] constant(7)
  %more = s32[] constant(8)
  ROOT %lt = pred[] compare(%p, %bound), direction=LT
}

%greater (p: s32[]) -> pred[] {
  %bound = s32[] constant(7)
  ROOT %gt = pred[] compare(%p, %bound), direction=GT
}

%body (p: s32[]) -> s32[] {
  %f = f32[] fusion(%p), kind=kLoop, calls=%inner
  ROOT %g = f32[] fusion(%p), kind=kLoop, calls=%inner
}

%told (p: s32[]) -> s32[] {
  ROOT %c = s32[] conditional(%p), branch_computations={%inner, %inner2}
}

%lost (p: s32[]) -> s32[] {
  ROOT %c = s32[] copy(%p)
}

%upward (p: s32[]) -> s32[] {
  ROOT %c = s32[] copy(%p)
}

%inner2 (p: f32[]) -> f32[] {
  ROOT %x = f32[] add(%p, %p)
}

ENTRY %main (a: s32[]) -> s32[] {
  %w.1 = s32[] while(%a), condition=%less, body=%body
  %w.2 = s32[] while(%a), condition=%other, body=%told, \
backend_config={"known_trip_count":{"n":"5"}}
  %w.3 = s32[] while(%a), condition=%other, body=%lost
  ROOT %w.4 = s32[] while(%a), condition=%greater, body=%upward
}
"""


def test_a_computation_runs_as_often_as_its_callers():
    times = frequencies(LOOPS)
    assert times("main") == (1, True) and times("nothing") == (0, True)
    assert times("body") == (7, True) and times("told") == (5, True)
    assert times("lost") == (1, False) and times("upward") == (1, False)
    assert times("inner2") == (5, True)
    # By two fusions of one body, or one: a computation is called from each line.
    assert times("inner") == (2 * 7 + 5, True)
