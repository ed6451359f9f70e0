// step_cuda.cu compiled as C++ and run thread by thread: its indices, loads, stores and tails without a GPU.

#include "emulate.h"
#include "step_cuda.cu"

#define LAUNCH(name, T)                                                                                          \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const float* x,               \
                                const T* unet, const T* adapter, const float* clean, const float* mask,          \
                                const stage::Coefficients* table, const int* step, const uint64_t* seeds,        \
                                const uint32_t* samples,                                                         \
                                uint32_t channels, uint32_t plane, float* next, T* next_input,                   \
                                uint32_t* finite) {                                                              \
    launch(name, {blocks, batch}, threads, x, unet, adapter, clean, mask, table, step, seeds, samples, channels, \
           plane, next, next_input, finite);                                                                     \
  }

LAUNCH(stage_step_fp32, float)
LAUNCH(stage_step_fp16, __half)
LAUNCH(stage_step_bf16, __nv_bfloat16)

#define LAUNCH_GATHER(name, T)                                                                                    \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const float* mask,             \
                                const stage::Coefficients* table, const int* step, uint32_t cells,                \
                                int64_t* timestep, T* handed) {                                                   \
    launch(name, {blocks, batch}, threads, mask, table, step, cells, timestep, handed);                           \
  }

LAUNCH_GATHER(stage_gather_fp32, float)
LAUNCH_GATHER(stage_gather_fp16, __half)
LAUNCH_GATHER(stage_gather_bf16, __nv_bfloat16)

extern "C" void launch_stage_advance(unsigned blocks, unsigned batch, unsigned threads, int* step) {
  launch(stage_advance, {blocks, batch}, threads, step);
}
