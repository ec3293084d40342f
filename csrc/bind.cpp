// The binding: registers the kernels of the best instruction set for torch's CPU tensors.
//
// The operators' schemas, fakes and plain-torch forms are defined in Python (ops/). The headers in
// bind/ contain what the dispatcher calls for CPU tensors. Results have the strides that
// torch.empty_like gives, as the fakes predict.
#include <chrono>
#include <cstring>
#include <exception>
#include <string>
#include <thread>

#include "bind/affine.h"
#include "bind/blend.h"
#include "bind/gate.h"
#include "bind/isa.h"
#include "bind/mask.h"
#include "bind/neuron.h"
#include "bind/norm.h"
#include "bind/operators.h"
#include "bind/overrides.h"

namespace mishkit {
namespace {

// An exception leaving this code would end the process, so it is kept for Python to query.
struct Registration {
  std::string failure;

  Registration() {
    chosen = sets().set[sets().count - 1];
    try {
      TorchLibraryHandle library;
      MISHKIT_CALL(
          aoti_torch_library_init_impl("mishkit", "CPU", __FILE__, __LINE__, &library));
      Operators<0>::add_to(library);
      add_neuron(library);
      add_blend(library);
      add_affine(library);
      add_gate(library);
      add_mask(library);
      add_norm(library);
    } catch (const std::exception& error) {
      failure = error.what();
    }
  }
};
const Registration registration;

}  // namespace
}  // namespace mishkit

// ---- queried from Python (backends/cpu.py) ------------------------------------------------------

#define MISHKIT_EXPORT extern "C" __attribute__((visibility("default")))

// Why the kernels could not be registered; empty if they were.
MISHKIT_EXPORT const char* mishkit_failure() { return mishkit::registration.failure.c_str(); }

// The available instruction sets, separated by spaces, the best one last.
MISHKIT_EXPORT const char* mishkit_isas() {
  static const std::string list = [] {
    std::string text;
    for (int i = 0; i < mishkit::sets().count; i++)
      text += (i ? " " : "") + std::string(mishkit::sets().set[i]->name);
    return text;
  }();
  return list.c_str();
}

MISHKIT_EXPORT const char* mishkit_isa() { return mishkit::chosen.load()->name; }

// The compiler of this file, and in all likelihood of the kernels.
MISHKIT_EXPORT const char* mishkit_compiler() {
#if defined(__clang__)
  return __VERSION__;
#else
  return "GCC " __VERSION__;
#endif
}

// Switches to one of these instruction sets; any other name is ignored.
MISHKIT_EXPORT void mishkit_use_isa(const char* name) {
  for (int i = 0; i < mishkit::sets().count; i++)
    if (strcmp(mishkit::sets().set[i]->name, name) == 0) mishkit::chosen = mishkit::sets().set[i];
}

// Registers the override of each overload of torch's namespace aten, such as "silu.out", for CPU
// tensors. `torchs` are torch's own kernels, C++ functions; where there is none, the overload is left
// alone. Called once, by a thread that holds Python's lock.
MISHKIT_EXPORT bool mishkit_override(const char* const* overloads, void* const* torchs, int count) {
  // Other threads of Python can't begin a call now; those that have begun one get past the dispatcher.
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  try {
    for (int i = 0; i < count; i++)
      if (torchs[i]) mishkit::add_override(overloads[i], torchs[i]);
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// Whether the overrides of a function answer by themselves from now on, or pass everything on.
MISHKIT_EXPORT void mishkit_answer(const char* function, bool answers) {
  for (const mishkit::Answers& answer : mishkit::all_answers)
    if (strcmp(answer.function, function) == 0) *answer.flag = answers;
}
