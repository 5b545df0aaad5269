import itertools
import json
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny

from diffusion_jax.train.checkpoint import restore_params, steps
from diffusion_jax.train.log import EVENTS, METRICS, NonFinite
from diffusion_jax.train.loop import Hook
from diffusion_jax.train.workdir import CONFIG

TIMES = (
    "steps_per_second", "data_wait", "examples_per_second", "flops_per_second", "compilations",
    "compile_seconds",
)  # fmt: skip


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _lines(workdir):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(text) for text in (workdir / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def test_a_run_leaves_all_that_it_promises(reference):
    lines = _lines(reference.workdir)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert {"loss", "grad_norm", "param_norm", "learning_rate", "seen"} < set(lines[0])
    assert lines[0]["seen"] == 2.0  # the recipe's carry counts 0, 1, 2, 3, 4
    assert lines[0]["learning_rate"] == pytest.approx(np.mean([tiny.RATE(i) for i in range(5)]))
    raw = json.loads((reference.workdir / METRICS).read_text().splitlines()[-1])
    assert raw["steps_per_second"] > 0 and 0 <= raw["data_wait"] <= 1
    assert steps(reference.workdir) == [10, 20, 30, 40]
    assert json.loads((reference.workdir / CONFIG).read_text())["model"]["dims"] == [8, 8]
    assert list((reference.workdir / EVENTS).glob("events.out.tfevents.*"))


def test_hooks_come_on_time_and_at_the_end(reference):
    assert reference.hooked == [(15, 15), (30, 30), (40, 40)]


def test_the_saved_average_is_the_state_s(reference):
    loaded = restore_params(reference.workdir, "ema")
    _assert_same(loaded, jax.tree.map(np.asarray, reference.state.ema))
    moved = np.abs(loaded["net"]["out"]["kernel"] - reference.state.params["net"]["out"]["kernel"])
    assert moved.max() > 1e-3


@pytest.mark.whole
def test_a_killed_process_goes_on_bit_by_bit(reference, tmp_path):
    """A process stopped by SIGTERM, the next killed by SIGKILL, the rest of the run here."""
    told = tiny.script(tmp_path, "--signal=SIGTERM", "--at=7")
    assert told.returncode == 0, told.stderr
    assert "Stopped by SIGTERM at step 7, which is saved; the same command" in told.stderr
    assert "Traceback" not in told.stderr
    killed = tiny.script(tmp_path, "--signal=SIGKILL", "--at=25")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps(tmp_path)[-1] in (10, 20)  # what was on its way to the disk may be lost
    _assert_same(tiny.run(tmp_path, 40), reference.state)
    assert _lines(tmp_path)[-4:] == _lines(reference.workdir)[-4:]


def test_several_steps_a_dispatch_from_any_start(reference, tmp_path):
    """From step 30, by 4: 30 and 31 one by one, 32 to 39 in two dispatches."""
    shutil.copytree(reference.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    seen = []
    hook = Hook(3, lambda step, state: seen.append(step))
    state = tiny.run(tmp_path / "run", 40, steps_per_call=4, hooks=[hook])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, reference.state
    )
    assert seen == [36, 40]
    assert [line["step"] for line in _lines(tmp_path / "run")] == list(range(5, 41, 5))


def test_a_batch_that_is_not_finite_stops_the_run_at_the_last_good_state(reference, tmp_path):
    def poisoned(start):
        for step, batch in enumerate(tiny.batches(start), start):
            yield {"x": np.where(step == 27, np.nan, batch["x"]).astype(np.float32)}

    shutil.copytree(reference.workdir, tmp_path / "run")
    for step in (30, 40):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    with pytest.raises(NonFinite, match="loss is nan at step 28; the parameters of step 27"):
        tiny.run(tmp_path / "run", 40, poisoned)
    assert steps(tmp_path / "run") == [10, 20, 27]
    _assert_same(tiny.run(tmp_path / "run", 40), reference.state)


def test_a_finished_run_has_nothing_to_do(reference, tmp_path):
    shutil.copytree(reference.workdir, tmp_path / "run")
    before = _lines(tmp_path / "run")
    _assert_same(tiny.run(tmp_path / "run", 40), reference.state)
    assert _lines(tmp_path / "run") == before


def test_another_config_is_refused_before_anything_is_touched(reference):
    with pytest.raises(ValueError, match=r"model\.width is 64 there and 32 here"):
        tiny.run(reference.workdir, config={**tiny.CONFIG, "model": {"width": 32, "dims": (8, 8)}})


@pytest.mark.parametrize(
    ("plan", "field"),
    [({"steps": 0}, "steps"), ({"accumulate": 0}, "accumulate"), ({"log_every": 0}, "log_every")],
)
def test_a_plan_that_does_nothing_is_refused(tmp_path, plan, field):
    with pytest.raises(ValueError, match=rf"config\.train\.{field} = 0 must be at least 1"):
        tiny.run(tmp_path / "run", **plan)
    assert not (tmp_path / "run").exists()


def test_data_that_ends_or_never_began(tmp_path):
    few = lambda start: itertools.islice(tiny.batches(start), 3)
    with pytest.raises(ValueError, match="the data ended at step 3 of 40"):
        tiny.run(tmp_path / "few", data=few)
    with pytest.raises(ValueError, match="the data has no batch at all"):
        tiny.run(tmp_path / "none", data=lambda start: iter(()))
