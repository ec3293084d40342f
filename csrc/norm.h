// The RMS norm x·r·(weight + offset), r = 1/√(mean(x²) + epsilon) of each row, and both of its
// gradients. A row stays in the nearest cache for as long as it is worked on, so r is computed anew in
// the backward pass, which needs nothing but x and the weight.
//
// The gradient of the weight is a sum over all rows. Work is split into parts that depend only on the
// sizes, and every part has its own sums, so results don't depend on the number of threads. Within a
// part, float sums cover at most `rows_a_piece` rows before they are added up in double.
#pragma once
#include "kernels.h"
#include "loops.h"
#include "trained.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class S> struct RmsNorm {
  using T = typename Computed<S>::type;
  using V = Vec<T>;
  static constexpr int pair = Block<S>::pair_elements;
  struct Both {
    V p, q;
  };

  const RmsNormArguments& a;
  const S* const weight;
  const V offset;

  explicit RmsNorm(const RmsNormArguments& a)
      : a(a), weight((const S*)a.weight), offset(a.offset) {}

  // Up to a pair of vectors; what lies behind the row counts as 0.
  MISHKIT_INLINE_MEMBER static Both at(const S* from, int64_t left) {
    Both loaded;
    if (left >= pair) {
      load(from, loaded.p, loaded.q);
    } else {
      alignas(64) S some[pair] = {};
      memcpy(some, from, left * sizeof(S));
      load(some, loaded.p, loaded.q);
    }
    return loaded;
  }
  MISHKIT_INLINE_MEMBER static void put_at(S* to, int64_t left, V p, V q) {
    if (left >= pair) return store<Store::cached>(to, p, q);
    alignas(64) S some[pair];
    store<Store::cached>(some, p, q);
    memcpy(to, some, left * sizeof(S));
  }
  // Calls work(i, how many elements are left) for each pair of vectors of a row.
  template <class Work> MISHKIT_INLINE_MEMBER void in_pairs(const Work& work) const {
    for (int64_t i = 0; i < a.columns; i += pair) work(i, a.columns - i);
  }
  double reciprocal_root(V squares) const {
    return 1 / __builtin_sqrt(sum(squares) / (double)a.columns + a.epsilon);
  }

  void forward(const S* x, S* out) const {
    V first(0.0), second(0.0);
    in_pairs([&](int64_t i, int64_t left) {
      const Both by = at(x + i, left);
      first = fma(by.p, by.p, first), second = fma(by.q, by.q, second);
    });
    const V r(reciprocal_root(first + second));
    in_pairs([&](int64_t i, int64_t left) {
      const Both by = at(x + i, left), w = at(weight + i, left);
      put_at(out + i, left, by.p * r * (w.p + offset), by.q * r * (w.q + offset));
    });
  }

  // With n columns and s = Σ grad·(weight + offset)·x, the gradients are
  // r·grad·(weight + offset) − x·r³·s/n for x, and Σ grad·x·r over the rows for the weight.
  void backward(const S* grad, const S* x, S* out, T* totals) const {
    V first(0.0), second(0.0), s(0.0), t(0.0);
    in_pairs([&](int64_t i, int64_t left) {
      const Both by = at(x + i, left), w = at(weight + i, left), g = at(grad + i, left);
      first = fma(by.p, by.p, first), second = fma(by.q, by.q, second);
      s = fma(g.p * (w.p + offset), by.p, s), t = fma(g.q * (w.q + offset), by.q, t);
    });
    const double root = reciprocal_root(first + second);
    const V r(root), c(root * root * root * sum(s + t) / (double)a.columns);
    in_pairs([&](int64_t i, int64_t left) {
      const Both by = at(x + i, left), w = at(weight + i, left), g = at(grad + i, left);
      put_at(out + i, left, fnma(by.p, c, g.p * (w.p + offset) * r),
             fnma(by.q, c, g.q * (w.q + offset) * r));
      Both total;
      load(totals + i, total.p, total.q);
      store<Store::cached>(totals + i, fma(g.p, by.p * r, total.p), fma(g.q, by.q * r, total.q));
    });
  }

  // Adds to the sums of a part, and begins anew.
  void add(T* totals, double* sums) const {
    for (int64_t i = 0; i < a.columns; i++) sums[i] += totals[place_of<S>(i)];
    memset(totals, 0, (a.columns + pair - 1) / pair * pair * sizeof(T));
  }
};

template <class S> void run_rms_norm(const RmsNormArguments& a, int64_t begin, int64_t end) {
  const RmsNorm<S> norm(a);
  for (int64_t row = begin * a.columns; row < end * a.columns; row += a.columns)
    norm.forward((const S*)a.x + row, (S*)a.out + row);
}

template <class S>
void run_rms_norm_backward(const RmsNormArguments& a, void* scratch, int64_t begin, int64_t end) {
  using T = typename Computed<S>::type;
  const RmsNorm<S> norm(a);
  T* const totals = (T*)scratch;
  memset(totals, 0, rms_norm_scratch(a.columns));
  for (int64_t part = begin; part < end; part++) {
    double* const sums = a.sums + part * a.columns;
    for (int64_t i = 0; i < a.columns; i++) sums[i] = 0;
    const int64_t last = a.rows * (part + 1) / a.parts;
    for (int64_t row = a.rows * part / a.parts; row < last;) {
      const int64_t stop = row + rows_a_piece < last ? row + rows_a_piece : last;
      for (; row < stop; row++) {
        const int64_t at = row * a.columns;
        norm.backward((const S*)a.grad + at, (const S*)a.x + at, (S*)a.out + at, totals);
      }
      norm.add(totals, sums);
    }
  }
}

// The sums of all parts, added in order, in the type of the weight.
template <class S> void rms_norm_sums(const RmsNormArguments& a, void* to) {
  using T = typename Computed<S>::type;
  constexpr int pair = Block<S>::pair_elements;
  for (int64_t begin = 0; begin < a.columns; begin += pair) {
    alignas(64) T totals[pair] = {};
    const int64_t left = a.columns - begin < pair ? a.columns - begin : pair;
    for (int64_t i = 0; i < left; i++) {
      double total = 0;
      for (int64_t part = 0; part < a.parts; part++) total += a.sums[part * a.columns + begin + i];
      totals[place_of<S>(i)] = (T)total;
    }
    Vec<T> p, q;
    load(totals, p, q);
    RmsNorm<S>::put_at((S*)to + begin, left, p, q);
  }
}

#define MISHKIT_OF_ALL(kernel) {kernel<float>, kernel<double>, kernel<BFloat16>, kernel<Float16>}
static constexpr NormKernels norm_kernels = {MISHKIT_OF_ALL(run_rms_norm),
                                             MISHKIT_OF_ALL(run_rms_norm_backward),
                                             MISHKIT_OF_ALL(rms_norm_sums)};
#undef MISHKIT_OF_ALL

}  // namespace MISHKIT_ISA
}  // namespace mishkit
