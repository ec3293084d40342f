// Hard Mish: x·min(k, max(0, x + 3))/k.
#pragma once
#include "inverse.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct HardMish : Dead {
  using T = typename V::Scalar;
  static constexpr bool has_turn = true;
  static constexpr int parameter_count = 1;
  double k;
  V slope, joint;  // 1/k, and where the quadratic part ends
  explicit HardMish(const double* p)
      : k(p[0]), slope(1 / p[0]), joint(p[0] - 3) {}
  Minimum minimum() const {
    if (is_kinked(k)) return {k - 3, k - 3, 0, -__builtin_inf()};
    const double depth = 9 / (4 * k), to_joint = (k - 1.5) * (k - 1.5) / k;
    Minimum m{-1.5, -depth, __builtin_sqrt(1 / k)};
    if (to_joint < m.reach) m.reach = to_joint;
    return m;
  }
  // If k < 3/2 the minimum is at the joint, and f is straight to the right of it.
  static bool is_kinked(double k) { return k < 1.5; }

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
    explicit Output(const double* p) : per_k(4 / p[0]), joint(p[0] - 3) {
      double depth = 9 / (4 * p[0]);
      const bool kinked = is_kinked(p[0]);
      Centring centring = kinked ? Centring{} : MISHKIT_ISA::centring<S>(depth);
      depth += centring.shift;
      depth_high = depth, depth_low = depth - (double)(T)depth, least = centring.least;
      if (kinked) joint = -__builtin_inf();
    }

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
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
