// Tanh form of GELU: x·σ(w), w = 2√(2/π)·(x + 0.044715·x³).
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct GELUTanh : Parameterless, Divides {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  static constexpr bool has_turn = true;
  static constexpr Minimum minimum() { return minimum_of<df_y::GELUTanhFloat32>; }
  static constexpr double linear = 1.5957691216057307118;
  static constexpr double cubic = linear * 0.044715;
  static constexpr double near = 7.5;  // above this σ(w) rounds to 1
  static constexpr double far = 24.0;  // below −far w is below exp_floor

  struct Stage {
    V x, c, e;  // c: x clamped to [−far, near]; e = exp(w(c))
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V at_least = max(V(-far), x);
    V c = min(V(near), at_least);
    V square = c * c;
    V bow = square * V(cubic);
    V slope = bow + V(linear);
    V w = c * slope;
    V e;
    if constexpr (accuracy == Accuracy::half) {
      e = exp<accuracy>(max(V(exp_floor<T>), w));
    } else {
      // w in two parts, because the exponential would magnify its rounding error up to 87 times.
      V carried = slope - bow;
      V slope_rest = (bow - (slope - carried)) + (V(linear) - carried);
      slope_rest = slope_rest + product_rest(square, V(cubic), bow);
      slope_rest = fma(product_rest(c, c, square), V(cubic), slope_rest);
      if constexpr (sizeof(T) == 4)  // the rounding errors of the two constants in float32
        slope_rest = slope_rest + fma(square, V(cubic - (float)cubic), V(linear - (float)linear));
      e = exp<accuracy>(max(V(exp_floor<T>), w), fma(c, slope_rest, product_rest(c, slope, w)));
    }
    return {at_least, c, e};
  }
  MISHKIT_INLINE_MEMBER V dw(Stage s) const { return fma(s.c * s.c, V(3 * cubic), V(linear)); }

  MISHKIT_INLINE_MEMBER V f(Stage s) const { return s.x * (s.e / (s.e + V(1.0))); }
  MISHKIT_INLINE_MEMBER V reciprocal(Stage s) const { return V(1.0) / (s.e + V(1.0)); }
  MISHKIT_INLINE_MEMBER V df(Stage s) const { return df(s, reciprocal(s)); }
  MISHKIT_INLINE_MEMBER V f(Stage s, V r) const { return s.x * (s.e * r); }
  MISHKIT_INLINE_MEMBER V df(Stage s, V r) const {
    V sigma = s.e * r;
    return fma(sigma, s.c * dw(s) * r, sigma);
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V r = reciprocal(s);
    V sigma = s.e * r, slope = dw(s);
    V bend = fma(slope * slope, r - sigma, s.c * V(6 * cubic));
    return sigma * r * fma(s.c, bend, slope * V(2.0));
  }
  template <class S>
  using Output =
      FromOutput<GELUTanh, df_y::GELUTanhFloat32, df_y::GELUTanhBFloat16, df_y::GELUTanhFloat16, S>;
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
