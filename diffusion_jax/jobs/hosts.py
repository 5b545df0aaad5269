"""Several processes as one program: joining them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from diffusion_jax.ending import first_line

# A peer is taken for dead after this time without a sign of life, and every process then ends.
HEARTBEAT_SECONDS = 60
# How long the first processes wait for the last one to start.
START_SECONDS = 300


class Hosts(NamedTuple):
    """Where this process stands among all; empty fields come from the environment.

    Attributes:
        detect: "" or "auto": ask Cloud TPU, SLURM, Open MPI or Kubernetes for the rest.
        coordinator: host:port of process 0; $JAX_COORDINATOR_ADDRESS.
        processes: how many; $JAX_NUM_PROCESSES.
        process: which one this is, 0 to processes - 1; $JAX_PROCESS_ID.
    """

    detect: str = ""
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None


def connect(hosts: Hosts, environment: Mapping[str, str] | None = None) -> None:
    """Join the other processes, before anything is computed; nothing to do for a single one.

    Raises:
        ValueError: for a number that is missing or out of range, or a coordinator that does not
            answer in ``START_SECONDS``.
    """
    found = _filled(hosts, os.environ if environment is None else environment)
    if not found.coordinator and found.detect != "auto":
        return
    given: dict[str, Any] = {}
    if found.coordinator:
        given = {
            "coordinator_address": found.coordinator,
            "num_processes": found.processes,
            "process_id": found.process,
            "cluster_detection_method": None if found.detect else "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=START_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes did not find one another ({first_line(error)}); start all of them "
            "with the same --coordinator=HOST:PORT and --processes=N, and --process=0 to N - 1, or "
            "leave --distributed=auto away outside of Cloud TPU, SLURM, Open MPI and Kubernetes"
        ) from None


def _filled(hosts: Hosts, environment: Mapping[str, str]) -> Hosts:
    processes = _number("processes", hosts.processes, "JAX_NUM_PROCESSES", environment)
    process = _number("process", hosts.process, "JAX_PROCESS_ID", environment)
    coordinator = hosts.coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    if hosts.detect == "auto":
        return Hosts("auto", coordinator, processes, process)
    if not coordinator:
        for name, value in (("processes", processes), ("process", process)):
            if value is not None:
                raise ValueError(
                    f"--{name}={value} needs --coordinator=HOST:PORT, the address of process 0"
                )
        return Hosts()
    if not coordinator.rpartition(":")[2].isdigit() or not coordinator.rpartition(":")[0]:
        raise ValueError(f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.2:1234")
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"--coordinator={coordinator} needs --processes=N and --process from 0 to N - 1; they "
            f"are {processes} and {process}"
        )
    return Hosts("", coordinator, processes, process)


def _number(
    flag: str, given: int | None, variable: str, environment: Mapping[str, str]
) -> int | None:
    text = environment.get(variable, "")
    if given is not None or not text:
        return given
    if not text.isdigit():
        raise ValueError(f"${variable} = {text!r} must be a number; --{flag} overrides it")
    return int(text)
