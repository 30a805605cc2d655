"""The rules of durable execution: state and an input in, new state and effects out.

Nothing here does I/O, reads a clock or draws a random number: time comes in as microseconds since the epoch,
ids and other instances through :class:`~towline.scheduler.engine.ports.World`, and everything that must
become durable goes out through :class:`~towline.scheduler.engine.changes.Changes`.
"""
