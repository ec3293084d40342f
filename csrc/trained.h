// The kernels for trained parameters: f(x), and in one pass the gradients with respect to x and the
// parameters. The parameters are either the same for a run of elements, or differ from lane to
// lane.
//
// Work is split into parts that depend only on the sizes, and every part has its own sums, so
// results don't depend on the number of threads. Within a part, float sums cover at most `piece`
// elements per lane before they are added up in double.
#pragma once
#include "loops.h"

namespace mishkit {
namespace MISHKIT_ISA {

// Elements of a long run, or rows of short ones, between two additions in double.
constexpr int64_t piece = 8192, rows_a_piece = 256;

template <class Function, class S, bool backward> struct Trained {
  using V = typename Block<S>::V;
  using T = typename V::Scalar;
  static constexpr int count = Function::parameter_count, pair = Block<S>::pair_elements;
  static_assert(pair <= most_rows && 2 * pair <= most_pair);

  const TrainedArguments& a;
  const S *grad, *x;
  S* out;
  const T* parameters;

  explicit Trained(const TrainedArguments& a)
      : a(a),
        grad((const S*)a.grad),
        x((const S*)a.x),
        out((S*)a.out),
        parameters((const T*)a.parameters) {}

  // Processes one vector: returns the result for x, and adds to the sums.
  MISHKIT_INLINE_MEMBER static V apply(const Function& function, V x, V grad, V* sums) {
    auto stage = function.start(x);
    if constexpr (!backward) {
      (void)grad, (void)sums;
      return function.f(stage);
    } else {
      V d[count];
      function.dp(stage, d);
      MISHKIT_UNROLL for (int i = 0; i < count; i++) sums[i] = fma(grad, d[i], sums[i]);
      return grad * function.df(stage);
    }
  }

  // A pair of vectors at an offset, `left` elements before the end; work(which, x, grad) -> V.
  template <class Work>
  MISHKIT_INLINE_MEMBER void step(int64_t at, int64_t left, const Work& work) const {
    if (left >= pair) return step_at(grad + at, x + at, out + at, work);
    S buffers[3][pair] = {};
    memcpy(buffers[0], x + at, left * sizeof(S));
    // A gradient of 0 adds nothing to any sum.
    if constexpr (backward) memcpy(buffers[1], grad + at, left * sizeof(S));
    step_at(buffers[1], buffers[0], buffers[2], work);
    memcpy(out + at, buffers[2], left * sizeof(S));
  }
  template <class Work>
  MISHKIT_INLINE_MEMBER static void step_at(const S* grad, const S* x, S* out, const Work& work) {
    V x0, x1, g0 = 0.0, g1 = 0.0;
    load(x, x0, x1);
    if constexpr (backward) load(grad, g0, g1);
    x0 = work(0, x0, g0);
    x1 = work(1, x1, g1);
    store<Store::cached>(out, x0, x1);
  }

  // ---- long runs: one channel at a time ----

  void run(int64_t channel, int64_t begin, int64_t length, double* sums) const {
    V values[count], total[2][count];
    for (int i = 0; i < count; i++) {
      values[i] = (double)parameters[i * a.channels + channel];
      total[0][i] = total[1][i] = 0.0;
    }
    const Function function(values);
    for (int64_t at = 0; at < length; at += pair)
      step(begin + at, length - at,
           [&](int which, V x, V grad) { return apply(function, x, grad, total[which]); });
    if constexpr (backward)
      for (int i = 0; i < count; i++)
        sums[i * a.channels + channel] += sum(total[0][i]) + sum(total[1][i]);
    else
      (void)sums;
  }

  void runs(int64_t part) const {
    double* sums = a.sums + part * count * a.channels;
    const int64_t pieces = (a.inner + piece - 1) / piece;
    const int64_t all = a.outer * a.channels * pieces;
    for (int64_t i = all * part / a.parts; i < all * (part + 1) / a.parts; i++) {
      int64_t run_index = i / pieces, start = i % pieces * piece;
      int64_t left = a.inner - start;
      run(run_index % a.channels, run_index * a.inner + start, left < piece ? left : piece, sums);
    }
  }

  // ---- short runs: rows, with a pattern of parameters for as many rows as fill whole vectors ----

  int64_t channel_of(int64_t element) const { return element / a.inner % a.channels; }

  void rows(int64_t part, T* values) const {
    const int64_t row = a.channels * a.inner;
    // Rows so long that their partial last vector doesn't matter need not fill whole vectors.
    int64_t together = 1;
    while (row < long_row && row * together % pair) together++;
    const int64_t length = (row * together + pair - 1) / pair * pair;
    T* totals = values + length * count;
    for (int i = 0; i < count; i++)
      for (int64_t k = 0; k < length; k++)
        values[i * length + place_of<S>(k)] = parameters[i * a.channels + channel_of(k)];

    const int64_t first = a.outer * part / a.parts, last = a.outer * (part + 1) / a.parts;
    double* sums = a.sums + part * count * a.channels;
    for (int64_t begin = first; begin < last; begin += rows_a_piece) {
      int64_t end = begin + rows_a_piece < last ? begin + rows_a_piece : last;
      if constexpr (backward) memset(totals, 0, sizeof(T) * length * count);
      for (int64_t r = begin; r < end; r += together)
        pattern(r * row, (end - r < together ? end - r : together) * row, length, values, totals);
      if constexpr (backward) add(totals, length, row * together, sums);
    }
  }
  void pattern(int64_t begin, int64_t size, int64_t length, const T* values, T* totals) const {
    for (int64_t at = 0; at < size; at += pair)
      step(begin + at, size - at, [&](int which, V x, V grad) {
        V own[count], total[count];
        const int64_t place = at + which * V::lanes;
        for (int i = 0; i < count; i++) {
          own[i] = get<typename V::Raw>(values + i * length + place);
          if constexpr (backward) total[i] = get<typename V::Raw>(totals + i * length + place);
        }
        V result = apply(Function(own), x, grad, total);
        if constexpr (backward)
          for (int i = 0; i < count; i++) memcpy(totals + i * length + place, &total[i], sizeof(V));
        return result;
      });
  }
  void add(const T* totals, int64_t length, int64_t size, double* sums) const {
    for (int i = 0; i < count; i++)
      for (int64_t k = 0; k < size; k++)
        sums[i * a.channels + channel_of(k)] += totals[i * length + place_of<S>(k)];
  }
};

template <class Function, class Slope, class S>
void run_trained(const TrainedArguments& a, void* scratch, int64_t begin, int64_t end) {
  if constexpr (has_variant<Function>()) {
    using T = typename Computed<S>::type;
    if (Function::varies((const T*)a.parameters, a.channels))
      return run_trained<typename Function::Variant, typename Slope::Variant, S>(a, scratch, begin,
                                                                                 end);
  }
  using T = typename Computed<S>::type;
  for (int64_t part = begin; part < end; part++) {
    const bool together = a.channels > 1 && a.inner < long_run;
    if (a.grad) {
      Trained<Slope, S, true> work(a);
      together ? work.rows(part, (T*)scratch) : work.runs(part);
    } else {
      Trained<Function, S, false> work(a);
      together ? work.rows(part, (T*)scratch) : work.runs(part);
    }
  }
}

template <template <class, Accuracy> class Function, class S>
constexpr TrainedKernel trained_kernel() {
  using F = Function<Vec<typename Computed<S>::type>, Computed<S>::accuracy>;
  using Slope = Function<Vec<typename Computed<S>::type>, Computed<S>::slopes>;
  if constexpr (is_base_of<Trainable, F>) return run_trained<F, Slope, S>;
  else return nullptr;
}

}  // namespace MISHKIT_ISA
}  // namespace mishkit
