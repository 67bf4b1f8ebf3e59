"""The stages: one table of all that is known of each beside its code, and the digest of that.

The plan, the rules of the workflow, the command line, doctor and provenance read it. No stage
imports it, so a new stage, or another label, changes the identity of nothing. Modules are strings:
to read the table imports none of them.
"""

import hashlib
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from opd.core.code import module_digest, own_digests
from opd.core.files import digest

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
    network: whether it takes things from the hub.
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
_DEMOS, _DATA = "demonstrations/{demos}/s{seed}", "sft_data/{data}/s{seed}"
_EMBEDDED, _NEAR = "embeddings/{encoder}/{prompts}", "neighbours/{encoder}/{prompts}/{against}"
_RESPONSES = "generations/{generation}/s{seed}"
_SCORES = "scores/{scores}/s{seed}"
_EVALUATED = "evaluations/{evaluation}/{model}/s{seed}"
_PAGE = "contamination/{contamination}"

_torch = partial(Stage, python="gpu", work="cpu")
_device = partial(Stage, python="gpu", work="device")
_train = partial(Stage, python="gpu", work="devices", resumes=True)
_sample = partial(Stage, python="vllm", work="device", caches=True)
_fetch = partial(Stage, network="always")
_read = partial(Stage, network="by source", caches=True)

STAGES: dict[str, Stage] = {
    "prompts": _read("opd.data.prompts:run", "read and clean a prompt set", "prompts/{prompts}"),
    "corpus": Stage("opd.data.corpus:run", "write SFT data of the world", "sft_data/{data}"),
    "embed": _device("opd.data.embeddings:run", "embed questions", _EMBEDDED, caches=True),
    "neighbours": _torch("opd.data.neighbours:run", "find the nearest questions", _NEAR),
    "dedup": Stage("opd.data.dedup:run", "leave out what another set has", "prompts/{prompts}"),
    "fit": _torch("opd.models.fit:run", "leave out prompts that are too long", "prompts/{prompts}"),
    "contamination": Stage("opd.data.contamination:run", "look for benchmark problems", _PAGE),
    "init": _torch("opd.models.init:run", "make a model with random weights", _MODEL),
    "fetch": _fetch(
        "opd.models.fetch:run", "fetch a model", "models/{model}", python="gpu", resumes=True
    ),
    "dataset": _fetch("opd.models.fetch:run_dataset", "fetch test data", "datasets/{benchmark}"),
    "generate": _sample("opd.models.generate:run", "sample responses", _RESPONSES, work="sampling"),
    "score": _device("opd.models.score:run", "score responses by a teacher", _SCORES, resumes=True),
    "filter": Stage("opd.models.filters:run", "choose SFT data among responses", _DATA, work="cpu"),
    "sft": _train("opd.training.sft:run", "train on given responses", _MODEL),
    "grpo": _train("opd.training.grpo:run", "train by rewards", _MODEL),
    "distill": _train("opd.training.distill:run", "distill on policy", _MODEL, random_name="opd"),
    "keep": Stage("opd.stages.keep:run", "take a step of a training run as a model", _MODEL),
    "evaluate": _sample("opd.evaluation.evaluate:run", "evaluate a model", _EVALUATED),
    "pair": _device("opd.probes.pair:run", "compare two models on responses", _PROBE),
    "continuation": _sample("opd.probes.continuation:run", "end begun responses", _PROBE),
    "prefix": _sample("opd.probes.prefix:run", "answer after what a student began", _PROBE),
    "signal": _device("opd.probes.signal:run", "measure a teacher's signal", _PROBE),
    "judge": _sample("opd.probes.judge:run", "judge responses", _PROBE),
    "indicators": _sample("opd.probes.preflight:run", "measure a pair before training", _PROBE),
    "demonstrate": _sample("opd.microscope.demonstrations:run", "sample demonstrations", _DEMOS),
    "summarise": _sample(
        "opd.microscope.demonstrations:run_summaries", "summarise demonstrations", _DEMOS
    ),
    "screening": _sample("opd.microscope.screening:run", "choose questions by difficulty", _PROBE),
    "tree": _sample("opd.microscope.tree:run", "grow a tree of responses", _PROBE),
    "alignment": _device("opd.microscope.measure:run", "measure where a teacher points", _PROBE),
    "pool": Stage("opd.microscope.pool:run", "pool alignments", _PROBE),
    "forecast": Stage("opd.microscope.forecast:run", "forecast what training gains", _PROBE),
    "outcome": Stage("opd.microscope.forecast:run_outcome", "compare gains to forecasts", _PROBE),
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


def derive_seed(seed: int, stage: str) -> int:
    """The random seed of a stage: a pure function of the run's seed and the stage's random name."""
    name = STAGES[stage].random_name or stage
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


@cache
def code_digest(stage: str) -> str:
    """Digest of the code of a stage: that of its module, and which of its functions is called."""
    module, _, function = STAGES[stage].run.partition(":")
    return digest([module_digest(module), function])


def modules(stage: str) -> dict[str, str]:
    """Module -> digest of its own code, for all that ``code_digest`` covers."""
    return own_digests(STAGES[stage].run.partition(":")[0])
