// Every kernel for one instruction set; compiled once for each, with MISHKIT_ISA naming it.
#include "functions/table.h"
#include "loops.h"
#include "neuron.h"

#define MISHKIT_STRING_OF(x) #x
#define MISHKIT_STRING(x) MISHKIT_STRING_OF(x)

namespace mishkit {
namespace MISHKIT_ISA {

#define X(name, Class) kernels_of<Class>(#name),
// constexpr: nothing of this instruction set may run before it is chosen.
static constexpr FunctionKernels functions[] = {MISHKIT_FUNCTIONS(X)};
#undef X

extern const InstructionSet instruction_set;
constexpr InstructionSet instruction_set = {MISHKIT_STRING(MISHKIT_ISA), functions,
                                            &neuron_kernels};

}  // namespace MISHKIT_ISA
}  // namespace mishkit
