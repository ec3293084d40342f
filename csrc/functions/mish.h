// Mish: x·tanh(ln(1 + eˣ)) = x·n/(n + 2), e = eˣ, n = e(e + 2).
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct Mish : Parameterless, Divides {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  static constexpr bool has_turn = true;
  static constexpr Minimum minimum() { return minimum_of<df_y::MishFloat32>; }
  // Above this n/(n + 2) rounds to 1, in double too. e is a power of two here, so that n·(1/n) is
  // 1.
  static constexpr double near = 19.40812110900879;

  struct Stage {
    V x, e;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V at_least = max(V(exp_floor<T>), x);
    return {at_least, exp<accuracy>(min(V(near), at_least))};
  }
  // e(e + 2) with one rounding.
  MISHKIT_INLINE_MEMBER V n_of(Stage s) const { return fma(s.e, s.e, s.e + s.e); }

  // Divide first: x·n overflows for large x.
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    if constexpr (accuracy == Accuracy::full && sizeof(T) == 4) {
      // n/(n + 2) equals e − e·(e² + e)/(n + 2), and 1 − 2/(n + 2). Each has small rounding errors
      // where it is used, left of 0 and right of it, and with a = min(e, 1) they are the same
      // formula.
      V a = min(V(1.0), s.e);
      V d = fma(s.e, s.e + V(2.0), V(2.0));
      return s.x * fnma(a, fma(a, a, a) / d, a);
    } else {
      V n = n_of(s);
      return s.x * (n / (n + V(2.0)));
    }
  }
  // n/(n + 2) + 4x(e² + e)/(n + 2)²
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return df(s, reciprocal(s)); }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return V(1.0) / (n_of(s) + V(2.0)); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * (n_of(s) * r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const {
    V n = n_of(s);
    V d = n + V(2.0);
    V growth = min(V(near), s.x) * fma(s.e, s.e, s.e);
    V rise = fma(growth * r, V(4.0), n);
    return accuracy == Accuracy::half ? rise * r : quotient(rise, d, r);
  }
  // 4e(1 + e)/(n + 2)²·[2 + x(1 − σ(1 + 2t))]
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V n = n_of(s);
    V r = reciprocal(s);
    V sigma = s.e / (s.e + V(1.0));
    V t = n * r;
    V bend = fma(min(V(near), s.x), fnma(sigma, fma(t, V(2.0), V(1.0)), V(1.0)), V(2.0));
    return fma(s.e, s.e, s.e) * V(4.0) * r * r * bend;
  }
  template <class S>
  using Output =
      FromOutput<Mish, df_y::MishFloat32, df_y::MishBFloat16, df_y::MishFloat16, S>;
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
