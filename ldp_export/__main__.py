"""Entry point of `python -m ldp_export`, which is the command `ldp-export`."""

from ldp_export.import_path import import_path


def _run() -> None:
    # Python has put the working folder first. The command imports nothing from it, so it goes before all else is found.
    import sys

    sys.path[:] = import_path()
    from ldp_export.cli import main

    main()


if __name__ == "__main__":
    _run()
