// Device memory, which is host memory that is watched; pinned memory; copies.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "machine.h"

using namespace soft;

namespace {

// Behind every block, so that writing past its end is found when it is freed.
constexpr size_t kGuard = 512;
constexpr unsigned char kFill = 0xA5;
// What is larger is not filled, for the time it takes.
constexpr size_t kFilled = size_t{1} << 24;

bool within(const std::map<uintptr_t, size_t>& blocks, uintptr_t address, size_t size) {
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return false;
  const auto& [start, length] = *std::prev(after);
  return address - start <= length && size <= length - (address - start);
}

void* host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult illegal(const char* what) {
  fault(std::string("an illegal memory access: ") + what);
  return CUDA_ERROR_ILLEGAL_ADDRESS;
}

// Memory may have been freed since work on it was enqueued.
CUresult alive(CUdeviceptr address, size_t size) {
  return on_device(address, size) ? CUDA_SUCCESS : illegal("device memory was freed before its turn came");
}

CUresult alive(const void* pinned, size_t size) {
  return is_pinned(pinned, size) ? CUDA_SUCCESS : illegal("pinned memory was freed before its turn came");
}

// The bytes there now; nothing if the memory has been unmapped.
std::string peek(const void* from, size_t size) {
  std::string now(size, '\0');
  iovec local{now.data(), size}, remote{const_cast<void*>(from), size};
  const ssize_t read = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
  now.resize(read < 0 ? 0 : read);
  return now;
}

// The legacy stream waits for all streams that are not of their own mind.
void drain_blocking(std::unique_lock<std::mutex>& lock) {
  const std::set<CUstream> streams = machine().streams;
  for (CUstream stream : streams)
    if (machine().streams.count(stream) && !(stream->flags & CU_STREAM_NON_BLOCKING) && !stream->capture)
      drain(lock, stream, stream->enqueued);
}

}  // namespace

namespace soft {
bool on_device(uintptr_t address, size_t size) { return within(machine().blocks, address, size); }
bool is_pinned(const void* address, size_t size) {
  return within(machine().pinned, reinterpret_cast<uintptr_t>(address), size);
}
}  // namespace soft

extern "C" {

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  *total = machine().total;
  *free = machine().total - std::min(machine().used, machine().total);
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  if (machine().used + size > machine().total) return CUDA_ERROR_OUT_OF_MEMORY;
  void* block = aligned_alloc(kGuard, (size + 2 * kGuard - 1) / kGuard * kGuard);
  if (size <= kFilled) memset(block, kFill, size);
  memset(static_cast<char*>(block) + size, kFill, kGuard - size % kGuard);
  *address = reinterpret_cast<CUdeviceptr>(block);
  machine().blocks[*address] = size;
  machine().used += size;
  return CUDA_SUCCESS;
}

// Waits for nothing: work that still uses the memory then meets an illegal address.
CUresult cuMemFree(CUdeviceptr address) {
  Call call(__func__, kContext | kUnsafe | kEnds);
  if (call.refused()) return call.result();
  const auto block = machine().blocks.find(address);
  if (block == machine().blocks.end()) return CUDA_ERROR_INVALID_VALUE;
  const size_t size = block->second;
  const unsigned char* end = static_cast<unsigned char*>(host(address)) + size;
  for (size_t k = 0; k < kGuard - size % kGuard; ++k)
    if (end[k] != kFill) {
      fault("written past the end of a block of " + std::to_string(size));
      break;
    }
  machine().used -= size;
  machine().blocks.erase(block);
  free(host(address));
  return call.result();
}

CUresult cuMemHostAlloc(void** address, size_t size, unsigned) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  *address = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  machine().pinned[reinterpret_cast<uintptr_t>(*address)] = size;
  return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* address) {
  Call call(__func__, kContext | kUnsafe | kEnds);
  if (call.refused()) return call.result();
  if (!machine().pinned.erase(reinterpret_cast<uintptr_t>(address))) return CUDA_ERROR_INVALID_VALUE;
  free(address);
  return call.result();
}

// Pageable memory is read before the call returns, as the driver stages it. It has to stay as it is until the stream
// has come to the copy all the same: on machines whose GPU reads pageable memory itself nothing is staged.
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!on_device(to, size)) return CUDA_ERROR_INVALID_VALUE;
  if (is_pinned(from, size)) {
    const auto check = [=] { return std::max(alive(to, size), alive(from, size)); };
    return enqueue(stream, {{check, [=] { memcpy(host(to), from, size); }}});
  }
  auto staged = std::make_shared<std::string>(static_cast<const char*>(from), size);
  const auto check = [=] {
    if (peek(from, size) != *staged) fault("an array was changed or freed before the device read it");
    return alive(to, size);
  };
  return enqueue(stream, {{check, [=] { memcpy(host(to), staged->data(), size); }}});
}

// To pageable memory it returns once the copy is done, as the driver documents.
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!on_device(from, size)) return CUDA_ERROR_INVALID_VALUE;
  const bool pinned = is_pinned(to, size);
  const auto check = [=] { return std::max(alive(from, size), pinned ? alive(to, size) : CUDA_SUCCESS); };
  const CUresult result = enqueue(stream, {{check, [=] { memcpy(to, host(from), size); }}});
  if (result != CUDA_SUCCESS) return result;
  if (!pinned && !stream->capture) drain(call.lock(), stream, stream->enqueued);
  return machine().sticky;
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!on_device(from, size) || !on_device(to, size)) return CUDA_ERROR_INVALID_VALUE;
  const auto check = [=] { return std::max(alive(from, size), alive(to, size)); };
  return enqueue(stream, {{check, [=] { memcpy(host(to), host(from), size); }}});
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t size) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (!on_device(to, size)) return CUDA_ERROR_INVALID_VALUE;
  drain_blocking(call.lock());
  memcpy(host(to), from, size);
  return machine().sticky;
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t size) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (!on_device(from, size)) return CUDA_ERROR_INVALID_VALUE;
  drain_blocking(call.lock());
  memcpy(to, host(from), size);
  return machine().sticky;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!on_device(to, size)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, {{[=] { return alive(to, size); }, [=] { memset(host(to), value, size); }}});
}
}
