import time

import numpy as np
import pytest

from diffusion_jax.data import pipeline
from diffusion_jax.data.faults import BrokenRecord, DataStalled, Faults, forgiving, watched
from diffusion_jax.data.pipeline import batches, make_dataset
from diffusion_jax.data.sources import Info, Source
from diffusion_jax.data.spec import DataSpec

N = 12


NOT_AN_IMAGE = ValueError("not an image")


def _source(broken=(), how=NOT_AN_IMAGE):
    def read(indices):
        out = []
        for i in map(int, indices):
            image = np.full((4, 4, 1), i, np.uint8)
            if i in broken:
                if isinstance(how, Exception):
                    raise how
                image = how
            out.append({"image": image, "label": i})
        return out

    return Source(Info("things", "train", N, (4, 4, 1), N, (), False), read)


def _labels(source, indices):
    return [example["label"] for example in source.read(np.array(indices))]


def test_whole_records_are_read_at_once_and_nothing_is_counted():
    faults = Faults(0)
    assert _labels(forgiving(_source(), faults), [3, 1]) == [3, 1] and not faults.broken


@pytest.mark.parametrize("how", [OSError("disk"), np.zeros((4, 0, 1)), np.full((2,), np.nan)])
def test_a_broken_record_gives_way_to_the_next_whole_one(how):
    faults = Faults(3)
    source = forgiving(_source({4, 5, 11}, how), faults)
    assert _labels(source, [3, 4, 5, 11]) == [3, 6, 6, 0]
    assert _labels(source, [4]) == [6]  # the same each time, and counted once
    assert sorted(faults.broken) == [4, 5, 11]


def test_one_too_many_is_named():
    says = r"record 5 of data set things, split 'train' cannot be read \(ValueError: not an image\)"
    with pytest.raises(BrokenRecord, match=says + "; prepare"):
        _labels(forgiving(_source({5}), Faults(0)), [5])
    with pytest.raises(BrokenRecord, match="after 1 others; prepare"):
        _labels(forgiving(_source({4, 5}), Faults(1)), [4])
    with pytest.raises(BrokenRecord, match="no record of data set things"):
        _labels(forgiving(_source(set(range(N))), Faults(N)), [4])
    with pytest.raises(ValueError, match=r"config\.data\.broken_records = -1 must be"):
        Faults(-1)


def test_batches_count_what_they_replaced(monkeypatch):
    monkeypatch.setattr(pipeline, "open_source", lambda *args: _source({2}))
    faults = Faults(1)
    stream = batches(make_dataset(DataSpec("things", batch_size=N), faults), faults=faults)
    for _ in range(2):  # an epoch each
        assert sorted(next(stream)["label"]) == sorted([*range(2), 3, *range(3, N)])
    assert stream.broken_records == 1
    stream = batches(make_dataset(DataSpec("things", batch_size=N)))
    with pytest.raises(BrokenRecord, match="record 2 of data set things"):
        next(stream)


def test_a_source_that_stalls_is_an_error_and_one_that_is_slow_is_not():
    def slow(pause):
        for i in range(3):
            time.sleep(pause if i == 1 else 0.0)
            yield i

    assert list(watched(slow(0.05), 5.0, "it")) == [0, 1, 2]
    assert list(watched(slow(0.0), 0.0, "it")) == [0, 1, 2]
    stream = watched(slow(30.0), 0.2, "the data set")
    assert next(stream) == 0
    with pytest.raises(DataStalled, match=r"the data set gave no batch for 0\.2 s; look at the"):
        next(stream)


def test_an_error_of_the_thread_reaches_the_reader():
    def broken():
        yield 1
        raise OSError("gone")

    stream = watched(broken(), 5.0, "it")
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)
