// The kernels for one instruction set, which MISHKIT_ISA names. They take minutes to compile, so each
// of MISHKIT_PARTS parts is compiled by itself, all at the same time: part MISHKIT_PART has every
// MISHKIT_PARTS-th function of the table. Part 0 also has what belongs to no function.
#if !defined(MISHKIT_PARTS)  // all in one
#define MISHKIT_PARTS 1
#define MISHKIT_PART 0
#endif

#include "functions/table.h"
#include "loops.h"
#include "trained.h"
#if MISHKIT_PART == 0
#include "affine.h"
#include "blend.h"
#include "gate.h"
#include "mask.h"
#include "neuron.h"
#include "norm.h"
#endif
#if defined(__clang__)  // parts are defined elsewhere
#pragma clang diagnostic ignored "-Wundefined-var-template"
#endif

#define MISHKIT_STRING_OF(x) #x
#define MISHKIT_STRING(x) MISHKIT_STRING_OF(x)

namespace mishkit {
namespace MISHKIT_ISA {

template <template <class, Accuracy> class Function, class S>
constexpr void fill(FunctionKernels& k, Dtypes dtype) {
  fill<Function, S>(k.kernels[(int)dtype]);
  k.trained[(int)dtype] = trained_kernel<Function, S>();
  if constexpr (__is_same(S, float)) {
    k.gate[0] = kernel_of<GateForward, Function<Vec<S>, Accuracy::full>, S>();
    k.gate[1] = kernel_of<GateBackward, Function<Vec<S>, Accuracy::full>, S>();
  }
  if constexpr (__is_same(S, typename Computed<S>::type))
    k.both[(int)dtype] = kernel_of<ValueAndSlope, Function<Vec<S>, Accuracy::full>, S>();
}

template <template <class, Accuracy> class Function>
constexpr FunctionKernels kernels_of(const char* name) {
  using F = Function<Vec<float>, Accuracy::full>;
  FunctionKernels k{name, F::has_turn, is_base_of<Dead, F>, F::parameter_count, {}, {}, {}, {}};
  fill<Function, float>(k, Dtypes::float32);
  fill<Function, double>(k, Dtypes::float64);
  fill<Function, BFloat16>(k, Dtypes::bfloat16);
  fill<Function, Float16>(k, Dtypes::float16);
  return k;
}

// Nothing is compiled for a function of another part, whose place stays empty.
template <template <class, Accuracy> class Function, bool is_here>
constexpr FunctionKernels kernels_if(const char* name) {
  if constexpr (is_here) return kernels_of<Function>(name);
  else return {};
}

#define X(name, Class) at_##name,
enum Place { MISHKIT_FUNCTIONS(X) function_count };
#undef X
template <int part> struct Part {
  static const FunctionKernels functions[function_count];
};

#define X(name, Class) kernels_if<Class, at_##name % MISHKIT_PARTS == MISHKIT_PART>(#name),
// Of constants alone: no code for this instruction set may run before it is chosen.
template <>
const FunctionKernels Part<MISHKIT_PART>::functions[function_count] = {MISHKIT_FUNCTIONS(X)};
#undef X

#if MISHKIT_PART == 0
#define X(name, Class) &Part<at_##name % MISHKIT_PARTS>::functions[at_##name],
static constexpr const FunctionKernels* in_order[] = {MISHKIT_FUNCTIONS(X)};
#undef X

extern const InstructionSet instruction_set;
constexpr InstructionSet instruction_set = {MISHKIT_STRING(MISHKIT_ISA), {in_order},
                                            &neuron_kernels, &blend_kernels,
                                            &affine_kernels, &gate_kernels,
                                            &mask_kernels, &norm_kernels};
#endif

}  // namespace MISHKIT_ISA
}  // namespace mishkit
