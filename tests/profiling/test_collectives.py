import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax.profiling.collectives import Collective, parse, totals
from diffusion_jax.profiling.hlo import sizes

BYTES = 64 * 4  # on each device, in the script


@pytest.fixture(scope="module")
def programs():
    """The text of both programs, from a process of its own: it has eight devices."""
    script = Path(__file__).with_name("collectives_on_cpu.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("=====")


def test_every_kind_has_the_bytes_of_the_hand_count(programs):
    found = {c.kind: c for c in parse(programs[0], devices=8)}
    assert found == {
        "all-reduce": Collective("all-reduce", BYTES, group=4, times=5),
        "all-gather": Collective("all-gather", 2 * BYTES, group=2),
        "reduce-scatter": Collective("reduce-scatter", BYTES, group=4),
        "collective-permute": Collective("collective-permute", BYTES, group=8),
        "all-to-all": Collective("all-to-all", BYTES, group=4),
    }


def test_each_device_sends_what_a_ring_sends(programs):
    sent = {kind: total.wire for kind, total in totals(parse(programs[0], 8)).items()}
    assert sent == {
        "all-reduce": 5 * 2 * BYTES * 3 / 4,
        "all-gather": BYTES,
        "reduce-scatter": BYTES * 3 / 4,
        "collective-permute": BYTES,
        "all-to-all": BYTES * 3 / 4,
    }


def test_a_loop_of_unknown_length_counts_once_and_is_said(programs):
    (one,) = parse(programs[1], 8)
    assert one == Collective("all-reduce", BYTES, group=2, times=1, known=False)
    assert not totals([one])["all-reduce"].known


# As TPU's compiler writes them.
TPU = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar.1 = f32[8]{0:T(256)S(1)} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t.1 = (s32[], f32[8]{0}) tuple(%i, %ar.1)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(1000)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%async_collective_fusion.1 (p: bf16[4]) -> bf16[8] {
  ROOT %ag.2 = bf16[8]{0} all-gather(%p), replica_groups=mesh['x'=2,'y'=4] {'x'}, \
frontend_attributes={chain_id="3"}
}

%async_collective_fusion.2 (p: bf16[4]) -> bf16[8] {
  ROOT %ag.3 = bf16[8]{0} all-gather(%p), replica_groups=mesh['x'=2,'y'=4] {'x'}, \
frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.7 (p: f32[16]) -> f32[2] {
  %ar.4 = f32[16]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %d.1 = f32[2]{0} dynamic-slice(%ar.4, %i)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w.1 = (s32[], f32[8]{0}) while(%init), condition=%condition, body=%body
  %f.1 = bf16[8]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  %f.2 = bf16[8]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.2
  %f.3 = f32[2]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.7
  %s.1 = (f32[3]{0}, f32[6]{0}) all-gather-start(%a), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %s.2 = f32[6]{0} all-gather-done(%s.1)
  ROOT %r.1 = f32[8]{0} copy(%b)
}
"""


def test_what_tpus_write_differently():
    assert parse(TPU, devices=8) == [
        Collective("all-reduce", 32, group=4, times=1000),
        Collective("all-gather", 16, group=2),
        Collective("reduce-scatter", 64, group=8),
        Collective("all-gather", 24, group=2),
    ]


def test_sizes_of_a_type():
    text = "(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[], pred[5], s4[3], f8e4m3fn[7])"
    assert sizes(text) == [24, 2, 5, 2, 7]
