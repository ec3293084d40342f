// The operators of every function, with the suffixes of ops/functions.py. Included once per
// program, by bind.cpp.
#pragma once
#include <cstdint>
#include <string>

#include "call.h"
#include "trained.h"

namespace mishkit {
namespace {

template <int function> struct Operators {
  using Stack = StableIValue*;

  static void forward(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward, stack, 1);
    Tensor x = call.leading(0);
    Tensor y = x.empty_like();
    call.arguments().in[0] = x.data();
    call.arguments().out[0] = y.mutable_data();
    call.run(x.numel);
    stack[0] = y.release();
  }

  static void forward_packed(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward_packed, stack, 1);
    Tensor x = call.leading(0);
    Tensor y = x.empty_like(), side = call.side_for(x);
    call.arguments().in[0] = x.data();
    call.arguments().out[0] = y.mutable_data();
    call.arguments().side_out = static_cast<uint8_t*>(side.mutable_data());
    call.run(x.numel);
    stack[0] = y.release();
    stack[1] = side.release();
  }

  // `out` may be the input itself. If it has another layout or is not dense, the result is copied
  // into it.
  static void write(Call& call, Tensor* side) {
    Tensor out = call.take(1);
    if (out.overlaps_itself())
      call.refuse("several elements of the output share one place in memory; clone() it");
    Tensor x = call.leading(0);
    if (out.dtype != x.dtype || !out.same_sizes(x))
      call.refuse("out must have the input's shape and dtype");
    const bool direct = out.same_strides(x) && out.dense();
    Tensor fresh = direct ? Tensor() : x.empty_like();
    call.arguments().in[0] = x.data();
    call.arguments().out[0] = (direct ? out : fresh).mutable_data();
    const Arguments& a = call.arguments();
    if (direct && overlap_in_part(a.in[0], a.out[0], x.numel * element_size(x.dtype)))
      call.refuse("out and the input overlap in part; clone() one of them");
    if (side) {
      *side = call.side_for(x);
      call.arguments().side_out = static_cast<uint8_t*>(side->mutable_data());
    }
    call.run(x.numel);
    if (!direct) out.copy(fresh);
  }
  static void forward_out(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward, stack, 2);
    write(call, nullptr);
  }
  static void forward_packed_out(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward_packed, stack, 2);
    Tensor side;
    write(call, &side);
    stack[0] = side.release();
  }

  static void backward(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::backward, stack, 2);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x), result = x.empty_like();
    call.arguments().in[0] = grad.data();
    call.arguments().in[1] = x.data();
    call.arguments().out[0] = result.mutable_data();
    call.run(x.numel);
    stack[0] = result.release();
  }

  static void backward_packed(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::backward_packed, stack, 3);
    Tensor y = call.leading(1);
    Tensor grad = call.following(0, y), side = call.side_of(2, y);
    Tensor result = y.empty_like();
    call.arguments().in[0] = grad.data();
    call.arguments().in[1] = y.data();
    call.arguments().side_in = static_cast<const uint8_t*>(side.data());
    call.arguments().out[0] = result.mutable_data();
    call.run(y.numel);
    stack[0] = result.release();
  }

  static void double_backward(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::double_backward, stack, 3);
    Tensor x = call.leading(2);
    Tensor grad_grad = call.following(0, x), grad = call.following(1, x);
    Tensor to_grad = x.empty_like(), to_x = x.empty_like();
    call.arguments().in[0] = grad_grad.data();
    call.arguments().in[1] = grad.data();
    call.arguments().in[2] = x.data();
    call.arguments().out[0] = to_grad.mutable_data();
    call.arguments().out[1] = to_x.mutable_data();
    call.run(x.numel);
    stack[0] = to_grad.release();
    stack[1] = to_x.release();
  }

  static void trained(Stack stack, uint64_t, uint64_t) {
    TrainedCall call(function, stack, 2);
    Tensor x = call.leading(0);
    Tensor parameters = call.trained(1, x);
    Tensor y = x.empty_like();
    if (call.is_fixed()) {
      call.fix();
      call.arguments().in[0] = x.data();
      call.arguments().out[0] = y.mutable_data();
      call.run(x.numel);
    } else {
      call.trained_arguments().x = x.data();
      call.trained_arguments().out = y.mutable_data();
      call.run_trained();
    }
    stack[0] = y.release();
  }

  static void trained_backward(Stack stack, uint64_t, uint64_t) {
    TrainedCall call(function, stack, 3);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x), parameters = call.trained(2, x);
    Tensor to_x = x.empty_like();
    call.trained_arguments().grad = grad.data();
    call.trained_arguments().x = x.data();
    call.trained_arguments().out = to_x.mutable_data();
    Tensor to_parameters = call.run_trained_backward(parameters);
    stack[0] = to_x.release();
    stack[1] = to_parameters.release();
  }

  static void add_to(TorchLibraryHandle library) {
    if (sets().set[0]->functions[function].trained[0]) {
      add(library, "_trained", trained);
      add(library, "_trained_backward", trained_backward);
    }
    add(library, "", forward);
    add(library, "_out", forward_out);
    add(library, "_packed", forward_packed);
    add(library, "_packed_out", forward_packed_out);
    add(library, "_backward", backward);
    add(library, "_backward_packed", backward_packed);
    add(library, "_double_backward", double_backward);
    if constexpr (function + 1 < function_count) Operators<function + 1>::add_to(library);
  }
  static void add(TorchLibraryHandle library, const char* ending,
                  void (*kernel)(Stack, uint64_t, uint64_t)) {
    add_operator(library, std::string(names[function]) + ending, kernel);
  }
};

}  // namespace
}  // namespace mishkit
