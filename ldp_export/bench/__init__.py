"""Compares latency: eager PyTorch, the engines, and the engines with pruning, on the same prompts and seeds.

    plan.py      checks everything that can be checked before work, and names the candidates
    measure.py   interleaved rounds over worker processes (`process.py`), of which one runs at a time
    worker/      one candidate in a process of its own; `messages.py` has the messages of both sides
    quality.py   loss from pruning and precision, in pixels
    result.py    the result and its JSON; `table.py` draws it in a terminal
    run.py       `run_bench`, which does all of it

On a noisy machine, only ratios of times from the same round are to be trusted.
"""
