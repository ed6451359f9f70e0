// Streams, which run when somebody waits for them; events; captures and the graphs that come of them.
#include "machine.h"

using namespace soft;

namespace {

// While a host function of a stream runs, which must not call the driver.
thread_local bool in_work = false;

// Without the lock, as a function of the host may need what another thread holds that waits for the lock.
void run(std::unique_lock<std::mutex>& lock, const Work& work) {
  lock.unlock();
  in_work = true;
  work.run();
  in_work = false;
  lock.lock();
}

CUresult allowed() { return CUDA_SUCCESS; }

CUresult wait(Call& call, CUstream stream, uint64_t mark) {
  drain(call.lock(), stream, mark);
  return call.result() != CUDA_SUCCESS ? call.result() : machine().sticky;
}

// Whether `call` may wait for or ask about a stream: one that is captured is broken by it.
bool captured(CUstream stream) {
  if (!stream->capture) return false;
  stream->capture->broken = true;
  return true;
}

}  // namespace

namespace soft {

CUstream known(CUstream stream) { return machine().streams.count(stream) ? stream : nullptr; }

void drain(std::unique_lock<std::mutex>& lock, CUstream stream, uint64_t mark) {
  while (stream->done < mark) {
    if (stream->running) {
      machine().idle.wait(lock);
      continue;
    }
    const Item item = std::move(stream->queue.front());
    stream->queue.pop_front();
    stream->running = true;
    for (const Work& work : item) {
      if (machine().sticky == CUDA_SUCCESS) machine().sticky = work.check();
      if (machine().sticky == CUDA_SUCCESS) run(lock, work);
    }
    stream->running = false;
    ++stream->done;
    machine().idle.notify_all();
  }
}

CUresult enqueue(CUstream stream, Item item) {
  if (in_work) return CUDA_ERROR_NOT_PERMITTED;
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture && stream->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (stream->capture) {
    Item& nodes = stream->capture->nodes;
    nodes.insert(nodes.end(), item.begin(), item.end());
  } else {
    stream->queue.push_back(std::move(item));
    ++stream->enqueued;
  }
  return CUDA_SUCCESS;
}

}  // namespace soft

extern "C" {

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  *stream = new CUstream_st{flags};
  machine().streams.insert(*stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
  Call call(__func__, kContext | kEnds);
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  drain(call.lock(), stream, stream->enqueued);
  for (CUevent event : machine().events)
    if (event->stream == stream) event->stream = nullptr;
  machine().streams.erase(stream);
  delete stream;
  return call.result();
}

CUresult cuStreamSynchronize(CUstream stream) {
  Call call(__func__, kContext | kUnsafe | kEnds);
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (captured(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return wait(call, stream, stream->enqueued);
}

// One item is done a question, so that whoever asks until it is done comes to an end.
CUresult cuStreamQuery(CUstream stream) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (captured(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->done == stream->enqueued) return CUDA_SUCCESS;
  drain(call.lock(), stream, stream->done + 1);
  return machine().sticky != CUDA_SUCCESS ? machine().sticky : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamGetFlags(CUstream stream, unsigned* flags) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  *flags = stream->flags;
  return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  *status = !stream->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                      : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}

// What follows in `stream` comes after what `event` marks; across the border of a capture it is refused.
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!known(stream) || !machine().events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) {
    stream->capture->broken = true;
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  // As late as the stream itself would be too late for one that is waited for: the other one is waited for now.
  if (event->stream) drain(call.lock(), event->stream, event->mark);
  return machine().sticky;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  return enqueue(stream, {{allowed, [=] { function(data); }}});
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  *event = new CUevent_st{flags};
  machine().events.insert(*event);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
  Call call(__func__, kContext | kEnds);
  if (call.refused()) return call.result();
  if (!machine().events.erase(event)) return CUDA_ERROR_INVALID_HANDLE;
  delete event;
  return call.result();
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!known(stream) || !machine().events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
  if (const CUresult result = enqueue(stream, {{allowed, [] {}}}); result != CUDA_SUCCESS)
    return result;
  if (!stream->capture) event->stream = stream, event->mark = stream->enqueued;
  return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) {
  Call call(__func__, kContext | kUnsafe | kEnds);
  if (call.refused()) return call.result();
  if (!machine().events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
  return event->stream ? wait(call, event->stream, event->mark) : call.result();
}

CUresult cuEventQuery(CUevent event) {
  Call call(__func__, kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (!machine().events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
  CUstream stream = event->stream;
  if (!stream || stream->done >= event->mark) return CUDA_SUCCESS;
  drain(call.lock(), stream, stream->done + 1);
  return machine().sticky != CUDA_SUCCESS ? machine().sticky : CUDA_ERROR_NOT_READY;
}

CUresult cuCtxSynchronize() {
  Call call(__func__, kContext | kUnsafe | kEnds);
  if (call.refused()) return call.result();
  const std::set<CUstream> streams = machine().streams;
  for (CUstream stream : streams)
    if (known(stream)) drain(call.lock(), stream, stream->enqueued);
  return call.result() != CUDA_SUCCESS ? call.result() : machine().sticky;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = std::make_unique<Capture>();
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  Call call(__func__, kContext | kEnds);
  *graph = nullptr;
  if (call.refused()) return call.result();
  if (!known(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  if (stream->capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      stream->capture->thread != std::this_thread::get_id())
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  const std::unique_ptr<Capture> capture = std::move(stream->capture);
  if (call.result() != CUDA_SUCCESS) return call.result();
  if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *graph = new CUgraph_st{capture->nodes};
  machine().graphs.insert(*graph);
  return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode*, size_t* count) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!machine().graphs.count(graph)) return CUDA_ERROR_INVALID_VALUE;
  *count = graph->nodes.size();
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  Call call("cuGraphInstantiate", kContext | kUnsafe);
  if (call.refused()) return call.result();
  if (!machine().graphs.count(graph)) return CUDA_ERROR_INVALID_VALUE;
  *executable = new CUgraphExec_st{graph->nodes};
  machine().executables.insert(*executable);
  return CUDA_SUCCESS;
}

CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  return known(stream) && machine().executables.count(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  Call call(__func__, kContext);
  if (call.refused()) return call.result();
  if (!machine().executables.count(executable)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, executable->nodes);
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
  Call call(__func__, kContext | kEnds);
  if (call.refused()) return call.result();
  if (!machine().executables.erase(executable)) return CUDA_ERROR_INVALID_VALUE;
  delete executable;
  return call.result();
}

CUresult cuGraphDestroy(CUgraph graph) {
  Call call(__func__, kContext | kEnds);
  if (call.refused()) return call.result();
  if (!machine().graphs.erase(graph)) return CUDA_ERROR_INVALID_VALUE;
  delete graph;
  return call.result();
}
}
