// Masks in one bit an element: tensors whose elements are 0 or one other number, which is what
// dropout multiplies by on a CPU. The bits are in memory order, element 0 in the lowest.
#pragma once
#include "kernels.h"
#include "loops.h"

namespace mishkit {
namespace MISHKIT_ISA {

// Packs elements [begin, end); begin is a multiple of kernel_grain. False if an element is neither
// 0 nor `value`, bit by bit; then the result is incomplete.
template <class S>
bool pack_mask(const void* x, double value, uint8_t* bits, int64_t begin, int64_t end) {
  using V = typename Block<S>::V;
  constexpr int size = Block<S>::elements, pair = Block<S>::pair_elements;
  const V zero(0.0), other(value);
  for (int64_t at = begin; at < end; at += size) {
    alignas(64) S rest[size] = {};
    const S* from = (const S*)x + at;
    const int count = (int)(end - at < size ? end - at : size);
    if (count < size) memcpy(rest, from, count * sizeof(S)), from = rest;
    uint64_t packed = 0;
    typename V::Ints wrong = {};
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::pairs; i++) {
      V a, b;
      load(from + i * pair, a, b);
      const auto first = less(zero, a), second = less(zero, b);
      wrong |= bits_of(a) ^ bits_of(select(first, other, zero));
      wrong |= bits_of(b) ^ bits_of(select(second, other, zero));
      packed |= (uint64_t)pair_bits<S>(first, second) << i * pair;
    }
    for (int i = 0; i < V::lanes; i++)
      if (wrong[i]) return false;
    memcpy(bits + at / 8, &packed, (count + 7) / 8);
  }
  return true;
}

template <class S>
void unpack_mask(const uint8_t* bits, double value, void* out, int64_t begin, int64_t end) {
  using V = typename Block<S>::V;
  constexpr int size = Block<S>::elements, pair = Block<S>::pair_elements;
  const V zero(0.0), other(value);
  for (int64_t at = begin; at < end; at += size) {
    alignas(64) S rest[size];
    const int count = (int)(end - at < size ? end - at : size);
    S* to = count < size ? rest : (S*)out + at;
    uint64_t packed = 0;
    memcpy(&packed, bits + at / 8, (count + 7) / 8);
    MISHKIT_UNROLL for (int i = 0; i < Block<S>::pairs; i++) {
      Mask<typename V::Scalar> first, second;
      split_bits<S>((uint32_t)(packed >> i * pair), first, second);
      store<Store::cached>(to + i * pair, select(first, other, zero), select(second, other, zero));
    }
    if (count < size) memcpy((S*)out + at, rest, count * sizeof(S));
  }
}

template <class S> double number_at(const void* element) {
  alignas(64) S pair[Block<S>::pair_elements] = {};
  memcpy(pair, element, sizeof(S));
  typename Block<S>::V a, b;
  load(pair, a, b);
  return a.v[0];
}

static constexpr MaskKernels mask_kernels = {
    {number_at<float>, number_at<double>, number_at<BFloat16>, number_at<Float16>},
    {pack_mask<float>, pack_mask<double>, pack_mask<BFloat16>, pack_mask<Float16>},
    {unpack_mask<float>, unpack_mask<double>, unpack_mask<BFloat16>, unpack_mask<Float16>}};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
