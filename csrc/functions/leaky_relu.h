// Leaky ReLU: x right of 0, negative_slope·x left of it.
#pragma once
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct LeakyReLU : Monotone {
  using T = typename V::Scalar;
  static constexpr int parameter_count = 1;
  static constexpr double largest = sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
  V slope;
  V least;  // a slope of 0 makes the left side 0, at −∞ too
  explicit LeakyReLU(const double* p)
      : slope(p[0]), least(p[0] == 0 ? -largest : -__builtin_inf()) {}

  struct Stage {
    V x;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const { return {x}; }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    return select(less(V(0.0), s.x), s.x, max(least, s.x) * slope);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return select(less(V(0.0), s.x), V(1.0), slope); }
  MISHKIT_INLINE_MEMBER V d2f(Stage) const { return V(0.0); }

  template <class S> struct Output {
    V slope;
    explicit Output(const double* p) : slope(p[0]) {}
    struct Stage {
      V y;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T>) const { return {y}; }
    MISHKIT_INLINE_MEMBER V df(Stage s) const { return select(less(V(0.0), s.y), V(1.0), slope); }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
