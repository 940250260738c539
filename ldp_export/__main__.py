"""Entry point of `python -m ldp_export`, which is the command `ldp-export`."""

from ldp_export.cli import main

if __name__ == "__main__":
    main()
