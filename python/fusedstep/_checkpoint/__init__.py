"""Checkpoints: everything that a run needs to continue exactly.

A checkpoint is a plain dict of names, numbers and arrays, or a file of it. A file is a ``.safetensors`` or an ``.npz``
that any reader of these formats opens, without pickle: arrays called ``params.<name>`` and ``state.<name>.<state>``,
the rest as JSON, and a SHA-256 over all of its other bytes.
"""
