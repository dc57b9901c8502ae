"""Sessions on TensorRT-RTX."""

from __future__ import annotations

from typing import Any

from edgecv.runtimes.engine import import_library
from edgecv.runtimes.trt_session import EngineSession

__all__ = ["RtxSession"]


class RtxSession(EngineSession):
    """An ``.engine`` or ``.plan`` file on TensorRT-RTX, which compiles it for the GPU when it is opened.

    CUDA graphs are the library's own: it records a shape once the kernels for that shape are compiled.
    """

    backend = "tensorrt_rtx"
    library = import_library("tensorrt_rtx")
    records_graphs = False

    def _create_context(self, engine: Any) -> Any:
        config = engine.create_runtime_config()
        if self._cuda_graph:
            config.cuda_graph_strategy = self.library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)
