import json

import pytest

from diffusion_jax.train.log import METRICS, Meter, NonFinite, open_log, truncate


def _lines(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_lines_after_the_resumed_step_go_and_so_does_half_a_line(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2}\nnoise\n{"step": 3}\n{"step": 1, "lo')
    truncate(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_log_goes_on_where_the_run_does(tmp_path):
    with open_log(tmp_path, 0) as log:
        log.line(1, {"loss": 0.5})
        log.line(2, {"loss": float("nan")})
        assert _lines(tmp_path / METRICS)[-1] == {"step": 2, "loss": None}  # on the disk at once
    with open_log(tmp_path, 1) as log:
        log.line(2, {"loss": 0.25})
    assert _lines(tmp_path / METRICS) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_meter_gives_means_since_the_last_line():
    meter = Meter()
    for step, loss in enumerate((1.0, 2.0, 6.0), 1):
        meter.add(step, {"loss": loss, "finite": True})
    assert meter.means() == {"loss": 3.0}
    assert meter.means() == {}
    meter.tick(1)  # compiling took the time before this
    meter.tick(4)
    meter.add(4, {"loss": 5.0, "finite": True})
    means = meter.means()
    assert means["loss"] == 5.0 and means["steps_per_second"] > 0 and means["data_wait"] == 0


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"loss": float("nan"), "grad_norm": 1.0}, "loss is nan at step 7"),
        ({"loss": 1.0, "grad_norm": float("inf")}, "grad_norm is inf at step 7"),
    ],
)
def test_a_meter_names_what_is_not_finite(metrics, says):
    with pytest.raises(NonFinite, match=says) as caught:
        Meter().add(7, {**metrics, "finite": False})
    assert (caught.value.step, caught.value.metric) == (7, says.split()[0])
