// The fused step on an NVIDIA GPU, as a module of kernels for a loop that never leaves the device.
//
// A step is `stage_gather_*`, the networks, `stage_step_*`, `stage_advance`. The number of the row that is its turn lives
// in device memory, so one captured CUDA graph serves all steps of any schedule. `stage_gather_*` writes what changes from step to step
// for the networks: the timestep and the adapter's mask. `stage_step_*` reads the networks' estimate in their dtype,
// draws its own noise, and writes the next state in float32 and the next network input in the networks' dtype.
// `stage_advance` counts down. Blocks are one-dimensional and of any size; the grids are (ceil(cells / block)) for
// `stage_gather_*` and (ceil(ceil(channels * plane / 4) / block), batch) for `stage_step_*`.
//
// What is tested without a GPU: the arithmetic, which is step.h's, by the CPU library; this file, by compiling it as
// C++ and running it thread by thread (tests/kernels/emulated); its machine code, for being there and spilling no
// register. What is not: the machine code's results.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "step.h"

namespace {

// Four neighbouring elements, moved by one load or store.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ void assign(float& out, float value) { out = value; }
__device__ void assign(__half& out, float value) { out = __float2half_rn(value); }
__device__ void assign(__nv_bfloat16& out, float value) { out = __float2bfloat16_rn(value); }

// The up to four elements from `from` on; whole and aligned ones in one load, the rest one by one.
template <typename T>
__device__ Four<T> load(const T* from, int count, bool aligned) {
  Four<T> four;
  if (aligned) return *reinterpret_cast<const Four<T>*>(from);
  for (int k = 0; k < 4; ++k) assign(four.v[k], k < count ? to_float(from[k]) : 0.0f);
  return four;
}

template <typename T>
__device__ void store(T* to, const Four<T>& four, int count, bool aligned) {
  if (aligned) {
    *reinterpret_cast<Four<T>*>(to) = four;
    return;
  }
  for (int k = 0; k < count; ++k) to[k] = four.v[k];
}

__device__ Four<float> draw(const stage::Stream& stream, uint32_t block) {
  const stage::Normals n = stage::normals(stream, block);
  return {{n.n0, n.n1, n.n2, n.n3}};
}

// The mask draw at the cells of elements [first, first + 4): blocks of a plane need not line up with blocks of the
// state, and four elements may reach into the next channel, whose cells start again at 0.
__device__ Four<float> draw_shared(const stage::Stream& stream, uint32_t first, uint32_t plane) {
  uint32_t cell = first % plane;
  if (plane % 4 == 0) return draw(stream, cell / 4);
  Four<float> numbers;
  for (int k = 0; k < 4; ++k) {
    const Four<float> block = draw(stream, cell / 4);
    const uint32_t at = cell % 4;
    numbers.v[k] = at == 0 ? block.v[0] : at == 1 ? block.v[1] : at == 2 ? block.v[2] : block.v[3];
    cell = cell + 1 == plane ? 0 : cell + 1;
  }
  return numbers;
}

template <typename T>
__device__ void run_step(const float* x, const T* unet, const T* adapter, const float* clean, const float* mask,
                         const stage::Coefficients* table, const int* step, const uint64_t* seeds,
                         const uint32_t* samples, uint32_t channels, uint32_t plane, float* next, T* next_input,
                         uint32_t* finite) {
  const uint32_t elements = channels * plane, block = blockIdx.x * blockDim.x + threadIdx.x, first = 4 * block;
  if (first >= elements) return;
  const uint32_t sample = blockIdx.y;
  const int count = min(4u, elements - first);
  const bool aligned = elements % 4 == 0, aligned_mask = plane % 4 == 0;
  const size_t at = static_cast<size_t>(sample) * elements + first;

  const stage::Coefficients c = table[*step];
  stage::Stream stream{seeds[sample], samples[sample], c.timestep, stage::kPosterior};
  const Four<float> z = draw(stream, block);
  stream.draw = c.shared_noise ? stage::kMask : stage::kBackground;
  const Four<float> n = c.shared_noise ? draw_shared(stream, first, plane) : draw(stream, block);

  const Four<float> state = load(x + at, count, aligned), kept = load(clean + at, count, aligned);
  const Four<T> plain = load(unet + at, count, aligned), guided = load(adapter + at, count, aligned);
  const float* sample_mask = mask + static_cast<size_t>(sample) * plane;
  Four<float> m;
  if (aligned_mask)
    m = load(sample_mask + first % plane, 4, true);
  else
    for (int k = 0; k < 4; ++k) m.v[k] = sample_mask[(first + k) % plane];

  Four<float> following;
  Four<T> input;
  bool whole = true;
  for (int k = 0; k < 4; ++k) {
    const float eps = stage::guide(to_float(plain.v[k]), to_float(guided.v[k]), c.guidance);
    following.v[k] = stage::update(c, state.v[k], eps, kept.v[k], m.v[k], n.v[k], z.v[k]);
    assign(input.v[k], following.v[k]);
    // Lanes past the end are zeros and finite.
    whole &= stage::is_finite(following.v[k]);
  }
  store(next + at, following, count, aligned);
  store(next_input + at, input, count, aligned);
  // Every thread that gets here writes the same 0.
  if (!whole) finite[sample] = 0;
}

template <typename T>
__device__ void run_gather(const float* mask, const stage::Coefficients* table, const int* step, uint32_t cells,
                           int64_t* timestep, T* adapter_mask) {
  const uint32_t cell = blockIdx.x * blockDim.x + threadIdx.x;
  if (cell == 0) *timestep = table[*step].timestep;
  // `mix` is the EMA factor for the aware branch and 0 for the only branch, which is handed the mask itself.
  if (cell < cells) assign(adapter_mask[cell], stage::soften(mask[cell], table[*step].mix));
}

}  // namespace

// x, clean, next float32 and unet, adapter, next_input in the networks' dtype, all [batch][channels][plane] and 16-byte
// aligned; mask float32 [batch][plane]; table one row a transition; seeds, samples, finite [batch]. next may be x
// and next_input may be unet or adapter. finite is set to 1 by the caller before the loop; a sample once broken stays 0.
#define STAGE_STEP(name, T)                                                                                          \
  extern "C" __global__ void name(const float* x, const T* unet, const T* adapter, const float* clean,               \
                                  const float* mask, const stage::Coefficients* table, const int* step,              \
                                  const uint64_t* seeds, const uint32_t* samples, uint32_t channels, uint32_t plane, \
                                  float* next, T* next_input, uint32_t* finite) {                                    \
    run_step(x, unet, adapter, clean, mask, table, step, seeds, samples, channels, plane, next, next_input, finite); \
  }

STAGE_STEP(stage_step_fp32, float)
STAGE_STEP(stage_step_fp16, __half)
STAGE_STEP(stage_step_bf16, __nv_bfloat16)

// mask float32 [cells], table and step as above; timestep int64 [1], adapter_mask [cells] in the network's dtype.
#define STAGE_GATHER(name, T)                                                                                       \
  extern "C" __global__ void name(const float* mask, const stage::Coefficients* table, const int* step,              \
                                  uint32_t cells, int64_t* timestep, T* adapter_mask) {                              \
    run_gather(mask, table, step, cells, timestep, adapter_mask);                                                    \
  }

STAGE_GATHER(stage_gather_fp32, float)
STAGE_GATHER(stage_gather_fp16, __half)
STAGE_GATHER(stage_gather_bf16, __nv_bfloat16)

// Counts one row down once every block of a step has read it; one block of any size.
extern "C" __global__ void stage_advance(int* step) {
  if (threadIdx.x == 0) --*step;
}
