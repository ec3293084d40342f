// Swish: x·σ(beta·x), which is aptx with alpha 1, beta/2 and gamma 1/2.
#pragma once
#include "aptx.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class V, Accuracy accuracy> struct Swish : APTx<V, accuracy> {
  using Base = APTx<V, accuracy>;
  static constexpr int parameter_count = 1;
  using Variant = void;

  template <class Number> struct As {
    Number of_aptx[3];
    explicit As(const Number* p) : of_aptx{1.0, p[0] * Number(0.5), 0.5} {}
  };
  explicit Swish(const double* p) : Base(As<double>(p).of_aptx) {}
  explicit Swish(const V* p) : Base(As<V>(p).of_aptx) {}

  MISHKIT_INLINE_MEMBER V f(typename Base::Stage s) const {
    return s.x * logistic<accuracy>(s.e);  // aptx's f without the terms that are 0 or 1 here
  }
  MISHKIT_INLINE_MEMBER V f(typename Base::Stage s, V r) const { return s.x * (s.e * r); }
  MISHKIT_INLINE_MEMBER void dp(typename Base::Stage s, V* d) const {
    V all[3];
    Base::dp(s, all);
    d[0] = all[1] * V(0.5);
  }

  template <class S> struct Output : Base::template Output<S> {
    explicit Output(const double* p) : Base::template Output<S>(As<double>(p).of_aptx) {}
  };
  static bool iterates(const double*) { return false; }
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
