// (1 − t)·f(x) + t·g(x) and its gradient, for any two functions of the table. The kernels of both
// functions fill blocks that stay in the nearest cache, which are combined on their way to memory.
// So one pass reads and writes each element once, and no pair of functions needs code of its own.
#pragma once
#include "kernels.h"
#include "loops.h"

namespace mishkit {
namespace MISHKIT_ISA {

// Elements per block: with six blocks of float in use, 24 KiB.
template <class T> constexpr int blend_block = 4096 / sizeof(T);

template <class S, bool backward, bool dead> struct Blending {
  using T = typename Computed<S>::type;
  using V = Vec<T>;
  static constexpr int size = blend_block<T>, pair = Block<S>::pair_elements;
  static_assert(size % kernel_grain == 0 && size % pair == 0);

  const BlendArguments& a;
  V weight, rest;
  alignas(64) T wide[size], first[size], second[size];
  alignas(64) T ones[backward ? size : 1];

  explicit Blending(const BlendArguments& a) : a(a), weight(a.t), rest(1 - a.t) {
    if constexpr (backward)
      for (T& one : ones) one = 1;
  }

  MISHKIT_INLINE_MEMBER V mixed(V f, V g) const { return fma(weight, g, rest * f); }

  // Both functions, or their derivatives, for the elements from x on. Pairs of 16-bit elements are
  // widened out of order, and put back together in the same order.
  void compute(const S* x, int count) {
    const T* computed = wide;
    if constexpr (__is_same(S, T)) computed = x;
    else widen(x, count);
    Arguments of{};
    of.in[0] = backward ? ones : computed;
    of.in[1] = computed;
    for (int i = 0; i < 2; i++) {
      of.out[0] = i ? second : first;
      of.parameters = a.parameters[i];
      a.kernels[i](of, 0, rounded_up(count));
    }
  }
  // Whole pairs, unless the kernels read the caller's data directly.
  static int rounded_up(int count) {
    if constexpr (__is_same(S, T)) return count;
    return (count + pair - 1) / pair * pair;
  }
  void widen(const S* x, int count) {
    int i = 0;
    for (; i + pair <= count; i += pair) widen_pair(x + i, wide + i);
    if (i < count) {
      alignas(64) S buffer[pair] = {};
      memcpy(buffer, x + i, (count - i) * sizeof(S));
      widen_pair(buffer, wide + i);
    }
  }
  MISHKIT_INLINE_MEMBER static void widen_pair(const S* x, T* to) {
    V even, odd;
    load(x, even, odd);
    store<Store::cached>(to, even, odd);
  }

  template <Store how> void combine(const S* grad, S* out, int count) const {
    int i = 0;
    for (; i + pair <= count; i += pair) combine_pair<how>(grad + i, i, out + i);
    if (i < count) {
      alignas(64) S from[pair] = {}, to[pair];
      if constexpr (backward) memcpy(from, grad + i, (count - i) * sizeof(S));
      combine_pair<Store::cached>(from, i, to);
      memcpy(out + i, to, (count - i) * sizeof(S));
    }
  }
  template <Store how> MISHKIT_INLINE_MEMBER void combine_pair(const S* grad, int i, S* out) const {
    V f0, f1, g0, g1;
    load(first + i, f0, f1);
    load(second + i, g0, g1);
    f0 = mixed(f0, g0), f1 = mixed(f1, g1);
    if constexpr (backward) {
      load(grad, g0, g1);
      f0 = passed<dead>(g0, f0), f1 = passed<dead>(g1, f1);
    } else {
      (void)grad;
    }
    store<how>(out, f0, f1);
  }

  void run(int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += size) {
      const int count = (int)(end - at < size ? end - at : size);
      const S* grad = backward ? (const S*)a.grad + at : nullptr;
      S* out = (S*)a.out + at;
      compute((const S*)a.x + at, count);
      if (a.streaming && !backward) combine<Store::streaming>(grad, out, count);
      else combine<Store::cached>(grad, out, count);
    }
    if (a.streaming && !backward) fence();
  }
};

template <class S, bool backward, bool dead>
void run_blend(const BlendArguments& a, int64_t begin, int64_t end) {
  Blending<S, backward, dead>(a).run(begin, end);
}

#define MISHKIT_BLENDS(S) \
  {run_blend<S, false, false>, run_blend<S, true, false>, run_blend<S, true, true>}
static constexpr BlendKernels blend_kernels = {{MISHKIT_BLENDS(float), MISHKIT_BLENDS(double),
                                                MISHKIT_BLENDS(BFloat16), MISHKIT_BLENDS(Float16)}};
#undef MISHKIT_BLENDS

}  // namespace MISHKIT_ISA
}  // namespace mishkit
