// step_cuda.cu compiled as C++: each kernel with the layout of its parameters and how far it reaches from each pointer.
#include "emulate.h"
#include "step_cuda.cu"

#include <cstddef>
#include <tuple>

#include "machine.h"

namespace {

// Where the driver lays parameters: each aligned to its own size.
template <typename... A>
soft::Kernel described(void (*)(A...)) {
  soft::Kernel made{{}, 0, {}, {}};
  for (size_t size : {sizeof(A)...}) {
    const size_t at = (made.bytes + size - 1) / size * size;
    made.parameters.push_back({at, size});
    made.bytes = at + size;
  }
  return made;
}

template <typename T>
T argument(const soft::Kernel& kernel, const char* buffer, size_t index) {
  T value;
  memcpy(&value, buffer + kernel.parameters[index].offset, sizeof value);
  return value;
}

template <typename... A, size_t... I>
void call(const soft::Kernel& kernel, void (*function)(A...), const unsigned* grid, unsigned threads,
          const char* buffer, std::index_sequence<I...>) {
  launch(function, dim3{grid[0], grid[1]}, threads, argument<A>(kernel, buffer, I)...);
}

using Reaches = std::vector<soft::Reach> (*)(const soft::Kernel&, const unsigned* grid, const char* buffer);

template <typename... A>
soft::Kernel made(void (*function)(A...), Reaches reaches) {
  soft::Kernel kernel = described(function);
  const soft::Kernel layout = kernel;
  kernel.run = [=](const unsigned* grid, unsigned threads, const char* buffer) {
    call(layout, function, grid, threads, buffer, std::index_sequence_for<A...>{});
  };
  kernel.reaches = [=](const unsigned* grid, const char* buffer) { return reaches(layout, grid, buffer); };
  return kernel;
}

// Where the counters and the table of a batch are read; a counter beyond the sample's own rows reaches further than any
// memory. `at` are the indices of the table, the counters and the rows a sample among the parameters.
void add_tables(std::vector<soft::Reach>& reaches, const soft::Kernel& kernel, const char* buffer, size_t batch,
                size_t table, size_t counters, size_t rows) {
  const int* counter = argument<const int*>(kernel, buffer, counters);
  const size_t most = argument<uint32_t>(kernel, buffer, rows);
  reaches.push_back({counter, batch * sizeof *counter});
  if (!soft::on_device(reinterpret_cast<uintptr_t>(counter), batch * sizeof *counter)) return;
  size_t end = 0;
  for (size_t sample = 0; sample < batch; ++sample)
    if (counter[sample] >= 0) {
      const size_t row = static_cast<size_t>(counter[sample]);
      end = std::max(end, row < most ? sample * most + row + 1 : SIZE_MAX / 256);
    }
  if (end) reaches.push_back({argument<const void*>(kernel, buffer, table), end * sizeof(stage::Coefficients)});
}

// `size` bytes an element of the networks' dtype; the parameters in the order of STAGE_STEP.
template <size_t size>
std::vector<soft::Reach> step_reaches(const soft::Kernel& kernel, const unsigned* grid, const char* buffer) {
  const auto at = [&](size_t index) { return argument<const void*>(kernel, buffer, index); };
  const size_t batch = grid[1], plane = argument<uint32_t>(kernel, buffer, 12);
  const size_t elements = batch * argument<uint32_t>(kernel, buffer, 11) * plane;
  std::vector<soft::Reach> reaches = {
      {at(0), 4 * elements},  {at(1), size * elements},  {at(2), size * elements}, {at(3), size * elements},
      {at(4), 4 * elements},  {at(5), 4 * batch * plane}, {at(8), 8 * batch},      {at(9), 4 * batch},
      {at(13), 4 * elements}, {at(14), size * elements}, {at(15), 4 * batch},
  };
  add_tables(reaches, kernel, buffer, batch, 6, 7, 10);
  return reaches;
}

// The parameters in the order of STAGE_GATHER.
template <size_t size>
std::vector<soft::Reach> gather_reaches(const soft::Kernel& kernel, const unsigned* grid, const char* buffer) {
  const auto at = [&](size_t index) { return argument<const void*>(kernel, buffer, index); };
  const size_t batch = grid[1], cells = batch * argument<uint32_t>(kernel, buffer, 4);
  std::vector<soft::Reach> reaches = {{at(0), 4 * cells}, {at(5), batch * sizeof(int64_t)}, {at(6), size * cells}};
  add_tables(reaches, kernel, buffer, batch, 1, 2, 3);
  return reaches;
}

// The parameters in the order of STAGE_CONTRAST.
template <size_t size>
std::vector<soft::Reach> contrast_reaches(const soft::Kernel& kernel, const unsigned* grid, const char* buffer) {
  const size_t batch = grid[1], bytes = size * batch * argument<uint32_t>(kernel, buffer, 4);
  std::vector<soft::Reach> reaches = {{argument<const void*>(kernel, buffer, 0), bytes},
                                      {argument<const void*>(kernel, buffer, 5), bytes}};
  add_tables(reaches, kernel, buffer, batch, 1, 2, 3);
  return reaches;
}

std::vector<soft::Reach> advance_reaches(const soft::Kernel& kernel, const unsigned*, const char* buffer) {
  return {{argument<const void*>(kernel, buffer, 1), argument<uint32_t>(kernel, buffer, 0) * sizeof(int)}};
}

}  // namespace

namespace soft {

const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> all = {
      {"stage_step_fp32", made(stage_step_fp32, step_reaches<4>)},
      {"stage_step_fp16", made(stage_step_fp16, step_reaches<2>)},
      {"stage_step_bf16", made(stage_step_bf16, step_reaches<2>)},
      {"stage_gather_fp32", made(stage_gather_fp32, gather_reaches<4>)},
      {"stage_gather_fp16", made(stage_gather_fp16, gather_reaches<2>)},
      {"stage_gather_bf16", made(stage_gather_bf16, gather_reaches<2>)},
      {"stage_contrast_fp32", made(stage_contrast_fp32, contrast_reaches<4>)},
      {"stage_contrast_fp16", made(stage_contrast_fp16, contrast_reaches<2>)},
      {"stage_contrast_bf16", made(stage_contrast_bf16, contrast_reaches<2>)},
      {"stage_advance", made(stage_advance, advance_reaches)},
  };
  return all;
}

}  // namespace soft
