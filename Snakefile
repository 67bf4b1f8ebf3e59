# On-policy distillation, from prompts to tables. What lies where below results/NAME, NAME being
# the config's own name:
#
#   prompts/SET/                       prompt tables, and what deduplication removed
#   prompts/SET.html                   what deduplication found, to be judged by eye
#   datasets/BENCHMARK/                what a task of lm-eval reads
#   embeddings/ENCODER/SET/            question embeddings
#   neighbours/ENCODER/SET/OTHER/      nearest question of another set, or of the same
#   contamination/REPORT.html          benchmark problems among training prompts
#   sft_data/DATA/[sSEED/]             SFT data
#   models/MODEL/[sSEED/]              checkpoints (no seed: fetched), with their training metrics
#   models/MODEL@STEP/sSEED/           the weights after a step that keep_steps names;
#                                      released.json where nothing needs them any longer
#   generations/GENERATION/sSEED/      rollouts
#   scores/SCORES/sSEED/               what a teacher makes of rollouts
#   demonstrations/NAME/sSEED/         verified responses for the contexts of teachers
#   probes/PROBE/sSEED/                what a pair of models shows without training
#   evaluations/EVALUATION/MODEL/sSEED/  graded samples and a summary
#   figures/FIGURE.{png,svg}  tables/TABLE.{csv,md}  claims.{html,md,json}
#   report/ report.html                claims, figures, tables, runs, cost and state in one file
#   logs/                              one file per job, same path as the artifact
#   plan.json                          what the config describes, for what is shown to be held to
#   config.yaml                        the config of the last run, merged from files and command line
#
# Each artifact folder holds digest.json (what other stages depend on), manifest.json (what made
# it) and payload, a link into results/.store.

from snakemake.utils import min_version

min_version("9.27")


# A default that merges into every other config would leak its names into their DAGs.
if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/config/mini.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/shown.smk"


localrules:
    all,
    download,
    dataset,
    fetch,
    release,


rule all:
    default_target: True
    input:
        targets(),


# What is asked for by another name than that of a file: Snakemake takes the name of a rule, too.
for name, files in ALIASES.items():

    rule:
        name:
            name
        input:
            files,
        localrule: True
