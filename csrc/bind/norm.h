// The RMS norm and its gradients (ops/norm.py). Included once per program, by bind.cpp.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "call.h"

namespace mishkit {
namespace {

// (input, weight, epsilon, offset), or (grad, input, weight, epsilon, offset). The rows are as long as
// the weight; the tensors are contiguous.
class RmsNormCall : public Operands {
 public:
  RmsNormCall(StableIValue* stack, bool backward)
      : Operands("rms_norm", stack, backward ? 3 : 2), backward_(backward) {
    memcpy(&a_.epsilon, stack + (backward ? 3 : 2), sizeof a_.epsilon);
    memcpy(&a_.offset, stack + (backward ? 4 : 3), sizeof a_.offset);
  }

  static void forward(StableIValue* stack, uint64_t, uint64_t) {
    RmsNormCall call(stack, false);
    Tensor x = call.leading(0), weight = call.weight_of(x);
    Tensor out = x.empty_like();
    RmsNormArguments& a = call.a_;
    a.out = out.mutable_data();
    const auto kernel = set_in_use().norm->forward[call.dtype_];
    in_parts(a.rows, call.rows_at_least(), [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
    stack[0] = out.release();
  }
  static void backward(StableIValue* stack, uint64_t, uint64_t) {
    RmsNormCall call(stack, true);
    Tensor x = call.leading(1), weight = call.weight_of(x), grad = call.following(0, x);
    Tensor to_x = x.empty_like(), to_weight = weight.empty_like();
    RmsNormArguments& a = call.a_;
    a.grad = grad.data(), a.out = to_x.mutable_data();
    a.parts = call.parts();
    Tensor sums = Tensor::bytes(a.parts * a.columns * (int64_t)sizeof(double));
    a.sums = static_cast<double*>(sums.mutable_data());
    const NormKernels& kernels = *set_in_use().norm;
    in_parts(a.parts, 1, [&](int64_t begin, int64_t end) {
      Tensor scratch = Tensor::bytes(rms_norm_scratch(a.columns));
      kernels.backward[call.dtype_](a, scratch.mutable_data(), begin, end);
    });
    kernels.sums[call.dtype_](a, to_weight.mutable_data());
    stack[0] = to_x.release();
    stack[1] = to_weight.release();
  }

 private:
  Tensor weight_of(const Tensor& x) {
    Tensor weight = take(backward_ ? 2 : 1);
    const bool fits = x.dim && weight.dim == 1 && weight.dtype == x.dtype &&
                      weight.sizes[0] == x.sizes[x.dim - 1] && weight.numel;
    if (!fits) refuse("the weight must have the length and the dtype of the input's rows");
    if (!x.contiguous() || !weight.contiguous()) refuse("input and weight must be contiguous");
    a_.x = x.data(), a_.weight = weight.data();
    a_.columns = weight.numel, a_.rows = x.numel / a_.columns;
    return weight;
  }
  int64_t rows_at_least() const { return std::max<int64_t>(thread_grain / a_.columns, 1); }
  // Depends only on the sizes, so that the order of summation is the same for any number of threads.
  int64_t parts() const {
    constexpr int64_t most = 64;
    return std::clamp<int64_t>(a_.rows / rows_at_least(), 1, most);
  }

  const bool backward_;
  RmsNormArguments a_{};
};

void add_norm(TorchLibraryHandle library) {
  add_operator(library, "rms_norm", RmsNormCall::forward);
  add_operator(library, "rms_norm_backward", RmsNormCall::backward);
}

}  // namespace
}  // namespace mishkit
