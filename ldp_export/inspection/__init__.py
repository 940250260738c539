"""Looking at machines and pictures: doctor, explanations of pruning, contact sheets."""
