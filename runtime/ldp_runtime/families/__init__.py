"""What differs between model families at run time: codec, placement, guidance."""
