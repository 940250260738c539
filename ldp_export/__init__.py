"""Build side of the project: reference models, export to engines, bundles, verification, benchmarks, command line."""

__version__ = "0.1.0.dev0"
