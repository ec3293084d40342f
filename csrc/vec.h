// A small vector type: Vec<float> and Vec<double>, with as many lanes as the instruction set has.
//
// Arithmetic uses the compiler's vector extension, so any GCC or Clang target works. What that
// lacks (fused multiply-add, tables, masks as bits, conversions, streaming) is below, with a
// section per instruction set. Memory is accessed in pairs of vectors: 16-bit types split a
// register into even and odd lanes by a shift and a mask, without a shuffle, and `Pair` hides that
// order.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define MISHKIT_INLINE static inline __attribute__((always_inline))
#define MISHKIT_INLINE_MEMBER inline __attribute__((always_inline))
#define MISHKIT_UNROLL _Pragma("GCC unroll 16")

namespace mishkit {

// The 16-bit storage types; float and double store themselves.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace mishkit

// Everything below is built once per instruction set and must not be shared between them.
namespace mishkit {
namespace MISHKIT_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T> struct Lane;
template <> struct Lane<float> {
  typedef float vector __attribute__((vector_size(vector_bytes)));
  typedef int32_t integers __attribute__((vector_size(vector_bytes)));
  typedef int32_t integer;
};
template <> struct Lane<double> {
  typedef double vector __attribute__((vector_size(vector_bytes)));
  typedef int64_t integers __attribute__((vector_size(vector_bytes)));
  typedef int64_t integer;
};

template <class T> struct Vec {
  using Scalar = T;
  using Raw = typename Lane<T>::vector;
  using Ints = typename Lane<T>::integers;
  using Int = typename Lane<T>::integer;
  static constexpr int lanes = vector_bytes / sizeof(T);

  Raw v;

  Vec() = default;
  __attribute__((always_inline)) Vec(Raw raw) : v(raw) {}
  __attribute__((always_inline)) Vec(double c) : v((T)c - Raw{}) {}

  friend __attribute__((always_inline)) Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend __attribute__((always_inline)) Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend __attribute__((always_inline)) Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend __attribute__((always_inline)) Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend __attribute__((always_inline)) Vec operator-(Vec a) { return -a.v; }
};

template <class T> MISHKIT_INLINE typename Vec<T>::Ints bits_of(Vec<T> a) {
  return (typename Vec<T>::Ints)a.v;
}
template <class T> MISHKIT_INLINE Vec<T> from_bits(typename Vec<T>::Ints i) {
  return (typename Vec<T>::Raw)i;
}
template <class T> MISHKIT_INLINE Vec<T> abs(Vec<T> a) {
  const typename Vec<T>::Int sign = (typename Vec<T>::Int)1 << (8 * sizeof(T) - 1);
  return from_bits<T>(bits_of(a) & ~sign);
}

// ---- masks ------------------------------------------------------------------------------------

#if defined(__AVX512F__)

template <class T> struct Mask {
  uint32_t m;
};
MISHKIT_INLINE Mask<float> less(Vec<float> a, Vec<float> b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
MISHKIT_INLINE Mask<double> less(Vec<double> a, Vec<double> b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)};
}
MISHKIT_INLINE Mask<float> less_equal(Vec<float> a, Vec<float> b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
MISHKIT_INLINE Mask<double> less_equal(Vec<double> a, Vec<double> b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ)};
}
MISHKIT_INLINE Vec<float> select(Mask<float> m, Vec<float> yes, Vec<float> no) {
  return _mm512_mask_blend_ps((__mmask16)m.m, no.v, yes.v);
}
MISHKIT_INLINE Vec<double> select(Mask<double> m, Vec<double> yes, Vec<double> no) {
  return _mm512_mask_blend_pd((__mmask8)m.m, no.v, yes.v);
}
// i + n where the mask holds.
MISHKIT_INLINE Vec<float>::Ints plus_where(Vec<float>::Ints i, Mask<float> m, int n) {
  return (Vec<float>::Ints)_mm512_mask_add_epi32((__m512i)i, (__mmask16)m.m, (__m512i)i,
                                                 _mm512_set1_epi32(n));
}
template <class T> MISHKIT_INLINE uint32_t to_bits(Mask<T> m) { return m.m; }
template <class T> MISHKIT_INLINE Mask<T> mask_from_bits(uint32_t bits) { return {bits}; }

#else

template <class T> struct Mask {
  typename Vec<T>::Ints m;
};
template <class T> MISHKIT_INLINE Mask<T> less(Vec<T> a, Vec<T> b) { return {a.v < b.v}; }
template <class T> MISHKIT_INLINE Mask<T> less_equal(Vec<T> a, Vec<T> b) { return {a.v <= b.v}; }
template <class T> MISHKIT_INLINE Vec<T> select(Mask<T> m, Vec<T> yes, Vec<T> no) {
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_blendv_ps(no.v, yes.v, (__m256)m.m);
  else return _mm256_blendv_pd(no.v, yes.v, (__m256d)m.m);
#else
  return from_bits<T>((m.m & bits_of(yes)) | (~m.m & bits_of(no)));
#endif
}
MISHKIT_INLINE Vec<float>::Ints plus_where(Vec<float>::Ints i, Mask<float> m, int n) {
  return i + (m.m & n);
}
template <class T> MISHKIT_INLINE uint32_t to_bits(Mask<T> m) {
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (uint32_t)_mm256_movemask_ps((__m256)m.m);
  else return (uint32_t)_mm256_movemask_pd((__m256d)m.m);
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) return (uint32_t)_mm_movemask_ps((__m128)m.m);
  else return (uint32_t)_mm_movemask_pd((__m128d)m.m);
#else
  uint32_t bits = 0;
  MISHKIT_UNROLL for (int i = 0; i < Vec<T>::lanes; i++) bits |= (uint32_t)(m.m[i] & 1) << i;
  return bits;
#endif
}
template <class T> MISHKIT_INLINE Mask<T> mask_from_bits(uint32_t bits) {
  typename Vec<T>::Ints places, all = (typename Vec<T>::Int)bits - typename Vec<T>::Ints{};
  MISHKIT_UNROLL for (int i = 0; i < Vec<T>::lanes; i++) places[i] = 1 << i;
  return {(all & places) == places};
}

#endif

template <class T> MISHKIT_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) {
  return {a.m & b.m};
}
template <class T> MISHKIT_INLINE Mask<T> operator^(Mask<T> a, Mask<T> b) {
  return {a.m ^ b.m};
}
template <class T> MISHKIT_INLINE Mask<T> and_not(Mask<T> a, Mask<T> b) { return {a.m & ~b.m}; }

// ---- arithmetic that the vector extension lacks -------------------------------------------------
// min and max return the second operand if either is NaN, so min(bound, x) lets a NaN x through.

#if defined(__SSE2__)
#if defined(__AVX512F__)
#define MISHKIT_INTRINSIC(operation) _mm512_##operation
#elif defined(__AVX2__)
#define MISHKIT_INTRINSIC(operation) _mm256_##operation
#else
#define MISHKIT_INTRINSIC(operation) _mm_##operation
#endif
#if defined(__FMA__)
#define MISHKIT_FMA(a, b, c, suffix) MISHKIT_INTRINSIC(fmadd_##suffix)(a.v, b.v, c.v)
#define MISHKIT_FNMA(a, b, c, suffix) MISHKIT_INTRINSIC(fnmadd_##suffix)(a.v, b.v, c.v)
#else
#define MISHKIT_FMA(a, b, c, suffix) a* b + c
#define MISHKIT_FNMA(a, b, c, suffix) c - a* b
#endif
#define MISHKIT_ARITHMETIC(T, S)                                                                   \
  MISHKIT_INLINE Vec<T> min(Vec<T> a, Vec<T> b) { return MISHKIT_INTRINSIC(min_##S)(a.v, b.v); }   \
  MISHKIT_INLINE Vec<T> max(Vec<T> a, Vec<T> b) { return MISHKIT_INTRINSIC(max_##S)(a.v, b.v); }   \
  MISHKIT_INLINE Vec<T> sqrt(Vec<T> a) { return MISHKIT_INTRINSIC(sqrt_##S)(a.v); }                \
  MISHKIT_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { return MISHKIT_FMA(a, b, c, S); }      \
  MISHKIT_INLINE Vec<T> fnma(Vec<T> a, Vec<T> b, Vec<T> c) { return MISHKIT_FNMA(a, b, c, S); }
MISHKIT_ARITHMETIC(float, ps)
MISHKIT_ARITHMETIC(double, pd)
#else
template <class T> MISHKIT_INLINE Vec<T> min(Vec<T> a, Vec<T> b) { return select(less(a, b), a, b); }
template <class T> MISHKIT_INLINE Vec<T> max(Vec<T> a, Vec<T> b) { return select(less(b, a), a, b); }
template <class T> MISHKIT_INLINE Vec<T> sqrt(Vec<T> a) {
  MISHKIT_UNROLL for (int i = 0; i < Vec<T>::lanes; i++)
    a.v[i] = sizeof(T) == 4 ? __builtin_sqrtf(a.v[i]) : __builtin_sqrt(a.v[i]);
  return a;
}
#if defined(__ARM_NEON)
MISHKIT_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>::Raw)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v);
}
MISHKIT_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>::Raw)vfmaq_f64((float64x2_t)c.v, (float64x2_t)a.v, (float64x2_t)b.v);
}
#else
template <class T> MISHKIT_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { return a * b + c; }
#endif
template <class T> MISHKIT_INLINE Vec<T> fnma(Vec<T> a, Vec<T> b, Vec<T> c) { return fma(-a, b, c); }
#endif

// ---- tables: the entry selected by the lowest bits of each lane of i ----------------------------

MISHKIT_INLINE Vec<float> lookup8(const float (&table)[8], Vec<float>::Ints i) {
#if defined(__AVX512F__)
  __m512 t = _mm512_broadcast_f32x8(_mm256_load_ps(table));
  return _mm512_permutexvar_ps((__m512i)i, t);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(_mm256_load_ps(table), (__m256i)i);
#else
  Vec<float> r;
  MISHKIT_UNROLL for (int k = 0; k < Vec<float>::lanes; k++) r.v[k] = table[i[k] & 7];
  return r;
#endif
}
MISHKIT_INLINE Vec<float> lookup4(const float (&table)[4], Vec<float>::Ints i) {
#if defined(__AVX512F__)
  return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table)), (__m512i)i);
#elif defined(__AVX2__)
  return _mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)table), (__m256i)i);
#else
  Vec<float> r;
  MISHKIT_UNROLL for (int k = 0; k < Vec<float>::lanes; k++) r.v[k] = table[i[k] & 3];
  return r;
#endif
}

#if defined(__AVX512F__)
MISHKIT_INLINE Vec<float> lookup32(const float (&table)[32], Vec<float>::Ints i) {
  return _mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)i, _mm512_load_ps(table + 16));
}
// The bits of a where the mask has ones, and those of b elsewhere.
MISHKIT_INLINE Vec<float>::Ints merge_bits(Vec<float>::Ints a, Vec<float>::Ints b, int32_t mask) {
  return (Vec<float>::Ints)_mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), (__m512i)a,
                                                     (__m512i)b, 0xca);
}
#endif

// ---- memory: pairs of vectors -------------------------------------------------------------------
// load(p, a, b) and store(p, a, b) move 2·lanes elements. For a 16-bit type, a and b may hold the
// even and the odd elements; pair_bits and split_bits put the sides into element order.

enum class Store { cached, streaming };

template <Store how, class Raw> MISHKIT_INLINE void put(void* p, Raw r) {
#if defined(__AVX512F__)
  if constexpr (how == Store::streaming) _mm512_stream_si512((__m512i*)p, (__m512i)r);
  else _mm512_storeu_si512(p, (__m512i)r);
#elif defined(__AVX2__)
  if constexpr (how == Store::streaming) _mm256_stream_si256((__m256i*)p, (__m256i)r);
  else _mm256_storeu_si256((__m256i*)p, (__m256i)r);
#elif defined(__SSE2__)
  if constexpr (how == Store::streaming) _mm_stream_si128((__m128i*)p, (__m128i)r);
  else _mm_storeu_si128((__m128i*)p, (__m128i)r);
#else
  memcpy(p, &r, sizeof r);
#endif
}
template <class Raw> MISHKIT_INLINE Raw get(const void* p) {
  Raw r;
  memcpy(&r, p, sizeof r);
  return r;
}
MISHKIT_INLINE void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class T> MISHKIT_INLINE void load(const T* p, Vec<T>& a, Vec<T>& b) {
  a = get<typename Vec<T>::Raw>(p);
  b = get<typename Vec<T>::Raw>(p + Vec<T>::lanes);
}
template <Store how, class T> MISHKIT_INLINE void store(T* p, Vec<T> a, Vec<T> b) {
  put<how>(p, a.v);
  put<how>(p + Vec<T>::lanes, b.v);
}

MISHKIT_INLINE void load(const BFloat16* p, Vec<float>& a, Vec<float>& b) {
  auto both = get<Vec<float>::Ints>(p);
  a = from_bits<float>(both << 16);
  b = from_bits<float>(both & (int32_t)0xffff0000);
}
// To nearest, ties to even. A NaN widened from 16 bits has zeros in its low bits and stays a NaN.
MISHKIT_INLINE Vec<float>::Ints round_to_bfloat16(Vec<float> a) {
  auto i = bits_of(a);
  return i + ((i >> 16) & 1) + 0x7fff;
}
template <Store how> MISHKIT_INLINE void store(BFloat16* p, Vec<float> a, Vec<float> b) {
  typedef uint32_t unsigneds __attribute__((vector_size(vector_bytes)));
  auto low = (Vec<float>::Ints)((unsigneds)round_to_bfloat16(a) >> 16);
  auto high = round_to_bfloat16(b);
#if defined(__AVX512F__)
  put<how>(p, _mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)low, (__m512i)high));
#elif defined(__AVX2__)
  put<how>(p, _mm256_blend_epi16((__m256i)low, (__m256i)high, 0xaa));
#else
  put<how>(p, low | (high & (int32_t)0xffff0000));
#endif
}

#if defined(__AVX512F__)
MISHKIT_INLINE void load(const Float16* p, Vec<float>& a, Vec<float>& b) {
  a = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  b = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p + 1));
}
template <Store how> MISHKIT_INLINE void store(Float16* p, Vec<float> a, Vec<float> b) {
  __m256i low = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT);
  __m256i high = _mm512_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT);
  put<how>(p, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}
#elif defined(__AVX2__)
MISHKIT_INLINE void load(const Float16* p, Vec<float>& a, Vec<float>& b) {
  a = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  b = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1));
}
template <Store how> MISHKIT_INLINE void store(Float16* p, Vec<float> a, Vec<float> b) {
  __m128i low = _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT);
  __m128i high = _mm256_cvtps_ph(b.v, _MM_FROUND_TO_NEAREST_INT);
  put<how>(p, _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
#elif defined(__ARM_NEON)
MISHKIT_INLINE void load(const Float16* p, Vec<float>& a, Vec<float>& b) {
  float16x8_t both = (float16x8_t)vld1q_u16(&p->bits);
  a = (Vec<float>::Raw)vcvt_f32_f16(vget_low_f16(both));
  b = (Vec<float>::Raw)vcvt_f32_f16(vget_high_f16(both));
}
template <Store how> MISHKIT_INLINE void store(Float16* p, Vec<float> a, Vec<float> b) {
  float16x4_t low = vcvt_f16_f32((float32x4_t)a.v), high = vcvt_f16_f32((float32x4_t)b.v);
  vst1q_u16(&p->bits, (uint16x8_t)vcombine_f16(low, high));
}
#else
// Scaling by 2^112 maps float16's exponents to float32's, subnormals included.
MISHKIT_INLINE Vec<float> from_half_bits(Vec<float>::Ints h) {
  auto magnitude = (h & 0x7fff) << 13;
  auto scaled = from_bits<float>(magnitude) * Vec<float>(0x1p112);
  auto special = magnitude >= (0x7c00 << 13);
  auto bits = (special & (magnitude | 0x7f800000)) | (~special & bits_of(scaled));
  return from_bits<float>(bits | ((h & 0x8000) << 16));
}
MISHKIT_INLINE Vec<float>::Ints to_half_bits(Vec<float> a) {
  auto i = bits_of(a);
  auto sign = (i >> 16) & 0x8000;
  auto magnitude = i & 0x7fffffff;
  // Adding a power of two rounds a subnormal result at its last place.
  auto small = bits_of(from_bits<float>(magnitude) + Vec<float>(0.5)) - 0x3f000000;
  auto normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  auto is_small = magnitude < 0x38800000, is_big = magnitude >= 0x477ff000;
  auto is_nan = magnitude > 0x7f800000;
  auto finite = (is_small & small) | (~is_small & normal);
  return sign | (~is_big & finite) | (is_big & ~is_nan & 0x7c00) | (is_nan & 0x7e00);
}
MISHKIT_INLINE void load(const Float16* p, Vec<float>& a, Vec<float>& b) {
  Vec<float>::Ints low, high;
  MISHKIT_UNROLL for (int i = 0; i < Vec<float>::lanes; i++) {
    low[i] = p[i].bits;
    high[i] = p[Vec<float>::lanes + i].bits;
  }
  a = from_half_bits(low);
  b = from_half_bits(high);
}
template <Store how> MISHKIT_INLINE void store(Float16* p, Vec<float> a, Vec<float> b) {
  auto low = to_half_bits(a), high = to_half_bits(b);
  MISHKIT_UNROLL for (int i = 0; i < Vec<float>::lanes; i++) {
    p[i].bits = (uint16_t)low[i];
    p[Vec<float>::lanes + i].bits = (uint16_t)high[i];
  }
}
#endif

// Numbers of float in the order in which load gives elements of S.
template <class S, class T> MISHKIT_INLINE void load_in_order_of(const T* p, Vec<T>& a, Vec<T>& b) {
  load(p, a, b);
  if constexpr (__is_same(S, BFloat16)) {
#if defined(__AVX512F__)
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 even = _mm512_permutex2var_ps(a.v, evens, b.v);
    b = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b.v);
    a = even;
#elif defined(__AVX2__)
    const __m256d even = (__m256d)_mm256_shuffle_ps(a.v, b.v, 0x88);
    const __m256d odd = (__m256d)_mm256_shuffle_ps(a.v, b.v, 0xdd);
    a = (__m256)_mm256_permute4x64_pd(even, 0xd8);
    b = (__m256)_mm256_permute4x64_pd(odd, 0xd8);
#elif defined(__SSE2__)
    const __m128 even = _mm_shuffle_ps(a.v, b.v, 0x88);
    b = _mm_shuffle_ps(a.v, b.v, 0xdd);
    a = even;
#else
    constexpr int lanes = Vec<T>::lanes;
    Vec<T> even, odd;
    MISHKIT_UNROLL for (int i = 0; i < lanes; i++) {
      even.v[i] = 2 * i < lanes ? a.v[2 * i % lanes] : b.v[2 * i % lanes];
      odd.v[i] = 2 * i < lanes ? a.v[(2 * i + 1) % lanes] : b.v[(2 * i + 1) % lanes];
    }
    a = even, b = odd;
#endif
  }
}

// Spread the lowest bits of a word to its even positions, and gather them again.
MISHKIT_INLINE uint32_t spread(uint32_t bits) {
#if defined(__BMI2__)
  return _pdep_u32(bits, 0x55555555);
#else
  bits = (bits | bits << 8) & 0x00ff00ff;
  bits = (bits | bits << 4) & 0x0f0f0f0f;
  bits = (bits | bits << 2) & 0x33333333;
  return (bits | bits << 1) & 0x55555555;
#endif
}
MISHKIT_INLINE uint32_t gather(uint32_t bits) {
#if defined(__BMI2__)
  return _pext_u32(bits, 0x55555555);
#else
  bits &= 0x55555555;
  bits = (bits | bits >> 1) & 0x33333333;
  bits = (bits | bits >> 2) & 0x0f0f0f0f;
  bits = (bits | bits >> 4) & 0x00ff00ff;
  return (bits | bits >> 8) & 0x0000ffff;
#endif
}

template <class S, class T> MISHKIT_INLINE uint32_t pair_bits(Mask<T> a, Mask<T> b) {
  if constexpr (__is_same(S, BFloat16)) return spread(to_bits(a)) | spread(to_bits(b)) << 1;
  else return to_bits(a) | to_bits(b) << Vec<T>::lanes;
}
template <class S, class T> MISHKIT_INLINE void split_bits(uint32_t bits, Mask<T>& a, Mask<T>& b) {
  if constexpr (__is_same(S, BFloat16)) {
    a = mask_from_bits<T>(gather(bits));
    b = mask_from_bits<T>(gather(bits >> 1));
  } else {
    a = mask_from_bits<T>(bits & ((1u << Vec<T>::lanes) - 1));
    b = mask_from_bits<T>(bits >> Vec<T>::lanes);
  }
}

}  // namespace MISHKIT_ISA
}  // namespace mishkit
