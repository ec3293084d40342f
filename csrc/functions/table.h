// The table of functions: a header and a line for each, in the order of src/mishkit/functions. Each
// line has name and class: `mish` is the operator mishkit::mish, `Mish` the class in mish.h.
#pragma once
#if defined(MISHKIT_ISA)
#include "aptx.h"
#include "gelu.h"
#include "gelu_tanh.h"
#include "h_mish.h"
#include "hard_mish.h"
#include "hardswish.h"
#include "linear_swish.h"
#include "mish.h"
#include "piecewise_swish.h"
#include "relu.h"
#include "silu.h"
#include "softplus.h"
#include "swish.h"
#endif

#define MISHKIT_FUNCTIONS(X)         \
  X(relu, ReLU)                      \
  X(softplus, Softplus)              \
  X(silu, SiLU)                      \
  X(gelu, GELU)                      \
  X(gelu_tanh, GELUTanh)             \
  X(mish, Mish)                      \
  X(h_mish, HMish)                   \
  X(hard_mish, HardMish)             \
  X(hardswish, Hardswish)            \
  X(swish, Swish)                    \
  X(piecewise_swish, PiecewiseSwish) \
  X(linear_swish, LinearSwish)       \
  X(aptx, APTx)
