// Exact GELU: x·Φ(x).
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct GELU : Parameterless {
  using T = typename V::Scalar;
  using Parameterless::Parameterless;
  static constexpr bool has_turn = true;
  static constexpr Minimum minimum() { return minimum_of<df_y::GELUFloat32>; }

  struct Stage {
    V x, size;    // size: |x|, clamped where its tail is 0
    Normal<T> n;  // of size
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V size = min(V(normal_end<T>), abs(x));
    return {x, size, normal<accuracy>(size)};
  }
  // x·Φ(x) is x − x·Φ(−x) on the right and −|x|·Φ(−|x|) on the left.
  MISHKIT_INLINE_MEMBER V f(Stage s) const { return fnma(s.size, s.n.tail, max(V(-0.0), s.x)); }
  // Φ + x·φ
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    V rise = fma(s.size, pdf(s), -s.n.tail);
    return select(less(s.x, V(0.0)), -rise, rise + V(1.0));
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const { return pdf(s) * fnma(s.size, s.size, V(2.0)); }
  MISHKIT_INLINE_MEMBER V pdf(Stage s) const { return s.n.e * V(0.39894228040143267794); }

  template <class S>
  using Output =
      FromOutput<GELU, df_y::GELUFloat32, df_y::GELUBFloat16, df_y::GELUFloat16, S>;
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
