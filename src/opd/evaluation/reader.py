"""What evaluations and training runs measured, read once and checked to be comparable.

Scores come from ``scores.parquet`` of evaluations, metrics over steps from ``metrics.parquet`` of
trained models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import file_digest, read_json
from opd.evaluation.schemas import SCORES, samples_by_problem
from opd.losses import metric_names
from opd.losses.schemas import METRICS
from opd.stats.intervals import Array, Scores

MACRO = "macro"


_NO_VALUES: tuple[Array, Array] = (np.empty(0, int), np.empty(0))


class NotLogged(UserError):
    """A run has no such metric."""


_ANSWERS = pa.schema(
    SCORES.field(name)
    for name in ("benchmark", "problem", "sample", "extracted", "correct", "tokens", "finish")
)


class Answers(NamedTuple):
    """What a model answered on one benchmark: arrays [P, K] in the order of ``problems``."""

    problems: tuple[str, ...]
    correct: Array
    tokens: Array
    truncated: Array
    answered: Array


def read_answers(payload: Path) -> dict[str, Answers]:
    """Benchmark -> answers of one evaluation; problems are sorted, so that evaluations compare.

    Raises ``UserError`` where a problem has more or fewer samples than the others.
    """
    path = payload / "scores.parquet"
    table = tables.read(path, _ANSWERS)
    if not table.num_rows:
        raise UserError("no rows", str(path), "the evaluation made nothing: run it again")
    answers = {}
    for benchmark in table["benchmark"].unique().to_pylist():
        own = table.filter(pc.field("benchmark") == benchmark)
        columns = own["problem"].to_pylist(), own["sample"].to_pylist()
        rows = dict(sorted(samples_by_problem(*columns, f"{path}: {benchmark}").items()))
        at = np.array([*rows.values()])
        answers[benchmark] = Answers(
            tuple(rows),
            own["correct"].to_numpy()[at],
            own["tokens"].to_numpy()[at],
            pc.equal(own["finish"], "length").to_numpy()[at],
            own["extracted"].is_valid().to_numpy()[at],
        )
    return answers


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one model, one per seed, on the same problems."""

    where: str
    seeds: tuple[dict[str, Answers], ...]

    def benchmarks(self, name: str = MACRO) -> tuple[str, ...]:
        """The benchmarks that a name stands for: all of them for ``macro``, else itself."""
        known = tuple(self.seeds[0])
        if name not in (MACRO, *known):
            raise UserError(f"no benchmark '{name}'", self.where, f"there are {', '.join(known)}")
        return known if name == MACRO else (name,)

    def scores(self, name: str = MACRO, field: str = "correct") -> Scores:
        """One array [S, P, K] per benchmark of a field of ``Answers``."""
        return [
            np.stack([getattr(seed[benchmark], field) for seed in self.seeds])
            for benchmark in self.benchmarks(name)
        ]

    def samples(self) -> tuple[int, ...]:
        """Samples a problem, distinct values over the benchmarks."""
        return tuple(sorted({a.correct.shape[1] for a in self.seeds[0].values()}))

    def shape(self) -> dict[str, tuple[tuple[str, ...], int]]:
        """Benchmark -> (problems, samples): what has to agree between compared models."""
        return {n: (a.problems, a.correct.shape[1]) for n, a in sorted(self.seeds[0].items())}


class Reader:
    """Reads files of inputs, each held to the digest that it was made with."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self.inputs = inputs
        self._digests: dict[tuple[str, str], str] = {}
        self._answers: dict[str, dict[str, Answers]] = {}
        self._metrics: dict[str, dict[str, tuple[Array, Array]]] = {}
        self.first: Evaluations | None = None

    def file(self, name: str, file: str, where: str) -> Path:
        """The path of a file of an input, for reading it; whether it is there shows then.

        Raises ``UserError`` where there is no such input, and where the file is not as it was made:
        its content is not what digest.json says.
        """
        if name not in self.inputs:
            raise UserError(
                f"no input '{name}'", where, f"inputs are {', '.join(self.inputs) or 'none'}"
            )
        path = self.inputs[name] / file
        if (name, file) not in self._digests and path.is_file():
            digest = file_digest(path)
            record = self.inputs[name].with_name("digest.json")
            if record.is_file() and read_json(record)["outputs"].get(file) != digest:
                raise UserError(
                    "modified after it was made", str(path), f"remove {record}, start again"
                )
            self._digests[name, file] = digest[:12]
        return path

    def digests(self, name: str) -> dict[str, str]:
        """File -> sha256 (12 digits) of what was read of an input so far."""
        return {file: digest for (of, file), digest in sorted(self._digests.items()) if of == name}

    def evaluations(self, names: Sequence[str], where: str) -> Evaluations:
        """Evaluations by input name, one per seed.

        Raises ``UserError`` unless all evaluations read so far have the same benchmarks, problems
        and samples: otherwise their scores could not be compared.
        """
        if not names:
            raise UserError("no evaluation is named", where, "name one input per seed")
        for name in names:
            if name not in self._answers:
                self._answers[name] = read_answers(self.file(name, "scores.parquet", where).parent)
            seed = Evaluations(str(self.inputs[name]), (self._answers[name],))
            self.first = self.first or seed
            if differing := self.first.shape().items() ^ seed.shape().items():
                benchmark = min(differing)[0]
                raise UserError(
                    f"'{name}' has other problems or samples of {benchmark} than the first input",
                    where,
                    "compare evaluations of one protocol on the same benchmarks",
                )
        return Evaluations(where, tuple(self._answers[name] for name in names))

    def summary(self, names: Sequence[str], benchmarks: Sequence[str], kind: str) -> float | None:
        """Mean over seeds and benchmarks of maj, or of pass at all samples (summary.json); None
        where a benchmark has no right and wrong."""
        values = []
        for name in names:
            summary = self.json(name, "summary.json", name)["benchmarks"]
            for benchmark in benchmarks:
                value = summary[benchmark][kind]
                if kind == "pass":
                    value = value.get(str(summary[benchmark]["samples"]))
                values.append(value)
        return None if None in values else float(np.mean(values))

    def json(self, name: str, file: str, where: str) -> Any:
        """A JSON file of an input, as the probes write it."""
        return read_json(self.file(name, file, where))

    def metric(self, names: Sequence[str], metric: str, where: str) -> tuple[Array, Array]:
        """Steps [N] and values [S, N] of a metric (NaN where a seed did not log a step). N is 0
        where it never had a value, as in a run that was adopted. Raises ``NotLogged`` for a metric
        that neither training nor this run knows."""
        if not names:
            raise UserError("no run is named", where, "name one input per seed")
        curves = []
        for name in names:
            if name not in self._metrics:
                self._metrics[name] = read_metrics(self.file(name, "metrics.parquet", where).parent)
            course = self._metrics[name]
            if metric not in {*metric_names.METRICS, *course}:
                known = ", ".join(sorted(course)) or "nothing"
                raise NotLogged(f"'{name}' did not log '{metric}'", where, f"it logged {known}")
            curves.append(course.get(metric, _NO_VALUES))
        steps = np.unique(np.concatenate([logged for logged, _ in curves]))
        values = np.full((len(curves), len(steps)), np.nan)
        for row, (logged, value) in zip(values, curves, strict=True):
            row[np.searchsorted(steps, logged)] = value
        return steps, values

    def positions(
        self, names: Sequence[str], metric: str, where: str
    ) -> list[tuple[Array, Array, Array]]:
        """Steps, first positions of bins, and values [N] of a metric by position, run by run."""
        curves = []
        for name in names:
            table = tables.read(self.file(name, "metrics.parquet", where), METRICS)
            table = table.filter((pc.field("name") == metric) & pc.field("position").is_valid())
            if not table.num_rows:
                raise NotLogged(
                    f"'{name}' did not log '{metric}' by position", where, "make position_bin less"
                )
            columns = table.select(["step", "position", "value"])
            steps, places, values = (column.to_numpy() for column in columns)
            curves.append((steps, places, _in_decimals(values)))
        return curves


def _in_decimals(values: Array) -> Array:
    """The shortest decimal number that each is in 32 bits: 0.1, and not 0.10000000149."""
    return values.astype(str).astype(float)


def read_metrics(payload: Path) -> dict[str, tuple[Array, Array]]:
    """Metric -> (steps, values) of one run over all positions, by step.

    Raises ``UserError`` on a step logged twice.
    """
    path = payload / "metrics.parquet"
    table = tables.read(path, METRICS)
    table = table.filter(pc.field("position").is_null())
    curves = {}
    for name in table["name"].unique().to_pylist():
        own = table.filter(pc.field("name") == name).sort_by("step")
        curves[name] = (own["step"].to_numpy(), _in_decimals(own["value"].to_numpy()))
        if np.any(np.diff(curves[name][0]) == 0):
            raise UserError(f"'{name}' is logged twice for a step", str(path), "make the run again")
    return curves
