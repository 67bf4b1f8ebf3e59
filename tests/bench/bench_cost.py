"""How far `opd plan` is off, calibrated on some results and held against others.

    python tests/bench/bench_cost.py CALIBRATED... --held-out RESULTS...

Each is a results/NAME. What both hold is left out. Prints estimate / measured by stage.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from opd.plan import calibrate, cost, state

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("calibrated", nargs="+", type=Path)
    parser.add_argument("--held-out", nargs="+", type=Path, required=True)
    given = parser.parse_args()
    tables = calibrate.tables(ROOT / "config" / "calibration.yaml")
    done = [calibrate.finished(folder) for folder in given.calibrated]
    known = calibrate.calibrate(done, tables)
    seen = {identity for one in done for identity in one.identities.values()}
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    inside = 0
    for one in map(calibrate.finished, given.held_out):
        natural = known["natural_tokens_measured"]
        facts = cost.Facts(one.artifacts, tables, one.numbers, natural)
        for folder, identity in one.identities.items():
            if identity in seen:
                continue
            seen.add(identity)
            on = state.machine(one.devices[folder], False, [known, tables], tables)
            found = state.estimate(facts, folder, on)
            took = one.seconds[folder] * found.width
            pairs[one.artifacts[folder].verb].append((found.middle, took))
            inside += found.low <= took <= found.high
    head = ("held out", "median", "least", "most", "within 2", "sum")
    print(f"{'stage':<14}" + "".join(f"{word:>9}" for word in head))
    for verb, values in {**pairs, "all": [v for vs in pairs.values() for v in vs]}.items():
        ratios = [estimate / took for estimate, took in values]
        good = sum(0.5 <= ratio <= 2 for ratio in ratios)
        total = sum(e for e, _ in values) / sum(t for _, t in values)
        print(
            f"{verb:<14}{len(values):>9}{statistics.median(ratios):>9.2f}{min(ratios):>9.2f}"
            f"{max(ratios):>9.2f}{good / len(ratios):>9.0%}{total:>9.2f}"
        )
    print(f"between lowest and highest estimate: {inside} of {sum(map(len, pairs.values()))}")


if __name__ == "__main__":
    main()
