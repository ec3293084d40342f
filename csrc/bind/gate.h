// The operators of gates (ops/gate.py). Included once per program, by bind.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "blend.h"
#include "call.h"

namespace mishkit {
namespace {

// The memory order of a call's elements, and how its tensors lie in rows in that order.
class Layout {
 public:
  // In the order of a dense tensor with the same strides as this one, but for its gaps.
  explicit Layout(const Tensor& t) : like_(t), columns_(t.numel) {
    t.dense_strides(strides_);
    for (int i = 0; i < t.dim; i++) {
      if (t.sizes[i] == 1) continue;
      int at = count_++;
      for (; at > 0 && strides_[order_[at - 1]] > strides_[i]; at--) order_[at] = order_[at - 1];
      order_[at] = i;
    }
  }

  // How a tensor's elements lie. False if that isn't in rows as long as those of the tensors before,
  // or if elements are so far apart that torch, which copies in tiles, had better copy them.
  bool place(const Tensor& t, Rows& rows) {
    int64_t size[2] = {1, 1}, stride[2] = {1, 0};
    const int levels = levels_of(t, size, stride);
    if (levels > 2 || stride[0] > farthest) return false;
    if (levels == 2 && columns_ != like_.numel && columns_ != size[0]) return false;
    if (levels == 2) columns_ = size[0];
    rows.row = levels == 2 ? stride[1] : evenly, rows.step = stride[0];
    return true;
  }
  // A dense tensor in this order, and how it lies.
  Tensor dense(Rows& rows) const {
    rows.row = evenly, rows.step = 1;
    return Tensor::empty(like_.dim, like_.sizes, strides_, like_.dtype);
  }

  // The length of a row, once all tensors have been placed.
  int64_t columns() const { return columns_; }
  // The rows of a tensor that was placed, with its memory.
  Rows at(void* data, Rows rows) const {
    return {data, rows.row == evenly ? columns_ * rows.step : rows.row, rows.step};
  }

 private:
  static constexpr int64_t farthest = 8;
  static constexpr int64_t evenly = INT64_MIN;  // one row of all elements, whatever a row is

  // How many levels there are: evenly spaced elements, evenly spaced runs of those, and so on. All
  // more than two are 3.
  int levels_of(const Tensor& t, int64_t (&size)[2], int64_t (&stride)[2]) const {
    int levels = 0;
    for (int i = 0; i < count_; i++) {
      const int64_t length = t.sizes[order_[i]], step = t.strides[order_[i]];
      if (levels && step == stride[levels - 1] * size[levels - 1]) size[levels - 1] *= length;
      else if (levels == 2) return 3;
      else size[levels] = length, stride[levels++] = step;
    }
    return levels;
  }

  const Tensor& like_;
  int64_t columns_;
  int64_t strides_[most_dimensions];
  int order_[most_dimensions], count_ = 0;
};

// (g, u, f, its numbers, limit, offset), with a gradient and results among the tensors. f is followed
// by numbers as for blend.
class GateCall : public Operands {
 public:
  GateCall(StableIValue* stack, int tensors, Bodies body) : Operands("gate", stack, tensors), body_(body) {
    const StableIValue* slots = stack + tensors;
    memcpy(&index_, slots++, sizeof index_);
    memcpy(parameters_, slots, most_numbers() * sizeof(double));
    slots += most_numbers();
    memcpy(&limit_, slots++, sizeof limit_);
    memcpy(&offset_, slots, sizeof offset_);
    if (index_ < 0 || index_ >= function_count) refuse("there is no such function");
    if (!(limit_ > 0)) refuse("the limit must be positive");
  }

  static void forward(StableIValue* stack, uint64_t, uint64_t) {
    GateCall call(stack, 2, Bodies::forward);
    Tensor g = call.first(0), u = call.another(1, g), out = g.dense_like();
    call.run(g, u, nullptr, &out);
    stack[0] = out.release();
  }
  static void forward_out(StableIValue* stack, uint64_t, uint64_t) {
    GateCall call(stack, 3, Bodies::forward);
    Tensor g = call.first(0), u = call.another(1, g), out = call.result(2, g);
    const bool overlaps = shares_memory(g, out) || shares_memory(u, out);
    if (overlaps && g.dense() && u.dense() && out.dense())
      call.refuse("out and an input overlap in part; clone() one of them");
    Tensor fresh = overlaps ? out.dense_like() : Tensor();
    call.run(g, u, nullptr, overlaps ? &fresh : &out);
    if (overlaps) out.copy(fresh);
  }
  static void backward(StableIValue* stack, uint64_t, uint64_t) {
    GateCall call(stack, 3, Bodies::backward);
    Tensor g = call.first(1), u = call.another(2, g), grad = call.another(0, g);
    Tensor out[2] = {g.dense_like(), u.dense_like()};
    call.run(g, u, &grad, out);
    stack[0] = out[0].release();
    stack[1] = out[1].release();
  }
  static void backward_out(StableIValue* stack, uint64_t, uint64_t) {
    GateCall call(stack, 5, Bodies::backward);
    Tensor g = call.first(1), u = call.another(2, g), grad = call.another(0, g);
    Tensor out[2] = {call.result(3, g), call.result(4, g)};
    call.run(g, u, &grad, out);
  }

 private:
  // The tensor that determines dtype and shape. An expanded one is copied.
  Tensor first(int place) {
    Tensor t = take(place);
    dtype_ = dtype_of(t.dtype);
    if (dtype_ < 0) refuse("expected tensors of float32, float64, bfloat16 or float16");
    return t.overlaps_itself() ? t.clone() : static_cast<Tensor&&>(t);
  }
  Tensor alike(int place, const Tensor& first) {
    Tensor t = take(place);
    if (t.dtype != first.dtype || !t.same_sizes(first))
      refuse("the tensors differ in dtype or shape");
    return t;
  }
  Tensor another(int place, const Tensor& first) {
    Tensor t = alike(place, first);
    return t.overlaps_itself() ? t.clone() : static_cast<Tensor&&>(t);
  }
  Tensor result(int place, const Tensor& first) {
    Tensor t = alike(place, first);
    if (t.overlaps_itself())
      refuse("several elements of the output share one place in memory; clone() it");
    return t;
  }
  // Whether two tensors may share memory, unless it is element by element.
  static bool shares_memory(const Tensor& a, const Tensor& b) {
    const auto first = reinterpret_cast<uintptr_t>(a.data());
    const auto second = reinterpret_cast<uintptr_t>(b.data());
    if (first == second && a.same_strides(b)) return false;
    return first < second + b.extent() && second < first + a.extent();
  }

  // Reads g, u and grad, and writes one or two results.
  void run(Tensor& g, Tensor& u, Tensor* grad, Tensor* out) {
    if (!g.numel) return;
    const int outputs = grad ? 2 : 1;
    Layout layout(out[0]);
    Rows of_in[3], of_out[2];
    Tensor* in[3] = {&g, &u, grad};
    for (int i = 0; i < 1 + outputs; i++)
      if (!layout.place(*in[i], of_in[i])) {
        Tensor copy = layout.dense(of_in[i]);
        copy.copy(*in[i]);
        *in[i] = static_cast<Tensor&&>(copy);
      }
    Tensor fresh[2];
    bool is_fresh[2] = {};
    for (int i = 0; i < outputs; i++)
      if (!layout.place(out[i], of_out[i])) fresh[i] = layout.dense(of_out[i]), is_fresh[i] = true;

    GateArguments a{};
    Rows* rows[3] = {&a.g, &a.u, &a.grad};
    for (int i = 0; i < 1 + outputs; i++)
      *rows[i] = layout.at(const_cast<void*>(in[i]->data()), of_in[i]);
    for (int i = 0; i < outputs; i++)
      a.out[i] = layout.at((is_fresh[i] ? fresh[i] : out[i]).mutable_data(), of_out[i]);
    start(a, layout.columns(), g.numel);
    for (int i = 0; i < outputs; i++)
      if (is_fresh[i]) out[i].copy(fresh[i]);
  }
  void start(GateArguments& a, int64_t columns, int64_t numel) const {
    const InstructionSet& set = set_in_use();
    const FunctionKernels& f = set.functions[index_];
    const Dtypes computed = dtype_ == (int)Dtypes::float64 ? Dtypes::float64 : Dtypes::float32;
    const bool backward = body_ == Bodies::backward;
    a.kernel = backward ? f.both[(int)computed] : f.kernels[(int)computed][(int)Bodies::forward];
    const bool plainly = dtype_ == (int)Dtypes::float32 && offset_ == 0 && limit_ == __builtin_inf();
    a.at_once = plainly ? f.gate[backward] : nullptr;
    a.parameters = parameters_, a.columns = columns;
    a.limit = limit_, a.offset = offset_ == 0 ? -0.0 : offset_;
    a.streaming = !backward && columns == numel && a.out[0].step == 1 &&
                  streaming_pays(a.g.data, a.out[0].data, numel);
    const int which = backward ? 1 + f.is_dead : 0;
    const GateKernel kernel = set.gate->of[dtype_][which][limit_ < __builtin_inf()];
    in_threads(numel, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }

  const Bodies body_;
  int64_t index_;
  double parameters_[max_parameters];
  double limit_, offset_;
};

void add_gate(TorchLibraryHandle library) {
  add_operator(library, "gate", GateCall::forward);
  add_operator(library, "gate_out", GateCall::forward_out);
  add_operator(library, "gate_backward", GateCall::backward);
  add_operator(library, "gate_backward_out", GateCall::backward_out);
}

}  // namespace
}  // namespace mishkit
