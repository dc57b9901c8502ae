"""One inference interface over several runtimes. This package imports none of them."""

from edgecv.runtimes.opening import open_session
from edgecv.runtimes.registry import BACKENDS, Availability, availability
from edgecv.runtimes.session import Session, SessionOptions

__all__ = ["BACKENDS", "Availability", "Session", "SessionOptions", "availability", "open_session"]
