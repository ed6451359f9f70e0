// The driver that compute-sanitizer runs on a GPU, compiled as C++ over the emulated kernels.

#include <cstdlib>
#include <cstring>

#include "emulate.h"

#define LAUNCH launch

enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

template <typename T>
cudaError_t cudaMalloc(T** pointer, size_t size) {
  *pointer = static_cast<T*>(std::malloc(size));
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
inline void cudaFree(void* pointer) { std::free(pointer); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

#include "step_driver.cu"
