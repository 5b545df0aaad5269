"""The smallest run with everything in it: a perceptron that learns to tell noise from data.

In a process of its own, ``start(workdir, "--steps=40", "--signal=SIGTERM", "--at=12")``, it signals
itself when it draws the batch of a step; with ``--mesh`` it trains on eight devices; with
``--snapshots=5`` it tracks power-function averages and keeps them every five steps; with
``--buckets=FOLDER`` it trains on the pictures of many shapes prepared there; with
``--coordinator=HOST:PORT --processes=N --process=I`` it is one of several.
"""

import argparse
import atexit
import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import ending
from diffusion_jax.core import ema
from diffusion_jax.core.types import Recipe, Report
from diffusion_jax.jobs import hosts
from diffusion_jax.train import optimizer, sharding, snapshots
from diffusion_jax.train.loop import Hook, train
from diffusion_jax.train.plan import Plan

CONFIG = {"seed": 0, "model": {"width": 64, "dims": (8, 8)}, "train": {"steps": 40}}
RATE = optimizer.learning_rate(1e-2, optimizer.cosine(40), warmup=5)
EMA = ema.warmup(0.99)


def optimiser():
    return optimizer.adamw(RATE, weight_decay=0.01, clip=1.0)


def _init(key, batch):
    a, b = jax.random.split(key)
    d = batch["x"].shape[-1]
    hidden = {"kernel": 0.3 * jax.random.normal(a, (d, 64)), "bias": jnp.zeros(64)}
    out = {"kernel": 0.1 * jax.random.normal(b, (64, d))}
    return {"net": {"hidden": hidden, "out": out}, "terms": [{}]}


def forward(params, x):
    hidden, out = params["net"]["hidden"], params["net"]["out"]
    return jnp.tanh(x @ hidden["kernel"] + hidden["bias"]) @ out["kernel"]


def _loss(params, context, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    loss = jnp.mean((forward(params, batch["x"] + noise) - noise) ** 2)
    return loss, Report({"seen": context.carry}, context.carry + 1)


RECIPE = Recipe(_init, _loss, lambda: jnp.zeros(()))


def batches(start, size=16, part=(0, 1)):
    """Batches from a step on; of several processes, the part (index, count) of each."""
    index, count = part
    mine = slice(index * size // count, (index + 1) * size // count)
    while True:
        yield {"x": np.random.default_rng(start).normal(size=(size, 8)).astype(np.float32)[mine]}
        start += 1


def bucketed(folder, part=(0, 1), seen=None):
    """Batches of the set "image_folder/many" in three buckets; ``seen`` gets (size, colours)."""
    from diffusion_jax.data import DataSpec, make_dataset, to_uint8  # slow to import

    spec = DataSpec("image_folder/many", batch_size=4, data_dir=folder, seed=5)
    spec = spec._replace(buckets=((4, 8), (6, 6), (8, 4)))
    dataset = make_dataset(spec._replace(process_index=part[0], process_count=part[1]))

    def data(start):
        while True:
            image = dataset[start]["image"]
            colours = to_uint8(image)[:, 0, 0, 0].tolist()
            (seen if seen is not None else []).append((list(image.shape[1:3]), colours))
            yield {"x": image}
            start += 1

    return data


def run(
    workdir, steps=40, data=batches, config=None, hooks=(), mesh=None, rules=(), ema=EMA,
    offload="none", **plan,
):  # fmt: skip
    plan = Plan(steps, **{"log_every": 5, "checkpoint_every": 10, **plan})
    config = CONFIG if config is None else config
    options = {"mesh": mesh, "rules": rules, "hooks": hooks, "learning_rate": RATE}
    options["offload"] = offload
    return train(RECIPE, optimiser(), ema, data, plan, workdir, config, **options)


def run_with_snapshots(workdir, steps, every, **options):
    """Widths 0.06 and 0.15, kept every so many steps."""
    keep = Hook(every, lambda step, state: snapshots.save(workdir, step, state.ema))
    return run(workdir, steps, ema=ema.power((0.06, 0.15)), hooks=[keep], **options)


def signalling(name, at, part=(0, 1)):
    def data(start):
        for step, batch in enumerate(batches(start, part=part), start):
            if step == at:
                os.kill(os.getpid(), getattr(signal, name))
            yield batch

    return data


class Started(NamedTuple):
    """A process, and the folder of what it prints."""

    process: Any
    printed: pathlib.Path

    def kill(self):
        self.process.kill()

    def running(self):
        return self.process.is_alive()


@functools.cache
def _server():
    """Forks processes that have imported everything: that takes longer than most of these runs."""
    here = pathlib.Path(__file__)
    paths = [str(here.parents[2]), str(here.parent), os.environ.get("PYTHONPATH", "")]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny"])
    with pytest.MonkeyPatch.context() as patch:  # which the processes that other tests start miss
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        forkserver.ensure_running()
    return context


def start(*arguments, devices=1):
    """A process of its own, not waited for; it ends with the tests at the latest."""
    printed = pathlib.Path(tempfile.mkdtemp())
    cache = jax.config.jax_compilation_cache_dir
    arguments = [*map(str, arguments)]
    own = (arguments, devices, cache, printed)
    process = _server().Process(target=_child, args=own, daemon=True)
    process.start()
    return Started(process, printed)


def end(started, timeout=None):
    """Wait for a started process."""
    process, printed = started
    process.join(timeout)
    assert process.exitcode is not None, f"still running after {timeout} s"
    out, err = ((printed / name).read_text() for name in ("out", "err"))
    shutil.rmtree(printed)
    return subprocess.CompletedProcess([], process.exitcode, out, err)


def _child(arguments, devices, cache, printed):
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(printed / name, os.O_WRONLY | os.O_CREAT), stream.fileno())
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        _guarded_main(arguments)
    finally:
        atexit._run_exitfuncs()  # which a fork leaves out: among them the farewell to the peers
        sys.stdout.flush()


def script(*arguments, devices=1):
    """This file in a process of its own."""
    return end(start(*arguments, devices=devices))


def start_hosts(n, *arguments, devices=1, own=None):
    """n processes that are one run; ``own``, process -> arguments for it alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = [*arguments, f"--coordinator=127.0.0.1:{port}", f"--processes={n}"]
    each = lambda i: [*shared, f"--process={i}", *(own or {}).get(i, [])]
    return [start(*each(i), devices=devices) for i in range(n)]


def _main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--signal")
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--mesh", type=json.loads, default={"data": -1})
    parser.add_argument("--snapshots", type=int, default=0)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--per-call", type=int, default=1)
    parser.add_argument("--buckets")
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    args = parser.parse_args(arguments)
    hosts.HEARTBEAT_SECONDS = 10
    hosts.connect(hosts.Hosts("", args.coordinator, args.processes, args.process))
    mesh = sharding.make_mesh(args.mesh)
    part = sharding.data_part(mesh)
    data, seen = lambda start: batches(start, part=part), []
    if args.buckets:
        data = bucketed(args.buckets, part, seen)
    if args.signal:
        data = signalling(args.signal, args.at, part)
    rules = [("hidden/kernel", (None, ("fsdp", "tensor")))]
    if args.snapshots:
        state = run_with_snapshots(args.workdir, args.steps, args.snapshots, mesh=mesh, rules=rules)
        kernel = state.ema["0.15"]["net"]["hidden"]["kernel"]
    else:
        plan = {"checkpoint_every": args.every, "steps_per_call": args.per_call}
        state = run(args.workdir, args.steps, data, mesh=mesh, rules=rules, **plan)
        kernel = state.params["net"]["hidden"]["kernel"]
    shard = kernel.sharding.shard_shape(kernel.shape)
    told = {"devices": jax.device_count(), "kernel": shard}
    print(json.dumps({**told, "seen": seen} if args.buckets else told))


def _guarded_main(arguments):
    """As main.py: a lost peer is a sentence."""
    try:
        _main(arguments)
    except RuntimeError as error:
        if not ending.lost_peer(error):
            raise
        ending.end(ending.of_lost_peer(error), code=75)
