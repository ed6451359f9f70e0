// step_cuda.cu compiled as C++ and run thread by thread: its indices, loads, stores and tails without a GPU.

#include "emulate.h"
#include "step_cuda.cu"

#define LAUNCH(name, T)                                                                                             \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const float* x, const T* unet,   \
                                const T* aware, const T* only, const float* clean, const float* mask,               \
                                const stage::Coefficients* table, const int* counter, const uint64_t* seeds,        \
                                const uint32_t* samples, uint32_t rows, uint32_t channels, uint32_t plane,          \
                                float* next, T* next_input, uint32_t* finite) {                                     \
    launch(name, {blocks, batch}, threads, x, unet, aware, only, clean, mask, table, counter, seeds, samples, rows, \
           channels, plane, next, next_input, finite);                                                              \
  }

LAUNCH(stage_step_fp32, float)
LAUNCH(stage_step_fp16, __half)
LAUNCH(stage_step_bf16, __nv_bfloat16)

#define LAUNCH_GATHER(name, T)                                                                                  \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const float* mask,           \
                                const stage::Coefficients* table, const int* counter, uint32_t rows,            \
                                uint32_t plane, int64_t* timestep, T* handed) {                                 \
    launch(name, {blocks, batch}, threads, mask, table, counter, rows, plane, timestep, handed);                \
  }

LAUNCH_GATHER(stage_gather_fp32, float)
LAUNCH_GATHER(stage_gather_fp16, __half)
LAUNCH_GATHER(stage_gather_bf16, __nv_bfloat16)

#define LAUNCH_CONTRAST(name, T)                                                                                \
  extern "C" void launch_##name(unsigned blocks, unsigned batch, unsigned threads, const T* surface,            \
                                const stage::Coefficients* table, const int* counter, uint32_t rows,            \
                                uint32_t elements, T* prompt) {                                                 \
    launch(name, {blocks, batch}, threads, surface, table, counter, rows, elements, prompt);                    \
  }

LAUNCH_CONTRAST(stage_contrast_fp32, float)
LAUNCH_CONTRAST(stage_contrast_fp16, __half)
LAUNCH_CONTRAST(stage_contrast_bf16, __nv_bfloat16)

extern "C" void launch_stage_advance(unsigned blocks, unsigned batch, unsigned threads, uint32_t size, int* counter) {
  launch(stage_advance, {blocks, batch}, threads, size, counter);
}
