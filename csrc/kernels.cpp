// Every kernel for one instruction set. Compiled once per instruction set, which MISHKIT_ISA names.
#include "affine.h"
#include "blend.h"
#include "functions/table.h"
#include "gate.h"
#include "loops.h"
#include "mask.h"
#include "neuron.h"
#include "norm.h"
#include "trained.h"

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

#define X(name, Class) kernels_of<Class>(#name),
// constexpr: no code for this instruction set may run before it is chosen.
static constexpr FunctionKernels functions[] = {MISHKIT_FUNCTIONS(X)};
#undef X

extern const InstructionSet instruction_set;
constexpr InstructionSet instruction_set = {MISHKIT_STRING(MISHKIT_ISA), functions,
                                            &neuron_kernels, &blend_kernels,
                                            &affine_kernels, &gate_kernels,
                                            &mask_kernels, &norm_kernels};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
