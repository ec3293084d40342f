// The table of functions: a header and a line for each, in the order of src/mishkit/functions. Each
// line has name and class: `mish` is the operator mishkit::mish, `Mish` the class in mish.h.
#pragma once
#if defined(MISHKIT_ISA)
#include "aptx.h"
#include "elu.h"
#include "gelu.h"
#include "gelu_tanh.h"
#include "h_mish.h"
#include "hard_mish.h"
#include "hardswish.h"
#include "leaky_relu.h"
#include "linear_swish.h"
#include "mish.h"
#include "piecewise_swish.h"
#include "quick_gelu.h"
#include "relu.h"
#include "relu2.h"
#include "relu6.h"
#include "silu.h"
#include "softplus.h"
#include "swish.h"
#endif

#define MISHKIT_FUNCTIONS(X)         \
  X(relu, ReLU)                      \
  X(relu6, ReLU6)                    \
  X(relu2, ReLUSquared)              \
  X(leaky_relu, LeakyReLU)           \
  X(elu, ELU)                        \
  X(softplus, Softplus)              \
  X(silu, SiLU)                      \
  X(gelu, GELU)                      \
  X(gelu_tanh, GELUTanh)             \
  X(quick_gelu, QuickGELU)           \
  X(mish, Mish)                      \
  X(h_mish, HMish)                   \
  X(hard_mish, HardMish)             \
  X(hardswish, Hardswish)            \
  X(swish, Swish)                    \
  X(piecewise_swish, PiecewiseSwish) \
  X(linear_swish, LinearSwish)       \
  X(aptx, APTx)
