"""Large data by claim check: a payload store, references to what is in it, and events that carry one.

Nothing here is imported unless it is needed: the libraries of a store are extras. `durable_store` has the
same store as the Durable Task SDK wants it.
"""

from towline.contracts.payload_reference import DATAREF, PayloadReference, is_reference
from towline.contracts.payloads.claim_check import checked_in, decode_resolved
from towline.contracts.payloads.opening import open_payload_store
from towline.contracts.payloads.store import Backend, PayloadStore

__all__ = [
    "DATAREF",
    "Backend",
    "PayloadReference",
    "PayloadStore",
    "checked_in",
    "decode_resolved",
    "is_reference",
    "open_payload_store",
]
