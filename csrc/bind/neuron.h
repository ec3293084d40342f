// The binding of the APTx layer: mishkit::aptx_layer and its backward, for torch's CPU tensors.
// Included once per program, by bind.cpp. Schemas, fakes and plain-torch forms are in
// ops/neuron.py.
#pragma once
#include <cstdint>
#include <cstring>

#include "../neuron_kernels.h"
#include "isa.h"
#include "tensor.h"

namespace mishkit {
namespace {

// One call: takes the tensors off the stack, checks them and runs the kernels.
class NeuronCall {
 public:
  // (input, alpha, beta, gamma, delta) -> output; an empty delta means none.
  static void forward(StableIValue* stack, uint64_t, uint64_t) {
    Inputs given(name, stack, 5);
    Tensor input = given.take(0), alpha = given.take(1), beta = given.take(2);
    Tensor gamma = given.take(3), delta = given.take(4);
    NeuronCall call(given, input, alpha, beta, gamma);
    if (delta.dtype != input.dtype || delta.dim != 1 || (delta.numel && delta.numel != call.out_))
      given.refuse("delta must have the input's dtype and one element an output, or none");
    delta = contiguous(static_cast<Tensor&&>(delta));
    Tensor output = call.fresh(call.batch_, call.out_);
    NeuronForward a{input.data(), alpha.data(), beta.data(), gamma.data(),
                    delta.numel ? delta.data() : nullptr, output.mutable_data(),
                    call.batch_,  call.in_,     call.out_};
    const auto& k = call.kernels_;
    call.run(k.forward, a, k.forward_tasks(a), call.elements(), k.forward_scratch);
    stack[0] = output.release();
  }

  // (grad, input, alpha, beta, gamma, with_input) -> the gradients of input (empty unless
  // with_input), alpha, beta and gamma.
  static void backward(StableIValue* stack, uint64_t, uint64_t) {
    Inputs given(name, stack, 5);
    Tensor grad = given.take(0), input = given.take(1), alpha = given.take(2);
    Tensor beta = given.take(3), gamma = given.take(4);
    bool with_input;
    memcpy(&with_input, &stack[5], sizeof with_input);
    NeuronCall call(given, input, alpha, beta, gamma);
    if (grad.dtype != input.dtype || grad.dim != 2 || grad.sizes[0] != call.batch_ ||
        grad.sizes[1] != call.out_)
      given.refuse("grad must have the input's dtype and the output's shape");
    grad = contiguous(static_cast<Tensor&&>(grad));
    Tensor to_input = with_input ? call.fresh(call.batch_, call.in_) : call.fresh_row(0);
    Tensor to_alpha = call.fresh(call.out_, call.in_), to_beta = call.fresh(call.out_, call.in_);
    Tensor to_gamma = call.fresh(call.out_, call.in_);
    NeuronBackward a{};
    a.grad = grad.data(), a.input = input.data();
    a.alpha = alpha.data(), a.beta = beta.data(), a.gamma = gamma.data();
    a.grad_input = with_input ? to_input.mutable_data() : nullptr;
    a.grad_alpha = to_alpha.mutable_data(), a.grad_beta = to_beta.mutable_data();
    a.grad_gamma = to_gamma.mutable_data();
    a.batch = call.batch_, a.in = call.in_, a.out = call.out_;
    if (call.elements() > 0) call.run_backward(a);
    else for (Tensor* gradient : {&to_input, &to_alpha, &to_beta, &to_gamma}) zero(*gradient);
    stack[0] = to_input.release();
    stack[1] = to_alpha.release();
    stack[2] = to_beta.release();
    stack[3] = to_gamma.release();
  }

 private:
  // The number of tasks that backward should have, to occupy as many threads, and the least number
  // of rows in a chunk of the batch.
  static constexpr int64_t wanted_tasks = 32, least_rows = 32;
  static constexpr const char* name = "aptx_layer";
  // The least work that is worth another thread.
  static constexpr int64_t thread_grain = 65536;

  NeuronCall(const Inputs& given, Tensor& input, Tensor& alpha, Tensor& beta, Tensor& gamma)
      : dtype_(input.dtype), kernels_(set_in_use().neuron->of[checked_dtype(given, input)]) {
    if (input.dim != 2 || gamma.dim != 2 || gamma.sizes[1] != input.sizes[1])
      given.refuse("expected an input (batch, in) and parameters (out, in)");
    batch_ = input.sizes[0], in_ = input.sizes[1], out_ = gamma.sizes[0];
    for (Tensor* t : {&alpha, &beta, &gamma})
      if (t->dtype != dtype_ || !t->same_sizes(gamma))
        given.refuse("alpha, beta and gamma must have the input's dtype, and one shape");
    for (Tensor* t : {&input, &alpha, &beta, &gamma}) *t = contiguous(static_cast<Tensor&&>(*t));
  }

  static int checked_dtype(const Inputs& given, const Tensor& x) {
    const int dtype = dtype_of(x.dtype);
    if (dtype < 0) given.refuse("expected tensors of float32, float64, bfloat16 or float16");
    return dtype;
  }
  static Tensor contiguous(Tensor t) {
    int64_t strides[2], run = 1;  // no tensor here has more dimensions
    bool is_contiguous = true;
    for (int64_t i = t.dim - 1; i >= 0; i--) {
      strides[i] = run;
      is_contiguous &= t.sizes[i] == 1 || t.strides[i] == run;
      run *= t.sizes[i];
    }
    if (is_contiguous || t.numel < 2) return t;
    Tensor copy = Tensor::empty(t.dim, t.sizes, strides, t.dtype);
    copy.copy(t);
    return copy;
  }
  static void zero(const Tensor& t) {
    if (t.numel) memset(t.mutable_data(), 0, t.numel * element_size(t.dtype));
  }

  Tensor fresh(int64_t rows, int64_t columns) const {
    const int64_t sizes[] = {rows, columns}, strides[] = {columns > 1 ? columns : 1, 1};
    Tensor t = Tensor::empty(2, sizes, strides, dtype_);
    if (t.numel) advise_huge_pages(t.mutable_data(), t.numel * element_size(dtype_));
    return t;
  }
  Tensor fresh_row(int64_t size) const {
    const int64_t one = 1;
    return Tensor::empty(1, &size, &one, dtype_);
  }
  int64_t elements() const { return batch_ * in_ * out_; }
  static int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

  void run_backward(NeuronBackward& a) const {
    // Depends only on the shapes, so that results do not depend on the number of threads.
    const int64_t slices = divided_up(in_, kernels_.columns);
    const int64_t chunks = at_least_one(least(wanted_tasks / slices, batch_ / least_rows));
    a.chunk_rows = divided_up(batch_, chunks);
    a.chunks = divided_up(batch_, a.chunk_rows);

    Tensor turned = scratch(batch_ * out_ * kernels_.computed_size), sums;
    a.turned = turned.mutable_data();
    int64_t scratch_bytes = kernels_.backward_scratch;
    if (a.chunks > 1) {
      a.sum_stride = slices * kernels_.columns;
      const int64_t bytes = a.chunks * out_ * a.sum_stride * kernels_.computed_size;
      sums = scratch(3 * bytes);
      for (int k = 0; k < 3; k++) a.sums[k] = static_cast<char*>(sums.mutable_data()) + k * bytes;
    } else if (kernels_.computed_size == element_size(dtype_)) {
      a.sums[0] = a.grad_alpha, a.sums[1] = a.grad_gamma, a.sums[2] = a.grad_beta;
      a.sum_stride = in_;
    } else {
      scratch_bytes += 3 * out_ * kernels_.columns * kernels_.computed_size;
    }
    // Transposing an element takes about as long as four terms of the layer.
    run(kernels_.turn, a, batch_, 4 * batch_ * out_, 0);
    run(kernels_.backward, a, slices * a.chunks, elements(), scratch_bytes);
    if (a.chunks > 1) run(kernels_.combine, a, out_, a.chunks * out_ * in_, 0);
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  static int64_t at_least_one(int64_t a) { return a < 1 ? 1 : a; }

  // From torch's allocator, so that it is tracked like any tensor.
  static Tensor scratch(int64_t bytes) { return Tensor::bytes(bytes); }

  // Runs all tasks, with as many threads as the work justifies; counted in elements of batch × out
  // × in.
  template <class Arguments>
  void run(NeuronKernel<Arguments> kernel, const Arguments& arguments, int64_t tasks, int64_t work,
           int64_t scratch_bytes) const {
    const auto part = [&](int64_t begin, int64_t end) {
      Tensor memory = scratch(scratch_bytes);
      kernel(arguments, memory.mutable_data(), begin, end);
    };
    if (work <= thread_grain) return part(0, tasks);
    in_parts(tasks, at_least_one(tasks * thread_grain / work), part);
  }

  int32_t dtype_;
  const NeuronKernels::OfDtype& kernels_;
  int64_t batch_, in_, out_;
};

void add_neuron(TorchLibraryHandle library) {
  add_operator(library, "aptx_layer", NeuronCall::forward);
  add_operator(library, "aptx_layer_backward", NeuronCall::backward);
}

}  // namespace
}  // namespace mishkit
