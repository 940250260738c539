"""What a build does differently for each family of models."""
