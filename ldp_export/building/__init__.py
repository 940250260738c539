"""Build of a bundle: a plan, resumable stages, and publication."""
