// ReLU6: min(6, max(0, x)).
#pragma once
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct ReLU6 : Parameterless, Monotone, Dead {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  static constexpr double top = 6;
  struct Stage {
    V x;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const { return {x}; }
  MISHKIT_INLINE_MEMBER V f(Stage s) const { return min(V(top), max(V(0.0), s.x)); }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return step(s.x); }
  MISHKIT_INLINE_MEMBER V d2f(Stage) const { return V(0.0); }
  // Like torch: 0 at 0 and at 6, and NaN inputs let the gradient through.
  MISHKIT_INLINE_MEMBER static V step(V x) {
    V below = select(less_equal(V(top), x), V(0.0), V(1.0));
    return select(less_equal(x, V(0.0)), V(0.0), below);
  }

  template <class S> struct Output : Parameterless {
    using Parameterless::Parameterless;
    struct Stage {
      V y;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T>) const { return {y}; }
    MISHKIT_INLINE_MEMBER V df(Stage s) const { return step(s.y); }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
