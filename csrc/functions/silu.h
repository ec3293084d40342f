// SiLU: x·σ(x).
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct SiLU : Parameterless, Divides {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  static constexpr bool has_turn = true;
  static constexpr Minimum minimum() { return minimum_of<df_y::SiLUFloat32>; }
  static constexpr double near = 40.0;  // above this σ rounds to 1, in double too

  struct Stage {
    V x, e;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V at_least = max(V(exp_floor<T>), x);
    return {at_least, exp<accuracy>(min(V(near), at_least))};
  }
  MISHKIT_INLINE_MEMBER V sigma(Stage s) const { return logistic<accuracy>(s.e); }
  MISHKIT_INLINE_MEMBER V f(Stage s) const { return s.x * sigma(s); }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return V(1.0) / (s.e + V(1.0)); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * (s.e * r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const {
    V sigma = s.e * r;
    return fma(sigma, min(V(near), s.x) * r, sigma);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return df(s, reciprocal(s)); }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V r = reciprocal(s);
    V sigma = s.e * r;
    return sigma * r * fma(min(V(near), s.x), r - sigma, V(2.0));
  }
  template <class S>
  using Output =
      FromOutput<SiLU, df_y::SiLUFloat32, df_y::SiLUBFloat16, df_y::SiLUFloat16, S>;
  // f' where f(x) is a multiple of y.
  template <class S>
  using ScaledOutput =
      FromScaledOutput<SiLU, df_y::SiLUFloat32, df_y::SiLUBFloat16, df_y::SiLUFloat16, S>;
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
