// The instruction sets of this library, and the one in use. Included once per program, by bind.cpp.
#pragma once
#include <atomic>

#include "../kernels.h"

namespace mishkit {

#define MISHKIT_DECLARE(isa)                 \
  namespace isa {                            \
  extern const InstructionSet instruction_set; \
  }
#if defined(MISHKIT_HAS_BASELINE)
MISHKIT_DECLARE(baseline)
#endif
#if defined(MISHKIT_HAS_AVX2)
MISHKIT_DECLARE(avx2)
#endif
#if defined(MISHKIT_HAS_AVX512)
MISHKIT_DECLARE(avx512)
#endif
#if defined(MISHKIT_HAS_NEON)
MISHKIT_DECLARE(neon)
#endif

namespace {

constexpr int most_sets = 4;

// The instruction sets that both this library and this CPU support, the best one last.
struct Sets {
  const InstructionSet* set[most_sets];
  int count = 0;

  Sets() {
#if defined(MISHKIT_HAS_BASELINE)
    set[count++] = &baseline::instruction_set;
#endif
#if defined(MISHKIT_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2"))
      set[count++] = &avx2::instruction_set;
#endif
#if defined(MISHKIT_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      set[count++] = &avx512::instruction_set;
#endif
#if defined(MISHKIT_HAS_NEON)
    set[count++] = &neon::instruction_set;
#endif
  }
};
const Sets& sets() {
  static const Sets s;
  return s;
}
std::atomic<const InstructionSet*> chosen{nullptr};


const InstructionSet& set_in_use() { return *chosen.load(std::memory_order_relaxed); }

}  // namespace
}  // namespace mishkit
