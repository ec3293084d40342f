// H-Mish: (x/2)·min(2, max(0, x + 2)).
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct HMish : Parameterless, Dead {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  static constexpr bool has_turn = true;
  static constexpr Minimum minimum() { return {-1, -0.5, 0.70710678118654752440}; }

  struct Stage {
    V x;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const { return {max(V(-2.0), x)}; }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    return s.x * V(0.5) * min(V(2.0), s.x + V(2.0));
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    return select(less(V(-2.0), s.x), min(V(0.0), s.x) + V(1.0), (s.x + V(2.0)));
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V inside = select(less(V(-2.0), s.x), V(1.0), s.x + V(2.0));
    return select(less(V(0.0), s.x), V(0.0), inside);
  }

  // ±√(2y + 1) on the quadratic part.
  template <class S> struct Output {
    V depth_high, depth_low, least;
    explicit Output(const double*) {
      Centring centring = MISHKIT_ISA::centring<S>(0.5);
      double depth = 0.5 + centring.shift;
      depth_high = depth, depth_low = depth - (double)(T)depth, least = centring.least;
    }
    struct Stage {
      V y, square;
      Mask<T> right;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T> right) const {
      return {y, min(V(1.0), max(least, (y + depth_high) + depth_low) * V(2.0)), right};
    }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      V size = sqrt(s.square);
      V left = select(less(s.y, V(0.0)), -size, s.y);
      return select(s.right, size, left);
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
