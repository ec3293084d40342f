// The operators that pack masks into bits (ops/mask.py). Included once per program, by bind.cpp.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "operands.h"

namespace mishkit {
namespace {

// Eight bytes of 0 or 1 as the bits of one byte, the first in the lowest bit, and back.
uint8_t byte_of(uint64_t bools) { return (uint8_t)(bools * 0x0102040810204080 >> 56); }
uint64_t bools_of(uint8_t byte) {
  const uint64_t each = byte * 0x0101010101010101ull & 0x8040201008040201ull;
  return (each + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
}

class MaskCall : public Operands {
 public:
  using Operands::Operands;

  // (input) -> (bits, value): value is what the elements are that are not 0; 0 if they differ.
  static void pack(StableIValue* stack, uint64_t, uint64_t) {
    MaskCall call("pack_mask", stack, 1);
    Tensor x = call.mask(0);
    Tensor bits = Tensor::bytes((x.numel + 7) / 8);
    const double value = call.run_pack(x, static_cast<uint8_t*>(bits.mutable_data()));
    stack[0] = bits.release();
    memcpy(&stack[1], &value, sizeof value);
  }
  // (bits, out!, value)
  static void unpack(StableIValue* stack, uint64_t, uint64_t) {
    MaskCall call("unpack_mask", stack, 2);
    Tensor bits = call.take(0), out = call.mask(1);
    double value;
    memcpy(&value, &stack[2], sizeof value);
    if (bits.dtype != codes().uint8 || bits.numel != (out.numel + 7) / 8 || !bits.dense())
      call.refuse("the bits must be a row of one bit an element, packed in uint8");
    call.run_unpack(static_cast<const uint8_t*>(bits.data()), out, value);
  }

 private:
  Tensor mask(int place) {
    Tensor x = take(place);
    is_bool_ = x.dtype == aoti_torch_dtype_bool();
    dtype_ = dtype_of(x.dtype);
    if (dtype_ < 0 && !is_bool_) refuse("expected a tensor of bools or of floats");
    if (!x.dense()) refuse("the tensor must fill one run of memory");
    return x;
  }

  double run_pack(const Tensor& x, uint8_t* bits) const {
    if (is_bool_) {
      const auto* from = static_cast<const uint8_t*>(x.data());
      in_threads(x.numel, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; at += 8) {
          uint64_t eight = 0;
          memcpy(&eight, from + at, end - at < 8 ? end - at : 8);
          bits[at / 8] = byte_of(eight);
        }
      });
      return 1;
    }
    const double value = first_nonzero(x);
    if (!(value > 0)) return 0;
    std::atomic<bool> fits{true};
    const auto kernel = set_in_use().masks->pack[dtype_];
    in_threads(x.numel, [&](int64_t begin, int64_t end) {
      if (fits && !kernel(x.data(), value, bits, begin, end)) fits = false;
    });
    return fits ? value : 0;
  }
  // 1 if all are 0.
  double first_nonzero(const Tensor& x) const {
    const int size = element_size(x.dtype);
    const char* p = static_cast<const char*>(x.data());
    for (int64_t i = 0; i < x.numel; i++, p += size) {
      uint64_t bits = 0;
      memcpy(&bits, p, size);
      if (bits) return set_in_use().masks->number[dtype_](p);
    }
    return 1;
  }

  void run_unpack(const uint8_t* bits, const Tensor& out, double value) const {
    void* to = out.mutable_data();
    if (!is_bool_) {
      const auto kernel = set_in_use().masks->unpack[dtype_];
      return in_threads(out.numel, [&](int64_t begin, int64_t end) {
        kernel(bits, value, to, begin, end);
      });
    }
    in_threads(out.numel, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += 8) {
        const uint64_t eight = bools_of(bits[at / 8]);
        memcpy(static_cast<uint8_t*>(to) + at, &eight, end - at < 8 ? end - at : 8);
      }
    });
  }

  bool is_bool_ = false;
};

void add_mask(TorchLibraryHandle library) {
  add_operator(library, "pack_mask", MaskCall::pack);
  add_operator(library, "unpack_mask", MaskCall::unpack);
}

}  // namespace
}  // namespace mishkit
