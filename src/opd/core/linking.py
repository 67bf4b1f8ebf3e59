"""Files of one folder in another, without a second copy where the file system can do that."""

import os
import shutil
from pathlib import Path


def link_files(folder: Path, out: Path) -> None:
    """Put every file below ``folder`` at the same place below ``out``: as a hard link, or as a copy
    where that is not possible."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
