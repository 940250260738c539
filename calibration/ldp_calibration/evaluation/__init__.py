"""Image benchmarks: pictures are drawn, scored and compared prompt by prompt; each step resumes, and runs alone."""
