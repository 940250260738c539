"""`python -m ldp_export` is `ldp-export`."""

from ldp_export.cli import main

if __name__ == "__main__":
    main()
