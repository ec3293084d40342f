// Squared ReLU: max(0, x)².
#pragma once
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct ReLUSquared : Parameterless, Monotone, Dead {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  struct Stage {
    V x;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const { return {max(V(0.0), x)}; }
  MISHKIT_INLINE_MEMBER V f(Stage s) const { return s.x * s.x; }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return s.x + s.x; }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    return select(less_equal(s.x, V(0.0)), V(0.0), V(2.0));
  }

  // 2·√y
  template <class S> struct Output : Parameterless {
    using Parameterless::Parameterless;
    struct Stage {
      V y;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T>) const { return {max(V(0.0), y)}; }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      V root = sqrt(s.y);
      return root + root;
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
