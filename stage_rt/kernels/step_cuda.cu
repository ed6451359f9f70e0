// The fused step on an NVIDIA GPU, as a module of kernels for a loop that never leaves the device.
//
// A step is `stage_gather_*`, the networks, `stage_step_*`, `stage_advance`. Every sample has a table and a counter of its
// own in device memory, the number of the row that is its turn, so one captured CUDA graph serves all steps of any
// schedule, and samples of one batch may be at different ones. A counter below 0 is a sample whose turn it is not: nothing
// of it is written. `stage_gather_*` writes what changes from step to step for the networks: the timesteps and the
// adapters' masks. `stage_step_*` reads the networks' estimates in their dtype, selects that of the sample's adapter,
// draws its own noise, and writes the next state in float32 and the next network input in the networks' dtype.
// `stage_advance` counts down. `stage_contrast_*` stands between two calls of the UNet and the adapters where the prompt
// is weighed against good surface. Blocks are one-dimensional and of any size; the grids are (ceil(plane / block), batch)
// for `stage_gather_*`, (ceil(ceil(channels * plane / 4) / block), batch) for `stage_step_*` and `stage_contrast_*`, and
// (ceil(batch / block)) for `stage_advance`.
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
__device__ void run_step(const float* x, const T* unet, const T* aware, const T* only, const float* clean,
                         const float* mask, const stage::Coefficients* table, const int* counter,
                         const uint64_t* seeds, const uint32_t* samples, uint32_t rows, uint32_t channels,
                         uint32_t plane, float* next, T* next_input, uint32_t* finite) {
  const uint32_t elements = channels * plane, block = blockIdx.x * blockDim.x + threadIdx.x, first = 4 * block;
  const uint32_t sample = blockIdx.y;
  if (first >= elements || counter[sample] < 0) return;
  const int count = min(4u, elements - first);
  const bool aligned = elements % 4 == 0, aligned_mask = plane % 4 == 0;
  const size_t at = static_cast<size_t>(sample) * elements + first;

  const stage::Coefficients c = table[static_cast<size_t>(sample) * rows + counter[sample]];
  stage::Stream stream{seeds[sample], samples[sample], c.timestep, stage::kPosterior};
  const Four<float> z = draw(stream, block);
  stream.draw = c.shared_noise ? stage::kMask : stage::kBackground;
  const Four<float> n = c.shared_noise ? draw_shared(stream, first, plane) : draw(stream, block);

  const Four<float> state = load(x + at, count, aligned), kept = load(clean + at, count, aligned);
  const Four<T> plain = load(unet + at, count, aligned), guided = load((c.only ? only : aware) + at, count, aligned);
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
__device__ void run_gather(const float* label, const stage::Coefficients* table, const int* counter, uint32_t rows,
                           uint32_t plane, int64_t* timestep, T* adapter_mask) {
  const uint32_t cell = blockIdx.x * blockDim.x + threadIdx.x, sample = blockIdx.y;
  if (cell >= plane || counter[sample] < 0) return;
  const stage::Coefficients& c = table[static_cast<size_t>(sample) * rows + counter[sample]];
  const size_t at = static_cast<size_t>(sample) * plane + cell;
  if (cell == 0) timestep[sample] = c.timestep;
  // `mix` is the EMA factor for the aware branch and 0 for the only branch, which is handed the label itself.
  assign(adapter_mask[at], stage::soften(label[at], c.mix));
}

template <typename T>
__device__ void run_contrast(const T* surface, const stage::Coefficients* table, const int* counter, uint32_t rows,
                             uint32_t elements, T* prompt) {
  const uint32_t first = 4 * (blockIdx.x * blockDim.x + threadIdx.x), sample = blockIdx.y;
  if (first >= elements || counter[sample] < 0) return;
  const int count = min(4u, elements - first);
  const bool aligned = elements % 4 == 0;
  const float weight = table[static_cast<size_t>(sample) * rows + counter[sample]].prompt_guidance;
  const size_t at = static_cast<size_t>(sample) * elements + first;
  const Four<T> from = load(surface + at, count, aligned);
  Four<T> to = load(prompt + at, count, aligned);
  for (int k = 0; k < 4; ++k) assign(to.v[k], stage::guide(to_float(from.v[k]), to_float(to.v[k]), weight));
  store(prompt + at, to, count, aligned);
}

}  // namespace

// x, clean, next float32 and unet, aware, only, next_input in the networks' dtype, all [batch][channels][plane] and 16-byte
// aligned; mask float32 [batch][plane]; table [batch][rows], one row a transition; counter, seeds, samples, finite [batch].
// next may be x and next_input may be unet or an adapter's. What a branch that no sample is in points at is not read.
// finite is set to 1 by the caller before the loop; a sample once broken stays 0.
#define STAGE_STEP(name, T)                                                                                           \
  extern "C" __global__ void name(const float* x, const T* unet, const T* aware, const T* only, const float* clean,   \
                                  const float* mask, const stage::Coefficients* table, const int* counter,            \
                                  const uint64_t* seeds, const uint32_t* samples, uint32_t rows, uint32_t channels,   \
                                  uint32_t plane, float* next, T* next_input, uint32_t* finite) {                     \
    run_step(x, unet, aware, only, clean, mask, table, counter, seeds, samples, rows, channels, plane, next,          \
             next_input, finite);                                                                                     \
  }

STAGE_STEP(stage_step_fp32, float)
STAGE_STEP(stage_step_fp16, __half)
STAGE_STEP(stage_step_bf16, __nv_bfloat16)

// label float32 [batch][plane], the part of the mask that adapters are told of; table and counter as above; timestep int64 [batch], adapter_mask [batch][plane] in the
// network's dtype.
#define STAGE_GATHER(name, T)                                                                                         \
  extern "C" __global__ void name(const float* label, const stage::Coefficients* table, const int* counter,           \
                                  uint32_t rows, uint32_t plane, int64_t* timestep, T* adapter_mask) {                \
    run_gather(label, table, counter, rows, plane, timestep, adapter_mask);                                            \
  }

STAGE_GATHER(stage_gather_fp32, float)
STAGE_GATHER(stage_gather_fp16, __half)
STAGE_GATHER(stage_gather_bf16, __nv_bfloat16)

// The UNet's estimates for good surface and for the prompt, which is written over: [batch][elements] in the networks'
// dtype, 16-byte aligned; table and counter as above.
#define STAGE_CONTRAST(name, T)                                                                                       \
  extern "C" __global__ void name(const T* surface, const stage::Coefficients* table, const int* counter,             \
                                  uint32_t rows, uint32_t elements, T* prompt) {                                      \
    run_contrast(surface, table, counter, rows, elements, prompt);                                                    \
  }

STAGE_CONTRAST(stage_contrast_fp32, float)
STAGE_CONTRAST(stage_contrast_fp16, __half)
STAGE_CONTRAST(stage_contrast_bf16, __nv_bfloat16)

// Counts the samples whose turn it was one row down, once every block of a step has read it.
extern "C" __global__ void stage_advance(uint32_t batch, int* counter) {
  const uint32_t sample = blockIdx.x * blockDim.x + threadIdx.x;
  if (sample < batch && counter[sample] >= 0) --counter[sample];
}
