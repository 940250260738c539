"""GenEval's protocol: what a detector finds, which colours it has, and whether that is what the prompt asked for."""
