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

// Up to the row of the table whose turn it is; a counter below 0 is in no table and reaches further than any memory.
size_t rows(const int* step) {
  return *step < 0 ? SIZE_MAX : (static_cast<size_t>(*step) + 1) * sizeof(stage::Coefficients);
}

// `size` bytes an element of the networks' dtype; the parameters in the order of STAGE_STEP.
template <size_t size>
std::vector<soft::Reach> step_reaches(const soft::Kernel& kernel, const unsigned* grid, const char* buffer) {
  const auto at = [&](size_t index) { return argument<const void*>(kernel, buffer, index); };
  const size_t batch = grid[1], plane = argument<uint32_t>(kernel, buffer, 10);
  const size_t elements = batch * argument<uint32_t>(kernel, buffer, 9) * plane;
  const int* step = static_cast<const int*>(at(6));
  std::vector<soft::Reach> reaches = {
      {step, sizeof *step},       {at(0), 4 * elements},      {at(1), size * elements}, {at(2), size * elements},
      {at(3), 4 * elements},      {at(4), 4 * batch * plane}, {at(7), 8 * batch},       {at(8), 4 * batch},
      {at(11), 4 * elements},     {at(12), size * elements},  {at(13), 4 * batch},
  };
  if (soft::on_device(reinterpret_cast<uintptr_t>(step), sizeof *step)) reaches.push_back({at(5), rows(step)});
  return reaches;
}

// The parameters in the order of STAGE_GATHER.
template <size_t size>
std::vector<soft::Reach> gather_reaches(const soft::Kernel& kernel, const unsigned*, const char* buffer) {
  const auto at = [&](size_t index) { return argument<const void*>(kernel, buffer, index); };
  const size_t cells = argument<uint32_t>(kernel, buffer, 3);
  const int* step = static_cast<const int*>(at(2));
  std::vector<soft::Reach> reaches = {
      {step, sizeof *step}, {at(0), 4 * cells}, {at(4), sizeof(int64_t)}, {at(5), size * cells}};
  if (soft::on_device(reinterpret_cast<uintptr_t>(step), sizeof *step)) reaches.push_back({at(1), rows(step)});
  return reaches;
}

std::vector<soft::Reach> advance_reaches(const soft::Kernel& kernel, const unsigned*, const char* buffer) {
  return {{argument<const void*>(kernel, buffer, 0), sizeof(int)}};
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
      {"stage_advance", made(stage_advance, advance_reaches)},
  };
  return all;
}

}  // namespace soft
