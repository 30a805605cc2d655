"""gRPC calls over HTTP/2 on an event loop, without gRPC's core.

The core makes a call object, several queue entries and a hand-over between threads of each call, which takes
about as much CPU as a third of an orchestration turn. A call is a few frames each way, a message of a stream
is one. Here these go straight to asyncio's transport, all calls of one pass of the loop in one write.
`Calls` makes calls (docs/decisions/0010-reports-over-http2.md), `Server` takes them
(docs/decisions/0014-a-server-on-the-loop.md).
"""

from towline.http2.addresses import plain_address
from towline.http2.calls import Calls
from towline.http2.channel import DirectChannel
from towline.http2.connection import Keepalive
from towline.http2.headers import Headers
from towline.http2.served import Admits, Handler, ServedCall
from towline.http2.server import Server
from towline.http2.streams import ServerStream

__all__ = [
    "Admits",
    "Calls",
    "DirectChannel",
    "Handler",
    "Headers",
    "Keepalive",
    "ServedCall",
    "Server",
    "ServerStream",
    "plain_address",
]
