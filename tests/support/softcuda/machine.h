// The state of the GPU that is none, and what every driver call begins with.
#pragma once

#include <cuda.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace soft {

// One thing a stream was given. When it is its turn, `check` says under the machine's lock what becomes of the context,
// CUDA_SUCCESS if nothing; then `run` runs without the lock.
struct Work {
  std::function<CUresult()> check;
  std::function<void()> run;
};
using Item = std::vector<Work>;  // a graph has many

struct Capture {
  CUstreamCaptureMode mode;
  std::thread::id thread;
  bool broken = false;
  Item nodes{};
};

}  // namespace soft

struct CUstream_st {
  unsigned flags;
  std::deque<soft::Item> queue{};
  uint64_t enqueued = 0, done = 0;
  bool running = false;  // a thread is at its first item, with the lock given back
  std::unique_ptr<soft::Capture> capture{};
};

struct CUevent_st {
  unsigned flags;
  CUstream stream = nullptr;  // none before it is recorded and once its stream is destroyed
  uint64_t mark = 0;          // of the stream's items, how many must be done
};

struct CUctx_st {
  int retained = 0;
};

struct CUmod_st {
  std::string image;
  std::set<CUfunction> functions;
};

struct CUgraph_st {
  soft::Item nodes;
};

struct CUgraphExec_st {
  soft::Item nodes;
};

namespace soft {

// How a failure that a test asked for shows.
enum Failure { kOnce, kSticky, kBreaksCapture };

struct Planned {
  std::string function;  // empty for any
  int in_calls;          // 1 for the next one
  bool every;            // and not only that one
  CUresult result;
  Failure kind;
};

struct Machine {
  std::mutex lock;
  std::condition_variable idle;
  bool initialised = false;
  CUctx_st primary;
  std::map<uintptr_t, size_t> blocks, pinned;
  std::set<CUstream> streams;
  std::set<CUevent> events;
  std::set<CUmodule> modules;
  std::set<CUgraph> graphs;
  std::set<CUgraphExec> executables;
  size_t used = 0, total = size_t{1} << 30;
  std::vector<Planned> planned;
  CUresult sticky = CUDA_SUCCESS;  // what every call returns once the context is broken
  uint64_t calls = 0;
  std::vector<std::string> log, faults;
};

Machine& machine();

// The contexts of this thread, the current one last.
std::vector<CUcontext>& contexts();

// Something no program may do and no driver would tell: the tests look for it when they end.
void fault(const std::string& what);

// What a call needs and how it fails.
enum Needs : unsigned {
  kNothing = 0,
  kContext = 1,  // a current context, and one that is not broken
  kUnsafe = 2,   // forbidden while this thread captures
  kEnds = 4,     // does its work even if it fails: it destroys something, or waits and then tells of an older error
};

// Holds the machine's lock for as long as a call lasts, and knows whether it shall fail.
class Call {
 public:
  Call(const char* function, unsigned needs, const char* about = "");
  bool refused() const { return refused_; }
  CUresult result() const { return result_; }
  std::unique_lock<std::mutex>& lock() { return lock_; }

 private:
  CUresult check(const std::string& name, unsigned needs);
  bool begun(const std::string& name, unsigned needs);

  std::unique_lock<std::mutex> lock_;
  CUresult result_ = CUDA_SUCCESS;
  bool refused_ = false;
};

// Run what a stream was given up to its item number `mark`; `lock` is given back meanwhile.
void drain(std::unique_lock<std::mutex>& lock, CUstream stream, uint64_t mark);

// Queue or record; a stream that does not exist is refused.
CUresult enqueue(CUstream stream, Item item);

// The stream if it exists, or none; the default stream is none, as nothing here may use it.
CUstream known(CUstream stream);

bool on_device(uintptr_t address, size_t size);
bool is_pinned(const void* address, size_t size);

// A kernel of step_cuda.cu as C++.
struct Parameter {
  size_t offset, size;
};
struct Reach {
  const void* from;
  size_t bytes;
};
struct Kernel {
  std::vector<Parameter> parameters;
  size_t bytes;  // of the buffer that holds the parameters
  std::function<void(const unsigned* grid, unsigned threads, const char* buffer)> run;
  std::function<std::vector<Reach>(const unsigned* grid, const char* buffer)> reaches;
};
const std::map<std::string, Kernel>& kernels();

}  // namespace soft

struct CUfunc_st {
  std::string name;
  const soft::Kernel* kernel;
};
