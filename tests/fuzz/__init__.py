"""Seeded fuzzers of everything that files, hubs and requests may do; `__main__.py` drives them.

A kind is a module `tests/fuzz/NAME.py` with two functions:

    cases(seed)   an endless, cheap iterator of cases: small values whose `repr` tells how to make the input again
    run(case)     tries one case and returns its `Outcome`

"right": accepted, with the right result. "right refused": a typed error for an input that is good. "untyped": any other
error, or the death of the process. "hang": it took longer than `SECONDS_PER_CASE`.
"""

from typing import Literal

Outcome = Literal["right", "wrong accepted", "right refused", "untyped", "hang"]
