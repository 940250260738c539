"""Matrix products in 8 bits with static ranges: what is measured, what it becomes, and where it enters a graph."""
