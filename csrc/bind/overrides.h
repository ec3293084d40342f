// torch's own operators, answered by our kernels for dense CPU tensors of our dtypes. Included once
// per program, by bind.cpp.
//
// An override takes the place of torch's kernel for the dispatch key CPU. Autograd, torch.func,
// autocast and tracing lie above that key, and sparse, quantised and nested tensors have keys of
// their own, so none of them sees a difference. Whatever else arrives goes to torch's own kernel:
// other dtypes, results that have to be resized or converted, overlapping memory, and what torch
// refuses.
//
// An override stays once it is registered, and a flag says whether it answers by itself or passes
// everything on. torch's dispatcher can't exchange a kernel while other threads call it: they would
// find one half of the old kernel beside one half of the new.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "call.h"

namespace mishkit {
namespace {

constexpr bool same_name(const char* a, const char* b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}
constexpr int index_of(const char* name) {
  for (int i = 0; i < function_count; i++)
    if (same_name(names[i], name)) return i;
  return -1;
}

// ---- torch's own kernels: C++ functions, called with handles, which are pointers to at::Tensor ----

// An at::Tensor as such a function returns it: one pointer, in memory that the caller provides.
struct Returned {
  void* tensor;
  Returned(const Returned&) = delete;
  ~Returned() {}  // not trivial, like at::Tensor's; this decides how it is returned
};

StableIValue slot_of(AtenTensorHandle handle) {
  StableIValue slot = 0;
  memcpy(&slot, &handle, sizeof handle);
  return slot;
}
StableIValue slot_of(Returned&& result) {
  AtenTensorHandle handle;
  MISHKIT_CALL(aoti_torch_new_uninitialized_tensor(&handle));
  memcpy(static_cast<void*>(handle), &result.tensor, sizeof result.tensor);
  return slot_of(handle);
}

// A variant of an operator whose schema has nothing but tensors.
template <int function> struct Plain {
  static constexpr int slots = 0;
  explicit Plain(const StableIValue*) {}

  // Our function for this dtype; -1 if torch shall answer.
  int index(int) const { return function; }
  template <class Result, class... Inputs> Result torchs(void* kernel, Inputs... inputs) const {
    return reinterpret_cast<Result (*)(Inputs...)>(kernel)(inputs...);
  }
  template <class... Inputs>
  void torchs_out(void* kernel, AtenTensorHandle out, Inputs... inputs) const {
    reinterpret_cast<void* (*)(Inputs..., AtenTensorHandle)>(kernel)(inputs..., out);
  }
};

// gelu: the inputs are followed by the name of the approximation, a string that the slot owns.
class Gelu {
 public:
  static constexpr int slots = 1;
  explicit Gelu(const StableIValue* slot) {
    memcpy(&text_, slot, sizeof text_);
    size_t length;
    const char* letters;
    MISHKIT_CALL(torch_string_length(text_, &length));
    MISHKIT_CALL(torch_string_c_str(text_, &letters));
    approximate_ = {letters, length};
  }
  Gelu(const Gelu&) = delete;
  ~Gelu() { torch_delete_string(text_); }

  // As above. In float64, torch's exact form is faster than ours.
  int index(int dtype) const {
    if (approximate_ == "none") return dtype == (int)Dtypes::float64 ? -1 : index_of("gelu");
    return approximate_ == "tanh" ? index_of("gelu_tanh") : -1;
  }
  template <class Result, class... Inputs> Result torchs(void* kernel, Inputs... inputs) const {
    return reinterpret_cast<Result (*)(Inputs..., std::string_view)>(kernel)(inputs...,
                                                                            approximate_);
  }
  template <class... Inputs>
  void torchs_out(void* kernel, AtenTensorHandle out, Inputs... inputs) const {
    using Function = void* (*)(Inputs..., std::string_view, AtenTensorHandle);
    reinterpret_cast<Function>(kernel)(inputs..., approximate_, out);
  }

 private:
  StringHandle text_;
  std::string_view approximate_;
};

// ---- The overrides of one operator --------------------------------------------------------------

// Whether torch, too, would give the result exactly these strides. Where a dimension has size 1, its
// stride is arbitrary, and torch does not keep it.
bool is_regular(const Tensor& x) {
  int64_t run = 1, i = x.dim - 1;
  while (i >= 0 && x.strides[i] == run) run *= x.sizes[i--];
  if (i < 0) return true;
  for (int64_t j = 0; j < x.dim; j++)
    if (x.sizes[j] == 1) return false;
  return x.dense();
}

Tensor owned(const StableIValue* slot) {
  AtenTensorHandle handle;
  memcpy(&handle, slot, sizeof handle);
  return Tensor(handle);
}

// ---- Minus infinity: where our functions give their limit, torch's formulas give NaN. -----------
//
// A program that is not changed gets what it got, so the input is looked through, block by block,
// while it is in the cache. Gradients are not: only an infinite input would make a difference there.

// Among integers of an element's bits, minus infinity is the highest but for negative NaN.
#define MISHKIT_HIGHEST(name, attribute)                                  \
  template <class Bits> attribute Bits name(const Bits* x, int64_t n) {   \
    Bits highest = 0;                                                     \
    for (int64_t i = 0; i < n; i++) highest = x[i] > highest ? x[i] : highest; \
    return highest;                                                       \
  }
MISHKIT_HIGHEST(highest_baseline, )
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
MISHKIT_HIGHEST(highest_avx2, __attribute__((target("avx2"))))
MISHKIT_HIGHEST(highest_avx512,
                __attribute__((target("avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif
template <class Bits> Bits highest(const Bits* x, int64_t n) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  static const auto best = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
                               ? highest_avx512<Bits>
                           : __builtin_cpu_supports("avx2") ? highest_avx2<Bits>
                                                            : highest_baseline<Bits>;
  return best(x, n);
#else
  return highest_baseline(x, n);
#endif
}

// f of elements [begin, end), and NaN where the input is minus infinity. Bits is the integer of the
// elements' size; y may be x.
template <class Bits>
void forward_as_torch(const Job& job, Bits minus_infinity, Bits nan, int64_t begin, int64_t end) {
  constexpr int64_t block = 8192 / sizeof(Bits);  // the fastest cache has room for two
  static_assert(block % kernel_grain == 0);
  const Bits* x = static_cast<const Bits*>(job.arguments.in[0]);
  Bits* y = static_cast<Bits*>(job.arguments.out[0]);
  for (int64_t stop; begin < end; begin = stop) {
    stop = begin + block < end ? begin + block : end;
    Bits copy[block];
    const Bits* kept = x + begin;
    if (x == y) kept = static_cast<Bits*>(memcpy(copy, kept, (stop - begin) * sizeof(Bits)));
    job.kernel(job.arguments, begin, stop);
    if (highest(kept, stop - begin) >= minus_infinity)
      for (int64_t i = begin; i < stop; i++)
        if (kept[i - begin] == minus_infinity) y[i] = nan;
  }
}

Job job_for(int function, Bodies body, int dtype, const void* first, const void* second, void* out,
            int64_t numel) {
  static constexpr double none[max_parameters] = {};
  Job job{set_in_use().functions[function].kernels[dtype][(int)body], {}, numel};
  job.arguments.in[0] = first, job.arguments.in[1] = second, job.arguments.out[0] = out;
  job.arguments.parameters = none;
  job.arguments.streaming =
      streaming_pays(first, out, numel * element_size(codes().dtype[dtype]));
  return job;
}
void compute_forward(int function, int dtype, const void* x, void* y, int64_t numel) {
  const Job job = job_for(function, Bodies::forward, dtype, x, nullptr, y, numel);
  in_threads(numel, [&](int64_t begin, int64_t end) {
    switch ((Dtypes)dtype) {
      case Dtypes::float32:
        return forward_as_torch<uint32_t>(job, 0xff800000, 0x7fc00000, begin, end);
      case Dtypes::float64:
        return forward_as_torch<uint64_t>(job, 0xfff0000000000000, 0x7ff8000000000000, begin, end);
      case Dtypes::bfloat16:
        return forward_as_torch<uint16_t>(job, 0xff80, 0x7fc0, begin, end);
      case Dtypes::float16:
        return forward_as_torch<uint16_t>(job, 0xfc00, 0x7e00, begin, end);
    }
  });
}
void compute_backward(int function, int dtype, const void* grad, const void* x, void* out,
                      int64_t numel) {
  run(job_for(function, Bodies::backward, dtype, grad, x, out, numel));
}

template <class Operator> struct Overrides {
  using Stack = StableIValue*;
  enum { functional, in_place, out_of, gradient, gradient_out, variants };
  static inline void* torchs[variants];  // torch's own kernels
  static inline std::atomic<bool> answers{false};

  static void forward(Stack stack, uint64_t, uint64_t) {
    Tensor x = owned(stack);
    const Operator given(stack + 1);
    const int dtype = dtype_of(x.dtype), function = function_for(given, dtype);
    if (function < 0 || !(is_regular(x) || !x.dense())) {
      stack[0] = slot_of(given.template torchs<Returned>(torchs[functional], x.handle()));
      return;
    }
    if (!x.dense()) x = x.clone();
    Tensor y = x.empty_like();
    compute_forward(function, dtype, x.data(), y.mutable_data(), x.numel);
    stack[0] = y.release();
  }

  static void overwrite(Stack stack, uint64_t, uint64_t) {
    Tensor x = owned(stack);
    const Operator given(stack + 1);
    const int dtype = dtype_of(x.dtype), function = function_for(given, dtype);
    if (function < 0 || !x.dense())
      given.template torchs<void*>(torchs[in_place], x.handle());
    else {
      void* data = x.mutable_data();
      compute_forward(function, dtype, data, data, x.numel);
    }
    stack[0] = x.release();
  }

  static void forward_out(Stack stack, uint64_t, uint64_t) {
    Tensor x = owned(stack), out = owned(stack + 1 + Operator::slots);
    const Operator given(stack + 1);
    const int dtype = dtype_of(x.dtype), function = function_for(given, dtype);
    if (function < 0 || !fits(out, x) || overlaps(out, x))
      given.torchs_out(torchs[out_of], out.handle(), x.handle());
    else
      compute_forward(function, dtype, x.data(), out.mutable_data(), x.numel);
    stack[0] = out.release();
  }

  static void backward(Stack stack, uint64_t, uint64_t) {
    Tensor grad = owned(stack), x = owned(stack + 1);
    const Operator given(stack + 2);
    const int dtype = dtype_of(x.dtype), function = function_for(given, dtype);
    const bool both = function >= 0 && grad.dtype == x.dtype && grad.same_sizes(x);
    // The result has the layout of grad, as with torch, unless grad is one number for all.
    const bool by_grad = both && is_regular(grad);
    if (!by_grad && !(both && grad.is_one_number() && is_regular(x))) {
      stack[0] = slot_of(
          given.template torchs<Returned>(torchs[gradient], grad.handle(), x.handle()));
      return;
    }
    if (!grad.same_strides(x)) {
      Tensor& other = by_grad ? x : grad;
      other = other.laid_out_as(by_grad ? grad : x);
    }
    Tensor result = x.empty_like();
    compute_backward(function, dtype, grad.data(), x.data(), result.mutable_data(), x.numel);
    stack[0] = result.release();
  }

  static void backward_out(Stack stack, uint64_t, uint64_t) {
    Tensor grad = owned(stack), x = owned(stack + 1), out = owned(stack + 2 + Operator::slots);
    const Operator given(stack + 2);
    const int dtype = dtype_of(x.dtype), function = function_for(given, dtype);
    if (function < 0 || !fits(grad, x) || !fits(out, x) || overlaps(out, x) ||
        overlaps(out, grad))
      given.torchs_out(torchs[gradient_out], out.handle(), grad.handle(), x.handle());
    else
      compute_backward(function, dtype, grad.data(), x.data(), out.mutable_data(), x.numel);
    stack[0] = out.release();
  }

 private:
  static int function_for(const Operator& given, int dtype) {
    const bool ours = dtype >= 0 && answers.load(std::memory_order_relaxed);
    return ours ? given.index(dtype) : -1;
  }
  static bool fits(const Tensor& t, const Tensor& x) {
    return t.dtype == x.dtype && t.same_sizes(x) && t.same_strides(x) && x.dense();
  }
  static bool overlaps(const Tensor& out, const Tensor& x) {
    return overlap_in_part(out.data(), x.data(), x.numel * element_size(x.dtype));
  }
};

// ---- The table ----------------------------------------------------------------------------------

using Mish = Overrides<Plain<index_of("mish")>>;
using SiLU = Overrides<Plain<index_of("silu")>>;
using Hardswish = Overrides<Plain<index_of("hardswish")>>;
using GELU = Overrides<Gelu>;

struct Override {
  const char* overload;  // of the namespace aten
  void (*kernel)(StableIValue*, uint64_t, uint64_t);
  void** torchs;
};
constexpr Override overrides[] = {
    {"mish", Mish::forward, &Mish::torchs[Mish::functional]},
    {"mish_", Mish::overwrite, &Mish::torchs[Mish::in_place]},
    {"mish.out", Mish::forward_out, &Mish::torchs[Mish::out_of]},
    {"mish_backward", Mish::backward, &Mish::torchs[Mish::gradient]},
    {"silu", SiLU::forward, &SiLU::torchs[SiLU::functional]},
    {"silu_", SiLU::overwrite, &SiLU::torchs[SiLU::in_place]},
    {"silu.out", SiLU::forward_out, &SiLU::torchs[SiLU::out_of]},
    {"silu_backward", SiLU::backward, &SiLU::torchs[SiLU::gradient]},
    {"silu_backward.grad_input", SiLU::backward_out, &SiLU::torchs[SiLU::gradient_out]},
    {"gelu", GELU::forward, &GELU::torchs[GELU::functional]},
    {"gelu_", GELU::overwrite, &GELU::torchs[GELU::in_place]},
    {"gelu.out", GELU::forward_out, &GELU::torchs[GELU::out_of]},
    {"gelu_backward", GELU::backward, &GELU::torchs[GELU::gradient]},
    {"gelu_backward.grad_input", GELU::backward_out, &GELU::torchs[GELU::gradient_out]},
    {"hardswish", Hardswish::forward, &Hardswish::torchs[Hardswish::functional]},
    {"hardswish_", Hardswish::overwrite, &Hardswish::torchs[Hardswish::in_place]},
    {"hardswish.out", Hardswish::forward_out, &Hardswish::torchs[Hardswish::out_of]},
    {"hardswish_backward", Hardswish::backward, &Hardswish::torchs[Hardswish::gradient]},
};

struct Answers {
  const char* function;  // its name in torch
  std::atomic<bool>* flag;
};
constexpr Answers all_answers[] = {{"mish", &Mish::answers},
                                   {"silu", &SiLU::answers},
                                   {"gelu", &GELU::answers},
                                   {"hardswish", &Hardswish::answers}};

// Takes the place of torch's own kernel, which is passed.
void add_override(const char* overload, void* torchs) {
  for (const Override& override : overrides) {
    if (strcmp(override.overload, overload) != 0) continue;
    *override.torchs = torchs;
    TorchLibraryHandle library;
    MISHKIT_CALL(aoti_torch_library_init_impl("aten", "CPU", __FILE__, __LINE__, &library));
    add_operator(library, overload, override.kernel);
  }
}

}  // namespace
}  // namespace mishkit
