"""Phase 2 of the paper's algorithm: one teacher on the paths of a tree, token by token (the
paper, sections 3 and 4)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.errors import LeftOut
from opd.data.schemas import PROMPTS
from opd.microscope import alignment, schemas, statistics
from opd.microscope.alignment import Nodes, Scores
from opd.microscope.page import page
from opd.microscope.path_index import Children
from opd.microscope.pool import cell_row
from opd.microscope.scoring import Compared, Pair
from opd.microscope.tree import teacher_prompts
from opd.models.checkpoints import load_tokenizer
from opd.stats import draws

Array = np.ndarray
Row = dict[str, Any]
# The teacher's likeliest tokens that the page shows of every position.
TOP = 4
# Questions that the page shows.
SHOWN = 12


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``alignment``: probe.json and draws.parquet, tokens.parquet (every token of every
    path), cells.parquet, left_out.parquet, and page.html.

    cfg: those of the stage ``tree`` that say what is asked; teacher (as there), min_children_visits
    (N_sig), mode (``renormalise`` or ``restrict_only``), method (``reverse_kl`` or ``forward_kl``),
    title. Inputs: tree, student, prompts, ``teacher:NAME`` and ``demos:NAME`` as for the tree.
    Values: ``opd.microscope.statistics.values``. What cannot be measured is in left_out.parquet
    with the reason; where nothing can, there are no values.
    """
    teacher, name = cfg["teacher"], cfg["teacher"]["name"]
    trees = _read_tree(inputs["tree"])
    left_out: list[Row] = [
        {"prompt_id": row["prompt_id"], "path": None, "reason": row["reason"]}
        for row in trees.questions
        if row["reason"] is not None
    ]
    open_ids = [row["prompt_id"] for row in trees.questions if row["reason"] is None]
    rows: list[Row] = []
    cells: list[statistics.Cell] = []
    try:
        pair = Pair(cfg, inputs["student"], inputs.get(f"teacher:{name}"))
    except LeftOut as bad:
        left_out += [{"prompt_id": id, "path": None, "reason": bad.what} for id in open_ids]
        open_ids = []
    prompt_rows = {
        row["id"]: row
        for row in tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS).to_pylist()
    }
    asked = [prompt_rows[id] for id in open_ids]
    theirs = teacher_prompts(cfg, teacher, inputs, asked)
    bare = {"name": name, "correct": 0, "wrong": 0}
    bare["chat_template_kwargs"] = cfg.get("chat_template_kwargs")
    ours = teacher_prompts({**cfg, "max_teacher_prompt_tokens": 1 << 30}, bare, inputs, asked)
    tokenizer = load_tokenizer(inputs["student"])
    for id in open_ids:
        prompt, student_prompt = theirs[id], ours[id]
        if isinstance(prompt, LeftOut) or isinstance(student_prompt, LeftOut):
            reason = str(prompt if isinstance(prompt, LeftOut) else student_prompt)
            left_out.append({"prompt_id": id, "path": None, "reason": reason})
            continue
        for path in trees.paths[id]:
            children = trees.children[id, path["path"]]
            nodes = alignment.significant(children, cfg["min_children_visits"])
            if not len(nodes.depth):
                most = int(children.visits.max(initial=0))
                least = cfg["min_children_visits"]
                left_out.append(
                    {
                        "prompt_id": id,
                        "path": path["path"],
                        "reason": f"no node has two children of {least} visits that differ in "
                        f"success (the most that any child has is {most})",
                    }
                )
                continue
            depths = nodes.depth[nodes.node]
            found = pair.compare(
                student_prompt, prompt, path["token_ids"], (depths, nodes.token), top=TOP
            )
            kl = found.kl[nodes.depth]
            scores = alignment.align(
                nodes, found.log_p, found.log_q, cfg["mode"], cfg["method"], kl
            )
            cells.append(_cell(id, name, path, nodes, scores, found))
            rows += _token_rows(id, path, children, nodes, scores, found, tokenizer)
    values = statistics.values(cells) if cells else {}
    about = {"teacher": name, "left_out": len(left_out), "over_questions": _over_questions(cells)}
    draws.write(out, values, about)
    tables.write(out / "tokens.parquet", rows, schemas.TOKENS)
    tables.write(out / "cells.parquet", map(cell_row, cells), schemas.CELLS)
    tables.write(out / "left_out.parquet", left_out, schemas.LEFT_OUT)
    shown = {row["prompt_id"]: row for row in trees.questions}
    title = cfg.get("title") or f"Where {name} points"
    tables.write_text(out / "page.html", page(title, rows, shown, left_out, SHOWN))
    return {n: v.value for n, v in values.items() if n in (*statistics.MEASURES, "nodes")}


# Reading and writing


class _Tree:
    def __init__(self, questions: list[Row], paths: list[Row], children: Any) -> None:
        self.questions = questions
        self.paths: dict[str, list[Row]] = {row["prompt_id"]: [] for row in questions}
        for row in paths:
            self.paths[row["prompt_id"]].append(row)
        self.children: dict[tuple[str, int], Children] = {}
        names = np.array(children["prompt_id"].to_pylist())
        number = children["path"].to_numpy()
        columns = [children[name].to_numpy() for name in Children._fields]
        for row in paths:
            where = (names == row["prompt_id"]) & (number == row["path"])
            found = Children(*(column[where] for column in columns))
            self.children[row["prompt_id"], row["path"]] = found


def _read_tree(payload: Path) -> _Tree:
    return _Tree(
        tables.read(payload / "questions.parquet", schemas.QUESTIONS).to_pylist(),
        tables.read(payload / "paths.parquet", schemas.PATHS).to_pylist(),
        tables.read(payload / "children.parquet", schemas.CHILDREN),
    )


def _cell(
    id: str, teacher: str, path: Row, nodes: Nodes, scores: Scores, found: Compared
) -> statistics.Cell:
    at = nodes.depth
    features = {
        "depth": at / max(1, len(path["token_ids"]) - 1),
        "kl_nats": found.kl[at],
        "js_nats": found.js[at],
        "l2": found.l2[at],
        "similarity": found.similarity[at],
    }
    return statistics.cell(
        id,
        teacher,
        path["path"],
        path["correct"],
        scores.alignment,
        scores.range,
        scores.advantage,
        features,
    )


def _token_rows(
    id: str,
    path: Row,
    children: Children,
    nodes: Nodes,
    scores: Scores,
    found: Compared,
    tokenizer: Any,
) -> list[Row]:
    """Rows of TOKENS of one path."""
    counts = {(d, t): (n, s) for d, t, n, s in zip(*(c.tolist() for c in children), strict=True)}
    scored = {int(depth): number for number, depth in enumerate(nodes.depth)}
    stops = np.append(nodes.starts, len(nodes.token))
    texts: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in texts:
            texts[token] = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return texts[token]

    rows = []
    for depth, token in enumerate(path["token_ids"]):
        shown: dict[int, tuple[float, float]] = {
            int(t): (float(np.exp(p)), float(np.exp(q)))
            for t, p, q in zip(
                found.top[depth], found.top_log_p[depth], found.top_log_q[depth], strict=True
            )
        }
        number = scored.get(depth)
        if number is not None:
            part = slice(stops[number], stops[number + 1])
            columns = nodes.token[part], found.log_p[part], found.log_q[part]
            for t, p, q in zip(*columns, strict=True):
                shown[int(t)] = (float(np.exp(p)), float(np.exp(q)))
        at: Mapping[str, Any] = {"alignment": None, "range": None, "advantage": None}
        if number is not None:
            score = float(scores.alignment[number])
            at = {
                "alignment": score if math.isfinite(score) else None,
                "range": float(scores.range[number]),
                "advantage": float(scores.advantage[number]),
            }
        rows.append(
            {
                "prompt_id": id,
                "path": path["path"],
                "correct": path["correct"],
                "depth": depth,
                "token": token,
                "text": text(token),
                **at,
                "scored_children": 0 if number is None else int(stops[number + 1] - stops[number]),
                "kl_nats": float(found.kl[depth]),
                "js_nats": float(found.js[depth]),
                "l2": float(found.l2[depth]),
                "similarity": float(found.similarity[depth]),
                "children": [
                    {
                        "token": t,
                        "text": text(t),
                        "student": p,
                        "teacher": q,
                        "visits": counts.get((depth, t), (0, 0))[0],
                        "successes": counts.get((depth, t), (0, 0))[1],
                    }
                    for t, (p, q) in sorted(shown.items(), key=lambda one: (-one[1][1], one[0]))
                ],
            }
        )
    return rows


def _over_questions(cells: Sequence[statistics.Cell]) -> dict[str, list[float | None]]:
    """Mean over questions with Student's interval of every measure: [mean, low, high]."""
    found = {}
    for name in statistics.MEASURES:
        means = list(statistics.by_question(cells, name).values())
        bounds = statistics.over_questions(means)
        found[name] = [value if math.isfinite(value) else None for value in bounds]
    return found
