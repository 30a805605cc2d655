"""The asynchronous dispatcher: work items on the host's event loop, around the SDK's own executors.

The SDK's worker hands each item from thread to thread and blocks in synchronous gRPC calls; that is
nearly all of its CPU. Here the stream, the turns and the completions are on the host's loop, agents on a
loop of their own, and only synchronous user code (activities, entities that are no agents) on threads.
What the executors do is the SDK's.
"""

from towline.worker.dispatcher.connection import Connection
from towline.worker.dispatcher.dispatcher import Dispatcher, DispatcherOptions
from towline.worker.dispatcher.keeper import Keeper, KeeperOptions

__all__ = ["Connection", "Dispatcher", "DispatcherOptions", "Keeper", "KeeperOptions"]
