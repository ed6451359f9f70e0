// The loop's own kernels alone, for compute-sanitizer and for a comparison with NumPy: reads one case from the file
// argv[1], runs `iterations` of gather, contrast, step and advance with the same estimates, of which contrast moves the
// UNet's on, writes what they left to argv[2]. check_step.py writes and reads both files.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "step_cuda.cu"

// The tests compile this file as C++ and put a loop over the threads here.
#ifndef LAUNCH
#define LAUNCH(kernel, grid, block, ...) kernel<<<grid, block>>>(__VA_ARGS__)
#endif

struct Header {
  uint32_t batch, channels, plane, rows, iterations, threads, width;
};

static void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <typename T>
struct Buffer {
  T* device = nullptr;
  size_t count;

  Buffer(size_t n, std::FILE* file) : count(n) {
    std::vector<T> host(n);
    if (file && std::fread(host.data(), sizeof(T), n, file) != n) {
      std::fprintf(stderr, "the case ends too early\n");
      std::exit(1);
    }
    // No more than is needed: memcheck shall see an access behind the end.
    check(cudaMalloc(&device, n * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(device, host.data(), n * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Buffer() { cudaFree(device); }

  void write(std::FILE* file) const {
    std::vector<T> host(count);
    check(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    std::fwrite(host.data(), sizeof(T), count, file);
  }
};

template <typename T, typename StepKernel, typename GatherKernel, typename ContrastKernel>
void run(const Header& h, std::FILE* in, std::FILE* out, StepKernel step, GatherKernel gather,
         ContrastKernel contrast) {
  const size_t elements = size_t{h.channels} * h.plane, all = elements * h.batch, cells = size_t{h.plane} * h.batch;
  Buffer<float> state(all, in), clean(all, in), mask(cells, in);
  Buffer<T> surface(all, in), unet(all, in), aware(all, in), only(all, in), input(all, in), handed(cells, in);
  Buffer<stage::Coefficients> table(size_t{h.batch} * h.rows, in);
  Buffer<uint64_t> seeds(h.batch, in);
  Buffer<uint32_t> samples(h.batch, in), finite(h.batch, in);
  Buffer<int64_t> timestep(h.batch, in);
  Buffer<int> counter(h.batch, in);

  const dim3 steps(static_cast<unsigned>((elements + 4 * h.threads - 1) / (4 * h.threads)), h.batch);
  const dim3 gathers((h.plane + h.threads - 1) / h.threads, h.batch);
  for (uint32_t k = 0; k < h.iterations; ++k) {
    LAUNCH(gather, gathers, h.threads, mask.device, table.device, counter.device, h.rows, h.plane, timestep.device,
           handed.device);
    LAUNCH(contrast, steps, h.threads, surface.device, table.device, counter.device, h.rows,
           static_cast<uint32_t>(elements), unet.device);
    LAUNCH(step, steps, h.threads, state.device, unet.device, aware.device, only.device, clean.device, mask.device,
           table.device, counter.device, seeds.device, samples.device, h.rows, h.channels, h.plane, state.device,
           input.device, finite.device);
    LAUNCH(stage_advance, dim3((h.batch + h.threads - 1) / h.threads), h.threads, h.batch, counter.device);
    check(cudaGetLastError(), "launch");
  }
  check(cudaDeviceSynchronize(), "kernels");
  state.write(out);
  unet.write(out);
  input.write(out);
  handed.write(out);
  finite.write(out);
  timestep.write(out);
  counter.write(out);
}

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: %s CASE RESULT\n", argv[0]), 2;
  std::FILE *in = std::fopen(argv[1], "rb"), *out = std::fopen(argv[2], "wb");
  Header h;
  if (!in || !out || std::fread(&h, sizeof h, 1, in) != 1) return std::fprintf(stderr, "cannot open the files\n"), 1;
  // `width` tells the dtypes apart: bytes of one, and 3 for bf16.
  if (h.width == 4)
    run<float>(h, in, out, stage_step_fp32, stage_gather_fp32, stage_contrast_fp32);
  else if (h.width == 2)
    run<__half>(h, in, out, stage_step_fp16, stage_gather_fp16, stage_contrast_fp16);
  else
    run<__nv_bfloat16>(h, in, out, stage_step_bf16, stage_gather_bf16, stage_contrast_bf16);
  std::fclose(in);
  return std::fclose(out);
}
