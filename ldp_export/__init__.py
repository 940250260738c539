"""The build side: reference models, export to engines, bundles, verification, benchmarks and the command line."""

__version__ = "0.1.0"
