// The APTx neuron: y_o = Σᵢ (α + tanh(β·xᵢ))·γ·xᵢ + δ, with separate α, β, γ for each pair of an
// output o and an input i. Neither forward nor backward ever holds batch × out × in elements.
//
// With q = σ(2βx), so that tanh(βx) = 2q − 1, and h = q(1 − q) = (1 − tanh²(βx))/4:
//
//   y      = 2·Σᵢ (γq + γ(α − 1)/2)·x + δ
//   ∂y/∂x  = 2·γ·(q + (α − 1)/2 + 2β·xh)
//   ∂L/∂α  = γ·S₀,  ∂L/∂β = 4γ·S₂,  ∂L/∂γ = (α − 1)·S₀ + 2·S₁
//   S₀, S₁, S₂ = sums of g·x, g·x·q, g·x·xh over the batch, g = ∂L/∂y
//
// The part with α is computed in here too. Without it forward is 1% faster and backward 6% (784 to
// 128, batch 256, one core of a Zen 5), but matrix products in its place would cost 20% and 25%.
#pragma once
#include "loops.h"
#include "math.h"
#include "neuron_kernels.h"
#include "vec.h"

namespace mishkit {
namespace MISHKIT_ISA {

// ---- the logistic function ----------------------------------------------------------------------

// 2^z = 2^k·(a + r)/(a − r), with integer k, |r| ≤ ½ and a = r·coth(w), w = r·ln 2/2. a is an even
// function of r that needs few terms, and fewer operations than a polynomial for 2^r, since a
// division follows anyway. Its coefficient of r^2k is that of w^2k in w·coth(w), times:
static constexpr double scaled(double c, int k) {
  constexpr double half_ln2 = 0.34657359027997265;
  for (c /= half_ln2; k; k--) c *= half_ln2 * half_ln2;
  return c;
}
constexpr double coth_full[] = {scaled(1.0, 0), scaled(1.0 / 3, 1), scaled(-1.0 / 45, 2)};
// The last coefficient is adjusted to compensate for the omitted one.
constexpr double coth_half[] = {scaled(1.0, 0), scaled(0.99826 / 3, 1)};
constexpr double coth_double[] = {scaled(1.0, 0),
                                  scaled(1.0 / 3, 1),
                                  scaled(-1.0 / 45, 2),
                                  scaled(2.0 / 945, 3),
                                  scaled(-1.0 / 4725, 4),
                                  scaled(2.0 / 93555, 5),
                                  scaled(-1382.0 / 638512875, 6),
                                  scaled(4.0 / 18243225, 7)};

template <class T> struct Rounded {
  Vec<T> r;      // z minus the nearest integer k
  Vec<T> power;  // k with AVX-512, elsewhere 2^k
};
#if defined(__AVX512F__)
MISHKIT_INLINE Rounded<float> rounded(Vec<float> z) {
  Vec<float> r = _mm512_reduce_ps(z.v, 8);  // 0 for ±inf
  return {r, z - r};
}
MISHKIT_INLINE Rounded<double> rounded(Vec<double> z) {
  Vec<double> r = _mm512_reduce_pd(z.v, 8);
  return {r, z - r};
}
#else
template <class T> MISHKIT_INLINE Rounded<T> rounded(Vec<T> z) {
  constexpr bool is_float = sizeof(T) == 4;
  constexpr int bias = is_float ? 127 : 1023, places = is_float ? 23 : 52;
  // At bias + 1 the power is inf; below 1 − bias it would be negligible next to 1.
  z = min(Vec<T>(bias + 1.0), max(Vec<T>(1.0 - bias), z));
  // Adding this rounds to an integer, which, with the bias, is in the lowest bits.
  const Vec<T> magic = 1.5 * ((int64_t)1 << places) + bias;
  Vec<T> t = z + magic;
  return {z - (t - magic), from_bits<T>(bits_of(t) << places)};
}
#endif

// 1/(1 + 2^z). The absolute error is at most 1e−7 (2.5e−16 for double), or 3e−7 at Accuracy::half.
// Gives exactly 0 and 1 where 2^z leaves the type's range; NaN gives NaN.
template <Accuracy accuracy, class T> MISHKIT_INLINE Vec<T> logistic2(Vec<T> z) {
  auto [r, power] = rounded(z);
  Vec<T> s = r * r, a;
  if constexpr (sizeof(T) == 8) a = polynomial(s, coth_double);
  else if constexpr (accuracy == Accuracy::full) a = polynomial(s, coth_full);
  else a = polynomial(s, coth_half);
  Vec<T> above = a + r, below = a - r;
#if defined(__AVX512F__)
  return below / (scale_down(above, power) + below);
#else
  return below / fma(above, power, below);
#endif
}

constexpr double minus_two_log2_e = -2.8853900817779268;

// ---- pairs of vectors at the end of a row -------------------------------------------------------

template <class S> using VecOf = Vec<typename Computed<S>::type>;

// Where load puts element j of a pair of vectors.
template <class S> constexpr int place(int j) {
  return __is_same(S, BFloat16) ? j % 2 * VecOf<S>::lanes + j / 2 : j;
}

// Loads the first `count` elements (at most a pair of vectors) followed by zeros; and stores them.
template <class S>
MISHKIT_INLINE void load_part(const S* p, int64_t count, VecOf<S>& a, VecOf<S>& b) {
  constexpr int size = 2 * VecOf<S>::lanes;
  if (count >= size) return load(p, a, b);
  alignas(64) S part[size] = {};
  memcpy(part, p, count * sizeof(S));
  load(part, a, b);
}
template <class S>
MISHKIT_INLINE void store_part(S* p, int64_t count, VecOf<S> a, VecOf<S> b) {
  constexpr int size = 2 * VecOf<S>::lanes;
  if (count >= size) return store<Store::cached>(p, a, b);
  alignas(64) S part[size];
  store<Store::cached>(part, a, b);
  memcpy(p, part, count * sizeof(S));
}

// The sum of a vector's lanes, by repeatedly adding its halves.
#if defined(__AVX512F__)
MISHKIT_INLINE __m256 halves_added(__m512 v) {
  return _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
}
MISHKIT_INLINE __m256d halves_added(__m512d v) {
  return _mm512_castpd512_pd256(v) + _mm512_extractf64x4_pd(v, 1);
}
#endif
#if defined(__AVX2__)
MISHKIT_INLINE __m128 halves_added(__m256 v) {
  return _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
}
#endif
template <class T, class Raw> MISHKIT_INLINE T sum_of_lanes(Raw v) {
  constexpr int lanes = sizeof v / sizeof(T);
  if constexpr (lanes == 2) return v[0] + v[1];
  else if constexpr (lanes == 4) return (v[0] + v[2]) + (v[1] + v[3]);
  else return sum_of_lanes<T>(halves_added(v));
}

// factor·β, but finite even if that overflows: multiplied by x = 0 it must not give NaN.
template <class T> MISHKIT_INLINE Vec<T> finite_multiple(Vec<T> beta, double factor) {
  constexpr double most = sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
  return min(Vec<T>(most), max(Vec<T>(-most), beta * Vec<T>(factor)));
}

template <class T> MISHKIT_INLINE T at_most(T a, T b) { return a < b ? a : b; }
MISHKIT_INLINE int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class S> struct Neuron {
  using T = typename Computed<S>::type;
  using V = Vec<T>;
  static constexpr Accuracy accuracy = Computed<S>::accuracy;
  static constexpr int pair = 2 * V::lanes;

  // A few α, β and γ of one output.
  template <class Arguments>
  static MISHKIT_INLINE_MEMBER void load_three(const Arguments& a, int64_t at, int64_t count,
                                               V (&alpha)[2], V (&beta)[2], V (&gamma)[2]) {
    load_part((const S*)a.alpha + at, count, alpha[0], alpha[1]);
    load_part((const S*)a.beta + at, count, beta[0], beta[1]);
    load_part((const S*)a.gamma + at, count, gamma[0], gamma[1]);
  }

  // ---- forward ----------------------------------------------------------------------------------
  // A task covers some rows of the batch and some outputs. Blocks of its rows are packed into a
  // panel that stays in the cache for every output. A sum over the columns is made of one sum per
  // lane within a block, so its error is at most (block_columns/lanes + in/block_columns + 6)·2⁻²⁴
  // times the sum of the terms' magnitudes (2⁻⁵³ for float64).

  static constexpr int tile_rows = vector_bytes == 64 ? 8 : 4;  // limited by registers
  static constexpr int task_rows = 32, task_outputs = 32;
  static constexpr int block_columns = 4096 / sizeof(T);
  static_assert(task_outputs % pair == 0 && block_columns % pair == 0);

  struct ForwardScratch {
    alignas(64) T x[task_rows][block_columns];
    alignas(64) T scale[block_columns], slope[block_columns], rest[block_columns];
    alignas(64) T sums[task_rows][task_outputs];
  };

  // Rows of x, starting at column `begin`; padded with zeros to a whole pair of vectors.
  static void pack(const NeuronForward& a, int64_t row, int rows, int64_t begin, int64_t count,
                   ForwardScratch& scratch) {
    for (int r = 0; r < rows; r++) {
      const S* x = (const S*)a.input + (row + r) * a.in + begin;
      for (int64_t i = 0; i < count; i += pair) {
        V u, v;
        load_part(x + i, count - i, u, v);
        store<Store::cached>(scratch.x[r] + i, u, v);
      }
    }
  }

  // What the terms of one output need: β in the exponent's unit, γ and γ(α − 1)/2.
  static void prepare(const NeuronForward& a, int64_t offset, int64_t count,
                      ForwardScratch& scratch) {
    for (int64_t i = 0; i < count; i += pair) {
      V alpha[2], beta[2], gamma[2];
      load_three(a, offset + i, count - i, alpha, beta, gamma);
      V scale[2], rest[2];
      MISHKIT_UNROLL for (int k = 0; k < 2; k++) {
        scale[k] = finite_multiple(beta[k], minus_two_log2_e);
        rest[k] = gamma[k] * fma(alpha[k], V(0.5), V(-0.5));
      }
      store<Store::cached>(scratch.scale + i, scale[0], scale[1]);
      store<Store::cached>(scratch.slope + i, gamma[0], gamma[1]);
      store<Store::cached>(scratch.rest + i, rest[0], rest[1]);
    }
  }

  // Adds half the contribution of a block of columns, for some rows and one output.
  template <int rows>
  static MISHKIT_INLINE_MEMBER void tile(ForwardScratch& scratch, int row, int64_t width, int at) {
    V sum[rows];
    MISHKIT_UNROLL for (int r = 0; r < rows; r++) sum[r] = 0.0;
    for (int64_t i = 0; i < width; i += V::lanes) {
      const V scale = get<typename V::Raw>(scratch.scale + i);
      const V slope = get<typename V::Raw>(scratch.slope + i);
      const V rest = get<typename V::Raw>(scratch.rest + i);
      MISHKIT_UNROLL for (int r = 0; r < rows; r++) {
        V x = get<typename V::Raw>(scratch.x[row + r] + i);
        V q = logistic2<accuracy>(scale * x);
        sum[r] = fma(fma(q, slope, rest), x, sum[r]);
      }
    }
    MISHKIT_UNROLL for (int r = 0; r < rows; r++)
      scratch.sums[row + r][at] += sum_of_lanes<T>(sum[r].v);
  }

  static void forward_task(const NeuronForward& a, ForwardScratch& scratch, int64_t row, int rows,
                           int64_t output, int outputs) {
    memset(scratch.sums, 0, sizeof scratch.sums);
    for (int64_t begin = 0; begin < a.in; begin += block_columns) {
      const int64_t count = at_most<int64_t>(block_columns, a.in - begin);
      // bfloat16's pairs spread the last elements over both vectors.
      constexpr int unit = __is_same(S, BFloat16) ? pair : V::lanes;
      const int64_t width = divided_up(count, unit) * unit;
      pack(a, row, rows, begin, count, scratch);
      for (int o = 0; o < outputs; o++) {
        prepare(a, (output + o) * a.in + begin, count, scratch);
        const int at = o / pair * pair + place<S>(o % pair);
        int r = 0;
        for (; r + tile_rows <= rows; r += tile_rows) tile<tile_rows>(scratch, r, width, at);
        for (; r < rows; r++) tile<1>(scratch, r, width, at);
      }
    }
    for (int r = 0; r < rows; r++)
      for (int o = 0; o < outputs; o += pair) {
        const T* sums = scratch.sums[r] + o;
        V y[2] = {get<typename V::Raw>(sums), get<typename V::Raw>(sums + V::lanes)};
        V delta[2] = {0.0, 0.0};
        if (a.delta) load_part((const S*)a.delta + output + o, outputs - o, delta[0], delta[1]);
        MISHKIT_UNROLL for (int k = 0; k < 2; k++) y[k] = fma(y[k], V(2.0), delta[k]);
        store_part((S*)a.output + (row + r) * a.out + output + o, outputs - o, y[0], y[1]);
      }
  }

  static int64_t forward_tasks(const NeuronForward& a) {
    return divided_up(a.batch, task_rows) * divided_up(a.out, task_outputs);
  }
  static void forward(const NeuronForward& a, void* scratch, int64_t begin, int64_t end) {
    // Rows vary fastest, so the parameters of one task's outputs are in the cache for the next
    // task.
    const int64_t down = divided_up(a.batch, task_rows);
    for (int64_t task = begin; task < end; task++) {
      const int64_t row = task % down * task_rows, output = task / down * task_outputs;
      forward_task(a, *(ForwardScratch*)scratch, row,
                   (int)at_most<int64_t>(task_rows, a.batch - row), output,
                   (int)at_most<int64_t>(task_outputs, a.out - output));
    }
  }

  // ---- backward ---------------------------------------------------------------------------------
  // A task covers a slice of columns, one pair of vectors wide, and a chunk of the batch. It
  // computes the gradient of that part of the input, and those of the slice's parameters unless
  // there are several chunks. Sums over the batch are made of sums over block_rows rows, and sums
  // over outputs of sums over block_outputs. So errors are at most (block_rows +
  // batch/block_rows)·2⁻²⁴ and (block_outputs + out/block_outputs)·2⁻²⁴ times the sums of
  // magnitudes.

  static constexpr int block_rows = 128, block_outputs = 256;
  static constexpr int vectors_at_once = vector_bytes == 64 ? 2 : 1;  // limited by registers

  struct BackwardScratch {
    alignas(64) T x[block_rows][pair];
    alignas(64) T grad[block_rows][pair];   // half of the input's gradient from a block of outputs
    alignas(64) T total[block_rows][pair];  // and from all blocks before it
  };

  // Transposes rows of grad.
  static void turn(const NeuronBackward& a, void*, int64_t begin, int64_t end) {
    for (int64_t o = 0; o < a.out; o += pair) {
      const int64_t count = at_most<int64_t>(pair, a.out - o);
      for (int64_t row = begin; row < end; row++) {
        V u, v;
        load_part((const S*)a.grad + row * a.out + o, count, u, v);
        alignas(64) T values[pair];
        store<Store::cached>(values, u, v);
        T* turned = (T*)a.turned + o * a.batch + row;
        for (int j = 0; j < count; j++) turned[j * a.batch] = values[place<S>(j)];
      }
    }
  }

  struct Sums {
    V of[3][2];
  };

  // One output, all rows of a block, n vectors starting at `first`.
  template <bool with_input, int n>
  static MISHKIT_INLINE_MEMBER void rows_of(BackwardScratch& scratch, const T* g, int rows,
                                            int first, const V (&alpha)[2], const V (&beta)[2],
                                            const V (&gamma)[2], Sums& sums) {
    V scale[n], twice_beta[n], rest[n], s0[n], s1[n], s2[n];
    MISHKIT_UNROLL for (int k = 0; k < n; k++) {
      scale[k] = finite_multiple(beta[first + k], minus_two_log2_e);
      twice_beta[k] = finite_multiple(beta[first + k], 2.0);
      rest[k] = fma(alpha[first + k], V(0.5), V(-0.5));
      s0[k] = s1[k] = s2[k] = 0.0;
    }
    for (int r = 0; r < rows; r++) {
      const V grad = g[r] - typename V::Raw{};
      MISHKIT_UNROLL for (int k = 0; k < n; k++) {
        const int at = (first + k) * V::lanes;
        V x = get<typename V::Raw>(scratch.x[r] + at);
        V q = logistic2<accuracy>(scale[k] * x);
        V bend = x * fnma(q, q, q), gx = grad * x;
        s0[k] = s0[k] + gx;
        s1[k] = fma(gx, q, s1[k]);
        s2[k] = fma(gx, bend, s2[k]);
        if constexpr (with_input) {
          V before = get<typename V::Raw>(scratch.grad[r] + at);
          V slope = fma(bend, twice_beta[k], q + rest[k]);
          put<Store::cached>(scratch.grad[r] + at, fma(grad * gamma[first + k], slope, before).v);
        }
      }
    }
    MISHKIT_UNROLL for (int k = 0; k < n; k++) {
      sums.of[0][first + k] = s0[k];
      sums.of[1][first + k] = s1[k];
      sums.of[2][first + k] = s2[k];
    }
  }

  // The gradients of the parameters from the sums over the whole batch.
  static MISHKIT_INLINE_MEMBER void finish(const NeuronBackward& a, int64_t at, int64_t count,
                                           const V (&alpha)[2], const V (&gamma)[2], Sums sums) {
    V to_alpha[2], to_beta[2], to_gamma[2];
    MISHKIT_UNROLL for (int k = 0; k < 2; k++) {
      to_alpha[k] = gamma[k] * sums.of[0][k];
      to_beta[k] = gamma[k] * (sums.of[2][k] * V(4.0));
      V half = fma(fma(alpha[k], V(0.5), V(-0.5)), sums.of[0][k], sums.of[1][k]);
      to_gamma[k] = half + half;
    }
    store_part((S*)a.grad_alpha + at, count, to_alpha[0], to_alpha[1]);
    store_part((S*)a.grad_beta + at, count, to_beta[0], to_beta[1]);
    store_part((S*)a.grad_gamma + at, count, to_gamma[0], to_gamma[1]);
  }

  template <bool with_input>
  static void backward_task(const NeuronBackward& a, BackwardScratch& scratch, int64_t column,
                            int64_t chunk) {
    const int64_t count = at_most<int64_t>(pair, a.in - column);
    const int vectors = count <= V::lanes && !__is_same(S, BFloat16) ? 1 : 2;
    T* sums_at[3];
    for (int k = 0; k < 3; k++)
      sums_at[k] = a.sums[k] ? (T*)a.sums[k] + chunk * a.out * a.sum_stride + column
                             : (T*)(&scratch + 1) + k * a.out * pair;
    const int64_t sum_stride = a.sums[0] ? a.sum_stride : pair;
    // Sums that are not themselves the gradients have rows of whole pairs.
    const int64_t sum_count = sum_stride == a.in ? count : pair;
    const int64_t chunk_begin = chunk * a.chunk_rows;
    const int64_t chunk_end = at_most(a.batch, chunk_begin + a.chunk_rows);
    for (int64_t row = chunk_begin; row < chunk_end; row += block_rows) {
      const int rows = (int)at_most<int64_t>(block_rows, chunk_end - row);
      const bool is_first = row == chunk_begin, is_last = row + rows == a.batch && a.chunks == 1;
      const int64_t bytes = (int64_t)rows * pair * sizeof(T);
      for (int r = 0; r < rows; r++) {
        V u, v;
        load_part((const S*)a.input + (row + r) * a.in + column, count, u, v);
        store<Store::cached>(scratch.x[r], u, v);
      }
      for (int64_t o = 0; o < a.out; o++) {
        if (with_input && o % block_outputs == 0) {
          if (o) add_to_total(scratch, rows, o == block_outputs);
          memset(scratch.grad, 0, bytes);
        }
        V alpha[2], beta[2], gamma[2];
        load_three(a, o * a.in + column, count, alpha, beta, gamma);
        const T* g = (const T*)a.turned + o * a.batch + row;
        Sums sums;
        MISHKIT_UNROLL for (int k = 0; k < 3; k++) sums.of[k][1] = 0.0;
        if (vectors == vectors_at_once) {
          constexpr int n = vectors_at_once;
          rows_of<with_input, n>(scratch, g, rows, 0, alpha, beta, gamma, sums);
        } else {
          for (int k = 0; k < vectors; k++)
            rows_of<with_input, 1>(scratch, g, rows, k, alpha, beta, gamma, sums);
        }
        MISHKIT_UNROLL for (int k = 0; k < 3; k++) {
          T* sum = sums_at[k] + o * sum_stride;
          if (!is_first) {
            V u, v;
            load_part(sum, sum_count, u, v);
            sums.of[k][0] = u + sums.of[k][0];
            sums.of[k][1] = v + sums.of[k][1];
          }
          if (!is_last) store_part(sum, sum_count, sums.of[k][0], sums.of[k][1]);
        }
        if (is_last) finish(a, o * a.in + column, count, alpha, gamma, sums);
      }
      if constexpr (with_input) {
        if (a.out > block_outputs) add_to_total(scratch, rows, false);
        const T(*from)[pair] = a.out > block_outputs ? scratch.total : scratch.grad;
        for (int r = 0; r < rows; r++) {
          V u = get<typename V::Raw>(from[r]), v = get<typename V::Raw>(from[r] + V::lanes);
          store_part((S*)a.grad_input + (row + r) * a.in + column, count, u + u, v + v);
        }
      }
    }
  }
  static void add_to_total(BackwardScratch& scratch, int rows, bool is_first) {
    T *total = scratch.total[0], *grad = scratch.grad[0];
    for (int i = 0; i < rows * pair; i += V::lanes) {
      V sum = get<typename V::Raw>(grad + i);
      if (!is_first) sum = get<typename V::Raw>(total + i) + sum;
      put<Store::cached>(total + i, sum.v);
    }
  }

  static void backward(const NeuronBackward& a, void* scratch, int64_t begin, int64_t end) {
    auto task = a.grad_input ? backward_task<true> : backward_task<false>;
    for (int64_t i = begin; i < end; i++)
      task(a, *(BackwardScratch*)scratch, i / a.chunks * pair, i % a.chunks);
  }

  // Adds up the sums of the chunks, in order.
  static void combine(const NeuronBackward& a, void*, int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++)
      for (int64_t column = 0; column < a.in; column += pair) {
        Sums sums;
        MISHKIT_UNROLL for (int k = 0; k < 3; k++) sums.of[k][0] = sums.of[k][1] = 0.0;
        for (int64_t chunk = 0; chunk < a.chunks; chunk++)
          MISHKIT_UNROLL for (int k = 0; k < 3; k++) {
            const T* sum = (const T*)a.sums[k] + (chunk * a.out + o) * a.sum_stride + column;
            V u, v;
            load(sum, u, v);
            sums.of[k][0] = sums.of[k][0] + u;
            sums.of[k][1] = sums.of[k][1] + v;
          }
        const int64_t count = at_most<int64_t>(pair, a.in - column);
        V alpha[2], beta[2], gamma[2];
        load_three(a, o * a.in + column, count, alpha, beta, gamma);
        finish(a, o * a.in + column, count, alpha, gamma, sums);
      }
  }

  static constexpr NeuronKernels::OfDtype kernels() {
    return {sizeof(T),     pair,    sizeof(ForwardScratch), sizeof(BackwardScratch),
            forward_tasks, forward, turn,                   backward,
            combine};
  }
};

static constexpr NeuronKernels neuron_kernels = {
    {Neuron<float>::kernels(), Neuron<double>::kernels(), Neuron<BFloat16>::kernels(),
     Neuron<Float16>::kernels()}};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
