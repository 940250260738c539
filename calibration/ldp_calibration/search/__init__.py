"""Search of a policy that meets a budget, on the bundle that it will serve."""
