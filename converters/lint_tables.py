"""Which operators each target knows: facts read out of the libraries themselves, with their versions."""

from __future__ import annotations

__all__ = [
    "CUSTOM_DOMAINS",
    "OPENVINO_MISSING",
    "ORT_MISSING",
    "TENSORRT_OPERATORS",
    "TENSORRT_PLUGINS",
    "TENSORRT_PLUGIN_OPERATORS",
]

# True from OnnxParser.supports_operator of TensorRT-RTX 1.7.1.116, asked for the 203 operators of onnx 1.23.2.
# benchmarks/lint_against_parser.py asks again and names every difference.
_TENSORRT = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BlackmanWindow Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid
    HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual LinearAttention Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
TENSORRT_OPERATORS = frozenset(_TENSORRT.split())

# Claimed by the parser or by TensorRT's own table of operators, but built only with TensorRT's plugin library, which
# TensorRT-RTX lacks: it refuses them, or (NonMaxSuppression) parses them and fails to build.
TENSORRT_PLUGIN_OPERATORS = frozenset(
    ("CausalConvWithState", "DeformConv", "LinearAttention", "NonMaxSuppression", "NonZero", "RoiAlign")
)

# Operators that are no part of ONNX and that TensorRT's plugin library brings along.
_PLUGINS = """
    BatchedNMSDynamic_TRT BatchedNMS_TRT EfficientNMS_Explicit_TF_TRT EfficientNMS_ONNX_TRT EfficientNMS_TRT
    MultiscaleDeformableAttnPlugin_TRT NMSDynamic_TRT NMS_TRT ROIAlign_TRT
"""
TENSORRT_PLUGINS = frozenset(_PLUGINS.split())

# OpenVINO 2026.4.1: "No conversion rule found", from reading the 1884 node tests of onnx 1.23.2.
_OPENVINO = """
    Bernoulli BitCast CausalConvWithState CumProd DeformConv Det ImageDecoder LinearAttention MaxUnpool
    MelWeightMatrix Optional OptionalGetElement OptionalHasElement RegexFullMatch SequenceMap StringConcat
    StringNormalizer StringSplit SwiGLU TensorScatter TfIdfVectorizer
"""
OPENVINO_MISSING = frozenset(_OPENVINO.split())

# ONNX Runtime 1.31.1: the versions of operators for which its CPU provider lists no kernel (get_all_opkernel_def)
# and ONNX gives no function to use instead; up to opset 26, from opset 7 on.
ORT_MISSING = {
    "GlobalLpPool": (22,),
    "ImageDecoder": (20,),
    "MaxRoiPool": (22,),
    "Multinomial": (22,),
    "RandomNormal": (22,),
    "RandomNormalLike": (22,),
    "RandomUniform": (22,),
    "RandomUniformLike": (22,),
    "RoiAlign": (22,),
}

# Domains beside ONNX's own from which a target knows operators without anything more being installed.
CUSTOM_DOMAINS = {
    "onnxruntime": ("ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"),
    "openvino": ("com.microsoft", "org.openvinotoolkit"),
}
