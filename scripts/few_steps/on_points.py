"""What decides whether students work, on two moons: their first and last level, time features.

    python scripts/few_steps/on_points.py [--out=runs/points]

Trains a teacher with each kind of time features and students of each, 1,000 steps of 256 points,
and prints the sliced Wasserstein distance of 2,000 samples in 1, 2 and 4 steps to the teacher's in
50, starting from the end of the schedule and from sigma/alpha = 20.  Ten minutes on two cores; an
interrupted run is resumed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import app, flags, logging

from configs import toy2d
from diffusion_jax import jobs
from diffusion_jax.apps.plan import guided
from diffusion_jax.build.runs import open_run
from diffusion_jax.build.sampling import solver_and_levels
from diffusion_jax.core.sampling import sample
from diffusion_jax.evaluate.distances import sliced_wasserstein
from diffusion_jax.spec import Config

FLAGS = flags.FLAGS

TIMES = {"wiggling": "log_snr()", "smooth": "log_snr(scale=40.0)"}
GRIDS = {"pure noise": "trailing", "20": "karras(s_min=0.6, s_max=20.0)"}
TAUGHT = "std=2.0, same=0.25, to_clean=0.25, follow='teacher', distance='pseudo_huber'"


class Student(NamedTuple):
    """One setting: a config of configs/distill/*.py, its ``distill`` and its learning rate."""

    config: str
    distill: str
    rate: float = 5e-4


STUDENTS = {
    "cd": Student("cd", "consistency_distillation()"),
    "ect": Student("ect", "easy(stages=4, mean=0.0)"),
    "ctm": Student("ctm", "trajectory(steps=4)"),
    "imm": Student("imm", "moment_matching(particles=4, gap=0.1)"),
    "imm to clean": Student("imm", "moment_matching(particles=4, gap=0.1, to_clean=0.25)"),
    "shortcut": Student("shortcut", "shortcut(finest=16, bootstrap=0.5)"),
    "shortcut of teacher": Student(
        "shortcut", "shortcut(finest=16, bootstrap=0.5, follow='teacher')"
    ),
    "mean_flow": Student("mean_flow", "mean_flow(mean=0.0, std=2.0, same=0.5)"),
    "mean_flow to clean": Student(
        "mean_flow", "mean_flow(mean=0.0, std=2.0, same=0.5, to_clean=0.25)"
    ),
    "mean_flow of teacher": Student("mean_flow", f"mean_flow(mean=0.0, {TAUGHT})"),
    "improved_mean_flow": Student(
        "improved_mean_flow", "improved_mean_flow(mean=0.0, std=2.0, to_clean=0.25)"
    ),
    "scd at 5e-4": Student("scd", "continuous_distillation(mean=0.0, sigma_data=1.0)"),
    "scd": Student("scd", "continuous_distillation(mean=0.0, sigma_data=1.0)", 1e-4),
    "sct": Student("sct", "continuous_training(mean=0.0, sigma_data=1.0)", 1e-4),
}


def teach(folder: Path, time_input: str) -> None:
    """Train a teacher on two moons."""
    config: Config = toy2d.get_config()
    config.model.time_input = time_input
    config.train.update(steps=1500, sample_every=0, checkpoint_every=1500)
    config.sampler.n = 100
    jobs.train(config, folder)


def distil(folder: Path, teacher: Path, student: Student) -> None:
    """Train a student."""
    config = importlib.import_module(f"configs.distill.{student.config}").get_config()
    config.teacher, config.distill = str(teacher), student.distill
    config.train.update(steps=1000, batch_size=256, steps_per_call=10, log_every=100)
    config.train.update(sample_every=0, checkpoint_every=1000)
    config.optimizer.update(learning_rate=student.rate)
    config.sampler.n = 100
    jobs.train(config, folder)


def draw(folder: Path, steps: int, grid: str, noise: jax.Array) -> np.ndarray:
    """Samples [n, 2] of a run, from this noise."""
    chosen = {"sampler.steps": steps, "sampler.grid": grid}
    run = open_run(jobs.run_config(folder, chosen), folder)
    model = run.experiment.model_of(run.params)
    solver, levels = solver_and_levels(run.config.sampler, model)
    walk = lambda x: sample(
        jax.random.key(0), solver, guided(model, run.params, {}, {}, None), x, levels
    )
    return np.asarray(jax.jit(walk)(noise))


def main(argv: list[str]) -> None:
    """Train what is missing; print a table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if unknown := sorted(set(FLAGS.methods) - set(STUDENTS)):
        raise app.UsageError(f"--methods has {unknown[0]!r}; known are {', '.join(STUDENTS)}")
    out, noise = Path(FLAGS.out), jax.random.normal(jax.random.key(3), (2000, 2))
    print("| teacher | method | from sigma/alpha = | 1 step | 2 | 4 |\n|---|---|---|---|---|---|")
    for kind, time_input in TIMES.items():
        teacher = out / kind / "teacher"
        teach(teacher, time_input)
        truth = draw(teacher, 50, "trailing", noise)
        for method in FLAGS.methods or STUDENTS:
            run = out / kind / "".join(c if c.isalnum() else "_" for c in method)
            distil(run, teacher, STUDENTS[method])
            for start, grid in GRIDS.items():
                found = [
                    sliced_wasserstein(draw(run, steps, grid, noise), truth) for steps in (1, 2, 4)
                ]
                cells = " | ".join(f"{value:.3f}" for value in found)
                print(f"| {kind} | {method} | {start} | {cells} |", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/points", "Folder of the runs.")
    flags.DEFINE_list("methods", [], f"Some of {', '.join(STUDENTS)}; all if empty.")
    app.run(main)
