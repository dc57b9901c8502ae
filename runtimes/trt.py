"""Sessions on TensorRT."""

from __future__ import annotations

import tensorrt

from edgecv.runtimes.trt_session import EngineSession

__all__ = ["TrtSession"]


class TrtSession(EngineSession):
    """An ``.engine`` or ``.plan`` file on TensorRT, 10.3 or later."""

    backend = "tensorrt"
    library = tensorrt
