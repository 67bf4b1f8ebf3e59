"""A hub of models and datasets in a folder: models/ID/FILE, datasets/ID/SPLIT.jsonl."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def install(folder: Path, damaged: Mapping[str, str]) -> None:
    """Have this process find the folder where it would ask the hub; files that are ``damaged`` have
    another content when they arrive."""
    import datasets
    import huggingface_hub

    def snapshot_download(hub: str, *, local_dir: Path, **_: Any) -> None:
        shutil.copytree(folder / "models" / hub, local_dir, dirs_exist_ok=True)
        (local_dir / ".cache").mkdir(exist_ok=True)
        for name, text in damaged.items():
            (local_dir / name).write_text(text)

    class Api(huggingface_hub.HfApi):
        def list_repo_tree(self, repo_id: str, **_: Any) -> Any:
            return map(listed, (folder / "models" / repo_id).iterdir())

    local = datasets.load_dataset

    def load_dataset(*given: Any, **more: Any) -> Any:
        hub = given[0] if given else more["path"]
        if not (folder / "datasets" / hub).is_dir():  # a format, of files that lie here
            return local(*given, **more)
        splits = {
            path.stem: datasets.Dataset.from_list(list(map(json.loads, path.open())))
            for path in sorted((folder / "datasets" / hub).iterdir())
        }
        if more.get("streaming"):
            return splits[more["split"]].to_iterable_dataset()
        return datasets.DatasetDict(splits)

    huggingface_hub.snapshot_download = snapshot_download
    huggingface_hub.HfApi = Api
    datasets.load_dataset = load_dataset


def listed(path: Path) -> Any:
    """What the hub says of a file: sha256 of weights, git's own digest of the rest."""
    from huggingface_hub.hf_api import RepoFile

    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 1}
    large = path.suffix == ".safetensors"
    return RepoFile(path=path.name, size=len(data), oid=git, lfs=lfs if large else None)
