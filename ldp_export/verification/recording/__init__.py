"""Recording of reference runs: whole ones, texts of other lengths, and shapes that a large model is not run at."""
