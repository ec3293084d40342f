// Softplus: ln(1 + exp(beta·x))/beta; x itself where beta·x > threshold.
#pragma once
#include "function.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct Softplus : Monotone {
  using T = typename V::Scalar;
  static constexpr int parameter_count = 2;
  V beta, threshold, per_beta;
  explicit Softplus(const double* p) : beta(p[0]), threshold(p[1]), per_beta(1 / p[0]) {}

  struct Stage {
    V x, z, a;  // z = beta·x, a = exp(−|z|)
  };
  MISHKIT_INLINE_MEMBER Stage start(V x) const {
    V z = beta * x;
    return {x, z, exp<accuracy>(max(V(exp_floor<T>), -abs(z)))};
  }
  MISHKIT_INLINE_MEMBER V f(Stage s) const {
    V y = (max(V(0.0), s.z) + log1p<accuracy>(s.a)) * per_beta;
    return select(less(threshold, s.z), s.x, y);
  }
  MISHKIT_INLINE_MEMBER V df(Stage s) const {
    V sigma = select(less(s.z, V(0.0)), s.a, V(1.0)) / (s.a + V(1.0));
    return select(less(threshold, s.z), V(1.0), sigma);
  }
  MISHKIT_INLINE_MEMBER V d2f(Stage s) const {
    V r = V(1.0) / (s.a + V(1.0));
    return select(less(threshold, s.z), V(0.0), beta * s.a * r * r);
  }

  // f' = 1 − exp(−beta·y)
  template <class S> struct Output {
    V beta, threshold;
    explicit Output(const double* p) : beta(p[0]), threshold(p[1]) {}
    struct Stage {
      V z;
    };
    MISHKIT_INLINE_MEMBER Stage start(V y, Mask<T>) const { return {beta * y}; }
    MISHKIT_INLINE_MEMBER V df(Stage s) const {
      V sigma = -expm1<accuracy>(max(V(exp_floor<T>), -s.z));
      return select(less(threshold, s.z), V(1.0), sigma);
    }
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
