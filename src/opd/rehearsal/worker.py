"""One of the training processes of a rehearsal: ``opd.training.launch`` on a CPU."""

import json
import sys
from pathlib import Path

from opd.rehearsal import on_cpu
from opd.training import launch

if __name__ == "__main__":
    task = Path(sys.argv[1])
    on_cpu.train_here(json.loads(task.read_text(encoding="utf-8"))[1])
    launch.main(task)
