"""The stages: one table of all that is known of each beside its code.

The plan, the rules of the workflow, the command line, doctor and provenance read it. No stage
imports it, so a new stage, or another label, changes the identity of nothing. Modules are strings:
to read the table imports none of them.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

# Which interpreter runs a stage: one for text and tables, one with torch, one that samples.
Python = Literal["light", "gpu", "vllm"]
# What a stage works with: text and tables; a processor; one device; all devices that a training
# stage has; the same where vLLM samples, else one device.
Work = Literal["light", "cpu", "device", "devices", "sampling"]


class Stage(NamedTuple):
    """A stage.

    run: its function, MODULE:NAME.
    label: what it does, in a few words that follow "to".
    folder: where its artifacts lie below results/NAME, with the wildcards of its rule.
    resumes: it goes on from where it was killed, so its scratch folder outlives the attempt.
    caches: it keeps parts of its work for later runs, in a folder of the store that stays.
    network: whether it takes things from the hub or the package index.
    looks: it shows the files of other artifacts as they lie there, changed or not, so what the
    store has of it may no longer be true.
    random_name: the name that its random state is derived from, its own if empty. It stays when a
    stage is renamed, and so do the weights.
    """

    run: str
    label: str
    folder: str
    python: Python = "light"
    work: Work = "light"
    resumes: bool = False
    caches: bool = False
    network: Literal["never", "always", "by source"] = "never"
    looks: bool = False
    random_name: str = ""

    @property
    def section(self) -> str:
        """The folder below results/NAME that holds its artifacts."""
        return self.folder.partition("/")[0]

    @property
    def trains(self) -> bool:
        return self.work == "devices"

    @property
    def computes(self) -> bool:
        """Whether it makes use of a GPU."""
        return self.work in ("device", "devices", "sampling")

    @property
    def samples(self) -> bool:
        """Whether it samples with the backend of the config."""
        return self.python == "vllm"


_MODEL, _PROBE = "models/{model}/s{seed}", "probes/{probe}/s{seed}"
_DEMONSTRATIONS = "demonstrations/{demos}/s{seed}"
_DEVICE: dict[str, Any] = {"python": "gpu", "work": "device"}
_SAMPLES: dict[str, Any] = {"python": "vllm", "work": "device", "caches": True}
_TRAINS: dict[str, Any] = {"python": "gpu", "work": "devices", "resumes": True}

STAGES: dict[str, Stage] = {
    "prompts": Stage(
        "opd.data.prompts:run",
        "read and clean a set of prompts",
        "prompts/{prompts}",
        network="by source",
    ),
    "corpus": Stage("opd.data.corpus:run", "write SFT data of the miniature world", "pairs/{data}"),
    "embed": Stage(
        "opd.data.embeddings:run",
        "embed the questions of a prompt set",
        "embeddings/{encoder}/{prompts}",
        **_DEVICE,
        caches=True,
    ),
    "neighbours": Stage(
        "opd.data.neighbours:run",
        "find the nearest question of another prompt set",
        "neighbours/{encoder}/{prompts}/{against}",
        python="gpu",
        work="cpu",
    ),
    "dedup": Stage(
        "opd.data.dedup:run", "remove prompts that another set has", "prompts/{prompts}"
    ),
    "contamination": Stage(
        "opd.data.contamination:run",
        "find benchmark problems among training prompts",
        "contamination/{contamination}",
    ),
    "init": Stage(
        "opd.models.init:run", "make a model with random weights", _MODEL, python="gpu", work="cpu"
    ),
    "fetch": Stage(
        "opd.models.fetch:run",
        "fetch the weights of a model",
        "models/{model}",
        python="gpu",
        resumes=True,
        network="always",
    ),
    "dataset": Stage(
        "opd.models.fetch:run_dataset",
        "fetch the data of a benchmark",
        "datasets/{benchmark}",
        network="always",
    ),
    "generate": Stage(
        "opd.models.generate:run",
        "sample responses to prompts",
        "generations/{generation}/s{seed}",
        **_SAMPLES | {"work": "sampling"},
    ),
    "filter": Stage(
        "opd.models.filters:run",
        "choose SFT data among responses",
        "pairs/{data}/s{seed}",
        work="cpu",
    ),
    "sft": Stage("opd.training.sft:run", "train on given responses", _MODEL, **_TRAINS),
    "grpo": Stage("opd.training.grpo:run", "train by rewards", _MODEL, **_TRAINS),
    "distill": Stage(
        "opd.training.distill:run",
        "train a student on its own responses by a teacher",
        _MODEL,
        **_TRAINS,
        random_name="opd",
    ),
    "keep": Stage("opd.stages.keep:run", "take a step of a training run as a model", _MODEL),
    "evaluate": Stage(
        "opd.evaluation.evaluate:run",
        "evaluate a model on benchmarks",
        "evaluations/{evaluation}/{model}/s{seed}",
        **_SAMPLES,
    ),
    "pair": Stage(
        "opd.probes.pair:run", "compare two models on given responses", _PROBE, **_DEVICE
    ),
    "continuation": Stage(
        "opd.probes.continuation:run",
        "have a teacher end a student's responses",
        _PROBE,
        **_SAMPLES,
    ),
    "prefix": Stage(
        "opd.probes.prefix:run", "have a teacher answer after a prefix", _PROBE, **_SAMPLES
    ),
    "signal": Stage(
        "opd.probes.signal:run", "measure a teacher's signal on responses", _PROBE, **_DEVICE
    ),
    "judge": Stage("opd.probes.judge:run", "judge responses", _PROBE, **_SAMPLES),
    "indicators": Stage(
        "opd.probes.preflight:run", "measure a pair of models before training", _PROBE, **_SAMPLES
    ),
    "demonstrate": Stage(
        "opd.microscope.demonstrations:run",
        "sample verified responses for teachers",
        _DEMONSTRATIONS,
        **_SAMPLES,
    ),
    "summarise": Stage(
        "opd.microscope.demonstrations:run_summaries",
        "summarise verified responses",
        _DEMONSTRATIONS,
        **_SAMPLES,
    ),
    "screening": Stage(
        "opd.microscope.screening:run",
        "choose questions of middling difficulty",
        _PROBE,
        **_SAMPLES,
    ),
    "tree": Stage("opd.microscope.tree:run", "grow a tree of responses", _PROBE, **_SAMPLES),
    "alignment": Stage(
        "opd.microscope.measure:run",
        "measure whether teachers point to right answers",
        _PROBE,
        **_DEVICE,
    ),
    "pool": Stage("opd.microscope.pool:run", "pool alignments", _PROBE),
    "forecast": Stage("opd.microscope.forecast:run", "forecast gains of training", _PROBE),
    "outcome": Stage(
        "opd.microscope.forecast:run_outcome", "hold a forecast to what training gained", _PROBE
    ),
    "table": Stage("opd.results.tables:run_table", "write a table", "tables/{table}"),
    "figure": Stage("opd.results.figures:run_figure", "draw a figure", "figures/{figure}"),
    "claims": Stage("opd.results.claims:run", "judge the claims of papers", "claims"),
    "report": Stage("opd.results.report:run", "write the report", "report", looks=True),
}


def looks(stage: str) -> bool:
    """``Stage.looks`` of a stage by name; False for a name that an older manifest may have."""
    return stage in STAGES and STAGES[stage].looks


def source(stage: str, cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that name what a stage takes from the network; none where it never does."""
    network = STAGES[stage].network
    if network == "always":
        return cfg
    return cfg.get("source", {}) if network == "by source" else {}


def online(stage: str, cfg: Mapping[str, Any]) -> bool:
    """Whether a stage with these settings takes something from the network."""
    return STAGES[stage].network == "always" or "hub" in source(stage, cfg)
