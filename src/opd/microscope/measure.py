"""Phase 2 of the paper's algorithm: one teacher on the paths of a tree, token by token (the
paper, sections 3 and 4)."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd.core import tables
from opd.core.errors import LeftOut
from opd.microscope import alignment, schemas, statistics
from opd.microscope.alignment import Nodes, Scores
from opd.microscope.page import page
from opd.microscope.path_index import Children
from opd.microscope.pool import known, main_numbers, write_cells
from opd.microscope.scoring import Compared, compare
from opd.microscope.tree import teacher_prompts
from opd.models.pairing import load_pair
from opd.models.prompts import read_prompts
from opd.stats import draws
from opd.stats.intervals import student

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
    tree = _read_tree(inputs["tree"])
    reasons = {row["prompt_id"]: row["reason"] for row in tree.questions}
    left_out = [_left_out(id, reason) for id, reason in reasons.items() if reason is not None]
    open_ids = [id for id, reason in reasons.items() if reason is None]
    try:
        pair = load_pair(cfg, inputs["student"], inputs.get(f"teacher:{name}"))
    except LeftOut as error:
        left_out += [_left_out(id, error.what) for id in open_ids]
        open_ids = []
    by_id = {row["id"]: row for row in read_prompts(inputs["prompts"])}
    asked = [by_id[id] for id in open_ids]
    kwargs = cfg.get("chat_template_kwargs")
    alone = {"name": name, "correct": 0, "wrong": 0, "chat_template_kwargs": kwargs}
    unlimited = {**cfg, "max_teacher_prompt_tokens": 1 << 30}
    of_teacher = teacher_prompts(cfg, teacher, inputs, asked)
    of_student = teacher_prompts(unlimited, alone, inputs, asked)
    rows: list[Row] = []
    cells: list[statistics.Cell] = []
    least = cfg["min_children_visits"]
    for id in open_ids:
        teacher_prompt, prompt = of_teacher[id], of_student[id]
        if isinstance(teacher_prompt, LeftOut) or isinstance(prompt, LeftOut):
            unable = teacher_prompt if isinstance(teacher_prompt, LeftOut) else prompt
            left_out.append(_left_out(id, str(unable)))
            continue
        for path in tree.paths[id]:
            children = tree.children[id, path["path"]]
            nodes = alignment.significant(children, least)
            if not len(nodes.depth):
                most = int(children.visits.max(initial=0))
                reason = (
                    f"no node has two children of {least} visits that differ in success (the most "
                    f"that any child has is {most})"
                )
                left_out.append(_left_out(id, reason, path["path"]))
                continue
            wanted = nodes.depth[nodes.node], nodes.token
            compared = compare(pair, prompt, teacher_prompt, path["token_ids"], wanted, top=TOP)
            log_p, log_q, kl = compared.log_p, compared.log_q, compared.kl[nodes.depth]
            scores = alignment.align(nodes, log_p, log_q, cfg["mode"], cfg["method"], kl)
            cells.append(_cell(name, path, nodes, scores, compared))
            rows += _token_rows(path, children, nodes, scores, compared, pair.tokenizer)
    over_questions = {
        measure: [
            *map(known, student(np.array([*statistics.by_question(cells, measure).values()])))
        ]
        for measure in statistics.MEASURES
    }
    about = {"teacher": name, "left_out": len(left_out), "over_questions": over_questions}
    numbers = draws.write(out, statistics.values(cells), about)
    tables.write(out / "tokens.parquet", rows, schemas.TOKENS)
    write_cells(out, cells)
    tables.write(out / "left_out.parquet", left_out, schemas.LEFT_OUT)
    title = cfg.get("title") or f"Where {name} points"
    questions = {row["prompt_id"]: row for row in tree.questions}
    tables.write_text(out / "page.html", page(title, rows, questions, left_out, SHOWN))
    return main_numbers(numbers)


def _left_out(id: str, reason: str, path: int | None = None) -> Row:
    return {"prompt_id": id, "path": path, "reason": reason}


class _Tree(NamedTuple):
    """What a ``tree`` stage has made: rows of QUESTIONS, rows of PATHS by question, and the
    children of every path."""

    questions: list[Row]
    paths: dict[str, list[Row]]
    children: dict[tuple[str, int], Children]


def _read_tree(payload: Path) -> _Tree:
    questions = tables.read(payload / "questions.parquet", schemas.QUESTIONS).to_pylist()
    paths = tables.read(payload / "paths.parquet", schemas.PATHS).to_pylist()
    table = tables.read(payload / "children.parquet", schemas.CHILDREN)
    ids, numbers = np.array(table["prompt_id"].to_pylist()), table["path"].to_numpy()
    columns = [table[name].to_numpy() for name in Children._fields]
    tree = _Tree(questions, {row["prompt_id"]: [] for row in questions}, {})
    for row in paths:
        id, path = row["prompt_id"], row["path"]
        tree.paths[id].append(row)
        mine = (ids == id) & (numbers == path)
        tree.children[id, path] = Children(*(column[mine] for column in columns))
    return tree


def _cell(
    teacher: str, path: Row, nodes: Nodes, scores: Scores, compared: Compared
) -> statistics.Cell:
    at = nodes.depth
    numbers = (
        at / max(1, len(path["token_ids"]) - 1),
        *(column[at] for column in (compared.kl, compared.js, compared.l2, compared.similarity)),
    )
    features = dict(zip(statistics.FEATURES, numbers, strict=True))
    about = path["prompt_id"], teacher, path["path"], path["correct"]
    return statistics.cell(*about, *scores[:3], features)


def _token_rows(
    path: Row, taken: Children, nodes: Nodes, scores: Scores, compared: Compared, tokenizer: Any
) -> list[Row]:
    """Rows of TOKENS of one path."""
    counts = {(d, t): (n, s) for d, t, n, s in zip(*(c.tolist() for c in taken), strict=True)}
    node_at = {int(depth): number for number, depth in enumerate(nodes.depth)}
    stops = np.append(nodes.starts, len(nodes.token))

    @cache
    def text(token: int) -> str:
        decoded: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return decoded

    rows = []
    for depth, token in enumerate(path["token_ids"]):
        columns = [(compared.top[depth], compared.top_log_p[depth], compared.top_log_q[depth])]
        scored: Mapping[str, Any] = {"alignment": None, "range": None, "advantage": None}
        node = node_at.get(depth)
        part = slice(0, 0) if node is None else slice(stops[node], stops[node + 1])
        if node is not None:
            columns.append((nodes.token[part], compared.log_p[part], compared.log_q[part]))
            scored = {name: known(float(getattr(scores, name)[node])) for name in scored}
        shown = {
            int(child): (float(np.exp(p)), float(np.exp(q)))
            for several in columns
            for child, p, q in zip(*several, strict=True)
        }
        children = []
        for child, (p, q) in sorted(shown.items(), key=lambda item: (-item[1][1], item[0])):
            visits, successes = counts.get((depth, child), (0, 0))
            child_row = {"token": child, "text": text(child), "student": p, "teacher": q}
            children.append({**child_row, "visits": visits, "successes": successes})
        rows.append(
            {
                **{name: path[name] for name in ("prompt_id", "path", "correct")},
                "depth": depth,
                "token": token,
                "text": text(token),
                **scored,
                "scored_children": int(part.stop - part.start),
                "kl_nats": float(compared.kl[depth]),
                "js_nats": float(compared.js[depth]),
                "l2": float(compared.l2[depth]),
                "similarity": float(compared.similarity[depth]),
                "children": children,
            }
        )
    return rows
