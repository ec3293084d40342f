// What the binding knows about the neuron's kernels: plain data, the same for every instruction
// set.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace mishkit {

// Every tensor is contiguous: input and grad_input (batch, in), output and grad (batch, out),
// alpha, beta, gamma and their gradients (out, in), delta (out).
struct NeuronForward {
  const void *input, *alpha, *beta, *gamma;
  const void* delta;  // or null
  void* output;
  int64_t batch, in, out;
};

struct NeuronBackward {
  const void *grad, *input, *alpha, *beta, *gamma;
  void* grad_input;  // or null if not wanted
  void *grad_alpha, *grad_beta, *grad_gamma;
  // Between the passes, in the type that is computed in: grad transposed, (out, batch), and three
  // sums over each chunk of the batch, in rows of sum_stride elements. With one chunk the sums are
  // the gradients themselves, or null if the gradients have another type; then scratch needs room
  // for 3 × out × columns more elements.
  void* turned;
  void* sums[3];
  int64_t sum_stride;
  int64_t chunks, chunk_rows;  // none of them empty
  int64_t batch, in, out;
};

// Works on a range of tasks, which are independent of each other; may overwrite `scratch`, which is
// aligned to 64 bytes.
template <class Arguments>
using NeuronKernel = void (*)(const Arguments&, void* scratch, int64_t begin, int64_t end);

struct NeuronKernels {
  struct OfDtype {
    int computed_size;        // bytes per element of the type that is computed in
    int64_t columns;          // per slice
    int64_t forward_scratch;  // bytes
    int64_t backward_scratch;
    int64_t (*forward_tasks)(const NeuronForward&);
    NeuronKernel<NeuronForward> forward;
    // The passes of backward. A task is a row of the batch in the first; a slice of columns and a
    // chunk of the batch (chunks vary fastest) in the second; and, if there are several chunks, an
    // output in the third. Only the second uses scratch.
    NeuronKernel<NeuronBackward> turn, backward, combine;
  };
  OfDtype of[dtype_count];
};

}  // namespace mishkit
