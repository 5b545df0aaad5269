"""Small parts of the loop by exact values: clocks, limits, the sizes of dispatches, gauges."""

import numpy as np
import pytest

from diffusion_jax.train import gauges, log, sharding, symptoms, trace
from diffusion_jax.train.feed import feed
from diffusion_jax.train.plan import Plan, check
from diffusion_jax.train.symptoms import Watch


@pytest.fixture
def clock(monkeypatch):
    """Seconds that are set by hand."""
    now = [100.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])
    return now


def test_a_meters_speed_and_wait_are_of_its_clock(clock):
    meter = log.Meter()
    meter.waited(50.0)  # before the first reading: compilation
    meter.tick(1)
    clock[0] += 2
    meter.waited(0.5)
    meter.tick(4)
    clock[0] += 10  # a checkpoint
    meter.pause()
    clock[0] += 3
    meter.waited(1.0)
    meter.tick(6)
    assert meter.means() == {"steps_per_second": 10 / 5, "data_wait": 1.5 / 5}
    assert meter.means() == {}
    clock[0] += 4
    meter.waited(9.0)  # more than there was
    meter.tick(2)
    assert meter.means() == {"steps_per_second": 0.5, "data_wait": 1.0}


def test_a_pause_before_the_first_reading_starts_no_clock(clock):
    meter = log.Meter()
    meter.pause()
    clock[0] += 7
    meter.tick(3)
    assert meter.means() == {}


def test_steps_that_are_passed_over_are_counted_and_not_averaged():
    meter = log.Meter(skip_nonfinite=2)
    bad = {"loss": float("inf"), "grad_norm": 1.0, "finite": False}
    assert meter.add(1, {"loss": 4.0, "finite": True}) == ""
    says = meter.add(2, bad)
    assert "loss is inf at step 2" in says and "(1 of at most 2" in says
    says = meter.add(3, {**bad, "loss": 1.0, "grad_norm": float("nan")})
    assert "grad_norm is nan at step 3" in says and "(2 of at most 2" in says
    meter.broken_records = 5
    assert meter.means() == {"loss": 4.0, "skipped_steps": 2.0, "broken_records": 5.0}
    with pytest.raises(log.NonFinite, match="step 3, the last good ones"):
        meter.add(4, bad)


@pytest.mark.parametrize(
    ("field", "least"),
    [
        ("steps", 1),
        ("accumulate", 1),
        ("steps_per_call", 1),
        ("log_every", 1),
        ("checkpoint_every", 0),
        ("skip_nonfinite", 0),
    ],
)
def test_a_plan_has_its_smallest_numbers(field, least):
    check(Plan(**{"steps": 2, field: least}))
    with pytest.raises(ValueError, match=rf"train\.{field} = {least - 1} must be at least {least}"):
        check(Plan(**{"steps": 2, field: least - 1}))


@pytest.mark.parametrize(
    ("start", "steps", "k", "sizes"),
    [(1, 10, 3, [1, 1, 3, 3, 1]), (0, 6, 2, [2, 2, 2]), (4, 4, 2, []), (5, 6, 1, [1])],
)
def test_dispatches_begin_at_multiples_of_their_size(start, steps, k, sizes):
    data = lambda first: ({"x": np.full((2, 3), i)} for i in range(first, steps))
    fed = list(feed(data, sharding.make_mesh(), start, steps, k, log.Meter()))
    assert [size for size, _ in fed] == sizes
    seen = [np.asarray(batch["x"]).reshape(-1, 2, 3)[:, 0, 0].tolist() for _, batch in fed]
    assert [i for part in seen for i in part] == list(range(start, steps))
    assert all(batch["x"].shape == ((size,) if size > 1 else ()) + (2, 3) for size, batch in fed)


def test_the_feed_counts_the_wait_and_hands_on_what_was_broken(clock):
    class Data:
        broken_records = 0

        def __iter__(self):
            return self

        def __next__(self):
            clock[0] += 1.5
            self.broken_records += 2
            return {"x": np.zeros((1, 1))}

    meter = log.Meter()
    meter.tick(1)
    fed = feed(lambda start: Data(), sharding.make_mesh(), 0, 2, 2, meter)
    assert next(fed)[0] == 2
    meter.tick(2)
    assert meter.means() == {"broken_records": 4.0, "steps_per_second": 2 / 3, "data_wait": 1.0}
    ended = feed(
        lambda start: iter([{"x": np.zeros((1, 1))}]), sharding.make_mesh(), 3, 9, 1, meter
    )
    next(ended)
    with pytest.raises(ValueError, match="the data ended at step 4 of 9"):
        next(ended)


def test_a_trace_runs_from_its_first_step_through_its_last(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(trace.jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(trace.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    taken = trace.Trace(tmp_path, "2:3")
    events = []
    for step in range(6):
        taken.before(step)
        events.append(len(calls))
        taken.after(step + 1, None)
        events.append(len(calls))
    assert calls == [str(tmp_path / "profile"), "stop"]
    assert events == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    for idle in (trace.Trace(tmp_path, ""), taken):
        idle.before(0)
        idle.close()
    assert len(calls) == 2
    one = trace.Trace(tmp_path, "4:4")
    one.before(4)
    one.close()  # where the run ends
    assert len(calls) == 4
    for wrong in ("3:2", "3", "a:4", "-1:4", "1:"):
        with pytest.raises(ValueError, match="must be FIRST:LAST"):
            trace.Trace(tmp_path, wrong)


def test_gauges_are_of_the_step_the_chip_and_the_fullest_device(monkeypatch):
    class Device:
        device_kind = "TPU v4"

        def __init__(self, use, peak):
            self.stats = {"bytes_in_use": use * 2**30, "peak_bytes_in_use": peak * 2**30}

        def memory_stats(self):
            return self.stats

    devices = [Device(2, 3), Device(1.5, 5)]
    monkeypatch.setattr(gauges.jax, "devices", lambda: devices)
    monkeypatch.setattr(gauges.jax, "local_devices", lambda: devices)
    monkeypatch.setattr(gauges.jax, "device_count", lambda: 2)
    counts = iter([(4, 2.5), (9, 4.0), (9, 4.0)])
    monkeypatch.setattr(gauges, "compilations", lambda: next(counts))
    reader = gauges.Gauges(examples=32)
    first = reader.read(None, 0.0)
    memory = {"memory_in_use": 2.0, "memory_peak": 5.0}
    assert first == {"compilations": 5.0, "compile_seconds": 1.5, **memory}
    second = reader.read(2.0, 11e12)
    assert second["examples_per_second"] == 64 and second["flops_per_second"] == 22e12
    # 275 TFLOP/s in bfloat16 for each of two chips.
    np.testing.assert_allclose(second["mfu"], 22e12 / (2 * 275e12))


def told(**series):
    """Names of the signs after so many steps, each metric's values in order."""
    watch = Watch()
    length = max(len(v) for v in series.values())
    for step in range(length):
        watch.see(step + 1, {name: v[step] for name, v in series.items() if step < len(v)})
    return watch.reported


def test_spikes_are_three_over_ten_times_the_median_of_twenty():
    assert told(grad_norm=[1.0] * 17 + [10.1] * 3) == ["spikes"]
    assert told(grad_norm=[1.0] * 17 + [10.0] * 3) == []  # not over
    assert told(grad_norm=[1.0] * 18 + [10.1] * 2) == []
    assert told(grad_norm=[1.0] * 16 + [10.1] * 3) == []
    assert told(grad_norm=[10.1] * 3 + [1.0] * 99 + [10.1] * 2) == []  # of the last 100


def test_an_explosion_is_ten_times_the_lowest_median_of_a_hundred():
    grown = lambda times: told(loss=[3.0] * 100 + [2.0] * 100 + [2.0 * times] * 101)
    assert grown(10.0) == ["exploding"] and grown(9.9) == []
    assert told(loss=[2.0] * 100 + [20.0] * 49) == []  # half of the last hundred
    assert told(loss=[2.0] * 100 + [20.0] * 51) == ["exploding"]
    assert told(loss=[2.0] * 40 + [200.0] * 59) == []  # no window is complete
    assert told(loss=[-2.0] * 100 + [20.0] * 200) == []
    assert told(loss=[2.0] * 99 + [500.0] + [30.0] * 101) == ["exploding"]  # whatever is in it


def test_stuck_is_six_digits_over_five_windows():
    wobble = lambda off, n=500: [5.0 + off * (step // 100 % 2) for step in range(n)]
    assert told(param_norm=wobble(4e-6)) == ["stuck"]
    assert told(param_norm=wobble(6e-6)) == []
    assert told(param_norm=wobble(0, 499)) == []
    assert told(param_norm=[1.0] * 100 + wobble(0, 500)) == ["stuck"]  # the last five
    # A weighted loss is 1 whatever is learned; its error tells.
    assert told(loss=[1.0] * 500) == ["stuck"]
    assert told(loss=[1.0] * 500, error=[1.0 / (1 + step) for step in range(500)]) == []


def test_flat_is_twenty_windows_without_a_tenth():
    windows = lambda *values: [v for value in values for v in [value] * 50 + [value * 1.001] * 50]
    level = [1 - 0.001 * (i % 2) for i in range(21)]
    assert told(loss=windows(*level)) == ["flat"]
    assert told(loss=windows(*level[:20])) == []
    assert told(loss=windows(*level[:5], 0.89, *level[6:])) == []  # was a tenth lower
    assert told(loss=windows(*level[:5], 0.91, *level[6:])) == ["flat"]
    assert told(loss=windows(1.0, *[0.94 - 0.001 * (i % 2) for i in range(20)])) == []
    assert told(loss=windows(1.0, *[0.96 - 0.001 * (i % 2) for i in range(20)])) == ["flat"]
    assert told(loss=windows(*level), generator=[1.0 + i for i in range(2100)]) == []


def test_a_game_is_lost_eight_logits_apart_while_the_generators_loss_grows():
    def game(real, made, losses):
        spread = lambda values: [v for value in values for v in [value] * 100]
        return told(
            logit_real=spread([real, real + 1e-3]), logit_made=spread([made, made - 1e-3]),
            generator=spread(losses),
        )  # fmt: skip

    assert game(4.0, -4.0, [1.0, 1.5]) == ["saturated"]
    assert game(3.99, -3.99, [1.0, 1.5]) == []
    assert game(4.0, -4.0, [1.5, 1.0]) == []
    assert game(4.0, -4.0, [1.5, 1.5]) == []
    assert game(-4.0, 4.0, [1.0, 1.5]) == []


@pytest.mark.parametrize(
    ("name", "least", "sign"), [("spread", 0.05, "constant"), ("sample_spread", 0.02, "alike")]
)
def test_outputs_are_alike_below_a_limit(name, least, sign):
    assert told(**{name: [least]}) == [] and told(**{name: [1.0, 0.99 * least]}) == [sign]


def test_the_settings_of_the_signs_are_those_that_are_documented():
    assert symptoms.WINDOW == 100
    watch = Watch()
    assert watch.counts() == {}
    for _ in range(3):
        watch.see(1, {"spread": 0.0, "sample_spread": 0.0})
    assert watch.counts() == {"warnings": 2.0}
