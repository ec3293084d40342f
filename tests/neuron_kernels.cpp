// program DTYPE BATCH IN OUT CHUNK_ROWS: reads input, alpha, beta, gamma, delta and grad, writes
// output, grad_input, grad_alpha, grad_beta and grad_gamma. DTYPE is a number in the order of
// kernels.h. Every tensor and every scratch has memory of its own, of just its size, so that a
// sanitizer sees each access beyond it.
#include "../csrc/neuron.h"

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace {

void* memory(int64_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes ? bytes : 1)) std::abort();
  memset(p, 0xff, bytes);  // NaN
  return p;
}
void* read(int64_t bytes) {
  void* p = memory(bytes);
  if (std::fread(p, 1, bytes, stdin) != (size_t)bytes) std::abort();
  return p;
}

}  // namespace

int main(int, char** arguments) {
  using namespace mishkit;
  const int dtype = std::atoi(arguments[1]);
  const int64_t batch = std::atoll(arguments[2]), in = std::atoll(arguments[3]);
  const int64_t out = std::atoll(arguments[4]), chunk_rows = std::atoll(arguments[5]);
  const auto& kernels = MISHKIT_ISA::neuron_kernels.of[dtype];
  const int64_t size = dtype == (int)Dtypes::float64 ? 8 : dtype == (int)Dtypes::float32 ? 4 : 2;

  void *input = read(batch * in * size), *alpha = read(out * in * size);
  void *beta = read(out * in * size), *gamma = read(out * in * size), *delta = read(out * size);
  void *grad = read(batch * out * size), *output = memory(batch * out * size);
  NeuronForward f{input, alpha, beta, gamma, delta, output, batch, in, out};
  void* scratch = memory(kernels.forward_scratch);
  // A task at a time, the last one first: none may need another.
  for (int64_t i = kernels.forward_tasks(f); i-- > 0;) kernels.forward(f, scratch, i, i + 1);

  NeuronBackward b{};
  b.grad = grad, b.input = input, b.alpha = alpha, b.beta = beta, b.gamma = gamma;
  b.grad_input = memory(batch * in * size), b.grad_alpha = memory(out * in * size);
  b.grad_beta = memory(out * in * size), b.grad_gamma = memory(out * in * size);
  b.turned = memory(out * batch * kernels.computed_size);
  b.batch = batch, b.in = in, b.out = out;
  b.chunk_rows = chunk_rows, b.chunks = (batch + chunk_rows - 1) / chunk_rows;
  const int64_t slices = (in + kernels.columns - 1) / kernels.columns;
  int64_t scratch_bytes = kernels.backward_scratch;
  if (b.chunks > 1) {
    b.sum_stride = slices * kernels.columns;
    for (auto& sum : b.sums) sum = memory(b.chunks * out * b.sum_stride * kernels.computed_size);
  } else if (size == kernels.computed_size) {
    b.sums[0] = b.grad_alpha, b.sums[1] = b.grad_gamma, b.sums[2] = b.grad_beta;
    b.sum_stride = in;
  } else {
    scratch_bytes += 3 * out * kernels.columns * kernels.computed_size;
  }
  scratch = memory(scratch_bytes);
  for (int64_t i = batch; i-- > 0;) kernels.turn(b, nullptr, i, i + 1);
  for (int64_t i = slices * b.chunks; i-- > 0;) kernels.backward(b, scratch, i, i + 1);
  if (b.chunks > 1)
    for (int64_t i = out; i-- > 0;) kernels.combine(b, nullptr, i, i + 1);

  std::fwrite(output, size, batch * out, stdout);
  std::fwrite(b.grad_input, size, batch * in, stdout);
  for (void* p : {b.grad_alpha, b.grad_beta, b.grad_gamma}) std::fwrite(p, size, out * in, stdout);
}
