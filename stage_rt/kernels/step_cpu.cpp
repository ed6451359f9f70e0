// libstage_step: the fused step and its noise on the CPU, called through ctypes by stage_rt/kernels/__init__.py.
//
// Arguments are not checked here; the Python face does. Arrays are C-contiguous. `threads` 0 means all cores.

#include <algorithm>
#include <cstddef>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "step.h"

// One library for every x86-64: the dynamic loader picks the widest version of a marked function the CPU can run.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define STAGE_EVERY_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define STAGE_EVERY_CPU
#endif

#if defined(_WIN32)
#define STAGE_API extern "C" __declspec(dllexport)
#else
#define STAGE_API extern "C" __attribute__((visibility("default")))
#endif

namespace {

// Cells of a plane handled at a time: their noise stays in the first-level cache. A multiple of 4.
constexpr int64_t kTile = 256;

// Elements below which a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

struct StepJob {
  const float *x, *eps, *clean, *mask;
  const stage::Coefficients* rows;
  // 1 where every sample has a row of its own, 0 where one serves all.
  int64_t stride;
  const uint64_t* seeds;
  const uint32_t* samples;
  int64_t batch, channels, plane;
  float* next;

  int64_t tiles() const { return (plane + kTile - 1) / kTile; }
};

// Blocks of a draw, kept as four arrays: loops over plain arrays are what compilers vectorise.
struct Blocks {
  static constexpr int64_t kMost = kTile / 4 + 1;
  uint32_t w0[kMost], w1[kMost], w2[kMost], w3[kMost];
  float n0[kMost], n1[kMost], n2[kMost], n3[kMost];

  STAGE_FN void draw_words(const stage::Stream stream, uint32_t first, int64_t count) {
    for (int64_t b = 0; b < count; ++b) {
      const stage::Words w = stage::philox(stream, first + static_cast<uint32_t>(b));
      w0[b] = w.w0;
      w1[b] = w.w1;
      w2[b] = w.w2;
      w3[b] = w.w3;
    }
  }

  STAGE_FN void draw_normals(const stage::Stream stream, uint32_t first, int64_t count) {
    draw_words(stream, first, count);
    for (int64_t b = 0; b < count; ++b) {
      const stage::Pair low = stage::box_muller(w0[b], w1[b]);
      n0[b] = low.first;
      n1[b] = low.second;
    }
    for (int64_t b = 0; b < count; ++b) {
      const stage::Pair high = stage::box_muller(w2[b], w3[b]);
      n2[b] = high.first;
      n3[b] = high.second;
    }
  }
};

template <typename T>
STAGE_FN void interleave(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c,
                         const T* __restrict__ d, int64_t count, T* __restrict__ out) {
  for (int64_t k = 0; k < count; ++k) {
    out[4 * k] = a[k];
    out[4 * k + 1] = b[k];
    out[4 * k + 2] = c[k];
    out[4 * k + 3] = d[k];
  }
}

// Normals of elements [start, start + count) of a draw, in a buffer that has room for whole blocks.
struct NormalTile {
  Blocks blocks;
  float buffer[4 * Blocks::kMost];

  STAGE_FN const float* draw(const stage::Stream& stream, int64_t start, int64_t count) {
    const int64_t first = start / 4, size = (start + count + 3) / 4 - first;
    blocks.draw_normals(stream, static_cast<uint32_t>(first), size);
    interleave(blocks.n0, blocks.n1, blocks.n2, blocks.n3, size, buffer);
    return buffer + start % 4;
  }
};

STAGE_FN bool update_tile(const stage::Coefficients& c, const float* __restrict__ x, const float* __restrict__ eps,
                          const float* __restrict__ clean, const float* __restrict__ mask,
                          const float* __restrict__ n, const float* __restrict__ z, float* __restrict__ next,
                          int64_t count) {
  uint32_t broken = 0;
  for (int64_t s = 0; s < count; ++s) {
    const float value = stage::update(c, x[s], eps[s], clean[s], mask[s], n[s], z[s]);
    next[s] = value;
    broken |= !stage::is_finite(value);
  }
  return !broken;
}

// Tiles [begin, end) of the batch, counted through sample by sample; all channels of a tile share its mask draw.
STAGE_EVERY_CPU
void run_tiles(const StepJob& job, int64_t begin, int64_t end, uint8_t* finite) {
  NormalTile n_tile, z_tile;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t b = tile / job.tiles(), start = tile % job.tiles() * kTile;
    const int64_t count = std::min(kTile, job.plane - start);
    const stage::Coefficients c = job.rows[b * job.stride];
    const stage::Stream background{job.seeds[b], job.samples[b], c.timestep, stage::kBackground};
    const stage::Stream shared{job.seeds[b], job.samples[b], c.timestep, stage::kMask};
    const stage::Stream posterior{job.seeds[b], job.samples[b], c.timestep, stage::kPosterior};
    const float* n = c.shared_noise ? n_tile.draw(shared, start, count) : nullptr;
    for (int64_t channel = 0; channel < job.channels; ++channel) {
      const int64_t element = channel * job.plane + start;
      const int64_t at = b * job.channels * job.plane + element;
      if (!c.shared_noise) n = n_tile.draw(background, element, count);
      const float* z = z_tile.draw(posterior, element, count);
      if (!update_tile(c, job.x + at, job.eps + at, job.clean + at, job.mask + b * job.plane + start, n, z,
                       job.next + at, count))
        finite[b] = 0;
    }
  }
}

STAGE_EVERY_CPU
void run_normals(const stage::Stream& stream, int64_t elements, float* out) {
  NormalTile tile;
  for (int64_t start = 0; start < elements; start += kTile) {
    const int64_t count = std::min(kTile, elements - start);
    memcpy(out + start, tile.draw(stream, start, count), count * sizeof(float));
  }
}

STAGE_EVERY_CPU
void run_words(const stage::Stream& stream, uint32_t first, int64_t count, uint32_t* out) {
  Blocks blocks;
  for (int64_t b = 0; b < count; b += kTile / 4) {
    const int64_t size = std::min(kTile / 4, count - b);
    blocks.draw_words(stream, first + static_cast<uint32_t>(b), size);
    interleave(blocks.w0, blocks.w1, blocks.w2, blocks.w3, size, out + 4 * b);
  }
}

int64_t worker_count(int threads, int64_t elements, int64_t tasks) {
  const int64_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  return std::max<int64_t>(1, std::min({wanted, tasks, elements / kElementsPerThread}));
}

// Calls work(worker, begin, end) on even parts of [0, tasks), the last part on the calling thread.
template <typename Work>
void parallel(int64_t workers, int64_t tasks, const Work& work) {
  std::vector<std::thread> running;
  running.reserve(workers);
  int64_t begin = 0;
  for (int64_t worker = 0; worker < workers; ++worker) {
    const int64_t end = tasks * (worker + 1) / workers;
    bool started = false;
    if (worker + 1 < workers) {
      try {
        running.emplace_back(work, worker, begin, end);
        started = true;
      } catch (const std::system_error&) {
        // The system has no thread left to give: slower, not wrong.
      }
    }
    if (!started) work(worker, begin, end);
    begin = end;
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace

// Every field of stage::Coefficients as `name:kind and size@offset`, with spaces between them.
STAGE_API const char* stage_layout() noexcept {
#define STAGE_FIELD(type, name) \
  description += std::string(description.empty() ? "" : " ") + #name ":" + (std::is_floating_point_v<type> ? "f" : "u") + \
                 std::to_string(sizeof(type)) + "@" + std::to_string(offsetof(stage::Coefficients, name));
  static const std::string layout = [] {
    std::string description;
    STAGE_COEFFICIENTS(STAGE_FIELD)
    return description;
  }();
#undef STAGE_FIELD
  return layout.c_str();
}

// Philox words of `blocks` blocks from `first` on: out[batch][4 * blocks].
STAGE_API void stage_words(const uint64_t* seeds, const uint32_t* samples, int64_t batch, uint32_t step,
                           uint32_t draw, uint32_t first, uint32_t blocks, uint32_t* out) noexcept {
  for (int64_t b = 0; b < batch; ++b)
    run_words({seeds[b], samples[b], step, draw}, first, blocks, out + b * 4 * static_cast<int64_t>(blocks));
}

// Standard normal numbers: out[batch][elements].
STAGE_API void stage_normal(const uint64_t* seeds, const uint32_t* samples, int64_t batch, uint32_t step,
                            uint32_t draw, int64_t elements, float* out, int threads) noexcept {
  parallel(worker_count(threads, batch * elements, batch), batch, [=](int64_t, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      run_normals({seeds[b], samples[b], step, draw}, elements, out + b * elements);
  });
}

// One transition a sample: x, eps, clean, next [batch][channels][plane]; mask [batch][plane]; rows [batch] with
// `stride` 1, or one for all with 0; finite [batch] gets 0 or 1.
STAGE_API void stage_step(const float* x, const float* eps, const float* clean, const float* mask,
                          const stage::Coefficients* rows, int64_t stride, const uint64_t* seeds,
                          const uint32_t* samples, int64_t batch, int64_t channels, int64_t plane, float* next,
                          uint8_t* finite, int threads) noexcept {
  const StepJob job{x, eps, clean, mask, rows, stride, seeds, samples, batch, channels, plane, next};
  const int64_t tiles = batch * job.tiles();
  const int64_t workers = worker_count(threads, batch * channels * plane, tiles);
  // Two workers may share a sample, so each keeps its own flags.
  std::vector<uint8_t> flags(workers * batch, 1);
  parallel(workers, tiles, [&](int64_t worker, int64_t begin, int64_t end) {
    run_tiles(job, begin, end, flags.data() + worker * batch);
  });
  for (int64_t b = 0; b < batch; ++b) {
    finite[b] = 1;
    for (int64_t worker = 0; worker < workers; ++worker) finite[b] &= flags[worker * batch + b];
  }
}
