// The binding: registers the kernels of the best instruction set for torch's CPU tensors.
//
// The operators' schemas, their fakes and their plain-torch forms are defined in Python
// (ops/functions.py); this file adds what the dispatcher calls for CPU tensors. Results have the
// strides that torch.empty_like gives, as the fakes predict.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include "errors.h"
#include "functions/table.h"
#include "kernels.h"
#include "neuron_operators.h"
#include "operands.h"
#include "tensor.h"
#include "torch_c.h"

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

// ---- the instruction set -------------------------------------------------------------------------

constexpr int most_sets = 4;

// Those that this library has and this CPU runs; the best one last.
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
const NeuronKernels& chosen_neuron() { return *chosen.load(std::memory_order_relaxed)->neuron; }

// ---- running a kernel ----------------------------------------------------------------------------

struct Job {
  Kernel kernel;
  Arguments arguments;
  int64_t numel;
};

void run(const Job& job) {
  in_threads(job.numel, [&](int64_t begin, int64_t end) { job.kernel(job.arguments, begin, end); });
}

// Parts of the work with trained parameters: by sizes alone, so that the order of the sums is the
// same for any number of threads.
int64_t parts_of(const TrainedArguments& a, int64_t parameters) {
  constexpr int64_t most = 64, most_sums = 1 << 17;
  int64_t by_work = (a.outer * a.channels * a.inner + thread_grain - 1) / thread_grain;
  int64_t by_memory = most_sums / (parameters * a.channels) + 1;
  int64_t parts = by_work < by_memory ? by_work : by_memory;
  return parts < most ? parts : most;
}

// Elements of scratch that a parameter takes: its pattern, and sums of the same shape.
int64_t pattern_elements(const TrainedArguments& a) {
  if (a.channels == 1 || a.inner >= long_run) return 0;
  int64_t row = a.channels * a.inner;
  return 2 * ((row < long_row ? row * most_rows : row) + most_pair);
}

void run(TrainedKernel kernel, const TrainedArguments& arguments, int64_t scratch_bytes) {
  struct Context {
    TrainedKernel kernel;
    const TrainedArguments& arguments;
    int64_t scratch_bytes;
  } context = {kernel, arguments, scratch_bytes};
  auto part = [](int64_t begin, int64_t end, void* context) {
    const Context& c = *static_cast<const Context*>(context);
    Tensor scratch = Tensor::bytes(c.scratch_bytes);
    c.kernel(c.arguments, c.scratch_bytes ? scratch.mutable_data() : nullptr, begin, end);
  };
  if (arguments.parts <= 1) return part(0, arguments.parts, &context);
  MISHKIT_CALL(torch_parallel_for(0, arguments.parts, 1, part, &context));
}

constexpr const char* names[] = {
#define X(name, Class) #name,
    MISHKIT_FUNCTIONS(X)
#undef X
};
constexpr int function_count = sizeof names / sizeof *names;

// One call of one operator: takes the tensors off the stack, checks them, runs a kernel.
class Call : public Operands {
 public:
  Call(int function, Bodies body, StableIValue* stack, int tensors)
      : Operands(names[function], stack, tensors),
        function_(chosen.load(std::memory_order_relaxed)->functions[function]),
        body_(body) {
    for (int i = 0; i < function_.parameter_count; i++)
      memcpy(&parameters_[i], &stack[tensors + i], sizeof(double));
    job_.arguments.parameters = parameters_;
  }

  // With parameters in a tensor: `trained` reads them.
  Call(int function, StableIValue* stack, int tensors)
      : Operands(names[function], stack, tensors),
        function_(chosen.load(std::memory_order_relaxed)->functions[function]),
        body_(Bodies::forward) {
    job_.arguments.parameters = parameters_;
  }

  Tensor side_for(const Tensor& x) {
    return Tensor::bytes(function_.has_turn ? (x.numel + 7) / 8 : 0);
  }
  Tensor side_of(int place, const Tensor& y) {
    Tensor side = take(place);
    bool fits = side.dtype == codes().uint8 && side.numel == (y.numel + 7) / 8 && side.dense();
    if (function_.has_turn && !fits)
      refuse("the side must be a row of one bit an element, packed in uint8");
    return side;
  }

  // The trained parameters: a row each of one number, or of one for each channel of x.
  Tensor trained(int place, const Tensor& x) {
    Tensor p = take(place);
    const int32_t wide = x.dtype == double_code() ? x.dtype : codes().dtype[(int)Dtypes::float32];
    bool fits = p.dtype == wide && p.dim == 2 && p.sizes[0] == function_.parameter_count;
    bool channels = fits && p.sizes[1] > 1 && x.dim > 1 && p.sizes[1] == x.sizes[1];
    if (!fits || !(channels || p.sizes[1] == 1))
      refuse("the parameters must be rows of one number, or of one a channel, in float32 or float64");
    const int64_t strides[] = {p.sizes[1], 1};
    Tensor row_major = Tensor::empty(2, p.sizes, strides, p.dtype);
    if (!p.same_strides(row_major)) {
      row_major.copy(p);
      p = static_cast<Tensor&&>(row_major);
    }
    trained_.channels = channels ? x.sizes[1] : 1;
    trained_.inner = !x.numel ? 0 : channels ? x.strides[1] : x.numel;
    trained_.outer = x.numel ? x.numel / (trained_.channels * trained_.inner) : 0;
    trained_.parameters = p.data();
    return p;
  }
  // With one number a parameter the forward pass is that of fixed parameters.
  bool is_fixed() const { return trained_.channels == 1; }
  void fix() {
    for (int i = 0; i < function_.parameter_count; i++)
      parameters_[i] = dtype_ == (int)Dtypes::float64
                           ? static_cast<const double*>(trained_.parameters)[i]
                           : static_cast<const float*>(trained_.parameters)[i];
  }
  void run_trained() {
    if (!trained_.parts) trained_.parts = parts_of(trained_, function_.parameter_count);
    mishkit::run(function_.trained[dtype_], trained_,
                 pattern_elements(trained_) * function_.parameter_count *
                     (dtype_ == (int)Dtypes::float64 ? 8 : 4));
  }
  // The gradients of the parameters; the sums of all parts, in their order.
  Tensor run_trained_backward(const Tensor& parameters) {
    trained_.parts = parts_of(trained_, function_.parameter_count);
    const int64_t count = parameters.numel, size = trained_.parts * count, one = 1;
    Tensor sums = Tensor::empty(1, &size, &one, double_code());
    trained_.sums = static_cast<double*>(sums.mutable_data());
    std::fill_n(trained_.sums, size, 0.0);
    run_trained();
    Tensor result = Tensor::empty(2, parameters.sizes, parameters.strides, parameters.dtype);
    for (int64_t i = 0; i < count; i++) {
      double total = 0;
      for (int64_t part = 0; part < trained_.parts; part++)
        total += trained_.sums[part * count + i];
      if (dtype_ == (int)Dtypes::float64) static_cast<double*>(result.mutable_data())[i] = total;
      else static_cast<float*>(result.mutable_data())[i] = (float)total;
    }
    return result;
  }

  void run(int64_t numel) {
    const Arguments& a = job_.arguments;
    job_.arguments.streaming = streaming_pays(a.in[0], a.out[0], numel);
    job_.kernel = function_.kernels[dtype_][(int)body_];
    job_.numel = numel;
    mishkit::run(job_);
  }
  Arguments& arguments() { return job_.arguments; }
  TrainedArguments& trained_arguments() { return trained_; }

 private:
  const FunctionKernels& function_;
  Bodies body_;
  static int32_t double_code() { return codes().dtype[(int)Dtypes::float64]; }

  double parameters_[max_parameters];
  Job job_{};
  TrainedArguments trained_{};
};

// ---- the operators, by the endings of ops/functions.py ------------------------------------------

template <int function> struct Operators {
  using Stack = StableIValue*;

  static void forward(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward, stack, 1);
    Tensor x = call.leading(0);
    Tensor y = x.empty_like();
    call.arguments().in[0] = x.data();
    call.arguments().out[0] = y.mutable_data();
    call.run(x.numel);
    stack[0] = y.release();
  }

  static void forward_packed(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward_packed, stack, 1);
    Tensor x = call.leading(0);
    Tensor y = x.empty_like(), side = call.side_for(x);
    call.arguments().in[0] = x.data();
    call.arguments().out[0] = y.mutable_data();
    call.arguments().side_out = static_cast<uint8_t*>(side.mutable_data());
    call.run(x.numel);
    stack[0] = y.release();
    stack[1] = side.release();
  }

  // `out` may be the input itself. Where it has another layout, or is not dense, it is filled by
  // a copy.
  static void write(Call& call, Tensor* side) {
    Tensor out = call.take(1);
    if (out.overlaps_itself())
      call.refuse("several elements of the output share one place in memory; clone() it");
    Tensor x = call.leading(0);
    if (out.dtype != x.dtype || !out.same_sizes(x))
      call.refuse("out must have the input's shape and dtype");
    const bool direct = out.same_strides(x) && out.dense();
    Tensor fresh = direct ? Tensor() : x.empty_like();
    call.arguments().in[0] = x.data();
    call.arguments().out[0] = (direct ? out : fresh).mutable_data();
    if (direct) check_overlap(call, x.numel * element_size(x.dtype));
    if (side) {
      *side = call.side_for(x);
      call.arguments().side_out = static_cast<uint8_t*>(side->mutable_data());
    }
    call.run(x.numel);
    if (!direct) out.copy(fresh);
  }
  static void check_overlap(Call& call, uintptr_t bytes) {
    auto in = reinterpret_cast<uintptr_t>(call.arguments().in[0]);
    auto out = reinterpret_cast<uintptr_t>(call.arguments().out[0]);
    if (in != out && in < out + bytes && out < in + bytes)
      call.refuse("out and the input overlap in part; clone() one of them");
  }
  static void forward_out(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward, stack, 2);
    write(call, nullptr);
  }
  static void forward_packed_out(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::forward_packed, stack, 2);
    Tensor side;
    write(call, &side);
    stack[0] = side.release();
  }

  static void backward(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::backward, stack, 2);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x), result = x.empty_like();
    call.arguments().in[0] = grad.data();
    call.arguments().in[1] = x.data();
    call.arguments().out[0] = result.mutable_data();
    call.run(x.numel);
    stack[0] = result.release();
  }

  static void backward_packed(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::backward_packed, stack, 3);
    Tensor y = call.leading(1);
    Tensor grad = call.following(0, y), side = call.side_of(2, y);
    Tensor result = y.empty_like();
    call.arguments().in[0] = grad.data();
    call.arguments().in[1] = y.data();
    call.arguments().side_in = static_cast<const uint8_t*>(side.data());
    call.arguments().out[0] = result.mutable_data();
    call.run(y.numel);
    stack[0] = result.release();
  }

  static void double_backward(Stack stack, uint64_t, uint64_t) {
    Call call(function, Bodies::double_backward, stack, 3);
    Tensor x = call.leading(2);
    Tensor grad_grad = call.following(0, x), grad = call.following(1, x);
    Tensor to_grad = x.empty_like(), to_x = x.empty_like();
    call.arguments().in[0] = grad_grad.data();
    call.arguments().in[1] = grad.data();
    call.arguments().in[2] = x.data();
    call.arguments().out[0] = to_grad.mutable_data();
    call.arguments().out[1] = to_x.mutable_data();
    call.run(x.numel);
    stack[0] = to_grad.release();
    stack[1] = to_x.release();
  }

  static void trained(Stack stack, uint64_t, uint64_t) {
    Call call(function, stack, 2);
    Tensor x = call.leading(0);
    Tensor parameters = call.trained(1, x);
    Tensor y = x.empty_like();
    if (call.is_fixed()) {
      call.fix();
      call.arguments().in[0] = x.data();
      call.arguments().out[0] = y.mutable_data();
      call.run(x.numel);
    } else {
      call.trained_arguments().x = x.data();
      call.trained_arguments().out = y.mutable_data();
      call.run_trained();
    }
    stack[0] = y.release();
  }

  static void trained_backward(Stack stack, uint64_t, uint64_t) {
    Call call(function, stack, 3);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x), parameters = call.trained(2, x);
    Tensor to_x = x.empty_like();
    call.trained_arguments().grad = grad.data();
    call.trained_arguments().x = x.data();
    call.trained_arguments().out = to_x.mutable_data();
    Tensor to_parameters = call.run_trained_backward(parameters);
    stack[0] = to_x.release();
    stack[1] = to_parameters.release();
  }

  static void add_to(TorchLibraryHandle library) {
    if (sets().set[0]->functions[function].trained[0]) {
      add(library, "_trained", trained);
      add(library, "_trained_backward", trained_backward);
    }
    add(library, "", forward);
    add(library, "_out", forward_out);
    add(library, "_packed", forward_packed);
    add(library, "_packed_out", forward_packed_out);
    add(library, "_backward", backward);
    add(library, "_backward_packed", backward_packed);
    add(library, "_double_backward", double_backward);
    if constexpr (function + 1 < function_count) Operators<function + 1>::add_to(library);
  }
  using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
  static void add(TorchLibraryHandle library, const char* ending, Boxed kernel) {
    constexpr uint64_t slots_as_of = uint64_t{2} << 56 | uint64_t{10} << 48;  // torch 2.10
    std::string name = std::string(names[function]) + ending;
    MISHKIT_CALL(torch_library_impl(library, name.c_str(), kernel, slots_as_of));
  }
};

// ---- two functions in one -------------------------------------------------------------------------

// (input or grad and input, f, its numbers, g, its numbers, t): every function has as many numbers as
// the most that one has, and those that it has are the first.
class BlendCall : public Operands {
 public:
  BlendCall(StableIValue* stack, bool backward)
      : Operands("blend", stack, backward ? 2 : 1),
        set_(*chosen.load(std::memory_order_relaxed)),
        backward_(backward) {
    const StableIValue* slots = stack + (backward ? 2 : 1);
    for (int i = 0; i < 2; i++) {
      memcpy(&index_[i], slots++, sizeof index_[i]);
      memcpy(parameters_[i], slots, most_numbers() * sizeof(double));
      slots += most_numbers();
    }
    memcpy(&t_, slots, sizeof t_);
  }

  static void forward(StableIValue* stack, uint64_t, uint64_t) {
    BlendCall call(stack, false);
    Tensor x = call.leading(0), y = x.empty_like();
    call.run(nullptr, x.data(), y.mutable_data(), x.numel);
    stack[0] = y.release();
  }
  static void backward(StableIValue* stack, uint64_t, uint64_t) {
    BlendCall call(stack, true);
    Tensor x = call.leading(1);
    Tensor grad = call.following(0, x), result = x.empty_like();
    call.run(grad.data(), x.data(), result.mutable_data(), x.numel);
    stack[0] = result.release();
  }

 private:
  static int most_numbers() {
    static const int most = [] {
      int most = 0;
      for (int i = 0; i < function_count; i++) {
        const int count = sets().set[0]->functions[i].parameter_count;
        most = count > most ? count : most;
      }
      return most;
    }();
    return most;
  }

  void run(const void* grad, const void* x, void* out, int64_t numel) const {
    if (!(0 <= t_ && t_ <= 1)) refuse("t must be from 0 to 1");
    const FunctionKernels* functions[2];
    for (int i = 0; i < 2; i++) {
      if (index_[i] < 0 || index_[i] >= function_count) refuse("there is no such function");
      functions[i] = &set_.functions[index_[i]];
    }
    const int body = (int)(backward_ ? Bodies::backward : Bodies::forward);
    const bool streaming = !backward_ && streaming_pays(x, out, numel);
    // In float a weight below this would be 0, and 0 times an infinite f(x) a NaN.
    constexpr double least = 1e-37;
    if (t_ < least || t_ == 1) {
      const int which = t_ == 1;
      Arguments a{};
      a.in[0] = backward_ ? grad : x, a.in[1] = x, a.out[0] = out;
      a.parameters = parameters_[which], a.streaming = streaming;
      mishkit::run(Job{functions[which]->kernels[dtype_][body], a, numel});
      return;
    }
    const Dtypes computed = dtype_ == (int)Dtypes::float64 ? Dtypes::float64 : Dtypes::float32;
    BlendArguments a{grad, x, out, {}, {parameters_[0], parameters_[1]}, t_, streaming};
    for (int i = 0; i < 2; i++) a.kernels[i] = functions[i]->kernels[(int)computed][body];
    const bool dead = functions[0]->is_dead && functions[1]->is_dead;
    const BlendKernel kernel = set_.blend->of[dtype_][backward_ ? 1 + dead : 0];
    in_threads(numel, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  }

  const InstructionSet& set_;
  const bool backward_;
  int64_t index_[2];
  double parameters_[2][max_parameters];
  double t_;
};

void add_blend(TorchLibraryHandle library) {
  constexpr uint64_t slots_as_of = uint64_t{2} << 56 | uint64_t{10} << 48;  // torch 2.10
  MISHKIT_CALL(torch_library_impl(library, "blend", BlendCall::forward, slots_as_of));
  MISHKIT_CALL(torch_library_impl(library, "blend_backward", BlendCall::backward, slots_as_of));
}

// An exception out of here would end the process, so it is kept for Python to ask for.
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
    } catch (const std::exception& error) {
      failure = error.what();
    }
  }
};
const Registration registration;

}  // namespace
}  // namespace mishkit

// ---- what Python asks (backends/cpu.py) -----------------------------------------------------------

#define MISHKIT_EXPORT extern "C" __attribute__((visibility("default")))

// Why the kernels could not be registered; empty where they were.
MISHKIT_EXPORT const char* mishkit_failure() { return mishkit::registration.failure.c_str(); }

// The instruction sets to choose from, separated by spaces; the best one last.
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

// What compiled this file, and in all likelihood the kernels.
MISHKIT_EXPORT const char* mishkit_compiler() {
#if defined(__clang__)
  return __VERSION__;
#else
  return "GCC " __VERSION__;
#endif
}

// Switches to one of them; anything else is ignored.
MISHKIT_EXPORT void mishkit_use_isa(const char* name) {
  for (int i = 0; i < mishkit::sets().count; i++)
    if (strcmp(mishkit::sets().set[i]->name, name) == 0) mishkit::chosen = mishkit::sets().set[i];
}
