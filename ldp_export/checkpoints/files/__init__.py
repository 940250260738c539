"""Files of checkpoints: which are read, the tensors in them, and streamed writing."""
