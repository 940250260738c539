"""Studies that measure one question each, and the rows they are made of."""
