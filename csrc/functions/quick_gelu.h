// Quick GELU: x·σ(1.702x), which is swish with beta = 1.702.
#pragma once
#include "silu.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct QuickGELU : Parameterless, Divides {
  using T = typename V::Scalar;
  using Of = SiLU<V, accuracy>;
  static constexpr bool has_turn = true;
  static constexpr double beta = 1.702;
  Of silu{nullptr};
  Factor<T> sharpness{beta};
  explicit QuickGELU(const double* p) : Parameterless(p) {}
  static constexpr Minimum minimum() {
    constexpr Minimum of = Of::minimum();
    return {of.turn / beta, of.y / beta, of.bend * 1.30460722058403463368};  // √beta
  }

  // With z = beta·x, f is silu(z)/beta.
  struct Stage {
    V x;
    typename Of::Stage at;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V at_least = max(V(exp_floor<T> / beta), x);
    V c = min(V(Of::near / beta), at_least);
    return {at_least, {c * V(beta), exp<accuracy>(c, sharpness)}};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const { return s.x * silu.sigma(s.at); }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return silu.df(s.at); }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return silu.reciprocal(s.at); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * (s.at.e * r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const { return silu.df(s.at, r); }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const { return silu.d2f(s.at) * V(beta); }

  template <class S> struct Output : Of::template ScaledOutput<S> {
    explicit Output(const double*) : Of::template ScaledOutput<S>(beta) {}
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
