"""Event files: what is written is there at once, and can be read back."""

import struct

import numpy as np
from tensorboardX.proto import event_pb2

from diffusion_jax.train.events import Events
from diffusion_jax.train.log import EVENTS, METRICS, open_log


def read(folder):
    """The events of all files in a folder: TFRecords are length, crc, data, crc."""
    found = []
    for path in sorted(folder.iterdir()):
        rest = path.read_bytes()
        while rest:
            (size,) = struct.unpack("<Q", rest[:8])
            found.append(event_pb2.Event.FromString(rest[12 : 12 + size]))
            rest = rest[16 + size :]
    return [event for event in found if not event.HasField("file_version")]


def test_numbers_and_images_are_there_at_once(tmp_path):
    folder = tmp_path / "new" / "tensorboard"
    with Events(folder) as events:
        events.write(3, {"loss": np.float32(0.5), "grid": np.full((4, 6, 3), 7, np.uint8)})
        loss, grid = read(folder)
    assert (loss.step, loss.summary.value[0].tag) == (3, "loss")
    assert loss.summary.value[0].simple_value == 0.5
    image = grid.summary.value[0].image
    assert (grid.step, image.height, image.width, image.colorspace) == (3, 4, 6, 3)
    assert loss.wall_time > 1e9


def test_a_log_writes_lines_and_what_is_shown(tmp_path):
    with open_log(tmp_path, 0) as lines:
        lines.line(1, {"loss": 0.25})
        lines.show(2, {"score": 3.0})
    found = [(event.step, event.summary.value[0].tag) for event in read(tmp_path / EVENTS)]
    assert found == [(1, "loss"), (2, "score")]
    assert (tmp_path / METRICS).read_text() == '{"step": 1, "loss": 0.25}\n'


def test_a_resumed_run_hides_what_comes_after_its_start(tmp_path):
    with Events(tmp_path, purge=5):
        pass
    (start,) = read(tmp_path)
    assert start.step == 5 and start.session_log.status == event_pb2.SessionLog.START
    with Events(tmp_path / "new"):
        pass
    assert read(tmp_path / "new") == []
