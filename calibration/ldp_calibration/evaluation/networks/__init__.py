"""Networks: those that published scorers look through, in transformers' classes, with their inputs and weights."""
