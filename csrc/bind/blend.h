// The operators that combine two functions (ops/blend.py). Included once per program, by bind.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "call.h"

namespace mishkit {
namespace {

// How many numbers follow each function in the schemas: as many as any function has.
int most_numbers() {
  static const int most = [] {
    int most = 0;
    for (int i = 0; i < function_count; i++) {
      const int count = sets().set[0]->functions[i].parameter_count;
      most = count > most ? count : most;
    }
    return most;
  }();
  return most;
}

// (input or grad and input, f, its numbers, g, its numbers, t): each function is followed by as
// many numbers as any function has at most; its own numbers come first.
class BlendCall : public Operands {
 public:
  BlendCall(StableIValue* stack, bool backward)
      : Operands("blend", stack, backward ? 2 : 1),
        set_(set_in_use()),
        backward_(backward) {
    const StableIValue* slots = stack + (backward ? 2 : 1);
    for (int i = 0; i < 2; i++) {
      memcpy(&index_[i], slots++, sizeof index_[i]);
      memcpy(parameters_[i], slots, most_numbers() * sizeof(double));
      slots += most_numbers();
    }
    memcpy(&t_, slots, sizeof t_);
  }

  static void forward(StableIValue* stack, uint64_t, uint64_t) {
    BlendCall call(stack, false);
    Tensor x = call.leading(0), y = x.empty_like();
    call.run(nullptr, x.data(), y.mutable_data(), x.numel);
    stack[0] = y.release();
  }
  static void backward(StableIValue* stack, uint64_t, uint64_t) {
    BlendCall call(stack, true);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x), result = x.empty_like();
    call.run(grad.data(), x.data(), result.mutable_data(), x.numel);
    stack[0] = result.release();
  }

 private:
  void run(const void* grad, const void* x, void* out, int64_t numel) const {
    if (!(0 <= t_ && t_ <= 1)) refuse("t must be from 0 to 1");
    const FunctionKernels* functions[2];
    for (int i = 0; i < 2; i++) {
      if (index_[i] < 0 || index_[i] >= function_count) refuse("there is no such function");
      functions[i] = &set_.functions[index_[i]];
    }
    const int body = (int)(backward_ ? Bodies::backward : Bodies::forward);
    const bool streaming = !backward_ && streaming_pays(x, out, numel);
    // A smaller weight would be 0 in float, and 0 times an infinite f(x) is NaN.
    constexpr double least = 1e-37;
    if (t_ < least || t_ == 1) {
      const int which = t_ == 1;
      Arguments a{};
      a.in[0] = backward_ ? grad : x, a.in[1] = x, a.out[0] = out;
      a.parameters = parameters_[which], a.streaming = streaming;
      mishkit::run(Job{functions[which]->kernels[dtype_][body], a, numel});
      return;
    }
    const Dtypes computed = dtype_ == (int)Dtypes::float64 ? Dtypes::float64 : Dtypes::float32;
    BlendArguments a{grad, x, out, {}, {parameters_[0], parameters_[1]}, t_, streaming};
    for (int i = 0; i < 2; i++) a.kernels[i] = functions[i]->kernels[(int)computed][body];
    const bool dead = functions[0]->is_dead && functions[1]->is_dead;
    const BlendKernel kernel = set_.blend->of[dtype_][backward_ ? 1 + dead : 0];
    in_threads(numel, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }

  const InstructionSet& set_;
  const bool backward_;
  int64_t index_[2];
  double parameters_[2][max_parameters];
  double t_;
};

void add_blend(TorchLibraryHandle library) {
  add_operator(library, "blend", BlendCall::forward);
  add_operator(library, "blend_backward", BlendCall::backward);
}

}  // namespace
}  // namespace mishkit
