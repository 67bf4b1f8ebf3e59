"""System prompts and earlier turns of a prompt: read, compared, and carried to every model."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations, embeddings, prompts, schemas
from opd.data.schemas import PROMPTS


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM, FIRST, REPLY = turn("system", "be brief"), turn("user", "1+1="), turn("assistant", "2")
TURNS = [SYSTEM, FIRST, REPLY]


def write(tmp_path: Path, *chats: Any, **more: Any) -> Path:
    """A file of conversations, one a row."""
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": chat, "answer": str(i), **{key: values[i] for key, values in more.items()}}
        for i, chat in enumerate(chats)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, path: Path, **cfg: Any) -> list[dict[str, Any]]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    source = {"path": str(path), "question": "messages"}
    prompts.run({"source": source, "seed": 0, **cfg}, {}, out)
    return tables.read(out / "prompts.parquet", PROMPTS).to_pylist()


def test_what_comes_before_the_prompt_is_kept(tmp_path: Path) -> None:
    """Also in ShareGPT's words; what stands after the last question is an answer to it."""
    sharegpt = [{"from": "system", "value": "be brief"}, {"from": "human", "value": "9"}]
    chats = [
        [SYSTEM, turn("user", " a ")],
        [*TURNS, turn("user", "b")],
        [FIRST, REPLY, turn("user", "c"), turn("assistant", "an answer")],
        [turn("user", "d")],
        [*sharegpt, {"from": "gpt", "value": "an answer"}],
    ]
    rows = run(tmp_path, write(tmp_path, *chats), template="say {question}!")
    asked = [("a", [SYSTEM]), ("b", TURNS), ("c", [FIRST, REPLY]), ("d", None), ("9", [SYSTEM])]
    assert [(row["question"], row["turns"]) for row in rows] == asked
    assert [row["prompt"] for row in rows] == ["say a!", "say b!", "say c!", "say d!", "say 9!"]
    assert conversations.chat(rows[1]) == [*TURNS, turn("user", "say b!")]


def test_a_set_without_turns_is_the_file_that_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, [turn("user", "a")])
    assert run(tmp_path, path)[0]["turns"] is None
    assert "turns" not in pq.read_schema(tmp_path / "out" / "prompts.parquet").names


@pytest.mark.parametrize(
    ("chat", "roles"),
    [
        ([FIRST, SYSTEM, turn("user", "b")], "user, system, user"),
        ([FIRST, turn("user", "b")], "user, user"),
        ([REPLY, turn("user", "b")], "assistant, user"),
        ([SYSTEM, REPLY], "system, assistant"),
        ([FIRST, turn("tool", "2"), turn("user", "b")], "user, tool, user"),
    ],
)
def test_conversations_that_nobody_holds(tmp_path: Path, chat: Any, roles: str) -> None:
    with pytest.raises(UserError, match=f"row 0: 'messages' holds {roles}; expected") as refusal:
        run(tmp_path, write(tmp_path, chat))
    assert not [*(tmp_path / "out").iterdir()]
    assert "\n" not in str(refusal.value)


def test_turns_that_are_no_text(tmp_path: Path) -> None:
    chat = [turn("system", [{"type": "text"}]), turn("user", "b")]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="row 0: the system message is a list, not text"):
        run(tmp_path, write(tmp_path, chat))


def test_conversations_are_equal_with_their_turns(tmp_path: Path) -> None:
    """The same last message after other turns is another question; a system prompt makes another
    prompt of the same question."""
    why, other = turn("user", "why?"), turn("assistant", "3")
    chats = [
        [FIRST, REPLY, why],
        [FIRST, other, why],
        [SYSTEM, FIRST, REPLY, why],
        [FIRST, REPLY, why],
    ]
    path = write(tmp_path, *chats)
    assert [row["row"] for row in run(tmp_path, path, distinct="question")] == [0, 1]
    assert [row["row"] for row in run(tmp_path, path, distinct="prompt")] == [0, 1, 2]
    hashes = [row["text_hash"] for row in run(tmp_path, path)]
    assert hashes[0] == hashes[2] == hashes[3] != hashes[1]
    assert hashes[0] == schemas.text_hash("1+1=\n\n2\n\nwhy?")
    report = json.loads((tmp_path / "out" / "report.json").read_text())["texts"]
    assert {rule: report[rule]["distinct"] for rule in ("prompt", "question")} == {
        "prompt": 3,
        "question": 2,
    }
    # What is embedded is what is compared.
    (tmp_path / "embedded").mkdir()
    embeddings.run(
        {"encoder": "hashed"}, {"prompts": tmp_path / "out"}, tmp_path / "embedded", tmp_path
    )
    assert (tmp_path / "embedded" / "hashes.txt").read_text().split() == hashes


def test_a_system_prompt_of_ones_own_stands_below_that_of_the_row() -> None:
    row = {"prompt": "b", "turns": TURNS}
    assert conversations.chat(row, "c", "know: 7") == [
        turn("system", "be brief\n\nknow: 7"),
        *(FIRST, REPLY, turn("user", "c")),
    ]
    assert conversations.chat({"prompt": "b"}, system="x") == [
        turn("system", "x"),
        turn("user", "b"),
    ]
