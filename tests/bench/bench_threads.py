"""What threads that wait for each other cost: products of a small layer on all cores, with torch's
own settings and with those of ``opd.cli.warm.settle_threads``, alone and beside a busy process.

See README.md beside this file.
"""

import argparse
import os
import statistics
import subprocess
import sys

from common import describe, table

# Rows of a step of decoding, and the width and inner width of SmolLM2-135M.
ROWS, WIDTH, INNER = 8, 576, 1536
PRODUCTS = f"""
import sys, time
if sys.argv[3] == "settled":
    from opd.cli import warm
    warm.settle_threads()
import torch
torch.set_num_threads(int(sys.argv[1]))
rows, weights = torch.randn({ROWS}, {WIDTH}), torch.randn({INNER}, {WIDTH})
began, done = time.monotonic(), 0
while time.monotonic() - began < float(sys.argv[2]):
    torch.nn.functional.silu(rows @ weights.T)
    done += 1
print(done / (time.monotonic() - began))
"""
SETTINGS = ("torch's own", "settled")


def rate(threads: int, seconds: float, settings: str) -> float:
    """Products a second of a process of its own."""
    command = [sys.executable, "-c", PRODUCTS, str(threads), str(seconds), settings]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = []
    for beside in (0, 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        try:
            rates: dict[str, list[float]] = {name: [] for name in ("one thread", *SETTINGS)}
            for _ in range(arguments.rounds):
                rates["one thread"].append(rate(1, arguments.seconds, SETTINGS[0]))
                for name in SETTINGS:
                    rates[name].append(rate(cores, arguments.seconds, name))
        finally:
            for process in busy:
                process.kill()
        middle = {name: statistics.median(values) for name, values in rates.items()}
        rows.append(
            [
                "a busy process" if beside else "nothing else",
                *(f"{middle[name] / middle['one thread']:.2f}" for name in SETTINGS),
            ]
        )
    print(describe("cpu"))
    print(table(["beside", *(f"{cores} threads, {name}" for name in SETTINGS)], rows))


if __name__ == "__main__":
    main()
