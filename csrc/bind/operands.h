// What every elementwise operator does with its tensors: checks, layouts, threads. Included once
// per program, by bind.cpp.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

#include "../kernels.h"
#include "tensor.h"
#include "torch_c.h"

namespace mishkit {
namespace {

// The least number of elements per thread where their cost is not measured.
constexpr int64_t thread_grain = 16384;
// About how many nanoseconds it costs to start another thread, to move its part of the data to its
// caches and to wait for it, by benchmarks/threads.py. Two threads save time if one would take twice
// as long.
constexpr int64_t thread_ns = 3500;
// So many elements are computed at first, to measure what they cost.
constexpr int64_t first_elements = 4096;
// Output size in bytes above which bypassing the caches pays: no last-level cache would keep it.
constexpr int64_t streaming_bytes = int64_t{32} << 20;
constexpr uintptr_t streaming_alignment = 64;

// Calls work(begin, end) for parts of at least `grain` that cover [0, count).
template <class Work> void in_parts(int64_t count, int64_t grain, const Work& work) {
  if (count <= grain) return work(0, count);
  auto part = [](int64_t begin, int64_t end, void* work) {
    (*static_cast<const Work*>(work))(begin, end);
  };
  MISHKIT_CALL(torch_parallel_for(0, count, grain, part, const_cast<Work*>(&work)));
}

// Calls work(begin, end) for parts that cover all elements. What an element costs differs a thousandfold
// between functions, types and CPUs, so the first ones tell how many threads the others are worth.
template <class Work> void in_threads(int64_t numel, const Work& work) {
  uint32_t threads = 1;
  if (numel > 2 * first_elements) MISHKIT_CALL(torch_get_num_threads(&threads));
  if (threads == 1) return work(0, numel);
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  work(0, first_elements);
  const std::chrono::nanoseconds took = Clock::now() - start;
  // Whole units, so that no two threads share a byte of the side.
  constexpr int64_t unit = kernel_grain, first = first_elements / unit;
  const int64_t grain = 2 * thread_ns * first / (took.count() + 1) + 1;
  in_parts((numel + unit - 1) / unit - first, grain, [&](int64_t begin, int64_t end) {
    const int64_t last = (first + end) * unit;
    work((first + begin) * unit, last < numel ? last : numel);
  });
}

// Whether to write past the caches. Not in place, where the cache lines are already loaded.
bool streaming_pays(const void* in, const void* out, int64_t bytes) {
  return bytes >= streaming_bytes &&
         reinterpret_cast<uintptr_t>(out) % streaming_alignment == 0 && in != out;
}

// Whether two arrays of this size share memory in part; the very same memory is fine.
bool overlap_in_part(const void* first, const void* second, uintptr_t bytes) {
  const auto a = reinterpret_cast<uintptr_t>(first), b = reinterpret_cast<uintptr_t>(second);
  return a != b && a < b + bytes && b < a + bytes;
}

// The tensors of one operator call, by their positions among its arguments.
class Operands : public Inputs {
 public:
  using Inputs::Inputs;

  // The tensor that determines dtype and layout; copied if it is not dense.
  Tensor leading(int place) {
    Tensor x = take(place);
    dtype_ = dtype_of(x.dtype);
    if (dtype_ < 0) refuse("expected a tensor of float32, float64, bfloat16 or float16");
    return x.dense() ? static_cast<Tensor&&>(x) : x.clone();
  }
  // Another input, converted to the layout of the leading one.
  Tensor following(int place, const Tensor& leading) {
    Tensor t = take(place);
    if (t.dtype != leading.dtype || !t.same_sizes(leading))
      refuse("the tensors differ in dtype or shape");
    return t.same_strides(leading) ? static_cast<Tensor&&>(t) : t.laid_out_as(leading);
  }

 protected:
  bool streaming_pays(const void* in, const void* out, int64_t numel) const {
    return mishkit::streaming_pays(in, out, numel * element_size(codes().dtype[dtype_]));
  }

  int dtype_ = -1;
};

}  // namespace
}  // namespace mishkit
