"""Report of a GPU's owner: every backend is built, verified, drawn with and timed, and one page says what happened."""
