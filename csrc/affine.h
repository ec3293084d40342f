// f(scale·x + shift) with one scale and one shift per channel, and the gradient through f, for any
// function of the table; and the output of a layer norm. With them the backward pass recomputes what
// followed a normalisation in one pass over its input (recompute/).
//
// scale·x + shift fills blocks that stay in the nearest cache, rounded to the storage type as the
// normalisation had rounded it. The kernels of the function take their input from there, so no
// function needs code of its own.
#pragma once
#include "kernels.h"
#include "loops.h"

namespace mishkit {
namespace MISHKIT_ISA {

// Elements per block: 4 KiB, which the function's kernel reads from the nearest cache.
template <class S> constexpr int affine_block = 4096 / sizeof(S);

// The numbers of a run of elements, by the pair: the same for all elements, or one per element.
template <class S> struct Constant {
  using T = typename Computed<S>::type;
  Vec<T> number;

  explicit Constant(T value) : number(value) {}
  MISHKIT_INLINE_MEMBER void get(int, Vec<T>& a, Vec<T>& b) const { a = b = number; }
  MISHKIT_INLINE_MEMBER void get_some(int i, int, Vec<T>& a, Vec<T>& b) const { get(i, a, b); }
};
template <class S> struct Row {
  using T = typename Computed<S>::type;
  const T* numbers;

  MISHKIT_INLINE_MEMBER void get(int i, Vec<T>& a, Vec<T>& b) const {
    load_in_order_of<S>(numbers + i, a, b);
  }
  void get_some(int i, int count, Vec<T>& a, Vec<T>& b) const {
    alignas(64) T some[Block<S>::pair_elements] = {};
    memcpy(some, numbers + i, count * sizeof(T));
    load_in_order_of<S>(some, a, b);
  }
};

// out[i] = formula(x[i], numbers of i…) for 0 ≤ i < count. The arrays do not overlap, so elements at
// the end may be computed twice.
template <class S, class Formula, class... Numbers>
MISHKIT_INLINE void map_run(const S* x, S* out, int count, Formula formula, Numbers... numbers) {
  using V = typename Block<S>::V;
  constexpr int pair = Block<S>::pair_elements;
  const auto compute = [&](const S* from, S* to, auto... given) {
    V a, b;
    load(from, a, b);
    formula(a, b, given...);
    store<Store::cached>(to, a, b);
  };
  struct Both {
    V a, b;
  };
  if (count >= pair) {
    for (int i = 0;;) {
      const auto at = [&](auto& source) {
        Both both;
        source.get(i, both.a, both.b);
        return both;
      };
      compute(x + i, out + i, at(numbers)...);
      if (i == count - pair) return;
      i = i + pair <= count - pair ? i + pair : count - pair;
    }
  }
  alignas(64) S from[pair] = {}, to[pair];
  memcpy(from, x, count * sizeof(S));
  const auto at = [&](auto& source) {
    Both both;
    source.get_some(0, count, both.a, both.b);
    return both;
  };
  compute(from, to, at(numbers)...);
  memcpy(out, to, count * sizeof(S));
}

template <class S> struct Affine {
  using T = typename Computed<S>::type;
  using V = Vec<T>;

  const AffineArguments& a;
  // Where the next element is: its sample's numbers, its channel, and the elements left in its run.
  const T *scale, *shift;
  int64_t channel, left, left_in_sample;

  Affine(const AffineArguments& a, int64_t begin) : a(a) {
    const int64_t sample = begin / a.sample, within = begin % a.sample;
    scale = (const T*)a.scale + sample * a.channels, shift = (const T*)a.shift + sample * a.channels;
    channel = within / a.inner % a.channels;
    left = a.inner - within % a.inner, left_in_sample = a.sample - within;
  }

  // scale·x + shift for the next elements, at most a block of them.
  void fill(const S* x, S* out, int count) {
    if (a.inner > 1 && a.inner < Block<S>::pair_elements) return fill_short_runs(x, out, count);
    while (count) {
      const int run = next_run(count);
      if (a.inner == 1)
        map_run(x, out, run, scaled, Row<S>{scale + channel}, Row<S>{shift + channel});
      else
        map_run(x, out, run, scaled, Constant<S>(scale[channel]), Constant<S>(shift[channel]));
      x += run, out += run, count -= run;
      pass(run);
    }
  }
  // Runs that are shorter than the vectors: with a number per element.
  void fill_short_runs(const S* x, S* out, int count) {
    alignas(64) T scales[affine_block<S>], shifts[affine_block<S>];
    for (int i = 0; i < count;) {
      const int run = next_run(count - i);
      for (int end = i + run; i < end; i++) scales[i] = scale[channel], shifts[i] = shift[channel];
      pass(run);
    }
    map_run(x, out, count, scaled, Row<S>{scales}, Row<S>{shifts});
  }
  static constexpr auto scaled = [](V& p, V& q, auto scale, auto shift) {
    p = fma(p, scale.a, shift.a), q = fma(q, scale.b, shift.b);
  };
  int next_run(int count) const {
    const int64_t run = a.inner == 1 ? a.channels - channel : left;
    return (int)(run < count ? run : count);
  }
  void pass(int64_t run) {
    if (a.inner == 1) channel += run;
    else if (!(left -= run)) channel++, left = a.inner;
    if (channel == a.channels) channel = 0;
    if (!(left_in_sample -= run)) {
      scale += a.channels, shift += a.channels;
      left_in_sample = a.sample;
    }
  }

  void run(int64_t begin, int64_t end) {
    constexpr int size = affine_block<S>;
    alignas(64) S block[size];
    Arguments of{};
    of.parameters = a.parameters, of.streaming = a.streaming;
    for (int64_t at = begin; at < end; at += size) {
      const int count = (int)(end - at < size ? end - at : size);
      const S* x = (const S*)a.x + at;
      S* out = (S*)a.out + at;
      if (!a.kernel) {
        fill(x, out, count);
        continue;
      }
      fill(x, block, count);
      of.in[0] = a.grad ? (const S*)a.grad + at : block;
      of.in[1] = block;
      of.out[0] = out;
      a.kernel(of, 0, count);
    }
  }
};

template <class S> void run_affine(const AffineArguments& a, int64_t begin, int64_t end) {
  Affine<S>(a, begin).run(begin, end);
}

// ((x − mean)·rstd)·weight + bias with the mean and rstd of the row and the weight and bias of the
// column, rounded as torch's layer norm rounds.
template <class S> void run_layer_norm(const LayerNormArguments& a, int64_t begin, int64_t end) {
  using T = typename Computed<S>::type;
  using V = Vec<T>;
  const auto formula = [](V& p, V& q, auto mean, auto rstd, auto weight, auto bias) {
    p = fma((p - mean.a) * rstd.a, weight.a, bias.a);
    q = fma((q - mean.b) * rstd.b, weight.b, bias.b);
  };
  for (int64_t row = begin; row < end; row++) {
    const S* x = (const S*)a.x + row * a.columns;
    S* out = (S*)a.out + row * a.columns;
    map_run(x, out, (int)a.columns, formula, Constant<S>(((const T*)a.mean)[row]),
            Constant<S>(((const T*)a.rstd)[row]), Row<S>{(const T*)a.weight},
            Row<S>{(const T*)a.bias});
  }
}

static constexpr AffineKernels affine_kernels = {
    {run_affine<float>, run_affine<double>, run_affine<BFloat16>, run_affine<Float16>},
    {run_layer_norm<float>, run_layer_norm<double>, run_layer_norm<BFloat16>,
     run_layer_norm<Float16>}};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
