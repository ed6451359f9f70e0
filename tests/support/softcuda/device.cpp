// The driver, its one device, contexts, and the names of errors and functions.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "machine.h"

#undef cuGetProcAddress

using namespace soft;

extern "C" {

CUresult cuInit(unsigned) {
  Call call(__func__, kNothing);
  if (call.refused()) return call.result();
  if (getenv("SOFTCUDA_NO_DEVICE")) return CUDA_ERROR_NO_DEVICE;
  machine().initialised = true;
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  Call call(__func__, kNothing);
  *count = 1;
  return machine().initialised ? call.result() : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  Call call(__func__, kNothing);
  if (call.refused()) return call.result();
  *device = 0;
  if (!machine().initialised) return CUDA_ERROR_NOT_INITIALIZED;
  return ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  Call call(__func__, kNothing);
  snprintf(name, size, "Soft H100");
  return call.result();
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
  Call call(__func__, kNothing);
  *major = 9, *minor = 0;
  return call.result();
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  Call call(__func__, kNothing);
  *bytes = machine().total;
  return call.result();
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  Call call(__func__, kNothing);
  static const std::map<int, int> known = {
      {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},   {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, INT32_MAX},
      {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},         {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132},     {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},   {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
      {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
  };
  const auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return call.result();
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  Call call(__func__, kNothing);
  if (call.refused()) return call.result();
  ++machine().primary.retained;
  *context = &machine().primary;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) {
  Call call(__func__, kEnds);
  if (machine().primary.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --machine().primary.retained;
  return call.result();
}

// Only a context of cuCtxCreate can be detached.
CUresult cuCtxDetach(CUcontext) {
  Call call(__func__, kNothing);
  return CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  Call call(__func__, kNothing);
  if (call.refused()) return call.result();
  if (context != &machine().primary) return CUDA_ERROR_INVALID_CONTEXT;
  if (context->retained == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  contexts().push_back(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  Call call(__func__, kEnds);
  if (contexts().empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = contexts().back();
  contexts().pop_back();
  return call.result();
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  Call call(__func__, kNothing);
  *context = contexts().empty() ? nullptr : contexts().back();
  return call.result();
}

CUresult cuCtxSetCurrent(CUcontext context) {
  Call call(__func__, kNothing);
  if (call.refused()) return call.result();
  if (!contexts().empty()) contexts().pop_back();
  if (context) contexts().push_back(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  Call call(__func__, kContext);
  *device = 0;
  return call.result();
}

CUresult cuCtxGetApiVersion(CUcontext, unsigned* version) {
  *version = 3020;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult result, const char** name) {
  static const std::map<CUresult, const char*> known = {
      {CUDA_SUCCESS, "CUDA_SUCCESS"},
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
      {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
      {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
      {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
      {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
      {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
  };
  const auto found = known.find(result);
  *name = found == known.end() ? "another CUDA error" : found->second;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult result, const char** text) {
  static const std::map<CUresult, const char*> known = {
      {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
      {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
      {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
      {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
      {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
  };
  const auto found = known.find(result);
  if (found == known.end()) return cuGetErrorName(result, text);
  *text = found->second;
  return CUDA_SUCCESS;
}

// By the plain name, in the newest form that is here, as cuda.h chooses it for its own users.
CUresult cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                             CUdriverProcAddressQueryResult* status) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  *function = nullptr;
  std::string known = name;
  if (known == "cuGraphInstantiate") known = "cuGraphInstantiateWithFlags";
  for (const char* version : {"_v4", "_v3", "_v2", ""})
    if (!*function) *function = dlsym(self, (known + version).c_str());
  if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress(const char* name, void** function, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
}
