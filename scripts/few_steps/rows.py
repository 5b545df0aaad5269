"""What scripts/few_steps/report.py trains: each method's setting, and others that were tried.

The first setting of a row is in the table; ``--search`` compares it with the others.
"""

from __future__ import annotations

from scripts.few_steps.rows_of_several_networks import SEVERAL_NETWORKS
from scripts.few_steps.settings import CD, Row, progressive_stages, single_stage

ROWS: dict[str, Row] = {
    "progressive": Row(
        {
            "16 to 1": progressive_stages(16, 8, 4, 2, 1),
            "4 to 1": progressive_stages(4, 2, 1),
            "16 to 1, rate 3e-4": progressive_stages(16, 8, 4, 2, 1, rate=3e-4),
        },
        stage={4: -3, 2: -2, 1: -1},
    ),
    "CD": Row(
        {
            "18 levels, DDIM, pseudo-Huber": CD,
            "160 levels": single_stage(
                "cd",
                "consistency_distillation(levels=160, scale=2.0, solver='ddim', "
                "distance='pseudo_huber')",
            ),
            "18 levels": single_stage("cd", "consistency_distillation(levels=18, scale=2.0)"),
            "18 levels, rate 5e-4": single_stage(
                "cd", "consistency_distillation(levels=18, scale=2.0)", 5e-4
            ),
            "18 levels, rate 5e-4 all along": single_stage(
                "cd", "consistency_distillation(levels=18, scale=2.0)", 5e-4, schedule="constant()"
            ),
            "18 levels, l1": single_stage(
                "cd", "consistency_distillation(levels=18, scale=2.0, distance='absolute')"
            ),
            "8 levels": single_stage("cd", "consistency_distillation(levels=8, scale=2.0)"),
        },
    ),
    "CT": Row(
        {
            "to 80 levels, pseudo-Huber": single_stage(
                "ct", "consistency_training(last=80, distance='pseudo_huber')"
            ),
            "to 20 levels, pseudo-Huber": single_stage(
                "ct", "consistency_training(last=20, distance='pseudo_huber')"
            ),
            "to 20 levels": single_stage("ct", "consistency_training(last=20)"),
            "to 80 levels": single_stage("ct", "consistency_training(last=80)"),
        },
    ),
    "iCT": Row(
        {
            "to 40 levels, mean 0.5": single_stage(
                "ict", "improved_consistency(last=40, mean=0.5)"
            ),
            "to 40 levels, mean -1.1": single_stage("ict", "improved_consistency(last=40)"),
            "to 160 levels, mean 0.5": single_stage(
                "ict", "improved_consistency(last=160, mean=0.5)"
            ),
        },
    ),
    "ECT": Row(
        {
            "3 stages, mean 0": single_stage("ect", "easy(stages=3, mean=0.0)"),
            "4 stages, mean 0.5": single_stage("ect", "easy(stages=4, mean=0.5)"),
            "8 stages, mean 0.5": single_stage("ect", "easy(stages=8, mean=0.5)"),
            "4 stages, mean -1.1": single_stage("ect", "easy(stages=4)"),
        },
    ),
    "LCM": Row(
        {
            "20 levels, rate 1e-3": single_stage(
                "lcm", "latent_consistency(levels=20, low=1.0, high=4.0)"
            ),
            "20 levels": single_stage(
                "lcm", "latent_consistency(levels=20, low=1.0, high=4.0)", 5e-4
            ),
            "50 levels": single_stage("lcm", "latent_consistency(levels=50, low=1.0, high=4.0)"),
        },
        sampler={"guidance_scale": 2.0},
    ),
    "sCD": Row(
        {
            "mean 0, sigma_data 1, rate 1e-4": single_stage(
                "scd", "continuous_distillation(scale=2.0, mean=0.0, sigma_data=1.0)", 1e-4
            ),
            "mean 0, sigma_data 1, rate 5e-5": single_stage(
                "scd", "continuous_distillation(scale=2.0, mean=0.0, sigma_data=1.0)", 5e-5
            ),
            "mean 0, sigma_data 1, rate 3e-4": single_stage(
                "scd", "continuous_distillation(scale=2.0, mean=0.0, sigma_data=1.0)", 3e-4
            ),
            "mean 0, sigma_data 1, rate 3e-4, c 3": single_stage(
                "scd", "continuous_distillation(scale=2.0, mean=0.0, sigma_data=1.0, c=3.0)", 3e-4
            ),
            "mean 1, sigma_data 1, rate 1e-4": single_stage(
                "scd",
                "continuous_distillation(scale=2.0, mean=1.0, std=1.4, sigma_data=1.0)",
                1e-4,
            ),
            "mean 0, rate 1e-4": single_stage(
                "scd", "continuous_distillation(scale=2.0, mean=0.0)", 1e-4
            ),
            "mean 0": single_stage("scd", "continuous_distillation(scale=2.0, mean=0.0)", 5e-4),
            "mean 0, rate 1e-3": single_stage(
                "scd", "continuous_distillation(scale=2.0, mean=0.0)"
            ),
            "mean -0.8": single_stage("scd", "continuous_distillation(scale=2.0)"),
        },
    ),
    "sCT": Row(
        {
            "mean 0, sigma_data 1, rate 1e-4": single_stage(
                "sct", "continuous_training(mean=0.0, sigma_data=1.0)", 1e-4
            ),
            "mean 0": single_stage("sct", "continuous_training(mean=0.0)", 5e-4),
            "mean 0, rate 1e-3": single_stage("sct", "continuous_training(mean=0.0)"),
            "mean -1": single_stage("sct", "continuous_training()"),
        },
    ),
    "MeanFlow": Row(
        {
            "of the teacher, mean 0.5, std 1.2": single_stage(
                "mean_flow",
                "mean_flow(scale=2.0, mean=0.5, std=1.2, same=0.5, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "of the teacher, a quarter to clean": single_stage(
                "mean_flow",
                "mean_flow(scale=2.0, mean=0.0, std=2.0, same=0.25, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
            ),
            "of the teacher, a quarter to clean, rate 2e-4": single_stage(
                "mean_flow",
                "mean_flow(scale=2.0, mean=0.0, std=2.0, same=0.25, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                2e-4,
            ),
            "of the teacher, std 1.2, same 0.25": single_stage(
                "mean_flow",
                "mean_flow(scale=2.0, mean=0.5, std=1.2, same=0.25, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "of the teacher, half to clean, same 0.1": single_stage(
                "mean_flow",
                "mean_flow(scale=2.0, mean=0.3, std=1.6, same=0.1, to_clean=0.5, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "mean 0, std 2, same 0.5": single_stage(
                "mean_flow", "mean_flow(scale=2.0, mean=0.0, std=2.0, same=0.5)", 5e-4
            ),
            "mean -0.4, same 0.75": single_stage("mean_flow", "mean_flow(scale=2.0)"),
        },
        sampler={"solver": "jump(gamma=1.0)"},
    ),
    "improved MeanFlow": Row(
        {
            "of the teacher, mean 0.5, std 1.2": single_stage(
                "improved_mean_flow",
                "improved_mean_flow(scale=2.0, mean=0.5, std=1.2, same=0.5, to_clean=0.25, "
                "follow='teacher', distance='pseudo_huber')",
                3e-4,
            ),
            "mean 0, std 2": single_stage(
                "improved_mean_flow", "improved_mean_flow(scale=2.0, mean=0.0, std=2.0)", 5e-4
            ),
            "mean -0.4": single_stage("improved_mean_flow", "improved_mean_flow(scale=2.0)"),
        },
        sampler={"solver": "jump(gamma=1.0)"},
    ),
    "shortcut": Row(
        {
            "finest 16, of the teacher": single_stage(
                "shortcut", "shortcut(finest=16, bootstrap=0.5, follow='teacher', scale=2.0)"
            ),
            "finest 16": single_stage("shortcut", "shortcut(finest=16, bootstrap=0.5)", 5e-4),
            "finest 128": single_stage("shortcut", "shortcut(finest=128)"),
        },
    ),
    "IMM": Row(
        {
            "gap 0.1, a quarter to clean, of the teacher": single_stage(
                "imm",
                "moment_matching(particles=4, gap=0.1, to_clean=0.25, follow='teacher', scale=2.0)",
            ),
            "gap 0.1, a quarter to clean": single_stage(
                "imm", "moment_matching(particles=4, gap=0.1, to_clean=0.25)"
            ),
            "gap 0.1": single_stage("imm", "moment_matching(particles=4, gap=0.1)", 5e-4),
            "gap 0.02": single_stage("imm", "moment_matching(particles=4)"),
            "gap 0.1, 8 particles": single_stage("imm", "moment_matching(particles=8, gap=0.1)"),
        },
        sampler={"solver": "jump(gamma=1.0)"},
    ),
    "CTM": Row(
        {
            "4 steps, pseudo-Huber": single_stage(
                "ctm", "trajectory(steps=4, scale=2.0, distance='pseudo_huber')", 5e-4
            ),
            "4 steps, pseudo-Huber, half to clean, rate 1e-3": single_stage(
                "ctm",
                "trajectory(steps=4, scale=2.0, distance='pseudo_huber', to_clean=0.5)",
            ),
            "4 steps": single_stage("ctm", "trajectory(steps=4, scale=2.0)", 5e-4),
            "4 steps, rate 1e-3": single_stage("ctm", "trajectory(steps=4, scale=2.0)"),
        },
    ),
    "reflow": Row(
        {
            "8 steps, pseudo-Huber": single_stage(
                "reflow", "reflow(steps=8, scale=2.0, distance='pseudo_huber')"
            ),
            "8 steps, pseudo-Huber, near both ends": single_stage(
                "reflow", "reflow(steps=8, scale=2.0, distance='pseudo_huber', ends=4.0)"
            ),
            "8 steps": single_stage("reflow", "reflow(steps=8, scale=2.0)"),
            "8 steps, rate 5e-4": single_stage("reflow", "reflow(steps=8, scale=2.0)", 5e-4),
        },
    ),
    **SEVERAL_NETWORKS,
}
"""Methods by name, in the order of training."""
