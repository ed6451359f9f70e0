// Stand-in for CUDA's header: the two conversions step_cuda.cu uses.
#pragma once

using __half = _Float16;

inline float __half2float(__half value) { return value; }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
