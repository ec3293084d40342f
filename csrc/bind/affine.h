// The operators that recompute what follows a normalisation (ops/affine.py). Included once per
// program, by bind.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "blend.h"
#include "call.h"

namespace mishkit {
namespace {

// Numbers per channel, row or column: one dense run, in the type that x is computed in.
const void* numbers_of(const Inputs& inputs, const Tensor& t, int dtype, int64_t count) {
  const auto computed = dtype == (int)Dtypes::float64 ? Dtypes::float64 : Dtypes::float32;
  if (t.dtype != codes().dtype[(int)computed] || t.numel != count || !t.dense())
    inputs.refuse("the numbers must be dense, of the right count, in float32 or float64");
  return t.data();
}

// (input or grad and input, scale, shift, f, its numbers), as for blend; f is −1 for no function.
class AffineCall : public Operands {
 public:
  AffineCall(StableIValue* stack, bool backward)
      : Operands("affine", stack, backward ? 4 : 3), backward_(backward) {
    const StableIValue* slots = stack + (backward ? 4 : 3);
    memcpy(&index_, slots++, sizeof index_);
    memcpy(parameters_, slots, most_numbers() * sizeof(double));
  }

  static void forward(StableIValue* stack, uint64_t, uint64_t) {
    AffineCall call(stack, false);
    Tensor x = call.leading(0);
    stack[0] = call.run(nullptr, x, call.take(1), call.take(2)).release();
  }
  static void backward(StableIValue* stack, uint64_t, uint64_t) {
    AffineCall call(stack, true);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x);
    stack[0] = call.run(grad.data(), x, call.take(2), call.take(3)).release();
  }

 private:
  Tensor run(const void* grad, const Tensor& x, Tensor scale, Tensor shift) const {
    if (index_ < -backward_is_needed() || index_ >= function_count)
      refuse("there is no such function");
    const bool by_sample = scale.dim == 2;
    const bool fits = x.dim > 1 && (scale.dim == 1 || by_sample) && scale.same_sizes(shift) &&
                      scale.sizes[scale.dim - 1] == x.sizes[1] &&
                      (!by_sample || scale.sizes[0] == x.sizes[0]);
    if (!fits) refuse("scale and shift must have a number per channel, or per sample and channel");
    if (by_sample && x.numel && x.sizes[0] > 1 && x.strides[0] * x.sizes[0] != x.numel)
      refuse("the samples of the input must follow each other in memory");
    Tensor out = x.empty_like();
    if (!x.numel) return out;
    AffineArguments a{};
    a.grad = grad, a.x = x.data(), a.out = out.mutable_data();
    a.scale = numbers_of(*this, scale, dtype_, scale.numel);
    a.shift = numbers_of(*this, shift, dtype_, scale.numel);
    a.sample = by_sample ? x.numel / x.sizes[0] : x.numel;
    a.channels = x.sizes[1];
    a.inner = a.channels == 1 ? a.sample : x.strides[1];
    a.parameters = parameters_, a.streaming = !grad && streaming_pays(a.x, a.out, x.numel);
    if (index_ >= 0) {
      const Bodies body = grad ? Bodies::backward : Bodies::forward;
      a.kernel = set_in_use().functions[index_].kernels[dtype_][(int)body];
    }
    const AffineKernel kernel = set_in_use().affine->affine[dtype_];
    in_threads(x.numel, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
    return out;
  }
  // A gradient needs a function to pass through.
  int64_t backward_is_needed() const { return backward_ ? 0 : 1; }

  const bool backward_;
  int64_t index_;
  double parameters_[max_parameters];
};

// (input, mean, rstd, weight, bias): the input's last dimensions are as many elements as `weight`.
void layer_norm_again(StableIValue* stack, uint64_t, uint64_t) {
  struct LayerNorm : Operands {
    using Operands::Operands;
    StableIValue run() {
      Tensor x = leading(0), mean = take(1), rstd = take(2), weight = take(3), bias = take(4);
      if (!x.contiguous()) refuse("the input must be contiguous");
      const int64_t columns = weight.numel, rows = columns ? x.numel / columns : 0;
      if (rows * columns != x.numel) refuse("the weight must have as many numbers as a row");
      Tensor out = x.empty_like();
      LayerNormArguments a{x.data(), out.mutable_data(), nullptr, nullptr, nullptr, nullptr, columns};
      a.mean = numbers_of(*this, mean, dtype_, rows);
      a.rstd = numbers_of(*this, rstd, dtype_, rows);
      a.weight = numbers_of(*this, weight, dtype_, columns);
      a.bias = numbers_of(*this, bias, dtype_, columns);
      const LayerNormKernel kernel = set_in_use().affine->layer_norm[dtype_];
      const int64_t grain = columns < thread_grain ? thread_grain / columns : 1;
      in_parts(rows, grain, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
      return out.release();
    }
  };
  stack[0] = LayerNorm("layer_norm_again", stack, 5).run();
}

void add_affine(TorchLibraryHandle library) {
  add_operator(library, "affine", AffineCall::forward);
  add_operator(library, "affine_backward", AffineCall::backward);
  add_operator(library, "layer_norm_again", layer_norm_again);
}

}  // namespace
}  // namespace mishkit
