// step_cuda.cu compiled as C++ and run thread by thread: its indices, loads, stores and tails without a GPU.

#include <algorithm>

#define __global__
#define __device__

struct Index {
  unsigned x, y;
};
static Index blockIdx, blockDim, threadIdx;
using std::min;

#include "step_cuda.cu"

template <typename Kernel, typename... Arguments>
void launch(Index grid, unsigned threads, Kernel kernel, Arguments... arguments) {
  blockDim = {threads, 1};
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(arguments...);
}

#define LAUNCH(name, T)                                                                                          \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const float* x, const T* eps, \
                                const float* clean, const float* mask, const stage::Coefficients* table,         \
                                const int* step, const uint64_t* seeds, const uint32_t* samples,                 \
                                uint32_t channels, uint32_t plane, float* next, T* next_input,                   \
                                uint32_t* finite) {                                                              \
    launch({blocks, batch}, threads, name, x, eps, clean, mask, table, step, seeds, samples, channels, plane,    \
           next, next_input, finite);                                                                            \
  }

LAUNCH(stage_step_fp32, float)
LAUNCH(stage_step_fp16, __half)
LAUNCH(stage_step_bf16, __nv_bfloat16)

#define LAUNCH_GATHER(name, T)                                                                                    \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const float* mask,             \
                                const stage::Coefficients* table, const int* step, uint32_t cells,                \
                                int64_t* timestep, T* handed) {                                                   \
    launch({blocks, batch}, threads, name, mask, table, step, cells, timestep, handed);                           \
  }

LAUNCH_GATHER(stage_gather_fp32, float)
LAUNCH_GATHER(stage_gather_fp16, __half)
LAUNCH_GATHER(stage_gather_bf16, __nv_bfloat16)

extern "C" void launch_stage_advance(unsigned blocks, unsigned batch, unsigned threads, int* step) {
  launch({blocks, batch}, threads, stage_advance, step);
}
