// The table of functions: a header and a line each, in the order of src/mishkit/functions.
// The name and the class: `mish` is the operator mishkit::mish, `Mish` the class of mish.h.
#pragma once
#if defined(MISHKIT_ISA)
#include "gelu.h"
#include "gelu_tanh.h"
#include "h_mish.h"
#include "mish.h"
#include "relu.h"
#include "silu.h"
#include "softplus.h"
#endif

#define MISHKIT_FUNCTIONS(X) \
  X(relu, ReLU)              \
  X(softplus, Softplus)      \
  X(silu, SiLU)              \
  X(gelu, GELU)              \
  X(gelu_tanh, GELUTanh)     \
  X(mish, Mish)              \
  X(h_mish, HMish)
