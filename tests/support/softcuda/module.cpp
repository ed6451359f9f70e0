// Modules, their functions, and launches: the code that runs is step_cuda.cu as C++, the image only has to name it.
#include <cstring>

#include "machine.h"

using namespace soft;

namespace {

// Of a fatbin: magic, version, size of this header, size of what follows.
struct Header {
  uint32_t magic;
  uint16_t version, header;
  uint64_t bytes;
};

constexpr uint32_t kMagic = 0xBA55ED50;

// The parameters as one buffer, from either of the two ways to hand them over; empty if they are not those of the kernel.
std::string parameters(const Kernel& kernel, void** each, void** extra) {
  std::string buffer(kernel.bytes, '\0');
  if (each) {
    for (size_t k = 0; k < kernel.parameters.size(); ++k)
      memcpy(&buffer[kernel.parameters[k].offset], each[k], kernel.parameters[k].size);
    return buffer;
  }
  const void* packed = nullptr;
  size_t size = 0;
  for (void** pair = extra; pair && *pair != CU_LAUNCH_PARAM_END; pair += 2) {
    if (*pair == CU_LAUNCH_PARAM_BUFFER_POINTER) packed = pair[1];
    if (*pair == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *static_cast<size_t*>(pair[1]);
  }
  if (!packed || size != kernel.bytes) return {};
  memcpy(buffer.data(), packed, size);
  return buffer;
}

struct Launch {
  std::string name;
  const Kernel* kernel;
  std::vector<unsigned> grid;
  unsigned threads;
  std::string buffer;

  CUresult check() const {
    for (const Reach& reach : kernel->reaches(grid.data(), buffer.data()))
      if (!on_device(reinterpret_cast<uintptr_t>(reach.from), reach.bytes)) {
        fault("an illegal memory access: " + name + " reaches outside of what is allocated");
        return CUDA_ERROR_ILLEGAL_ADDRESS;
      }
    return CUDA_SUCCESS;
  }

  void run() const {
    // The emulation has one blockIdx for all.
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    kernel->run(grid.data(), threads, buffer.data());
  }
};

}  // namespace

extern "C" {

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  Header header;
  memcpy(&header, image, sizeof header);
  if (header.magic != kMagic) return CUDA_ERROR_INVALID_IMAGE;
  *module = new CUmod_st{{static_cast<const char*>(image), header.header + header.bytes}, {}};
  machine().modules.insert(*module);
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr);
}

CUresult cuModuleUnload(CUmodule module) {
  Call call(__func__, kContext | kUnsafe | kEnds);
  if (call.refused()) return call.result();
  if (!machine().modules.erase(module)) return CUDA_ERROR_INVALID_HANDLE;
  for (CUfunction function : module->functions) delete function;
  delete module;
  return call.result();
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!machine().modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
  const auto kernel = kernels().find(name);
  if (module->image.find(name) == std::string::npos || kernel == kernels().end()) return CUDA_ERROR_NOT_FOUND;
  *function = new CUfunc_st{name, &kernel->second};
  module->functions.insert(*function);
  return CUDA_SUCCESS;
}

// PyCUDA asks for it before a launch.
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) {
  Call call(__func__, kContext);
  return call.result();
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  Call call(__func__, kContext);
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
           : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 32
                                                                : 0;
  return call.result();
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (threads < 1 || threads > 1024) return CUDA_ERROR_INVALID_VALUE;
  *blocks = std::min(32, 2048 / threads);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                        unsigned threads_z, unsigned, CUstream stream, void** each, void** extra) {
  Call call(__func__, kContext, function->name.c_str());
  if (call.refused()) return call.result();
  if (!x || !y || z != 1 || y > 65535 || !threads || threads > 1024 || threads_y != 1 || threads_z != 1)
    return CUDA_ERROR_INVALID_VALUE;
  const Launch launch{function->name, function->kernel, {x, y}, threads, parameters(*function->kernel, each, extra)};
  if (launch.buffer.empty()) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, {{[=] { return launch.check(); }, [=] { launch.run(); }}});
}
}
