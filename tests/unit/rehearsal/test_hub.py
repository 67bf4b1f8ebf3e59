"""The hub of this machine, asked by the clients that ask the real one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opd.rehearsal import hub, stand_ins

pytestmark = pytest.mark.unit
MODEL, DATA = "org/model", "open-r1/DAPO-Math-17k-Processed"
# In a process of its own: the clients read the address when they are imported.
ASK = """
import json, sys
import huggingface_hub
from collections import Counter
from pathlib import Path
from opd.data import loaders
from opd.models import fetch
commit, data, out = sys.argv[1:]
out = Path(out)
numbers = fetch.run({"hub": "org/model", "revision": commit}, {}, out, out.with_name("scratch"))
source = {"hub": "open-r1/DAPO-Math-17k-Processed", "config": "en", "revision": data}
rows = list(loaders.read(source, None, Counter()))
try:
    huggingface_hub.HfApi().repo_info("org/none")
    gone = ""
except huggingface_hub.errors.RepositoryNotFoundError as error:
    gone = type(error).__name__
known = huggingface_hub.HfApi().repo_info("org/model", revision="abc").sha
here = fetch.at_hand("org/model@abc", "--student", ["*.json"])
named = sorted(path.relative_to(here).as_posix() for path in here.rglob("*.*"))
print(json.dumps([numbers, rows[0]["question"], len(rows), gone, known, named]))
"""


def test_the_real_clients_lock_fetch_and_stream(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models" / MODEL
    (folder / "1_Pooling").mkdir(parents=True)
    files = {"config.json": b"{}", "model.safetensors": b"weights", "1_Pooling/config.json": b"[]"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "run.py").write_text("raise SystemExit")
    stand_ins.dataset(DATA, {"config": "en"}, tmp_path / "hub" / "datasets" / DATA)
    commits = {f"models/{MODEL}": hub.commit(MODEL, "abc"), f"datasets/{DATA}": hub.commit(DATA)}
    assert commits[f"models/{MODEL}"].startswith("abc") and len(commits[f"models/{MODEL}"]) == 40
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "scratch").mkdir()
    with hub.served(tmp_path / "hub", commits) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            environment.pop(name, None)
        command = [sys.executable, "-c", ASK, *commits.values(), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers, question, rows, gone, known, named = json.loads(done.stdout.splitlines()[-1])
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.*")} == files
    assert numbers["bytes"] == sum(map(len, files.values()))
    assert question.startswith("No. 0: ") and rows == stand_ins.ROWS
    assert named == ["1_Pooling/config.json", "config.json"]
    assert (gone, known) == ("RepositoryNotFoundError", commits[f"models/{MODEL}"])


@pytest.mark.parametrize("revision", ["", "abc", "0" * 40, "main", "v1.0", "refs/pr/1"])
def test_a_commit_has_forty_digits_whatever_is_known_of_it(revision: str) -> None:
    commit = hub.commit(MODEL, revision)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert commit.startswith(revision) or not hub.COMMIT.fullmatch(revision)
