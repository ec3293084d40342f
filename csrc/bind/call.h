// One call of one function's operator: its arguments, and the kernel to run. Included once per
// program, by bind.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "../functions/table.h"
#include "isa.h"
#include "operands.h"

namespace mishkit {
namespace {

struct Job {
  Kernel kernel;
  Arguments arguments;
  int64_t numel;
};

void run(const Job& job) {
  in_threads(job.numel, [&](int64_t begin, int64_t end) { job.kernel(job.arguments, begin, end); });
}

constexpr const char* names[] = {
#define X(name, Class) #name,
    MISHKIT_FUNCTIONS(X)
#undef X
};
constexpr int function_count = sizeof names / sizeof *names;

// One call of one operator: takes the tensors off the stack, checks them and runs a kernel.
class Call : public Operands {
 public:
  Call(int function, Bodies body, StableIValue* stack, int tensors)
      : Call(function, body, stack, tensors, Unread{}) {
    for (int i = 0; i < function_.parameter_count; i++)
      memcpy(&parameters_[i], &stack[tensors + i], sizeof(double));
  }

  Tensor side_for(const Tensor& x) {
    return Tensor::bytes(function_.has_turn ? (x.numel + 7) / 8 : 0);
  }
  Tensor side_of(int place, const Tensor& y) {
    Tensor side = take(place);
    bool fits = side.dtype == codes().uint8 && side.numel == (y.numel + 7) / 8 && side.dense();
    if (function_.has_turn && !fits)
      refuse("the side must be a row of one bit an element, packed in uint8");
    return side;
  }

  void run(int64_t numel) {
    const Arguments& a = job_.arguments;
    job_.arguments.streaming = streaming_pays(a.in[0], a.out[0], numel);
    job_.kernel = function_.kernels[dtype_][(int)body_];
    job_.numel = numel;
    mishkit::run(job_);
  }
  Arguments& arguments() { return job_.arguments; }

 protected:
  struct Unread {};  // The parameters are not on the stack.
  Call(int function, Bodies body, StableIValue* stack, int tensors, Unread)
      : Operands(names[function], stack, tensors),
        function_(set_in_use().functions[function]),
        body_(body) {
    job_.arguments.parameters = parameters_;
  }

  const FunctionKernels& function_;
  double parameters_[max_parameters];

 private:
  Bodies body_;
  Job job_{};
};

}  // namespace
}  // namespace mishkit
