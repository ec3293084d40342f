// Calls with trained parameters: checks, splitting the work, and the sums. Included once per
// program, by bind.cpp.
#pragma once
#include <algorithm>
#include <cstdint>

#include "call.h"

namespace mishkit {
namespace {

// How many parts the work with trained parameters has. Depends only on the sizes, so that the order
// of summation is the same for any number of threads.
int64_t parts_of(const TrainedArguments& a, int64_t parameters) {
  constexpr int64_t most = 64, most_sums = 1 << 17;
  int64_t by_work = (a.outer * a.channels * a.inner + thread_grain - 1) / thread_grain;
  int64_t by_memory = most_sums / (parameters * a.channels) + 1;
  int64_t parts = by_work < by_memory ? by_work : by_memory;
  return parts < most ? parts : most;
}

// Scratch elements per parameter: its pattern, and sums of the same shape.
int64_t pattern_elements(const TrainedArguments& a) {
  if (a.channels == 1 || a.inner >= long_run) return 0;
  int64_t row = a.channels * a.inner;
  return 2 * ((row < long_row ? row * most_rows : row) + most_pair);
}

void run(TrainedKernel kernel, const TrainedArguments& arguments, int64_t scratch_bytes) {
  in_parts(arguments.parts, 1, [&](int64_t begin, int64_t end) {
    Tensor scratch = Tensor::bytes(scratch_bytes);
    kernel(arguments, scratch_bytes ? scratch.mutable_data() : nullptr, begin, end);
  });
}

// One call of an operator whose parameters are passed as a tensor.
class TrainedCall : public Call {
 public:
  TrainedCall(int function, StableIValue* stack, int tensors)
      : Call(function, Bodies::forward, stack, tensors, Unread{}) {}

  // The trained parameters: one row each, of one number or one per channel of x.
  Tensor trained(int place, const Tensor& x) {
    Tensor p = take(place);
    const int32_t wide = x.dtype == double_code() ? x.dtype : codes().dtype[(int)Dtypes::float32];
    bool fits = p.dtype == wide && p.dim == 2 && p.sizes[0] == function_.parameter_count;
    bool channels = fits && p.sizes[1] > 1 && x.dim > 1 && p.sizes[1] == x.sizes[1];
    if (!fits || !(channels || p.sizes[1] == 1))
      refuse("the parameters must be rows of one number, or of one a channel, in float32 or float64");
    const int64_t strides[] = {p.sizes[1], 1};
    Tensor row_major = Tensor::empty(2, p.sizes, strides, p.dtype);
    if (!p.same_strides(row_major)) {
      row_major.copy(p);
      p = static_cast<Tensor&&>(row_major);
    }
    trained_.channels = channels ? x.sizes[1] : 1;
    trained_.inner = !x.numel ? 0 : channels ? x.strides[1] : x.numel;
    trained_.outer = x.numel ? x.numel / (trained_.channels * trained_.inner) : 0;
    trained_.parameters = p.data();
    return p;
  }
  // With one number per parameter, the forward pass is the same as for fixed parameters.
  bool is_fixed() const { return trained_.channels == 1; }
  void fix() {
    for (int i = 0; i < function_.parameter_count; i++)
      parameters_[i] = dtype_ == (int)Dtypes::float64
                           ? static_cast<const double*>(trained_.parameters)[i]
                           : static_cast<const float*>(trained_.parameters)[i];
  }
  void run_trained() {
    if (!trained_.parts) trained_.parts = parts_of(trained_, function_.parameter_count);
    mishkit::run(function_.trained[dtype_], trained_,
                 pattern_elements(trained_) * function_.parameter_count *
                     (dtype_ == (int)Dtypes::float64 ? 8 : 4));
  }
  // The gradients of the parameters: the sums of all parts, added in order.
  Tensor run_trained_backward(const Tensor& parameters) {
    trained_.parts = parts_of(trained_, function_.parameter_count);
    const int64_t count = parameters.numel, size = trained_.parts * count, one = 1;
    Tensor sums = Tensor::empty(1, &size, &one, double_code());
    trained_.sums = static_cast<double*>(sums.mutable_data());
    std::fill_n(trained_.sums, size, 0.0);
    run_trained();
    Tensor result = Tensor::empty(2, parameters.sizes, parameters.strides, parameters.dtype);
    for (int64_t i = 0; i < count; i++) {
      double total = 0;
      for (int64_t part = 0; part < trained_.parts; part++)
        total += trained_.sums[part * count + i];
      if (dtype_ == (int)Dtypes::float64) static_cast<double*>(result.mutable_data())[i] = total;
      else static_cast<float*>(result.mutable_data())[i] = (float)total;
    }
    return result;
  }
  TrainedArguments& trained_arguments() { return trained_; }

 private:
  static int32_t double_code() { return codes().dtype[(int)Dtypes::float64]; }

  TrainedArguments trained_{};
};

}  // namespace
}  // namespace mishkit
