// The arithmetic of one STAGE step and of its noise, for the CPU library and for the CUDA kernels.
//
// Everything here works on scalars: the CPU loops over it in a form the compiler turns into vector code, the GPU
// gives four elements to a thread. Both are built without contracting a * b + c into one rounding and with IEEE
// square roots, and no function of a math library is called besides sqrtf, so a CPU of any vector width and a GPU
// are to give the same bits. That is tested on CPUs; for GPUs the tests compile this file and run it nowhere.

#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define STAGE_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define STAGE_FN inline __attribute__((always_inline))
#else
#define STAGE_FN inline
#endif

namespace stage {

// stage_rt.recipe.StepCoefficients, field by field: one transition. Python compares the layout when it loads a library.
#define STAGE_COEFFICIENTS(X) \
  X(float, sqrt_recip_abar)   \
  X(float, sqrt_recipm1_abar) \
  X(float, posterior_x0)      \
  X(float, posterior_xt)      \
  X(float, sigma)             \
  X(float, mix)               \
  X(float, blend)             \
  X(float, background_signal) \
  X(float, background_noise)  \
  X(uint32_t, shared_noise)   \
  X(uint32_t, timestep)       \
  X(float, guidance)          \
  X(float, free)              \
  X(uint32_t, only)           \
  X(float, prompt_guidance)

struct Coefficients {
#define STAGE_FIELD(type, name) type name;
  STAGE_COEFFICIENTS(STAGE_FIELD)
#undef STAGE_FIELD
};

// stage_rt.noise.Draw: what a random number is for.
enum Draw : uint32_t { kBackground = 1, kMask = 2, kPosterior = 3 };

// Everything of a Philox counter and key but the block number.
struct Stream {
  uint64_t seed;
  uint32_t sample;
  uint32_t step;
  uint32_t draw;
};

struct Words {
  uint32_t w0, w1, w2, w3;
};

struct Normals {
  float n0, n1, n2, n3;
};

struct Pair {
  float first, second;
};

template <typename To, typename From>
STAGE_FN To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Philox4x32 with 10 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
STAGE_FN Words philox(const Stream& stream, uint32_t block) {
  uint32_t c0 = block, c1 = stream.step, c2 = stream.draw, c3 = stream.sample;
  uint32_t k0 = static_cast<uint32_t>(stream.seed), k1 = static_cast<uint32_t>(stream.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// Natural logarithm of a normal positive float; the polynomial of Cephes' logf on [sqrt(1/2), sqrt(2)).
STAGE_FN float log_positive(float u) {
  const int32_t bits = bit_cast<int32_t>(u);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const float e = static_cast<float>(exponent);
  const float f = bit_cast<float>(bits - exponent * (1 << 23)) - 1.0f;
  const float ff = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  // ln 2 = 0.693359375 - 2.12194440e-4; the first part times e is exact.
  const float tail = p * f * ff - 2.12194440e-4f * e - 0.5f * ff;
  return (f + tail) + 0.693359375f * e;
}

// (cos, sin) of `turns` full turns in [0, 1]; reduced exactly to an eighth of a turn, then Cephes' polynomials.
STAGE_FN Pair cos_sin_turns(float turns) {
  const float quarters = 4.0f * turns;
  const int32_t q = static_cast<int32_t>(quarters + 0.5f);
  const float r = 1.57079632679f * (quarters - static_cast<float>(q));
  const float rr = r * r;
  const float sine = ((-1.9515295891e-4f * rr + 8.3321608736e-3f) * rr - 1.6666654611e-1f) * rr * r + r;
  const float cosine =
      ((2.443315711809948e-5f * rr - 1.388731625493765e-3f) * rr + 4.166664568298827e-2f) * rr * rr - 0.5f * rr + 1.0f;
  const bool odd = q & 1;
  const uint32_t cos_sign = static_cast<uint32_t>((q + 1) & 2) << 30;
  const uint32_t sin_sign = static_cast<uint32_t>(q & 2) << 30;
  return {bit_cast<float>(bit_cast<uint32_t>(odd ? sine : cosine) ^ cos_sign),
          bit_cast<float>(bit_cast<uint32_t>(odd ? cosine : sine) ^ sin_sign)};
}

// Box-Muller: two uniform words to two standard normal numbers, at most 6.8 from zero.
STAGE_FN Pair box_muller(uint32_t radius_word, uint32_t angle_word) {
  const float u1 = static_cast<float>(radius_word) * 0x1p-32f + 0x1p-33f;
  const float u2 = static_cast<float>(angle_word) * 0x1p-32f;
  const float radius = sqrtf(-2.0f * log_positive(u1));
  const Pair direction = cos_sin_turns(u2);
  return {radius * direction.first, radius * direction.second};
}

// Elements 4 * block .. 4 * block + 3 of a draw.
STAGE_FN Normals normals(const Stream& stream, uint32_t block) {
  const Words w = philox(stream, block);
  const Pair low = box_muller(w.w0, w.w1);
  const Pair high = box_muller(w.w2, w.w3);
  return {low.first, low.second, high.first, high.second};
}

// A mask cell with `factor` of the background let in (Eq. 8); what an adapter is handed and what x0 is mixed by.
STAGE_FN float soften(float mask, float factor) { return mask + factor * (1.0f - mask); }

// An estimate moved `weight` times as far as another one is from it; 1 is the other one, bit for bit.
STAGE_FN float guide(float from, float to, float weight) { return weight == 1.0f ? to : from + weight * (to - from); }

// One element of the state: the equations in the docstring of stage_rt.recipe.StepCoefficients, in their order.
STAGE_FN float update(const Coefficients& c, float x, float eps, float clean, float mask, float n, float z) {
  const float estimate = x * c.sqrt_recip_abar - eps * c.sqrt_recipm1_abar;
  const float mixing = soften(mask, c.free > c.mix ? c.free : c.mix);
  const float x0 = mixing * estimate + (1.0f - mixing) * clean;
  const float y = c.posterior_x0 * x0 + c.posterior_xt * x + c.sigma * z;
  const float blending = soften(mask, c.blend);
  return blending * y + (1.0f - blending) * (c.background_signal * clean + c.background_noise * n);
}

STAGE_FN bool is_finite(float value) { return fabsf(value) <= FLT_MAX; }

}  // namespace stage
