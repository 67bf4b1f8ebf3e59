"""One number on its whole way: from a config and a paper's files to the cell, the bar and the claim
that show it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from measurements import evaluation, probe, run

from opd.plan.outputs import exhibits
from opd.recipes.resolve import resolve
from opd.results import claims
from opd.results.claim_spec import TARGETS
from opd.results.figures import run_figure
from opd.results.tables import run_table

# Right of four samples on each of two problems. Of the draws of problems a quarter are the first
# alone and a quarter the second alone, so the ends of a 95 % interval are the values of these.
RIGHT = {"small": [0, 1], "large": [4, 3], "distilled": [2, 3], "spoiled": [0, 0]}
# (after - before) / (teacher - before): 4 / 6 on both, 2 / 4 on the first, 2 / 2 on the second.
RECOVERY = [4 / 6, 2 / 4, 2 / 2]
# (after - before) less that of the spoiled one: 4 / 8 + 1 / 8 on both, 2 / 4 and 2 / 4 + 1 / 4.
APART = [5 / 8, 2 / 4, 3 / 4]
CONFIG: dict[str, Any] = {
    "name": "golden",
    "papers": ["paper"],
    "evaluation": "held-out",
    "comparable": True,
    "models": {name: {"path": f"/models/{name}"} for name in RIGHT},
    "protocols": {"short": {"samples": 4}},
    "prompts": {"easy": {"path": {"file": "easy.parquet"}}},
    "benchmarks": {"easy": {"task": "opd_world", "prompts": "easy"}},
    "evaluations": {"held-out": {"protocol": "short", "benchmarks": ["easy"]}},
    "arms": {
        f"E1.{name}": {"label": name, "model": name, "base": "small", "teacher": "large"}
        for name in ("distilled", "spoiled")
    },
    "tables": {
        "all": {
            "title": "T",
            "evaluation": "held-out",
            "columns": ["recovery"],
            "rows": [
                {"label": "us", "model": "distilled", "base": "small", "teacher": "large"},
            ],
        }
    },
}
CLAIMS = {
    "title": "A paper",
    "arms": {"E1.distilled": "the run that helps", "E1.spoiled": "the run that does not"},
    "claims": [
        {
            "id": name,
            "experiment": "E1",
            "section": "1",
            "statement": "So it is.",
            "test": test,
            "published": [{"target": "R1", "quantity": {"recovery": "E1.distilled"}}],
        }
        for name, test in {
            "recovers": {"at_least": {"of": {"recovery": "E1.distilled"}, "value": 0.45}},
            "gains": {
                "greater": {"left": {"change": "E1.distilled"}, "right": {"change": "E1.spoiled"}}
            },
            "loses": {"at_most": {"of": {"change": "E1.spoiled"}, "value": 0.0}},
        }.items()
    ],
}
FIGURES = {
    "fig1": {
        "title": "F",
        "section": "1",
        "kind": "bars",
        "panels": [{"quantity": {"recovery": "macro"}}],
        "series": [{"arm": "E1.distilled"}],
        "published": [{"target": "R1", "series": "E1.distilled", "metric": "recovery:macro"}],
    }
}


def written(folder: Path) -> Path:
    """The files of a paper."""
    row = dict.fromkeys(TARGETS, "-") | {"id": "R1", "experiment_id": "E1", "value": "0.7"}
    texts = {
        "claims/paper.yaml": yaml.safe_dump(CLAIMS),
        "figures/paper.yaml": yaml.safe_dump(FIGURES),
        "targets/paper.csv": f"{','.join(TARGETS)}\n{','.join(row.values())}\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_number_goes_from_config_to_claim(tmp_path: Path) -> None:
    made = exhibits(resolve(CONFIG), {}, written(tmp_path / "config"))

    def inputs(folder: str) -> dict[str, Path]:
        """Inputs of a stage by name: evaluations as written by hand, files as they are."""
        found = {}
        for name, source in zip(made[folder].cfg["inputs"], made[folder].inputs, strict=True):
            found[name] = Path(source) if Path(source).is_absolute() else tmp_path / source
            if not found[name].exists():
                model = source.split("/")[2]
                evaluation(found[name], {"easy": RIGHT[model]})
        return found

    def out(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    cell = run_table(made["tables/all"].cfg, inputs("tables/all"), out("table"))["us"]
    assert [cell[f"recovery{end}"] for end in ("", "_low", "_high")] == pytest.approx(RECOVERY)
    folder = "figures/paper/fig1"
    bar = run_figure(made[folder].cfg, inputs(folder), out("figure"))["distilled"]
    assert bar["recovery:macro"] == pytest.approx(RECOVERY)
    claims.run(made["claims"].cfg, inputs("claims"), out("claims"))
    judged = json.loads((tmp_path / "claims" / "claims.json").read_text())
    checks = {claim["id"]: claim["checks"][0] for claim in judged["claims"]}
    numbers = {name: [one[k] for k in ("value", "low", "high")] for name, one in checks.items()}
    assert numbers["recovers"] == pytest.approx(RECOVERY)
    assert numbers["gains"] == pytest.approx(APART)
    assert numbers["loses"] == pytest.approx([-1 / 8, -1 / 4, 0])
    assert {name: one["verdict"] for name, one in checks.items()} == dict.fromkeys(
        ("recovers", "gains", "loses"), "reproduced"
    )
    # Beside the published 0.7.
    (row,) = judged["claims"][0]["published"]
    assert row["difference"]["value"] == pytest.approx(4 / 6 - 0.7)
    assert row["status"] == "agrees"


SIZES = {"easy": 12, "hard": 7}
# A column, and the same quantity in a panel of a figure and in a claim.
SAME = {
    "avg:hard": ({"avg": "hard"}, {"avg": "A", "benchmark": "hard"}),
    "change": ({"change": "macro"}, {"change": "A"}),
    "change:hard": ({"change": "hard"}, {"change": "A", "benchmark": "hard"}),
    "recovery:easy": ({"recovery": "easy"}, {"recovery": "A", "benchmark": "easy"}),
    "recovery": ({"recovery": "macro"}, {"recovery": "A"}),
    "length": ({"length": "macro"}, {"length": "A"}),
    "p:hard": ({"p": "hard"}, {"p": "A", "benchmark": "hard"}),
    "answered": ({"answered": "macro"}, {"answered": "A"}),
    "first:kl_nats": (
        {"metric": "kl_nats", "at": "start"},
        {"metric": "kl_nats", "of": "A", "at": "start"},
    ),
    "last:kl_nats": (
        {"metric": "kl_nats", "at": "last"},
        {"metric": "kl_nats", "of": "A", "at": "last"},
    ),
    "probe:auroc": ({"value": "auroc"}, {"probe": "P", "value": "auroc"}),
}


def test_a_cell_a_bar_and_a_claim_are_one_number(tmp_path: Path) -> None:
    rng, inputs = np.random.default_rng(0), {}
    for name, rate in {"after": 0.6, "before": 0.3, "teacher": 0.9}.items():
        for seed in (0, 1):
            right = {b: rng.binomial(4, rate, size=n).tolist() for b, n in SIZES.items()}
            inputs[f"{name}{seed}"] = evaluation(tmp_path / f"{name}{seed}", right)
    for seed in (0, 1):
        inputs[f"r{seed}"] = run(tmp_path / f"r{seed}", kl_nats={0: 2.0, 1: 1.5, 2: 0.5 + seed})
        draws = rng.uniform(0.6, 0.9, size=50).tolist()
        inputs[f"p{seed}"] = probe(tmp_path / f"p{seed}", {"auroc": 0.75}, {"auroc": draws})
    two = {
        role: [f"{start}0", f"{start}1"]
        for role, start in {
            "evaluations": "after",
            "base": "before",
            "teacher": "teacher",
            "run": "r",
            "probe": "p",
        }.items()
    }
    how = {"resamples": 300, "seed": 3}
    cells = run_table(
        {"columns": list(SAME), "rows": [{"label": "it", **two}], **how}, inputs, tmp_path
    )["it"]
    probes = {"P": {"label": "it", "runs": two["probe"]}}
    cfg = {"arms": {"A": {"label": "it", **two}}, "probes": probes, **how}
    listed = [
        {
            "id": str(place),
            "experiment": "E",
            "section": "1",
            "statement": "It is.",
            "test": {"at_least": {"of": quantity, "value": 0.0}},
        }
        for place, (_, quantity) in enumerate(SAME.values())
    ]
    inputs["claims:paper"] = tmp_path / "claims.yaml"
    inputs["claims:paper"].write_text(yaml.safe_dump({"title": "T", "claims": listed}))
    inputs["targets:paper"] = tmp_path / "targets.csv"
    with inputs["targets:paper"].open("w", newline="") as file:
        csv.writer(file).writerows([TARGETS, ["R1", *["-"] * (len(TARGETS) - 1)]])
    scale = {"scale": "s", "comparable": False, "seeds": [0, 1]}
    claims.run({**cfg, **scale}, inputs, tmp_path)
    judged = json.loads((tmp_path / "claims.json").read_text())["claims"]
    panels = [{"quantity": panel} for panel, _ in SAME.values()]
    run_figure(
        {"kind": "bars", "series": [{"arm": "A"}, {"probe": "P"}], "panels": panels, **cfg},
        inputs,
        tmp_path,
    )
    drawn = json.loads((tmp_path / "figure.json").read_text())["panels"]
    for spec, panel, claim in zip(SAME, drawn, judged, strict=True):
        (bar,), (check,) = panel["bars"], claim["checks"]
        ends = ("value", "low", "high")
        assert [bar[end] for end in ends] == [check[end] for end in ends], spec
        name = spec.replace(":", "_")
        cell = [cells[key] for key in (name, f"{name}_low", f"{name}_high") if key in cells]
        assert cell == [bar[end] for end in ends][: len(cell)], spec
        assert len(cell) == 1 or cell[1] <= cell[0] <= cell[2], spec
