// CUDA's language as C++: a launch is a loop over blocks and threads.
#pragma once

#include <algorithm>

#define __global__
#define __device__

struct dim3 {
  unsigned x, y;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
static dim3 blockIdx, blockDim, threadIdx;
using std::min;

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, Arguments... arguments) {
  blockDim = threads;
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(arguments...);
}
