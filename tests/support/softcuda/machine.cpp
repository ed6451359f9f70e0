// Calls: which are allowed, which a test wants to fail; and what a test asks of the machine itself (`soft_*`).
#include "machine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace soft {

Machine& machine() {
  // Never destroyed: Python gives things back after the destructors of this library have run.
  static Machine* the = new Machine;
  return *the;
}

std::vector<CUcontext>& contexts() {
  thread_local std::vector<CUcontext> stack;
  return stack;
}

void fault(const std::string& what) {
  machine().faults.push_back(what);
  fprintf(stderr, "softcuda: %s\n", what.c_str());
}

namespace {

// `cuMemAlloc_v2` is what the library calls itself, `cuMemAlloc` what everybody else calls it.
std::string plain(const char* function) {
  std::string name = function;
  const size_t version = name.rfind("_v");
  return version == std::string::npos ? name : name.substr(0, version);
}

// Break every capture that a call of this thread can break; tells whether there was one.
bool break_captures() {
  bool found = false;
  for (CUstream stream : machine().streams) {
    if (!stream->capture || stream->capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    if (stream->capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL &&
        stream->capture->thread != std::this_thread::get_id())
      continue;
    stream->capture->broken = found = true;
  }
  return found;
}

// Never failed as one of any: PyCUDA cannot recover a thread whose context was not popped, and aborts at its end.
bool changes_context(const std::string& name) { return name == "cuCtxPushCurrent" || name == "cuCtxPopCurrent"; }

CUresult planned(const std::string& name) {
  CUresult result = CUDA_SUCCESS;
  for (Planned& plan : machine().planned) {
    if (plan.function.empty() ? changes_context(name) : plan.function != name) continue;
    if (!plan.every && (plan.in_calls == 0 || --plan.in_calls > 0)) continue;
    if (plan.kind == kBreaksCapture)
      break_captures();
    else
      result = plan.result;
    if (plan.kind == kSticky) machine().sticky = plan.result;
  }
  return result;
}

}  // namespace

Call::Call(const char* function, unsigned needs, const char* about) : lock_(machine().lock) {
  const std::string name = plain(function);
  ++machine().calls;
  machine().log.push_back(*about ? name + " " + about : name);
  result_ = check(name, needs);
}

CUresult Call::check(const std::string& name, unsigned needs) {
  Machine& gpu = machine();
  const CUresult wanted = planned(name);
  refused_ = true;
  if (needs & kContext) {
    if (!gpu.initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (contexts().empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (contexts().back()->retained == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  if (needs & kUnsafe && break_captures()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  const CUresult broken = wanted != CUDA_SUCCESS ? wanted : needs & kContext ? gpu.sticky : CUDA_SUCCESS;
  refused_ = broken != CUDA_SUCCESS && !(needs & kEnds);
  return broken;
}

}  // namespace soft

using soft::machine;

extern "C" {

// What is alive, in the order of `Counts` in soft_gpu.py.
void soft_counts(size_t* counts) {
  std::lock_guard<std::mutex> guard(machine().lock);
  const soft::Machine& gpu = machine();
  size_t queued = 0, capturing = 0;
  for (CUstream stream : gpu.streams) {
    queued += stream->enqueued - stream->done;
    capturing += stream->capture != nullptr;
  }
  const size_t all[] = {gpu.used,           gpu.blocks.size(), gpu.pinned.size(),
                        gpu.streams.size(), gpu.events.size(), gpu.modules.size(),
                        gpu.graphs.size(),  gpu.executables.size(), queued,
                        capturing,          soft::contexts().size(), static_cast<size_t>(gpu.primary.retained),
                        gpu.faults.size()};
  memcpy(counts, all, sizeof all);
}

void soft_memory(size_t total) {
  std::lock_guard<std::mutex> guard(machine().lock);
  machine().total = total;
}

// Let the `in_calls`th call from now of a function, or of any if it is empty, fail; 0 for every call.
void soft_fail(const char* function, int in_calls, int result, int kind) {
  std::lock_guard<std::mutex> guard(machine().lock);
  machine().planned.push_back(
      {function, in_calls, in_calls == 0, static_cast<CUresult>(result), static_cast<soft::Failure>(kind)});
}

// No failure is planned any more and the context is whole again.
void soft_heal() {
  std::lock_guard<std::mutex> guard(machine().lock);
  machine().planned.clear();
  machine().faults.clear();
  machine().sticky = CUDA_SUCCESS;
}

// Calls so far; their names from number `since` on go to `text`, a line each, as far as there is room.
uint64_t soft_log(uint64_t since, char* text, size_t room) {
  std::lock_guard<std::mutex> guard(machine().lock);
  std::string lines;
  for (size_t n = since; n < machine().log.size(); ++n) lines += machine().log[n] + "\n";
  if (room) snprintf(text, room, "%s", lines.c_str());
  return machine().calls;
}

// Items that wait in a stream, or -1 if there is no such stream.
long soft_queued(CUstream stream) {
  std::lock_guard<std::mutex> guard(machine().lock);
  return machine().streams.count(stream) ? static_cast<long>(stream->enqueued - stream->done) : -1;
}

// The faults so far, a line each.
void soft_faults(char* text, size_t room) {
  std::lock_guard<std::mutex> guard(machine().lock);
  std::string lines;
  for (const std::string& each : machine().faults) lines += each + "\n";
  snprintf(text, room, "%s", lines.c_str());
}

// Where SOFTCUDA_REPORT is set, what nobody gave back is told when the process ends.
__attribute__((destructor)) void soft_report() {
  if (!getenv("SOFTCUDA_REPORT")) return;
  const soft::Machine& gpu = machine();
  fprintf(stderr,
          "softcuda: %zu blocks, %zu pinned, %zu streams, %zu events, %zu modules, %zu graphs, %zu executables, "
          "%d primary contexts and %zu faults are left\n",
          gpu.blocks.size(), gpu.pinned.size(), gpu.streams.size(), gpu.events.size(), gpu.modules.size(),
          gpu.graphs.size(), gpu.executables.size(), gpu.primary.retained, gpu.faults.size());
}
}
