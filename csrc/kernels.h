// What bind.cpp knows about the kernels: plain data, the same for every instruction set.
#pragma once
#include <cstdint>

namespace mishkit {

enum class Bodies { forward, forward_packed, backward, backward_packed, double_backward };
constexpr int body_count = 5;
enum class Dtypes { float32, float64, bfloat16, float16 };
constexpr int dtype_count = 4;
constexpr int max_parameters = 4;

// The arrays of a call, in the order of the operator's schema: every tensor is one dense run of
// elements, all in the same memory order.
struct Arguments {
  const void* in[3];
  void* out[2];
  const uint8_t* side_in;
  uint8_t* side_out;
  const double* parameters;
  bool streaming;  // out[0] is aligned to a vector and need not stay in the cache; a hint
};

// Computes elements [begin, end); begin is a multiple of kernel_grain.
using Kernel = void (*)(const Arguments&, int64_t begin, int64_t end);
constexpr int64_t kernel_grain = 64;

// A call with trained parameters. A tensor with channels is dense; in memory it has `outer` rows of
// `channels` runs of `inner` elements each.
struct TrainedArguments {
  const void* grad;  // null in the forward pass
  const void* x;
  void* out;               // f(x), or the gradient of x
  const void* parameters;  // parameter_count rows of `channels` numbers, float (double for double)
  double* sums;            // backward: like `parameters`, once per part; initially zero
  int64_t outer, channels, inner;
  int64_t parts;  // how many parts the work is split into; depends only on the sizes
};

// Computes parts [begin, end); may overwrite `scratch`.
using TrainedKernel = void (*)(const TrainedArguments&, void* scratch, int64_t begin, int64_t end);
// Runs at least this long have one parameter at a time. Shorter ones share vectors, whose pattern
// of parameters repeats after at most `most_rows` rows (one row if it has `long_row` elements).
constexpr int64_t long_run = 64, long_row = 4096, most_rows = 32, most_pair = 64;

struct FunctionKernels {
  const char* name;
  bool has_turn, is_dead;
  int parameter_count;
  Kernel kernels[dtype_count][body_count];
  Kernel both[2];  // f(x) in out[0] and f'(x) in out[1], as exact as f alone; in float and in double
  Kernel gate[2];  // f(g)·u of (g, u), and its gradients of (g, u, grad), for float
  TrainedKernel trained[dtype_count];  // null if the parameters can't be trained
};

// A call of (1 − t)·f(x) + t·g(x), or of grad times its derivative; 0 < t < 1.
struct BlendArguments {
  const void* grad;  // backward only
  const void* x;
  void* out;
  // For f and for g: their kernels, forward or backward, for the type that is computed in.
  Kernel kernels[2];
  const double* parameters[2];
  double t;
  bool streaming;  // as in Arguments
};

// Computes elements [begin, end); begin is a multiple of kernel_grain.
using BlendKernel = void (*)(const BlendArguments&, int64_t begin, int64_t end);
struct BlendKernels {
  BlendKernel of[dtype_count][3];  // forward, backward, and backward of two dead functions
};

// A call of f(scale·x + shift), or of grad·f'(scale·x + shift). In memory x has samples of `sample`
// elements, each with rows of `channels` runs of `inner` elements.
struct AffineArguments {
  const void* grad;  // null in the forward pass
  const void* x;
  void* out;
  const void *scale, *shift;  // `channels` numbers per sample, float (double for double)
  int64_t sample, channels, inner;
  Kernel kernel;  // of f, forward or backward, for the type of x; null for scale·x + shift alone
  const double* parameters;
  bool streaming;  // as in Arguments
};
// Computes elements [begin, end).
using AffineKernel = void (*)(const AffineArguments&, int64_t begin, int64_t end);

struct LayerNormArguments {
  const void* x;
  void* out;
  const void *mean, *rstd;    // one number per row, float (double for double)
  const void *weight, *bias;  // one number per column
  int64_t columns;
};
// Computes rows [begin, end).
using LayerNormKernel = void (*)(const LayerNormArguments&, int64_t begin, int64_t end);

struct AffineKernels {
  AffineKernel affine[dtype_count];
  LayerNormKernel layer_norm[dtype_count];
};

// An RMS norm of `rows` rows, or both of its gradients: see norm.h.
struct RmsNormArguments {
  const void* grad;  // in the backward pass only
  const void *x, *weight;
  void* out;      // the norm, or the gradient of x
  double* sums;   // in the backward pass, of each part: one sum per column
  int64_t rows, columns, parts;
  double epsilon, offset;
};
// Bytes that a thread needs in the backward pass: numbers of a row, in whole vectors.
constexpr int64_t rms_norm_scratch(int64_t columns) { return (columns + 64) * (int64_t)sizeof(double); }
struct NormKernels {
  void (*forward[dtype_count])(const RmsNormArguments&, int64_t begin, int64_t end);  // rows
  void (*backward[dtype_count])(const RmsNormArguments&, void* scratch, int64_t begin,
                                int64_t end);  // parts
  // The gradient of the weight from the sums of all parts, in the type of the weight.
  void (*sums[dtype_count])(const RmsNormArguments&, void* out);
};

// Where an array has its elements, in the order of the call's elements: rows whose elements are `step`
// apart, and which begin `row` apart. Their length is the same for all arrays of a call.
struct Rows {
  void* data;
  int64_t row, step;
};

// A call of f(min(g, limit))·(clamp(u, −limit, limit) + offset), or of its two gradients.
struct GateArguments {
  Rows g, u, grad;  // grad in the backward pass only
  Rows out[2];      // the product, or the gradients of g and u
  int64_t columns;  // the length of a row
  Kernel kernel;    // f, or f and f', in the type that is computed in
  Kernel at_once;   // the whole gate, for arrays of float without a limit and an offset; or null
  const double* parameters;
  double limit;   // infinite for none
  double offset;  // −0 for none, which changes nothing, not even a zero
  bool streaming;  // as in Arguments; the output is a single row without gaps
};
// Computes elements [begin, end).
using GateKernel = void (*)(const GateArguments&, int64_t begin, int64_t end);
struct GateKernels {
  // Forward, backward, and backward of a dead function; without and with a limit.
  GateKernel of[dtype_count][3][2];
};

// Masks, whose elements are 0 or one other number, in one bit an element.
struct MaskKernels {
  double (*number[dtype_count])(const void* element);
  // Elements [begin, end); begin is a multiple of kernel_grain. Packing tells whether it could.
  bool (*pack[dtype_count])(const void* x, double value, uint8_t* bits, int64_t begin, int64_t end);
  void (*unpack[dtype_count])(const uint8_t* bits, double value, void* out, int64_t begin,
                              int64_t end);
};

struct NeuronKernels;  // neuron_kernels.h

// The kernels of every function, in the order of the table. Each part of them is compiled by itself.
struct Functions {
  const FunctionKernels* const* in_order;
  const FunctionKernels& operator[](int64_t i) const { return *in_order[i]; }
};

// One instruction set: its name and its kernels.
struct InstructionSet {
  const char* name;
  Functions functions;
  const NeuronKernels* neuron;
  const BlendKernels* blend;
  const AffineKernels* affine;
  const GateKernels* gate;
  const MaskKernels* masks;
  const NormKernels* norm;
};

}  // namespace mishkit
