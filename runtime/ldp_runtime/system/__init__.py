"""The machine and the installation around a model: files, memory limits, telemetry, install hints."""
