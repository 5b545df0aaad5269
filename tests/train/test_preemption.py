import os
import signal
import threading

import pytest

from diffusion_jax.train.preemption import EXIT_CODES, stop_signals


@pytest.mark.parametrize("name", sorted(EXIT_CODES))
def test_a_signal_asks_once_and_then_means_it(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    heard = []
    signal.signal(number, lambda *args: heard.append(name))
    try:
        with stop_signals() as stop:
            assert stop(1) is None
            os.kill(os.getpid(), number)
            assert stop(2) == name and not heard
            os.kill(os.getpid(), number)
            assert heard == [name]
        assert stop(3) == name
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back_whatever_happens():
    before = {name: signal.getsignal(getattr(signal, name)) for name in EXIT_CODES}
    with pytest.raises(RuntimeError), stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before["SIGTERM"]
        raise RuntimeError
    assert {name: signal.getsignal(getattr(signal, name)) for name in EXIT_CODES} == before


def test_threads_have_no_handlers_and_need_none():
    answers = []

    def run():
        with stop_signals() as stop:
            answers.append(stop(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [None]
