"""Long runs of the fuzzers: `make fuzz CASES=100`, or `python -m fuzz KIND... --cases 100`; they resume.

The first case of a run is the one after the last of the run before; counts and failing cases stand in a JSON file.
"""

from __future__ import annotations

import argparse
import itertools
from importlib import import_module
from pathlib import Path

from fuzz.driver import KINDS, fuzz, load, save, tried


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all by default")
    parser.add_argument("--cases", type=int, default=100, help="cases of each kind to add")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fuzz.json"), help="counts of all runs so far")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case, in this process")
    options = parser.parse_args()
    for kind in options.kinds or KINDS:
        if options.only is not None:
            case = next(itertools.islice(import_module(f"fuzz.{kind}").cases(options.seed), options.only, None))
            print(kind, options.only, repr(case), *tried(kind, case))
            continue
        tally = load(options.output, kind, options.seed)
        for _ in fuzz(kind, options.cases, tally):
            save(options.output, kind, tally)
        print(f"{kind}: {tally.done} cases, " + ", ".join(f"{n} {what}" for what, n in sorted(tally.outcomes.items())))
        for each in tally.wrong[-20:]:
            print(f"  {each['outcome']}: {each['case']}\n    {each['detail'].strip()}")


if __name__ == "__main__":
    main()
