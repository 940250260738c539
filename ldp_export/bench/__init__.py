"""The latency comparison: eager PyTorch, the engines, and the engines with pruning, on the same prompts and seeds.

    plan.py      checks everything that can be checked before work, and says who is compared
    measure.py   interleaved rounds over worker processes (`process.py`), of which one runs at a time
    worker/      one candidate in a process of its own; `messages.py` is what both sides say
    quality.py   what pruning and precision cost in pixels
    result.py    the result and its JSON; `table.py` draws it in a terminal
    run.py       run_bench: all of it

Numbers of a noisy machine: only ratios of times from the same round are to be trusted.
"""
