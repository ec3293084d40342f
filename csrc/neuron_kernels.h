// What the binding knows of the neuron's kernels: plain data, the same for every instruction set.
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
  void* grad_input;  // or null: not wanted
  void *grad_alpha, *grad_beta, *grad_gamma;
  // Between the passes, in the type that is computed in: grad transposed, (out, batch), and three
  // sums over each chunk of the batch, rows of sum_stride elements. With one chunk they are the
  // gradients themselves, or null where those have another type: then scratch has room for
  // 3 × out × columns more.
  void* turned;
  void* sums[3];
  int64_t sum_stride;
  int64_t chunks, chunk_rows;  // none of them empty
  int64_t batch, in, out;
};

// Works on a range of tasks, which do not depend on each other; may scribble over `scratch`, which
// is aligned to 64 bytes.
template <class Arguments>
using NeuronKernel = void (*)(const Arguments&, void* scratch, int64_t begin, int64_t end);

struct NeuronKernels {
  struct OfDtype {
    int computed_size;        // bytes of an element of the type that is computed in
    int64_t columns;          // of a slice
    int64_t forward_scratch;  // bytes
    int64_t backward_scratch;
    int64_t (*forward_tasks)(const NeuronForward&);
    NeuronKernel<NeuronForward> forward;
    // The passes of backward: a task is a row of the batch; a slice of columns and a chunk of the
    // batch (chunks vary fastest); and, for several chunks, an output. Only the second has scratch.
    NeuronKernel<NeuronBackward> turn, backward, combine;
  };
  OfDtype of[dtype_count];
};

}  // namespace mishkit
