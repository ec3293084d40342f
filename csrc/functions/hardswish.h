// Hard-swish: hard_mish with k = 6.
#pragma once
#include "hard_mish.h"

namespace mishkit {
namespace MISHKIT_ISA {

constexpr double hardswish_k = 6;

template <class V, Accuracy accuracy> struct Hardswish : HardMish<V, accuracy> {
  using Base = HardMish<V, accuracy>;
  static constexpr int parameter_count = 0;
  explicit Hardswish(const double*) : Base(&hardswish_k) {}

  template <class S> struct Output : Base::template Output<S> {
    explicit Output(const double*) : Base::template Output<S>(&hardswish_k) {}
  };
};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
