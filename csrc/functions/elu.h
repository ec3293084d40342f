// ELU: x right of 0, alpha·(exp(x) − 1) left of it.
#pragma once
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct ELU : Monotone {
  using T = typename V::Scalar;
  static constexpr int parameter_count = 1;
  V alpha;
  explicit ELU(const double* p) : alpha(p[0]) {}

  // At Accuracy::half, exp(x) − 1 would lose too many digits where x is small.
  static constexpr Accuracy of_f = accuracy == Accuracy::half ? Accuracy::slope : accuracy;

  struct Stage {
    V x, left;  // left: x clamped for the exponential
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    return {x, min(V(0.0), max(V(exp_floor<T>), x))};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    return select(less(V(0.0), s.x), s.x, alpha * expm1<of_f>(s.left));
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    return select(less(V(0.0), s.x), V(1.0), rise(s));
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    return select(less(V(0.0), s.x), V(0.0), rise(s));
  }
  MISHKIT_INLINE_MEMBER V rise(Stage s) const { return alpha * exp<accuracy>(s.left); }

  // y + alpha; rounding may take y to just below −alpha.
  template <class S> struct Output {
    V alpha;
    explicit Output(const double* p) : alpha(p[0]) {}
    struct Stage {
      V y;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T>) const { return {y}; }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      return select(less(V(0.0), s.y), V(1.0), max(V(0.0), s.y + alpha));
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
