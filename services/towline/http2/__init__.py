"""Short gRPC calls over HTTP/2 on an event loop, without gRPC's core.

The core makes a call object, several queue entries and a hand-over between threads of each call, which takes
about as much CPU as a third of an orchestration turn. A call without streaming is a few frames each way. Here
these go straight to asyncio's transport, all calls of one pass of the loop in one write. Measured in
docs/performance.md, decided in docs/decisions/0010-reports-over-http2.md.
"""

from towline.http2.addresses import plain_address
from towline.http2.calls import UnaryCalls
from towline.http2.channel import DirectChannel

__all__ = ["DirectChannel", "UnaryCalls", "plain_address"]
