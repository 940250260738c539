"""Entry point of `python -m ldp_export`, which is the command `ldp-export`."""

if __name__ == "__main__":
    import os
    import sys

    # Python has put the working folder first. The command imports nothing from it, so it goes before all else is found.
    if sys.path[:1] in ([""], [os.getcwd()]) and not sys.flags.safe_path:  # noqa: PTH109  pathlib is not found yet
        sys.path.pop(0)
    from ldp_export.import_path import import_path

    sys.path[:] = import_path()
    from ldp_export.cli import main

    main()
