// Piecewise swish: x·σ(x) left of 0, x·σ(2x) right of it.
#pragma once
#include "silu.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct PiecewiseSwish : Parameterless, Divides {
  using T = typename V::Scalar;
  using Of = SiLU<V, accuracy>;
  static constexpr bool has_turn = true;
  Of silu{nullptr};
  explicit PiecewiseSwish(const double* p) : Parameterless(p) {}
  static constexpr Minimum minimum() { return Of::minimum(); }

  // With z = max(x, 2x), f is x·σ(z), and its slope is that of silu at z.
  struct Stage {
    V x;
    typename Of::Stage at;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V at_least = max(V(exp_floor<T>), x);
    return {at_least, silu.start(steepened(at_least))};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const { return s.x * silu.sigma(s.at); }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return silu.df(s.at); }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return silu.reciprocal(s.at); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * (s.at.e * r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const { return silu.df(s.at, r); }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V bend = silu.d2f(s.at);
    return select(less(V(0.0), s.x), bend + bend, bend);
  }
  MISHKIT_INLINE_MEMBER static V steepened(V x) { return max(x + x, x); }

  template <class S> struct Output : Of::template Output<S> {
    using Base = typename Of::template Output<S>;
    using Base::Base;
    MISHKIT_INLINE_MEMBER typename Base::Stage start(V y, Mask<T> right) const {
      return Base::start(steepened(y), right);
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
