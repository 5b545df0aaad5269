"""Every few-step method for one teacher, with equal training budgets: a table and a picture.

    python scripts/few_steps/report.py --teacher=runs/mnist --out=runs/few_steps
    python scripts/few_steps/report.py --teacher=runs/mnist --out=runs/few_steps --search --n=1000

Each method (rows.py) is trained for --steps steps in a run of its own, OUT/METHOD, and its samples
in 1, 2 and 4 steps are measured beside the teacher's in more.  An interrupted report is resumed: in
the middle of a run, and after the last record of results.jsonl.  --search trains every setting of
each method for --search_steps instead, in OUT/search.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from diffusion_jax import ending, pictures
from diffusion_jax.build import evaluation
from diffusion_jax.build.runs import open_run, run_config
from diffusion_jax.data import to_uint8
from diffusion_jax.evaluate import distances
from diffusion_jax.evaluate.features import FeatureNet, Features, cached, extract
from diffusion_jax.evaluate.figures import bootstrap
from diffusion_jax.evaluate.judge import accuracy
from diffusion_jax.files import whole
from diffusion_jax.jobs.evaluating import judge_of
from diffusion_jax.jobs.placing import cache_compilations
from diffusion_jax.jobs.run_samples import draw_samples, sampler_of_run
from diffusion_jax.jobs.sets import cache_folder, images_of
from diffusion_jax.jobs.training import train
from scripts.few_steps.rows import ROWS
from scripts.few_steps.settings import Setting

FLAGS = flags.FLAGS
CALLS = (1, 2, 4)
CONTRAST = 1.2
PICTURE_SAMPLES = 10  # samples of each method
TEACHER = "teacher (DDIM)"


class Measure:
    """What samples are compared with: features of the data, and a classifier."""

    def __init__(self, teacher: str) -> None:
        """Read the data of the teacher's run, and train the classifier if there is none yet."""
        config = run_config(teacher)
        self.net: FeatureNet = evaluation.feature_net(config)
        images, _ = images_of(config, config.data.split, None)
        label = config.data.name.replace("/", "-").replace(":", "-")
        self.real: Features = cached(self.net, images, cache_folder(config), label)
        self.judge = judge_of(config)

    def of(self, workdir: Path | str, sampler: dict[str, Any], n: int) -> dict[str, Any]:
        """Figures of n samples of a run, and its first samples as "shown"."""
        chosen = {"sampler.batch_size": min(250, n), **sampler}
        image_sampler = sampler_of_run(open_run(run_config(workdir, chosen), workdir))
        draw_samples(image_sampler, chosen["sampler.batch_size"])  # compiles
        began = time.perf_counter()
        samples = draw_samples(image_sampler, n)
        seconds = time.perf_counter() - began
        real, ours = self.real["frechet"], extract(self.net, samples.images)["frechet"]
        each = distances.precision_recall_density_coverage(real, ours)
        judged = accuracy(self.judge.logits, self.judge.params, samples.images, samples.labels)
        return {
            "n": n,
            "distance": distances.frechet_distance(real, ours),
            "distance_cut": distances.frechet_distance(real, self.cut(samples.images)),
            "spread": bootstrap(distances.frechet_distance, real, ours, resamples=5),
            "accuracy": judged.value,
            "precision": float(each["precision"].mean()),
            "recall": float(each["recall"].mean()),
            "images_per_second": n / seconds,
            "shown": samples.images[:PICTURE_SAMPLES],
        }

    def cut(self, images: np.ndarray) -> np.ndarray:
        """Features of images at ``CONTRAST``, which cuts faint grain off."""
        pixels = images.astype(np.float32) / 127.5 - 1
        return extract(self.net, to_uint8(CONTRAST * pixels))["frechet"]


class Log:
    """Records on disk, one on each line, and their samples."""

    def __init__(self, folder: Path, name: str) -> None:
        """Read the existing records."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.folder = folder / name, folder
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, asked: dict[str, Any]) -> bool:
        """Whether there is a record with these fields."""
        return any(asked.items() <= record.items() for record in self.records)

    def add(self, asked: dict[str, Any], found: dict[str, Any]) -> None:
        """Append a record."""
        samples = found.pop("shown")
        record = {**asked, **found}
        with whole(self.folder / f"{stem(asked)}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, samples)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)


def stem(asked: dict[str, Any]) -> str:
    """The file name of a record's samples."""
    words = f"{asked['method']} {asked['setting']} {asked['calls']}"
    return "".join(c if c.isalnum() or c in "-." else "_" for c in words)


def train_stages(setting: Setting, folder: Path, steps: int) -> tuple[list[Path], float]:
    """Train the stages that are not trained yet: their runs, and the total seconds of training."""
    runs, teacher, seconds = [], FLAGS.teacher, 0.0
    stage_steps = steps // len(setting.stages)
    for i, stage in enumerate(setting.stages):
        config = importlib.import_module(f"configs.distill.{stage.config}").get_config()
        config.unlock()
        config.teacher, config.distill = str(teacher), stage.distill
        config.train.update(
            steps=stage_steps, sample_every=0, checkpoint_every=max(stage_steps // 2, 1)
        )
        config.update_from_flattened_dict(dict(stage.fields))
        run = folder / f"stage_{i}" if len(setting.stages) > 1 else folder
        train(config.lock(), run)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rates = [line["steps_per_second"] for line in lines if line.get("steps_per_second")]
        seconds += stage_steps / float(np.median(rates))
        runs.append(run)
        teacher = run
    return runs, seconds


def train_and_measure(
    log: Log, measure: Measure, method: str, name: str, folder: Path, steps: int, n: int
) -> None:
    """Train one setting of a method and measure it, unless the log has its records."""
    row, setting = ROWS[method], ROWS[method].settings[name]
    stages = [[stage.config, stage.distill, dict(stage.fields)] for stage in setting.stages]
    record = {"method": method, "setting": name, "stages": stages, "steps": steps}
    record |= {"asked": n, "teacher": FLAGS.teacher}
    missing = [calls for calls in CALLS if not log.has({**record, "calls": calls})]
    if not missing:
        return
    runs, seconds = train_stages(setting, folder, steps)
    for calls in missing:
        run = runs[row.stage[calls] if row.stage else -1]
        sampler = {"sampler.steps": calls} | {f"sampler.{k}": v for k, v in row.sampler.items()}
        found = measure.of(run, sampler, n) | {"training_seconds": seconds}
        log.add({**record, "calls": calls}, found)


def measure_teacher(log: Log, measure: Measure) -> None:
    """Measure the teacher with and without guidance, by numbers of steps."""
    own = float(run_config(FLAGS.teacher).sampler.guidance_scale)
    for scale in dict.fromkeys((own, 1.0)):
        for calls in map(int, FLAGS.teacher_calls):
            asked = {"method": TEACHER, "setting": f"scale {scale:g}", "calls": calls}
            asked |= {"asked": FLAGS.n, "teacher": FLAGS.teacher}
            if not log.has(asked):
                sampler = {"sampler.steps": calls, "sampler.guidance_scale": scale}
                log.add(asked, measure.of(FLAGS.teacher, sampler, FLAGS.n))


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: distance, accuracy and recall of each method, best in one step first."""
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for record in records:
        rows.setdefault((record["method"], record["setting"]), {})[record["calls"]] = record
    teachers = {key: found for key, found in rows.items() if key[0] == TEACHER}
    lines = []
    for (_, setting), found in teachers.items():
        steps = sorted(found)
        lines += [f"Teacher, {setting}:", "", f"| DDIM steps | {' | '.join(map(str, steps))} |"]
        lines += ["|---|" + "---|" * len(steps)]
        for title, cell in CELLS.items():
            lines.append(f"| {title} | " + " | ".join(cell(found[n]) for n in steps) + " |")
        lines.append("")
    calls = ", ".join(map(str, CALLS))
    heads = [f"{title} in {calls} steps" if i == 0 else title for i, title in enumerate(CELLS)]
    lines.append("| method | setting | " + " | ".join(heads) + " | training s | s a step |")
    lines.append("|---|---|" + "---|" * (len(heads) + 2))
    students = [(key, found) for key, found in rows.items() if key[0] != TEACHER]
    for (method, setting), found in sorted(students, key=lambda kv: kv[1][min(kv[1])]["distance"]):
        each = [", ".join(cell(found[n]) for n in CALLS if n in found) for cell in CELLS.values()]
        last = next(iter(found.values()))
        cost = f"{last['training_seconds']:.0f} | {last['training_seconds'] / last['steps']:.2f}"
        lines.append(f"| {method} | {setting} | " + " | ".join(each) + f" | {cost} |")
    return "\n".join(lines) + "\n"


CELLS = {
    "distance": lambda r: f"{r['distance']:.0f} ± {r['spread']:.0f}",
    f"at contrast {CONTRAST}": lambda r: f"{r['distance_cut']:.0f}",
    "class accuracy": lambda r: f"{r['accuracy']:.3f}",
    "recall": lambda r: f"{r['recall']:.2f}",
}


def picture(log: Log) -> None:
    """A row for each method's chosen setting in 1, 2 and 4 steps; the teacher's first."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    for record in log.records:
        method, setting = record["method"], record["setting"]
        first = next(iter(ROWS[method].settings)) if method in ROWS else ""
        if setting == first or (method == TEACHER and setting != "scale 1"):
            kept[method, record["calls"]] = record
    wanted = [(method, calls) for method in (TEACHER, *ROWS) for calls in CALLS]
    rows = []
    for method, calls in [*wanted, (TEACHER, 50)]:
        file = log.folder / f"{stem(kept[method, calls])}.npy" if (method, calls) in kept else None
        if file is not None and file.exists():
            title = f"{method}, {calls} {'step' if calls == 1 else 'steps'}"
            rows.append((title, np.load(file)))
    if rows:
        pictures.save_rows(log.folder / "picture.png", rows)


def main(argv: list[str]) -> None:
    """Run the report; a mistake of the user is one sentence and exit code 2."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with ending.sentences():
        report()


def report() -> None:
    """Train and measure what is missing, then write the table and the picture."""
    cache_compilations()
    methods = FLAGS.methods or list(ROWS)
    if unknown := [name for name in methods if name not in ROWS]:
        raise ValueError(f"--methods has {unknown[0]!r}; known are {', '.join(ROWS)}")
    out = Path(FLAGS.out)
    measure = Measure(FLAGS.teacher)
    log = Log(out / "search" if FLAGS.search else out, "results.jsonl")
    if not FLAGS.search:
        measure_teacher(log, measure)
    steps = FLAGS.search_steps if FLAGS.search else FLAGS.steps
    for method in tqdm(methods, desc="methods", unit="method"):
        names = list(ROWS[method].settings)
        for name in names if FLAGS.search else names[:1]:
            folder = log.folder / stem({"method": method, "setting": name, "calls": steps})
            train_and_measure(log, measure, method, name, folder, steps, FLAGS.n)
        with whole(log.folder / "table.md") as temporary:
            temporary.write_text(table(log.records))
        picture(log)
    print((log.folder / "table.md").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("teacher", "runs/mnist", "A trained run of images.")
    flags.DEFINE_string("out", "runs/few_steps", "Folder of the runs and the results.")
    flags.DEFINE_list("methods", [], "Names of rows; all if empty.")
    flags.DEFINE_list("teacher_calls", ["1", "2", "4", "8", "50", "250"], "Its DDIM steps.")
    flags.DEFINE_integer("steps", 600, "Training steps of each method, all its stages together.")
    flags.DEFINE_integer("n", 5000, "Samples of each.")
    flags.DEFINE_bool("search", False, "Compare the settings of each method instead.")
    flags.DEFINE_integer("search_steps", 300, "Training steps of each setting.")
    app.run(main)
