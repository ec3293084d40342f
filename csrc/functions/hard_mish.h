// Hard Mish: x·min(k, max(0, x + 3))/k.
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct HardMish {
  using T = typename V::Scalar;
  static constexpr bool has_turn = true;
  static constexpr int parameter_count = 1;
  V slope, joint, bottom;  // 1/k; where the quadratic part ends; the turn
  explicit HardMish(const double* p)
      : slope(1 / p[0]), joint(p[0] - 3), bottom(p[0] < 1.5 ? p[0] - 3 : -1.5) {}
  MISHKIT_INLINE_MEMBER V turn() const { return bottom; }

  struct Stage {
    V x;
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const { return {max(V(-3.0), x)}; }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    return s.x * min(V(1.0), (s.x + V(3.0)) * slope);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    V inside = fma(s.x, V(2.0), V(3.0)) * slope;
    V left = select(less(V(-3.0), s.x), inside, s.x + V(3.0));
    return select(less(joint, s.x), V(1.0), left);
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V inside = select(less(V(-3.0), s.x), slope + slope, s.x + V(3.0));
    return select(less(joint, s.x), V(0.0), inside);
  }

  // ±2·√((y − y_min)/k) on the quadratic part.
  template <class S> struct Output {
    V depth_high, depth_low, least, per_k, joint;
    explicit Output(const double* p)
        : depth_high(depth(p)),
          depth_low(depth(p) - (double)(T)depth(p)),
          least(least_above(depth(p))),
          per_k(4 / p[0]),
          // Below k = 3/2 the joint is the minimum: right of it everything is straight.
          joint(p[0] < 1.5 ? -__builtin_inf() : p[0] - 3) {}

    struct Stage {
      V y, square;
      Mask<T> right;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T> right) const {
      return {y, max(least, (y + depth_high) + depth_low) * per_k, right};
    }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      V size = sqrt(s.square);
      V left = select(less(s.y, V(0.0)), -size, s.y);
      return select(s.right, select(less(joint, s.y), V(1.0), size), left);
    }

   private:
    static double depth(const double* p) { return 9 / (4 * p[0]); }
    // What y − y_min counts as at the minimum: in the 16-bit types a quarter of the most that
    // shares its rounded y, so that the gradient is the middle of those from 0 to its root.
    static double least_above(double depth) {
      if (sizeof(S) > 2) return 0;
      constexpr int precision = __is_same(S, BFloat16) ? 8 : 11;
      int exponent;
      __builtin_frexp(depth, &exponent);
      double unit = __builtin_ldexp(1.0, exponent - precision);
      double rounded = __builtin_rint(depth / unit) * unit;
      // Towards 0 a power of two has its neighbour at half the distance.
      double half = __builtin_frexp(rounded, &exponent) == 0.5 ? unit / 4 : unit / 2;
      return (depth - rounded + half) / 4;
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
