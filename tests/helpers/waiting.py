"""Waiting for other threads and processes, on machines of any speed."""

#: Seconds after which a wait is given up: what waits longer hangs, however slow and loaded the machine is.
HANGS = 900.0
