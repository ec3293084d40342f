// Elementary functions on Vec<float> and Vec<double>: no branches, one pass.
// Each states its range and its largest error in units in the last place (ULP).
#pragma once
#include "math_tables.h"
#include "vec.h"

// Not <cmath>, whose inline code would be shared between builds.
extern "C" double erfc(double) noexcept;
extern "C" double tanh(double) noexcept;

namespace mishkit {
namespace MISHKIT_ISA {

// c[0] + c[1]·x + c[2]·x² + …
template <class T, class C, int n> MISHKIT_INLINE Vec<T> polynomial(Vec<T> x, const C (&c)[n]) {
  Vec<T> p = (double)c[n - 1];
  MISHKIT_UNROLL for (int i = n - 2; i >= 0; i--) p = fma(p, x, Vec<T>((double)c[i]));
  return p;
}

// a·b − ab, for ab = a·b rounded: the rounding error of the product.
template <class T> MISHKIT_INLINE Vec<T> product_rest(Vec<T> a, Vec<T> b, Vec<T> ab) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return fma(a, b, -ab);
#else
  // Veltkamp and Dekker: halves of the factors have exact products.
  const Vec<T> splitter = sizeof(T) == 4 ? 4097.0 : 134217729.0;
  Vec<T> ca = splitter * a, cb = splitter * b;
  Vec<T> ah = ca - (ca - a), bh = cb - (cb - b);
  Vec<T> al = a - ah, bl = b - bh;
  return al * bl - (((ab - ah * bh) - al * bh) - ah * bl);
#endif
}

// a·b + c without rounding the product, for ab = a·b rounded.
template <class T>
MISHKIT_INLINE Vec<T> sum_of_product(Vec<T> a, Vec<T> b, Vec<T> ab, Vec<T> c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  (void)ab;
  return fma(a, b, c);
#else
  return (ab + c) + product_rest(a, b, ab);
#endif
}

// 1 − a·b for a·b near 1, without rounding the product.
template <class T> MISHKIT_INLINE Vec<T> one_less_product(Vec<T> a, Vec<T> b) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return fnma(a, b, Vec<T>(1.0));
#else
  Vec<T> ab = a * b;
  return (Vec<T>(1.0) - ab) - product_rest(a, b, ab);
#endif
}

// a/d, rounded once, if r = 1/d is already known.
template <class T> MISHKIT_INLINE Vec<T> quotient(Vec<T> a, Vec<T> d, Vec<T> r) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  Vec<T> q = a * r;
  return fma(fnma(q, d, a), r, q);
#else
  (void)r;
  return a / d;
#endif
}

// How accurate a formula must be: to the last places of float32 (float64); half a unit of float32
// less, for slopes, whose errors are absolute next to 1; or so that no error shows once the result
// is rounded to 16 bits (relative error 2⁻¹⁷).
enum class Accuracy { full, slope, half };

// ---- the exponential -----------------------------------------------------------------------------
// exp(x) = 2^k·(1 + p). For float32, k is in steps of 1/8 and its fraction comes from a table; for
// float64, k is in steps of 1. All functions return NaN for NaN.

// Where exp and expm1 begin: here exp is exactly 0. With AVX-512, which scales by a power of two in
// one instruction, subnormal results come first; elsewhere 0 directly follows the least normal
// number.
#if defined(__AVX512F__)
template <class T> constexpr double exp_floor = -104.5;
template <> constexpr double exp_floor<double> = -746.0;
static constexpr auto& eighths = powers_of_two;
// v·2^floor(k)
MISHKIT_INLINE Vec<float> scale_down(Vec<float> v, Vec<float> k) {
  return _mm512_scalef_ps(v.v, k.v);
}
MISHKIT_INLINE Vec<double> scale_down(Vec<double> v, Vec<double> k) {
  return _mm512_scalef_pd(v.v, k.v);
}
#else
template <class T> constexpr double exp_floor = -87.34;
template <> constexpr double exp_floor<double> = -708.4;
static constexpr auto& eighths = powers_of_two_for_addition;
#endif

template <class T> struct Reduced {
  Vec<T> k, p;
  Vec<T> fraction;             // 2^(k − floor(k)); without AVX-512, minus the excess of `bits`
  typename Vec<T>::Ints bits;  // k as exponent, with its fraction below
};

constexpr double log2e = 1.44269504088896341;

// Adding this rounds to a step of k, which becomes the lowest bit: an eighth, or 1.
template <class T> constexpr double rounding = 1.5 * (1 << 20);
template <> constexpr double rounding<double> = 6755399441055744.0;  // 1.5·2⁵²
// ln 2 in two parts: the product of the first and k is exact.
template <class T> constexpr double ln2_parts[2] = {ln2_high, ln2_low};
template <> constexpr double ln2_parts<double>[2] = {ln2_high_double, ln2_low_double};

// The argument of an exponential: x; x + low, to more digits than T has; or c·factor, not rounded.
// Each provides t = x/ln 2, rounded by `rounding`, and x − k·ln 2.
template <class T> struct Plain {
  Vec<T> x;
  static constexpr bool corrected = false;
  MISHKIT_INLINE_MEMBER Vec<T> rounded() const { return fma(x, Vec<T>(log2e), Vec<T>(rounding<T>)); }
  MISHKIT_INLINE_MEMBER Vec<T> rest(Vec<T> k) const {
    return fnma(k, Vec<T>(ln2_parts<T>[1]), fnma(k, Vec<T>(ln2_parts<T>[0]), x));
  }
};
template <class T> struct Corrected : Plain<T> {
  Vec<T> low;
  static constexpr bool corrected = true;
  MISHKIT_INLINE_MEMBER Corrected(Vec<T> x, Vec<T> low) : Plain<T>{x}, low(low) {}
};
// A factor to more digits than T has. Its lower digits are multiplied by k, to which the product is
// nearly proportional.
template <class T> struct Factor {
  Vec<T> high, binary, ln2_low;
  explicit Factor(double f)
      : high(f),
        binary(f * log2e),
        ln2_low(ln2_parts<T>[1] - (f == 0 ? 0 : (f - (double)(T)f) / f / log2e)) {}
  MISHKIT_INLINE_MEMBER explicit Factor(Vec<T> f)
      : high(f), binary(f * Vec<T>(log2e)), ln2_low(ln2_parts<T>[1]) {}
};
template <class T> struct Multiple : Plain<T> {
  Vec<T> c;
  const Factor<T>& factor;
  MISHKIT_INLINE_MEMBER Multiple(Vec<T> c, const Factor<T>& factor)
      : Plain<T>{c * factor.high}, c(c), factor(factor) {}
  MISHKIT_INLINE_MEMBER Vec<T> rounded() const {
    return fma(c, factor.binary, Vec<T>(rounding<T>));
  }
  MISHKIT_INLINE_MEMBER Vec<T> rest(Vec<T> k) const {
    Vec<T> whole = k * Vec<T>(ln2_parts<T>[0]);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    Vec<T> r = fma(c, factor.high, -whole);
#else
    Vec<T> r = (this->x - whole) + product_rest(c, factor.high, this->x);
#endif
    return fnma(k, factor.ln2_low, r);
  }
};

template <Accuracy accuracy, class Argument>
MISHKIT_INLINE Reduced<float> reduce(const Argument& of, Vec<float> x) {
  using V = Vec<float>;
  V t = of.rounded();
  V k = t - V(rounding<float>);
  V r, p;
  if constexpr (accuracy == Accuracy::half) {
    r = fnma(k, V(0.69314718055994531), x);
    p = fma(r * V(exp_remainder_half[0]), r, r);
  } else {
    r = of.rest(k);
    if constexpr (Argument::corrected) r = r + (of.low + lookup8(eighths_rest, bits_of(t)));
    V remainder;
    if constexpr (accuracy == Accuracy::full) remainder = polynomial(r, exp_remainder);
    else remainder = polynomial(r, exp_remainder_slope);
    p = fma(r * r, remainder, r);
  }
  return {k, p, lookup8(eighths, bits_of(t)), bits_of(t) << 20};
}

template <Accuracy, class Argument>
MISHKIT_INLINE Reduced<double> reduce(const Argument& of, Vec<double>) {
  using V = Vec<double>;
  V t = of.rounded();
  V k = t - V(rounding<double>);
  V r = of.rest(k);
  if constexpr (Argument::corrected) r = r + of.low;
  // The Taylor series: its first omitted term is below 2⁻⁵⁷ for |r| ≤ ln 2/2.
  static constexpr double c[] = {1.0 / 2,         1.0 / 6,         1.0 / 24,        1.0 / 120,
                                 1.0 / 720,       1.0 / 5040,      1.0 / 40320,     1.0 / 362880,
                                 1.0 / 3628800,   1.0 / 39916800,  1.0 / 479001600, 1.0 / 6227020800,
                                 1.0 / 87178291200};
  return {k, fma(polynomial(r, c), r * r, r), V(1.0), bits_of(t) << 52};
}

template <Accuracy accuracy, class Argument, class T>
MISHKIT_INLINE Vec<T> exp_of(const Argument& of, Vec<T> x) {
  auto [k, p, fraction, bits] = reduce<accuracy>(of, x);
#if defined(__AVX512F__)
  (void)bits;
  return scale_down(fma(fraction, p, fraction), k);
#else
  constexpr double lowest = sizeof(T) == 4 ? -87.33654 : -708.396;  // of normal results
  Vec<T> s = from_bits<T>(bits_of(fraction) + bits);
  return from_bits<T>(~less(x, Vec<T>(lowest)).m & bits_of(fma(s, p, s)));
#endif
}

// exp(x) for exp_floor ≤ x ≤ 88 (709); 1.1 ULP, 1.2 at Accuracy::slope.
template <Accuracy accuracy, class T> MISHKIT_INLINE Vec<T> exp(Vec<T> x) {
  return exp_of<accuracy>(Plain<T>{x}, x);
}
// exp(x + low), where low extends x beyond T's digits; |low| ≤ 2⁻¹⁴, ignored at Accuracy::half. 0.6
// ULP of float32, since the rounding of the table is corrected too.
template <Accuracy accuracy, class T> MISHKIT_INLINE Vec<T> exp(Vec<T> x, Vec<T> low) {
  return exp_of<accuracy>(Corrected<T>(x, low), x);
}
// exp(c·factor) without rounding the product, in the same range and with the same accuracy.
template <Accuracy accuracy, class T>
MISHKIT_INLINE Vec<T> exp(Vec<T> c, const Factor<T>& factor) {
  Multiple<T> of(c, factor);
  return exp_of<accuracy>(of, of.x);
}
// exp(x) − 1 in the same range; relative error at most 3e−7 (4e−16), near x = 0 too.
template <Accuracy accuracy, class T> MISHKIT_INLINE Vec<T> expm1(Vec<T> x) {
  auto [k, p, fraction, bits] = reduce<accuracy>(Plain<T>{x}, x);
#if defined(__AVX512F__)
  (void)bits;
  Vec<T> s = scale_down(fraction, k);
#else
  Vec<T> s = from_bits<T>(bits_of(fraction) + bits);
#endif
  return fma(s, p, s - Vec<T>(1.0));
}

// σ = e/(e + 1) for e ≥ 0.
template <Accuracy accuracy, class T> MISHKIT_INLINE Vec<T> logistic(Vec<T> e) {
  Vec<T> sigma = e / (e + Vec<T>(1.0));
  // σ also equals e − e·σ, in which the rounding errors of e + 1 and the quotient are multiplied by
  // e.
  if constexpr (accuracy == Accuracy::full && sizeof(T) == 4)
    sigma = select(less(e, Vec<T>(0.4)), fnma(sigma, e, e), sigma);
  return sigma;
}

// ---- logarithm and normal distribution ----------------------------------------------------------

// ln(1 + a) for 0 ≤ a ≤ 1; 1.5 ULP.
template <Accuracy accuracy> MISHKIT_INLINE Vec<float> log1p(Vec<float> a) {
  if constexpr (accuracy == Accuracy::half) return a * polynomial(a, log1p_ratio_half);
  else return a * polynomial(a, log1p_ratio);
}
template <Accuracy> MISHKIT_INLINE Vec<double> log1p(Vec<double> a) {
  // 2·artanh(z), z = a/(2 + a) ≤ 1/3: the series' first omitted term is below 2⁻⁵⁹.
  using V = Vec<double>;
  static constexpr double c[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25,
                                 1.0 / 27, 1.0 / 29, 1.0 / 31, 1.0 / 33, 1.0 / 35};
  V z = a / (a + V(2.0));
  V w = z * z;
  V twice = z + z;
  return fma(twice * w, polynomial(w, c), twice);
}

// From here on Φ(−t) and exp(−t²/2) are 0.
#if defined(__AVX512F__)
template <class T> constexpr double normal_end = 14.46;
template <> constexpr double normal_end<double> = 38.63;
#else
template <class T> constexpr double normal_end = 13.2167;
template <> constexpr double normal_end<double> = 37.6405;
#endif

#if defined(__AVX512F__)
// A polynomial whose coefficients are in the columns of a table, one row per degree.
template <int rows>
MISHKIT_INLINE Vec<float> piecewise(const float (&table)[rows][32], Vec<float> w,
                                    Vec<float>::Ints column) {
  Vec<float> p = lookup32(table[rows - 1], column);
  MISHKIT_UNROLL for (int i = rows - 2; i >= 0; i--) p = fma(p, w, lookup32(table[i], column));
  return p;
}
#endif

// exp(−t²/2) and Φ(−t), for 0 ≤ t ≤ normal_end; the two share their exponential. The relative error
// of the tail is at most 5e−7 (1e−12 for double) where it is a normal number.
template <class T> struct Normal {
  Vec<T> e, tail;
};
template <Accuracy accuracy> MISHKIT_INLINE Normal<float> normal(Vec<float> t) {
  using V = Vec<float>;
  V half = t * V(-0.5);
  V square = half * t;
  if constexpr (accuracy == Accuracy::half) {
    V z = V(1.0) / fma(t, V(normal_scale), V(1.0));
    V e = exp<accuracy>(square);
    return {e, e * (z * polynomial(z, normal_tail_half))};
  } else {
    // The rounding error of the square, which the exponential would magnify 90 times.
    V square_rest = product_rest(half, t, square);
#if defined(__AVX512F__)
    // One table register per coefficient: no division, and half the multiplications. w is computed
    // from t because t + 1 is rounded, which would cost the tail up to an ULP.
    V::Ints u = bits_of(t + V(1.0));
    V middle = from_bits<float>(merge_bits(u, V::Ints{} + 0x80000, ~0xfffff));
    V w = t - (middle - V(1.0));
    V p = piecewise(normal_pieces, w, u >> 20);
    V e = exp<accuracy>(square, square_rest);
    return {e, e * p};
#else
    // Φ(−t)·exp(t²/2) is z + z²·P(z), so that the inner rounding errors count only in part.
    V d = fma(t, V(normal_slope), V(8.0));
    V z = V(1.0) / d;
    V mills = fma(z, z * polynomial(z, normal_tail), z);
    // The rounding error of z is added to the exponent, times the logarithmic slope of mills. That
    // slope falls from 2.5 to 1.2, and a constant is good enough.
    V z_rest = fnma(z, fma(t, V(normal_slope), V(8.0) - d), one_less_product(z, d));
    V e = exp<accuracy>(square, fma(z_rest, V(1.95), square_rest));
    return {e, e * mills};
#endif
  }
}
template <Accuracy accuracy> MISHKIT_INLINE Normal<double> normal(Vec<double> t) {
  using V = Vec<double>;
  V half = t * V(-0.5);
  V square = half * t;
  Normal<double> n = {exp<accuracy>(square, product_rest(half, t, square)), t};
  MISHKIT_UNROLL for (int i = 0; i < V::lanes; i++)
    n.tail.v[i] = t.v[i] < normal_end<double> ? 0.5 * erfc(t.v[i] * 0.70710678118654752440) : 0;
  return n;
}

}  // namespace MISHKIT_ISA
}  // namespace mishkit
