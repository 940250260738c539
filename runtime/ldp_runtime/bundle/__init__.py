"""The bundle: manifest, files, saved policies and optimization profiles."""
