"""Engines behind one interface: `Engine.run(inputs, outputs)` on torch tensors. One module a backend."""
