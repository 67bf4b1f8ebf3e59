"""Resource classes, and what a site makes of them."""

import re
from pathlib import Path

import pytest
import yaml
from rules import rules

from opd.core.errors import UserError
from opd.plan import resources
from opd.recipes.config import Config
from opd.recipes.resolve import merge, resolve
from opd.stages.registry import STAGES

ROOT = Path(__file__).parents[3]
ROWS = resources.read_classes(ROOT / "workflow" / "resources.yaml")
LOCAL = {"all", "release", "download", "dataset", "fetch"}
CLUSTER = """
account: lab
gpu_model: h100
classes:
  light: {partition: short}
  gpu: {partition: big, cpus_per_task: 8, mem_mb: 100000, max_runtime: 1500}
  gpu4: {qos: half, max_mem_mb: 500000}
rules:
  evaluate: {class: gpu4, runtime: 90}
  distill: {mem_mb: 7000, slurm_extra: --exclusive}
"""


def config(name: str, **more: object) -> Config:
    given = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    return resolve(merge(given, more))


def site(tmp_path: Path, text: str) -> resources.Site:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return resources.read_site(None, path)


def asked(stage, of, at, attempt=1):
    found = resources.resources(stage, of, ROWS, at)
    return {key: v(None, attempt) if callable(v) else v for key, v in found.items()}


def test_the_class_follows_from_what_the_config_computes_in_and_on_how_many_devices():
    paper, mini = config("paper"), config("mini")
    classes = [resources.class_of(work, paper) for work in ("light", "cpu", "device", "devices")]
    assert classes == ["light", "cpu", "gpu1", "gpu8"]
    assert {resources.class_of(work, mini) for work in ("cpu", "device", "devices")} == {"cpu"}
    three = config("paper", training={"processes": 3})
    assert resources.class_of("devices", three) == "gpu3"
    assert resources.class_of("sampling", three) == "gpu3"
    assert resources.class_of("sampling", three.model_copy(update={"backend": "transformers"})) == (
        "gpu1"
    )


def test_without_a_site_a_job_asks_for_the_row_of_its_class_times_its_gpus():
    paper, site = config("paper"), resources.Site()
    gpu = ROWS["gpu"]
    eight = asked("distill", paper, site)
    assert eight["gpu"] == 8 and eight["nodes"] == 1
    assert eight["cpus_per_task"] == 8 * gpu.cpus_per_task
    assert eight["mem_mb"] == 8 * gpu.mem_mb
    assert eight["runtime"] == ROWS["gpu8"].runtime != gpu.runtime
    one = asked("evaluate", paper, site)
    assert (one["gpu"], one["mem_mb"], one["runtime"]) == (1, gpu.mem_mb, gpu.runtime)
    light = asked("table", paper, site)
    assert light == {"nodes": 1, **ROWS["light"].model_dump(exclude_none=True)}


def test_a_processors_job_has_the_threads_of_the_config_and_of_each_process():
    mini = config("mini", threads=3, training={"processes": 2})
    assert asked("embed", mini, resources.Site())["cpus_per_task"] == 3
    assert asked("sft", mini, resources.Site())["cpus_per_task"] == 6
    assert asked("table", mini, resources.Site())["cpus_per_task"] == 1


def test_a_site_changes_rows_and_rules_key_by_key_and_attempts_grow_up_to_its_limits(tmp_path):
    paper, at = config("paper"), site(tmp_path, CLUSTER)
    assert asked("table", paper, at)["slurm_partition"] == "short"
    one = {"slurm_account": "lab", "slurm_partition": "big", "gpu_model": "h100", "nodes": 1}
    pair = {**one, "gpu": 1, "cpus_per_task": 8, "mem_mb": 100000, "runtime": 720}
    assert asked("pair", paper, at) == pair
    assert asked("pair", paper, at, 2)["runtime"] == 1440
    assert asked("pair", paper, at, 3) == {**pair, "mem_mb": 300000, "runtime": 1500}
    evaluate = asked("evaluate", paper, at, 2)
    assert (evaluate["gpu"], evaluate["qos"], evaluate["cpus_per_task"]) == (4, "half", 32)
    assert (evaluate["mem_mb"], evaluate["runtime"]) == (500000, 180)
    opd = asked("distill", paper, at)
    assert (opd["gpu"], opd["mem_mb"]) == (8, 7000)
    assert opd["slurm_extra"] == "--signal=TERM@600 --exclusive"


def test_slurm_ends_a_training_early_enough_for_its_step(tmp_path):
    """Ten minutes before the limit, of a short job a tenth of it; what has no steps is let be."""
    paper = config("paper")
    assert asked("sft", paper, resources.Site())["slurm_extra"] == "--signal=TERM@600"
    assert "slurm_extra" not in asked("evaluate", paper, resources.Site())
    short = site(tmp_path, "rules: {sft: {runtime: 20}}")
    assert asked("sft", paper, short)["slurm_extra"] == "--signal=TERM@120"
    assert asked("sft", paper, short, attempt=2)["slurm_extra"] == "--signal=TERM@240"
    own = site(tmp_path, "rules: {sft: {slurm_extra: --signal=TERM@1800}}")
    assert asked("sft", paper, own)["slurm_extra"] == "--signal=TERM@1800"


def test_gpus_as_a_generic_resource(tmp_path):
    found = asked("distill", config("paper"), site(tmp_path, "gres: gpu:a100"))
    assert found["gres"] == "gpu:a100:8"
    assert "gpu" not in found and "gpu_model" not in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitions: {}", "partitions: no such key"),
        ("classes: {gpus: {partition: x}}", "classes.gpus"),
        ("classes: {light: {mem_mb: 300}}", "classes.light.mem_mb: 300 is not allowed"),
        ("rules: {distill: {class: tpu}}", "rules.distill.class: 'tpu' is not allowed"),
        ("rules: {train: {runtime: 3}}", "rules.train"),
        ("rules: [{sft: {runtime: 3}}]", "rules: Input should be a valid dictionary"),
        ("rules: 3", "rules: 3 is not allowed: Input should be a valid dictionary"),
        (
            "rules: {opd: {runtime: 3}}",
            "rules.opd: unknown rule 'opd'; it is called 'distill' here",
        ),
        ("{gpu_model: a, gres: b}", "exclude each other"),
        ("- 1", "not a mapping"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_wrong_site_is_one_line_with_the_key(tmp_path, text, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        site(tmp_path, text)
    assert str(tmp_path / "site.yaml") in str(caught.value)


def test_which_site_file_is_read(tmp_path):
    default, other = tmp_path / "site.yaml", tmp_path / "other.yaml"
    assert resources.read_site(None, default) == resources.Site()
    default.write_text("account: here")
    other.write_text("account: there")
    assert resources.read_site(None, default).account == "here"
    assert resources.read_site(str(other), default).account == "there"
    assert resources.read_site("", default) == resources.Site()
    with pytest.raises(UserError, match="No such file"):
        resources.read_site(str(tmp_path / "none"), default)


def test_the_example_is_right_and_shows_every_key():
    path = ROOT / "slurm" / "site.example.yaml"
    resources.read_site(str(path), path)
    text = path.read_text()
    keys = {f.alias or name for name, f in resources.RuleAsk.model_fields.items()}
    for key in {*resources.Site.model_fields, *keys}:
        assert re.search(rf"\b{key}\b", text), key


def test_every_rule_that_is_a_job_has_a_class_and_only_those_that_fetch_have_retries():
    """Snakemake would apply a rule's retries inside a job again, twice."""
    found = rules()
    assert {name for name, rule in found.items() if rule["local"]} == LOCAL
    assert found.keys() - {"all", "download", "release"} == STAGES.keys()
    for name, rule in found.items():
        assert rule["retries"] == (3 if name in LOCAL - {"all", "release"} else None), name
        assert ("runtime" in rule["resources"]) is (name not in LOCAL), name


def test_what_samples_runs_where_what_trains_does_unless_it_has_its_own():
    def chosen(theirs: dict, ours: dict) -> dict:
        site = resources.Site.model_validate({"interpreters": theirs})
        return resources.interpreters(site, resolve({"name": "c", "interpreters": ours}))

    assert chosen({}, {}) == {"light": "", "gpu": "", "vllm": ""}
    assert chosen({"gpu": "site"}, {"gpu": "own"}) == {"light": "", "gpu": "site", "vllm": "site"}
    assert chosen({"gpu": "site"}, {"vllm": "own"})["vllm"] == "own"
