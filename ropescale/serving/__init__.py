"""Running servers: what one computes, found by asking it and comparing with models.

from ropescale.serving import verify_server

print(verify_server("http://127.0.0.1:8000", reference="path/to/patched"))
"""

from ropescale.serving.verification import ServerVerdict, verify_server

__all__ = ["ServerVerdict", "verify_server"]
