"""Arguments of the verbs: options in groups, names that have changed, settings from a file, and paths to write to."""
