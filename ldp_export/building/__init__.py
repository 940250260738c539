"""Building: a plan, resumable stages, and a published bundle."""
