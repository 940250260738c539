"""Generation with the reference models, and the masked oracle of pruned runs."""
