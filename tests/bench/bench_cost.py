"""How far `opd plan` is off, calibrated on some results and held against others.

    python tests/bench/bench_cost.py CALIBRATED... --held-out RESULTS...

Each is a results/NAME. What both hold is left out. Prints estimate / measured by stage.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from opd.plan import calibrate

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("calibrated", nargs="+", type=Path)
    parser.add_argument("--held-out", nargs="+", type=Path, required=True)
    given = parser.parse_args()
    tables = calibrate.tables(ROOT / "config" / "calibration.yaml")
    done = [calibrate.finished(folder) for folder in given.calibrated]
    known = calibrate.calibrate(done, tables)
    seen = {made.identity for manifests in done for made in manifests.values()}
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    inside = 0
    for manifests in map(calibrate.finished, given.held_out):
        facts = calibrate.facts(manifests, tables)
        for folder, made in manifests.items():
            if made.identity in seen:
                continue
            seen.add(made.identity)
            on = calibrate.machine(made.device, False, known, tables)
            job = calibrate.estimate(facts, folder, on)
            took = made.seconds * job.width
            pairs[made.stage].append((job.middle, took))
            inside += job.low <= took <= job.high
    head = ("held out", "median", "least", "most", "within 2", "sum")
    print(f"{'stage':<14}" + "".join(f"{word:>9}" for word in head))
    for stage, values in {**pairs, "all": [v for vs in pairs.values() for v in vs]}.items():
        ratios = [estimate / took for estimate, took in values]
        good = sum(0.5 <= ratio <= 2 for ratio in ratios)
        total = sum(e for e, _ in values) / sum(t for _, t in values)
        print(
            f"{stage:<14}{len(values):>9}{statistics.median(ratios):>9.2f}{min(ratios):>9.2f}"
            f"{max(ratios):>9.2f}{good / len(ratios):>9.0%}{total:>9.2f}"
        )
    print(f"between lowest and highest estimate: {inside} of {sum(map(len, pairs.values()))}")


if __name__ == "__main__":
    main()
