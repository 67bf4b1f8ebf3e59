"""Phase 2 of the paper's algorithm: one teacher on the paths of a tree, token by token (the
paper, sections 3 and 4)."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opd.core import tables
from opd.core.errors import LeftOut
from opd.microscope import alignment, demonstrations, schemas, statistics
from opd.microscope.alignment import Nodes, Scores
from opd.microscope.counts import children_file
from opd.microscope.page import page
from opd.microscope.path_index import Children
from opd.microscope.pool import known, main_numbers, write_cells
from opd.microscope.scoring import Compared, compare
from opd.microscope.tree import teacher_prompts
from opd.models.pairing import load_pair
from opd.models.prompts import Row, read_prompts
from opd.models.sampling import Sampler
from opd.stats import draws
from opd.stats.intervals import student

# The teacher's likeliest tokens that the page shows of every position.
TOP = 4
# Questions that the page shows.
SHOWN = 12


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``alignment``: probe.json and draws.parquet, tokens.parquet (every token of every
    path), cells.parquet, left_out.parquet, and page.html.

    cfg: those of the stage ``tree`` that say what is asked; teacher (as there), min_children_visits
    (N_sig), mode (``renormalise`` or ``restrict_only``), method (``reverse_kl`` or ``forward_kl``),
    title, optional reading (``unforced``, of a tree that counts both). Inputs: tree, student,
    prompts, ``teacher:NAME`` and ``demos:NAME`` as for the tree.
    Values: ``opd.microscope.statistics.values``. What cannot be measured is in left_out.parquet
    with the reason; where nothing can, there are no values.
    """
    teacher, name = cfg["teacher"], cfg["teacher"]["name"]
    tree = inputs["tree"]
    questions = tables.read(tree / "questions.parquet", schemas.QUESTIONS).to_pylist()
    paths = tables.read(tree / "paths.parquet", schemas.PATHS).to_pylist()
    children = tables.read(tree / children_file(cfg.get("reading")), schemas.CHILDREN)
    left_out = [_left_out(q["prompt_id"], q["reason"]) for q in questions if q["reason"]]
    open_ids = [question["prompt_id"] for question in questions if not question["reason"]]
    try:
        pair = load_pair(cfg, inputs["student"], inputs.get(f"teacher:{name}"))
    except LeftOut as error:
        left_out += [_left_out(id, error.what) for id in open_ids]
        open_ids = []
    by_id = {row["id"]: row for row in read_prompts(inputs["prompts"])}
    prompts = [by_id[id] for id in open_ids]
    of_student = demonstrations.encoded(Sampler(inputs["student"], cfg), cfg, prompts)
    of_teacher = teacher_prompts(cfg, teacher, inputs, prompts)
    rows: list[Row] = []
    cells: list[statistics.Cell] = []
    least = cfg["min_children_visits"]
    for id in open_ids:
        prompt = of_teacher[id]
        if isinstance(prompt, LeftOut):
            left_out.append(_left_out(id, str(prompt)))
            continue
        for path in (path for path in paths if path["prompt_id"] == id):
            taken = _children(children, path)
            nodes = alignment.significant(taken, least)
            if not len(nodes.depth):
                most = int(taken.visits.max(initial=0))
                reason = (
                    f"no node has two children of {least} visits that differ in success (the most "
                    f"that any child has is {most})"
                )
                left_out.append(_left_out(id, reason, path["path"]))
                continue
            tokens, at = path["token_ids"], nodes.depth
            children_at = at[nodes.node], nodes.token
            compared = compare(pair, of_student[id], prompt, tokens, children_at, top=TOP)
            log_p, log_q, kl = compared.log_p, compared.log_q, compared.kl_nats[at]
            scores = alignment.align(nodes, log_p, log_q, cfg["mode"], cfg["method"], kl)
            features = {"depth": at / max(1, len(tokens) - 1)}
            features |= {measure: getattr(compared, measure)[at] for measure in schemas.DIVERGENCES}
            about = id, name, path["path"], path["correct"]
            cells.append(statistics.cell(*about, *scores[:3], features))
            rows += _token_rows(path, taken, nodes, scores, compared, pair.tokenizer)
    over_questions = {
        measure: [
            *map(known, student(np.array([*statistics.by_question(cells, measure).values()])))
        ]
        for measure in statistics.MEASURES
    }
    described = {"teacher": name, "left_out": len(left_out), "over_questions": over_questions}
    prompt_ids = [question["prompt_id"] for question in questions]
    numbers = draws.write(out, statistics.values(cells, prompt_ids), described)
    tables.write(out / "tokens.parquet", rows, schemas.TOKENS)
    write_cells(out, cells)
    tables.write(out / "left_out.parquet", left_out, schemas.LEFT_OUT)
    title = cfg.get("title") or f"Where {name} points"
    by_question = {question["prompt_id"]: question for question in questions}
    tables.write_text(out / "page.html", page(title, rows, by_question, left_out, SHOWN))
    return main_numbers(numbers)


def _left_out(id: str, reason: str, path: int | None = None) -> Row:
    return {"prompt_id": id, "path": path, "reason": reason}


def _children(table: pa.Table, path: Row) -> Children:
    """The children of one path's nodes, from rows of CHILDREN."""
    of_question, of_path = (pc.field(name) == path[name] for name in ("prompt_id", "path"))
    mine = table.filter(of_question & of_path)
    return Children(*(mine[name].to_numpy() for name in Children._fields))


def _token_rows(
    path: Row, taken: Children, nodes: Nodes, scores: Scores, compared: Compared, tokenizer: Any
) -> list[Row]:
    """Rows of TOKENS of one path."""

    @cache
    def text(token: int) -> str:
        decoded: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return decoded

    length = len(path["token_ids"])
    counts = {(depth, token): (n, right) for depth, token, n, right in taken.rows()}
    # The teacher's likeliest tokens at every depth, and the children of the nodes.
    likeliest = np.repeat(np.arange(length), compared.top.shape[1])
    columns = (
        np.concatenate([likeliest, nodes.depth[nodes.node]]),
        np.concatenate([compared.top.ravel(), nodes.token]),
        np.exp(np.concatenate([compared.top_log_p.ravel(), compared.log_p])),
        np.exp(np.concatenate([compared.top_log_q.ravel(), compared.log_q])),
    )
    shown: list[dict[int, tuple[float, float]]] = [{} for _ in range(length)]
    for depth, token, p, q in zip(*(column.tolist() for column in columns), strict=True):
        shown[depth][token] = p, q
    unscored = {"alignment": None, "range": None, "advantage": None, "scored_children": 0}
    sizes = np.diff(nodes.starts, append=len(nodes.token))
    scored = {
        depth: dict(zip(unscored, (known(cosine), *numbers), strict=True))
        for depth, cosine, *numbers in zip(
            *(column.tolist() for column in (nodes.depth, *scores[:3], sizes)), strict=True
        )
    }
    rows = []
    for depth, token in enumerate(path["token_ids"]):
        children = []
        for child, (p, q) in sorted(shown[depth].items(), key=lambda item: (-item[1][1], item[0])):
            visits, successes = counts.get((depth, child), (0, 0))
            child_row = {"token": child, "text": text(child), "student": p, "teacher": q}
            children.append({**child_row, "visits": visits, "successes": successes})
        rows.append(
            {
                **{name: path[name] for name in ("prompt_id", "path", "correct")},
                "depth": depth,
                "token": token,
                "text": text(token),
                **scored.get(depth, unscored),
                **{name: getattr(compared, name)[depth] for name in schemas.DIVERGENCES},
                "children": children,
            }
        )
    return rows
