// Linear swish: 2x·σ(1.25x) left of 0, x right of it.
#pragma once
#include "silu.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct LinearSwish : Parameterless, Divides {
  using T = typename V::Scalar;
  using Of = SiLU<V, accuracy>;
  static constexpr bool has_turn = true;
  static constexpr double beta = 1.25;
  Of silu{nullptr};
  Factor<T> sharpness{beta};
  explicit LinearSwish(const double* p) : Parameterless(p) {}
  static constexpr Minimum minimum() {
    constexpr Minimum of = Of::minimum();
    return {of.turn / beta, of.y * (2 / beta), of.bend * 1.58113883008418966600};  // √(2·beta)
  }

  // With z = beta·x, the left part is 2·silu(z)/beta.
  struct Stage {
    V x;
    typename Of::Stage at;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V at_least = max(V(exp_floor<T> / beta), x);
    V left = min(V(0.0), at_least);
    return {at_least, {left * V(beta), exp<accuracy>(left, sharpness)}};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    V sigma = silu.sigma(s.at);
    // Right of 0 σ is exactly ½.
    return s.x * (sigma + sigma);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return df(s, reciprocal(s)); }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return silu.reciprocal(s.at); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const {
    V sigma = s.at.e * r;
    return s.x * (sigma + sigma);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const {
    V rise = silu.df(s.at, r);
    return select(less(V(0.0), s.x), V(1.0), rise + rise);
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    return select(less(V(0.0), s.x), V(0.0), silu.d2f(s.at) * V(2 * beta));
  }

  template <class S> struct Output {
    using Inner = typename Of::template ScaledOutput<S>;
    Inner inner{beta / 2};
    explicit Output(const double*) {}
    struct Stage {
      typename Inner::Stage at;
      Mask<T> straight;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T> right) const {
      return {inner.start(min(V(0.0), y), right), right & less_equal(V(0.0), y)};
    }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      V rise = inner.df(s.at);
      return select(s.straight, V(1.0), rise + rise);
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
