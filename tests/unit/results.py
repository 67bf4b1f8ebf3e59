"""A results folder made by hand, for the tests of the report: artifacts with payloads of a line."""

import json
from pathlib import Path
from typing import Any

from opd.files import content, digest
from opd.manifest import FORMAT

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="504pt" height="252pt" viewBox="0 0 504 252">'
    '<rect width="504" height="252" fill="#fff"/><text x="9" y="99">a curve</text></svg>'
)
TABLE = """**A title**

|  | avg@4 (%) | change |
| --- | ---: | ---: |
| small \\| after SFT | 21.2 [18.2, 24.4] | – |
| large | 36.3 [32.9, 39.7] | +15.1 |

Seeds: 3.
"""


class Results:
    """results/NAME below a folder, and what a report is given of it."""

    def __init__(self, folder: Path, name: str = "mini") -> None:
        self.root = folder / "results" / name
        self.folders: dict[str, str] = {}  # name of an input of the report -> folder
        self.cfg: dict[str, Any] = {
            "title": "A report",
            "scale": name,
            "sections": [],
            "tables": [],
            "runs": [],
        }

    def add(
        self,
        verb: str,
        folder: str,
        files: dict[str, str],
        inputs: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Make an artifact of these files from the artifacts in these folders."""
        place = self.root / folder
        (place / "payload").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / "payload" / name).write_text(text)
        outputs = content(place / "payload")
        identity = more.pop("identity", digest([verb, folder, outputs]))
        used = {
            name: {
                "path": f"results/{self.root.name}/{source}/digest.json",
                "identity": json.loads((self.root / source / "digest.json").read_text())[
                    "identity"
                ],
                "outputs": digest(content(self.root / source / "payload")),
            }
            for name, source in (inputs or {}).items()
        }
        manifest = {
            "verb": verb,
            "identity": identity,
            "cfg": {},
            "inputs": used,
            "outputs": outputs,
            "numbers": {},
            "versions": {"python": "3.11.7"},
            "host": "somewhere",
            "device": "cpu",
            "started": "2026-01-02T03:04:05Z",
            "seconds": 1.0,
            **more,
        }
        (place / "manifest.json").write_text(json.dumps(manifest))
        record = {
            "format": FORMAT,
            "identity": identity,
            "settings": "",
            "outputs": outputs,
        }
        (place / "digest.json").write_text(json.dumps(record))

    def figure(self, name: str, section: str, inputs: dict[str, str], **cfg: Any) -> None:
        numbers = {"small": {"kl_nats": 0.25}, "large": {"macro": [0.5, 0.4, 0.6]}}
        files = {"figure.svg": SVG, "figure.png": "no picture"}
        self.add("figure", f"figures/{name}", files, inputs, cfg=cfg, numbers=numbers)
        for suffix in ("svg", "png"):
            (self.root / "figures" / f"{name}.{suffix}").write_text(SVG)
        self.folders[f"figure:{name}"] = f"figures/{name}"
        sections = self.cfg["sections"]
        if not any(one["title"] == section for one in sections):
            sections.append({"title": section, "figures": []})
        next(one for one in sections if one["title"] == section)["figures"].append(name)

    def table(self, name: str, inputs: dict[str, str], **cfg: Any) -> None:
        files = {"table.md": TABLE, "table.csv": "row,avg\n"}
        self.add("table", f"tables/{name}", files, inputs, cfg=cfg)
        for suffix in ("csv", "md"):
            (self.root / "tables" / f"{name}.{suffix}").write_text(TABLE)
        self.folders[f"table:{name}"] = f"tables/{name}"
        self.cfg["tables"].append(name)

    def run(self, verb: str, folder: str, inputs: dict[str, str], **more: Any) -> None:
        self.add(verb, folder, {"metrics.parquet": folder}, inputs, **more)
        log = self.root / "logs" / f"{folder}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("done\n")
        self.folders[f"run:{folder}"] = folder
        self.cfg["runs"].append({"name": folder.split("/", 1)[1], "verb": verb, "folder": folder})

    def claims(self, found: dict[str, Any], inputs: dict[str, str]) -> None:
        self.add("claims", "claims", {"claims.json": json.dumps(found)}, inputs)
        self.folders["claims"] = "claims"

    @property
    def inputs(self) -> dict[str, Path]:
        return {name: self.root / folder / "payload" for name, folder in self.folders.items()}


def claim(name: str, verdict: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "paper": "a_paper",
        "experiment": name.partition("-")[0],
        "section": "4.1",
        "figure": "fig06",
        "statement": f"What {name} says.",
        "verdict": verdict,
        "note": None,
        "level": False,
        "interval": True,
        "reason": None,
        "seeds": 3,
        "checks": [],
        "published": [],
        **more,
    }


def check(text: str, verdict: str) -> dict[str, Any]:
    return {
        "text": text,
        "value": 0.8845,
        "low": 0.85,
        "high": 0.92,
        "bound": [0.8, None],
        "verdict": verdict,
    }


def published(target: str, value: Any, ours: Any, difference: Any) -> dict[str, Any]:
    return {
        "target": target,
        "student": "a student",
        "teacher": "a teacher",
        "metric": "recovery",
        "benchmark": "-",
        "setting": "a setting",
        "value": value,
        "confidence": "printed",
        "source": f"where {target} stands",
        "ours": ours and {"value": 0.5, "low": 0.4, "high": 0.6, "text": ours},
        "difference": difference and {"value": 0.5, "low": 0.4, "high": 0.6, "text": difference},
        "status": "agrees" if difference else "not comparable",
        "note": None,
    }


def target(name: str, claims: list[str], figures: list[str], **more: Any) -> dict[str, Any]:
    return {
        "paper": "a_paper",
        "id": name,
        "experiment": "E04",
        "figure": "Fig6",
        "metric": "recovery",
        "benchmark": "-",
        "setting": "-",
        "value": "0.812",
        "confidence": "printed",
        "ours": ["88.5 % [85.0, 92.0]"] if claims else [],
        "claims": claims,
        "verdicts": ["reproduced"] * len(claims),
        "figures": figures,
        "context": None,
        "status": "not comparable" if claims else "context",
        "note": None,
        **more,
    }


def found(comparable: bool = False) -> dict[str, Any]:
    """A claims.json with all four verdicts."""
    difference = "+7.2 points [3.8, 10.8]" if comparable else None
    claims = [
        claim(
            "E04-recovery",
            "reproduced",
            checks=[
                check("gap recovered 88.5 % [85.0, 92.0]; claimed: at least 80 %", "reproduced")
            ],
            published=[published("R033", "0.812", "88.5 % [85.0, 92.0]", difference)],
        ),
        claim(
            "E04-failure",
            "not reproduced",
            checks=[
                check("it rises −0.1 [−0.2, −0.05]", "not reproduced"),
                check("it stays 0.01 [−0.02, 0.03]", "reproduced"),
            ],
        ),
        claim("E06-cold", "inconclusive", reason="the interval holds the bound", figure="fig09"),
        claim(
            "E12-k",
            "not run",
            reason="not measured: E12.k64",
            figure="fig14",
            seeds=None,
            checks=[check("not measured: E12.k64", "not run")],
        ),
    ]
    counts = {"counts": {one["verdict"]: 1 for one in claims}, "without_interval": {}}
    return {
        "scale": "mini",
        "comparable": comparable,
        "seeds": [0, 1, 2],
        "papers": {"a_paper": {"title": "A Paper (arXiv)", **counts}},
        **counts,
        "claims": claims,
        "targets": [
            target(
                *("R033", ["E04-recovery"], ["a_paper/fig06"]),
                status="agrees" if comparable else "not comparable",
            ),
            target("R200", [], [], context="hyperparameter", status="context", value="1e-6"),
        ],
    }


def sample(folder: Path, comparable: bool = False) -> Results:
    """Claims, two sections of figures, a table, a training run, an evaluation and a probe."""
    made = Results(folder)
    made.add("prompts", "prompts/rl", {"prompts.parquet": "rl"}, seconds=2.0)
    made.add("init", "models/small/s0", {"w": "0"}, seconds=3.0)
    source = {"student": "models/small/s0", "prompts": "prompts/rl"}
    made.run("opd", "models/small-from-large/s0", source, seconds=3725.0, device="A GPU")
    made.run(
        *("evaluate", "evaluations/held-out/small-from-large/s0"),
        {"model": "models/small-from-large/s0"},
        seconds=60.0,
        versions={"python": "3.12.1", "torch": "2.13.0"},
    )
    made.run("pair", "probes/E11.success/s0", {"student": "models/small/s0"}, seconds=4.5)
    evaluation = {"e": "evaluations/held-out/small-from-large/s0"}
    training = {"r": "models/small-from-large/s0"}
    made.figure("a_paper/fig06", "Success", evaluation, title="Recovery", caption="What came back.")
    made.figure("fig09", "Cold start", training, title="A cold start", kind="curves")
    made.table("headline", evaluation, title="The headline", caption="In short.")
    made.claims(found(comparable), evaluation)
    return made
