"""Quality against network evaluations, for every solver, on a trained run of images.

    python scripts/benchmarks/compare_samplers.py --workdir=runs/mnist --out=runs/samplers

Draws the same number of samples with each solver at each budget of network evaluations, measures
their Fréchet distance to the training images, and leaves results.jsonl, table.md and picture.png.
A second start goes on where the first stopped.  All solvers see the same noise and labels; a budget
of k evaluations is k calls of the network or, for solvers of several a step, the most steps that
fit into k.  One program is compiled for each solver, whatever the number of steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure as Picture
from tqdm import tqdm

from diffusion_jax import spec
from diffusion_jax.apps.plan import guided
from diffusion_jax.build import evaluation
from diffusion_jax.build.runs import Run, open_run, run_config
from diffusion_jax.core import grids
from diffusion_jax.core.sampling import prior, sample
from diffusion_jax.core.solvers import SOLVERS, noising
from diffusion_jax.data import to_uint8
from diffusion_jax.evaluate.distances import frechet_distance
from diffusion_jax.evaluate.features import extract
from diffusion_jax.files import whole
from diffusion_jax.jobs.evaluating import images_of
from diffusion_jax.jobs.placing import cache_compilations
from diffusion_jax.jobs.requests import requests_of, settings_of

FLAGS = flags.FLAGS


class Row(NamedTuple):
    """A solver, the grid that suits it, calls a step, whether it adds noise, calls beside those."""

    solver: str
    grid: str
    calls: int = 1
    stochastic: bool = False
    extra: int = 0


ROWS = {
    "ddim": Row("ddim()", "trailing"),
    "flow_heun": Row("flow_heun()", "trailing", 2),
    "heun": Row("heun()", "karras(s_min=0.02, s_max=20.0)", 2),
    "midpoint": Row("midpoint()", "karras(s_min=0.02, s_max=20.0)", 2),
    "rk4": Row("rk4()", "trailing", 4),
    "dpm_2": Row("dpm_2()", "karras(s_min=0.02, s_max=20.0)", 2),
    "dpm_solver 3": Row("dpm_solver()", "karras(s_min=0.02, s_max=20.0)", 3),
    "dpm_multistep 2": Row("dpm_multistep()", "karras(s_min=0.02, s_max=20.0)"),
    "dpmpp_2s": Row("dpmpp_2s()", "uniform_log_snr", 2),
    "dpmpp_3s": Row("dpmpp_3s()", "uniform_log_snr", 3),
    "dpmpp_2m": Row("dpmpp_2m()", "trailing"),
    "dpmpp_3m": Row("dpmpp_3m()", "trailing"),
    "unipc 2": Row("unipc()", "trailing"),
    "unipc 3": Row("unipc(order=3)", "trailing"),
    "deis": Row("deis()", "trailing"),
    "lms": Row("lms()", "karras(s_min=0.02, s_max=20.0)"),
    "ipndm": Row("ipndm()", "trailing"),
    "plms": Row("plms()", "trailing", extra=1),
    "ddpm": Row("ddpm()", "trailing", 1, True),
    "dpm_2_ancestral": Row("dpm_2_ancestral()", "karras(s_min=0.02, s_max=20.0)", 2, True),
    "dpmpp_2s_ancestral": Row("dpmpp_2s_ancestral()", "trailing", 2, True),
    "dpmpp_sde": Row("dpmpp_sde()", "trailing", 2, True),
    "dpmpp_2m_sde": Row("dpmpp_2m_sde()", "trailing", 1, True),
    "dpmpp_3m_sde": Row("dpmpp_3m_sde()", "trailing", 1, True),
    "sa_solver": Row("sa_solver()", "trailing", 1, True),
    "er_sde": Row("er_sde()", "trailing", 1, True),
    "edm": Row("edm(steps=40)", "karras(s_min=0.02, s_max=20.0)", 2, True),
}


def levels_of(row: Row, process, budget: int):
    """As many levels as the budget pays for: calls·(n - 1) + 1 + extra <= budget."""
    n = (budget - 1 - row.extra) // row.calls + 1
    context = {"process": process, "n": n}
    return spec.build(grids.GRIDS, row.grid, "grid", **context)


def drawer(row: Row, run: Run):
    """(key, weights, rows, levels) -> uint8 images; levels are padded, so it compiles once."""
    model = run.experiment.model
    solver = spec.build(SOLVERS, row.solver, "solver", process=model.process)

    @jax.jit
    def draw(key, weights, rows, levels):
        of_x, of_solver, of_decoder = jax.random.split(key, 3)
        cond, size = model.condition(weights.frozen, rows), len(jax.tree.leaves(rows)[0])
        x = prior(of_x, (size, *run.experiment.shape), levels)
        denoise = guided(model, weights.params, weights.frozen, cond, None)
        x = sample(of_solver, noising.skipping(solver), denoise, x, levels)
        return to_uint8(model.codec.decode(weights.frozen, x, of_decoder))

    return draw


def asked(name: str, budget: int, run: Run, n: int) -> dict:
    """What a record says that it measured."""
    row = ROWS[name]
    return {"name": name, "evaluations": budget, "solver": row.solver, "grid": row.grid, "n": n,
            "workdir": FLAGS.workdir, "step": run.step}  # fmt: skip


def answers(record: dict, run: Run, n: int) -> bool:
    """Whether a record on disk is of this table: same model, samples, solver and grid."""
    return asked(record["name"], record["evaluations"], run, n).items() <= record.items()


def measure(run: Run, real: np.ndarray, net, name: str, budgets: list[int], n: int):
    """Yield a record for each budget."""
    row, most = ROWS[name], max(budgets, default=0)
    draw, size = drawer(row, run), min(100, n)
    keys = jax.random.split(jax.random.key(0), -(-n // size))
    generator, settings = run.generator(), settings_of(run.config, FLAGS.workdir)
    settings.n = size
    rows, _ = generator.inputs(requests_of(settings, generator))
    for budget in budgets:
        levels = grids.pad(levels_of(row, run.experiment.model.process, budget), most)
        started = time.perf_counter()
        drawn = [np.asarray(draw(key, generator.weights, rows, levels)) for key in keys]
        images = np.concatenate(drawn)[:n]
        seconds = time.perf_counter() - started
        distance = frechet_distance(real, extract(net, images)["frechet"])
        yield {**asked(name, budget, run, n), "distance": distance, "seconds": seconds}


def write_table(records: list[dict], budgets: list[int], path: Path) -> None:
    """Markdown, best at the largest budget first."""
    found = {(r["name"], r["evaluations"]): r["distance"] for r in records}
    names = sorted({r["name"] for r in records}, key=lambda n: found.get((n, budgets[-1]), np.inf))
    lines = [
        "| solver | grid | " + " | ".join(f"{b} NFE" for b in budgets) + " |",
        "|---|---|" + "---|" * len(budgets),
    ]
    for name in names:
        cells = [f"{found[name, b]:.0f}" if (name, b) in found else "" for b in budgets]
        lines.append(f"| {name} | {ROWS[name].grid} | " + " | ".join(cells) + " |")
    with whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def draw_picture(records: list[dict], label: str, path: Path) -> None:
    """Distance over evaluations; solvers of the ODE on the left, stochastic ones on the right."""
    figure = Picture(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, stochastic in zip(axes, (False, True), strict=True):
        for i, (name, row) in enumerate(ROWS.items()):
            points = sorted((r["evaluations"], r["distance"]) for r in records if r["name"] == name)
            if row.stochastic == stochastic and points:
                style = ("-", "--", ":")[i % 3]
                axis.plot(*zip(*points, strict=True), style, marker="o", ms=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="network evaluations")
        budgets = sorted({r["evaluations"] for r in records})
        axis.set_xticks(budgets, budgets)
        axis.xaxis.minorticks_off()
        axis.set_title("stochastic" if stochastic else "deterministic")
        axis.grid(alpha=0.3, which="both")
        if axis.lines:
            axis.legend(fontsize=7, ncol=2)
    axes[0].set_ylabel(label)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv: list[str]) -> None:
    """Measure what is missing, then write the table and the picture."""
    del argv
    cache_compilations()
    budgets = sorted(int(b) for b in FLAGS.evaluations)
    names = FLAGS.solvers or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        raise app.UsageError(f"--solvers has {unknown[0]!r}; known are {', '.join(ROWS)}")
    run = open_run(run_config(FLAGS.workdir), FLAGS.workdir)
    net = evaluation.feature_net(run.config)
    images, _ = images_of(run.config, run.config.data.split, FLAGS.n)
    real = extract(net, images)["frechet"]
    out = Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "results.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    records = [r for r in before if r["name"] in ROWS and answers(r, run, FLAGS.n)]
    done = {(r["name"], r["evaluations"]) for r in records}
    for name in tqdm(names, desc="solvers", unit="solver"):
        missing = [budget for budget in budgets if (name, budget) not in done]
        for record in measure(run, real, net, name, missing, FLAGS.n):
            records.append(record)
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
        write_table(records, budgets, out / "table.md")
        draw_picture(records, f"{net.distance} ({net.name}), n = {FLAGS.n}", out / "picture.png")
    print((out / "table.md").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/mnist", "A trained run of images.")
    flags.DEFINE_string("out", "runs/samplers", "Folder of the results.")
    flags.DEFINE_list("evaluations", ["5", "10", "20", "40"], "Budgets of network evaluations.")
    flags.DEFINE_list("solvers", [], "Names of rows; all if empty.")
    flags.DEFINE_integer("n", 500, "Samples of each.")
    app.run(main)
