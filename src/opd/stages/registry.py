"""The stages by name. The command line, the code digest and the rules all read this table."""

# One stage per verb: the command line, the code digest and the rules all read this table.
VERBS = {
    "prompts": "opd.data.prompts:run",
    "corpus": "opd.data.corpus:run",
    "embed": "opd.data.embeddings:run",
    "neighbours": "opd.data.neighbours:run",
    "dedup": "opd.data.dedup:run",
    "contamination": "opd.data.contamination:run",
    "init": "opd.models.init:run",
    "fetch": "opd.models.fetch:run",
    "dataset": "opd.models.fetch:run_dataset",
    "generate": "opd.models.generate:run",
    "filter": "opd.models.filters:run",
    "sft": "opd.training.sft:run",
    "grpo": "opd.training.grpo:run",
    "opd": "opd.training.distill:run",
    "keep": "opd.stages.keep:run",
    "evaluate": "opd.evaluation.evaluate:run",
    "pair": "opd.probes.pair:run",
    "continuation": "opd.probes.continuation:run",
    "prefix": "opd.probes.prefix:run",
    "signal": "opd.probes.signal:run",
    "judge": "opd.probes.judge:run",
    "indicators": "opd.probes.preflight:run",
    "demonstrate": "opd.microscope.demonstrations:run",
    "summarise": "opd.microscope.demonstrations:run_summaries",
    "screening": "opd.microscope.screening:run",
    "tree": "opd.microscope.tree:run",
    "alignment": "opd.microscope.measure:run",
    "pool": "opd.microscope.pool:run",
    "forecast": "opd.microscope.forecast:run",
    "outcome": "opd.microscope.forecast:run_outcome",
    "table": "opd.results.tables:run_table",
    "figure": "opd.results.figures:run_figure",
    "claims": "opd.results.claims:run",
    "report": "opd.results.report:run",
}


# These go on from where they were killed: they get a scratch folder that outlives the attempt.
RESUMES = ("sft", "grpo", "opd", "fetch")


# These keep parts of their work for every later run: they get a folder of the store that stays.
CACHES = (
    *("embed", "generate", "evaluate", "continuation", "prefix", "judge", "indicators"),
    *("demonstrate", "summarise", "screening", "tree"),
)


# These take things from the hub.
FETCHES = ("fetch", "dataset", "prompts")


# These look at the files of other artifacts as they lie there, changed or not: what the store has
# of them may no longer be true.
LOOKS = ("report",)
