// f(g)·u, a gate, and both of its gradients in one pass, for any function of the table. The kernel of
// the function fills a block that stays in the nearest cache, with f' beside it in the backward pass,
// and the block is multiplied on its way to memory. So no function needs code of its own. Rows of
// float without a limit, the most common kind, have a loop for each function (loops.h), which is
// faster by a fifth to a third, and gives the same bits.
//
// The arrays may have gaps between rows and between elements, as the halves of one tensor have. What
// does not lie in a row is gathered into a block first.
#pragma once
#include "kernels.h"
#include "loops.h"

namespace mishkit {
namespace MISHKIT_ISA {

template <class S> MISHKIT_INLINE void gather(const S* from, int64_t step, S* to, int count) {
  if (step == 1) memcpy(to, from, count * sizeof(S));
  else if (step == 2)
    for (int i = 0; i < count; i++) to[i] = from[2 * i];
  else
    for (int i = 0; i < count; i++) to[i] = from[i * step];
}
template <class S> MISHKIT_INLINE void scatter(const S* from, S* to, int64_t step, int count) {
  if (step == 1) memcpy(to, from, count * sizeof(S));
  else if (step == 2)
    for (int i = 0; i < count; i++) to[2 * i] = from[i];
  else
    for (int i = 0; i < count; i++) to[i * step] = from[i];
}

template <class S, bool backward, bool dead, bool limited> struct Gating {
  using T = typename Computed<S>::type;
  using V = Vec<T>;
  static constexpr int size = 4096 / sizeof(T), pair = Block<S>::pair_elements;
  static constexpr int outputs = backward ? 2 : 1;
  // Blocks end with rows that are at least this long; shorter rows are gathered.
  static constexpr int long_enough = size / 8;
  static_assert(size % kernel_grain == 0 && size % pair == 0);

  const GateArguments& a;
  const V limit, offset;
  alignas(64) T wide[size], values[size], slopes[backward ? size : 1];
  alignas(64) S of_g[size], of_u[size], of_grad[backward ? size : 1];
  alignas(64) S results[outputs][size];

  explicit Gating(const GateArguments& a) : a(a), limit(a.limit), offset(a.offset) {}

  // Calls work(where in the array, which element of the block, how many) for each part of a row.
  template <class Work>
  void in_rows(const Rows& rows, int64_t at, int count, const Work& work) const {
    int64_t row = at / a.columns, column = at % a.columns;
    for (int done = 0; done < count; row++, column = 0) {
      const int64_t left = a.columns - column;
      const int run = left < count - done ? (int)left : count - done;
      work((S*)rows.data + row * rows.row + column * rows.step, done, run);
      done += run;
    }
  }
  // Where elements [at, at + count) are, if they lie in a row; null otherwise.
  S* in_place(const Rows& rows, int64_t at, int64_t count) const {
    const int64_t column = at % a.columns;
    if (rows.step != 1 || column + count > a.columns) return nullptr;
    return (S*)rows.data + at / a.columns * rows.row + column;
  }
  const S* read(const Rows& rows, int64_t at, int count, S* buffer) const {
    if (const S* place = in_place(rows, at, count)) return place;
    in_rows(rows, at, count,
            [&](const S* from, int i, int run) { gather(from, rows.step, buffer + i, run); });
    return buffer;
  }

  // min(g, limit) in the type that is computed in. Pairs of 16-bit elements are widened out of
  // order, and multiplied in that order.
  const T* input(const S* g, int count) {
    if constexpr (__is_same(S, T) && !limited) return g;
    int i = 0;
    for (; i + pair <= count; i += pair) input_pair(g + i, wide + i);
    if (i < count) {
      alignas(64) S buffer[pair] = {};
      memcpy(buffer, g + i, (count - i) * sizeof(S));
      input_pair(buffer, wide + i);
    }
    return wide;
  }
  MISHKIT_INLINE_MEMBER void input_pair(const S* g, T* to) const {
    V p, q;
    load(g, p, q);
    if constexpr (limited) p = min(limit, p), q = min(limit, q);
    store<Store::cached>(to, p, q);
  }
  // Whole pairs, unless the function's kernel reads the caller's data.
  static int rounded_up(int count) {
    if constexpr (__is_same(S, T) && !limited) return count;
    return (count + pair - 1) / pair * pair;
  }

  struct Both {
    V p, q;
  };
  MISHKIT_INLINE_MEMBER V factor(V u) const {
    if constexpr (limited) u = max(-limit, min(limit, u));
    return u + offset;
  }
  MISHKIT_INLINE_MEMBER V where_free(V magnitude, V gradient) const {
    if constexpr (limited) return select(less_equal(magnitude, limit), gradient, V(0.0));
    else return gradient;
  }
  template <class Number> MISHKIT_INLINE_MEMBER static Both both(const Number* from) {
    Both loaded;
    load(from, loaded.p, loaded.q);
    return loaded;
  }
  template <Store how>
  MISHKIT_INLINE_MEMBER void combine_pair(const S* g, const S* u, const S* grad, int i, S* first,
                                          S* second) const {
    const Both y = both(values + i), by = both(u);
    if constexpr (!backward) {
      (void)g, (void)grad, (void)second;
      store<how>(first, y.p * factor(by.p), y.q * factor(by.q));
    } else {
      const Both slope = both(slopes + i), outer = both(grad), x = both(g);
      store<how>(first, where_free(x.p, passed<dead>(outer.p * factor(by.p), slope.p)),
                 where_free(x.q, passed<dead>(outer.q * factor(by.q), slope.q)));
      store<how>(second, where_free(abs(by.p), outer.p * y.p), where_free(abs(by.q), outer.q * y.q));
    }
  }
  template <Store how>
  void combine(const S* g, const S* u, const S* grad, int count, S* first, S* second) const {
    int i = 0;
    for (; i + pair <= count; i += pair)
      combine_pair<how>(g + i, u + i, grad + i, i, first + i, second + i);
    if (i == count) return;
    const int rest = count - i;
    alignas(64) S from[3][pair] = {}, to[2][pair];
    memcpy(from[1], u + i, rest * sizeof(S));
    if constexpr (backward) {
      memcpy(from[0], g + i, rest * sizeof(S));
      memcpy(from[2], grad + i, rest * sizeof(S));
    }
    combine_pair<Store::cached>(from[0], from[1], from[2], i, to[0], to[1]);
    memcpy(first + i, to[0], rest * sizeof(S));
    if constexpr (backward) memcpy(second + i, to[1], rest * sizeof(S));
  }

  // The function's own kernel for gates, where all arrays lie in rows; false elsewhere.
  bool at_once(int64_t at, int64_t count) const {
    Arguments of{};
    const Rows* rows[5] = {&a.g, &a.u, &a.out[0], &a.grad, &a.out[1]};
    S* places[5] = {};
    for (int i = 0; i < (backward ? 5 : 3); i++)
      if (!(places[i] = in_place(*rows[i], at, count))) return false;
    of.in[0] = places[0], of.in[1] = places[1], of.in[2] = places[3];
    of.out[0] = places[2], of.out[1] = places[4];
    of.parameters = a.parameters, of.streaming = a.streaming;
    a.at_once(of, 0, count);
    return true;
  }
  void block(int64_t at, int count) {
    const S* g = read(a.g, at, count, of_g);
    const S* u = read(a.u, at, count, of_u);
    const S* grad = backward ? read(a.grad, at, count, of_grad) : g;
    Arguments of{};
    of.in[0] = input(g, count);
    of.out[0] = values, of.out[1] = slopes;
    of.parameters = a.parameters;
    a.kernel(of, 0, rounded_up(count));
    S *in_array[2] = {}, *to[2] = {};
    for (int i = 0; i < outputs; i++) {
      in_array[i] = in_place(a.out[i], at, count);
      to[i] = in_array[i] ? in_array[i] : results[i];
    }
    if (!backward && a.streaming) combine<Store::streaming>(g, u, grad, count, to[0], to[1]);
    else combine<Store::cached>(g, u, grad, count, to[0], to[1]);
    for (int i = 0; i < outputs; i++)
      if (!in_array[i])
        in_rows(a.out[i], at, count, [&](S* place, int first, int run) {
          scatter(results[i] + first, place, a.out[i].step, run);
        });
  }
  void run(int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t left = a.columns - at % a.columns;
      if (a.at_once && a.columns >= long_enough) {
        const int64_t whole = left < end - at ? left : end - at;
        if (at_once(at, whole)) {
          at += whole;
          continue;
        }
      }
      int64_t count = end - at < size ? end - at : size;
      if (a.columns >= long_enough && left < count) count = left;
      block(at, (int)count);
      at += count;
    }
    if (!backward && a.streaming) fence();
  }
};

template <class S, bool backward, bool dead, bool limited>
void run_gate(const GateArguments& a, int64_t begin, int64_t end) {
  Gating<S, backward, dead, limited>(a).run(begin, end);
}

#define MISHKIT_GATES(S)                                                  \
  {{run_gate<S, false, false, false>, run_gate<S, false, false, true>},   \
   {run_gate<S, true, false, false>, run_gate<S, true, false, true>},     \
   {run_gate<S, true, true, false>, run_gate<S, true, true, true>}}
static constexpr GateKernels gate_kernels = {{MISHKIT_GATES(float), MISHKIT_GATES(double),
                                              MISHKIT_GATES(BFloat16), MISHKIT_GATES(Float16)}};
#undef MISHKIT_GATES

}  // namespace MISHKIT_ISA
}  // namespace mishkit
