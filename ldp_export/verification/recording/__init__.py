"""Recording of further reference runs: texts of other lengths, and shapes that a large model is not run at."""
