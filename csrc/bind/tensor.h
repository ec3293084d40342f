// Tensors as seen by the binding: their metadata, layouts, creation and copying. Included once per
// program, by bind.cpp, like torch_c.h.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../kernels.h"
#include "torch_c.h"

namespace mishkit {
namespace {

// Raises RuntimeError. torch throws it, so what unwinds the stack is torch's own exception.
[[noreturn]] __attribute__((cold)) void fail(const std::string& message) {
  aoti_torch_check(false, "", __FILE__, __LINE__, message.c_str());
  __builtin_unreachable();
}
[[noreturn]] __attribute__((cold)) void fail_in(const char* expression) {
  std::string message = std::string("mishkit: ") + expression + " failed";
  if (torch_exception_get_what_without_backtrace)
    message += std::string(": ") + torch_exception_get_what_without_backtrace();
  fail(message);
}
#define MISHKIT_CALL(expression)                  \
  do {                                            \
    if ((expression) != 0) fail_in(#expression);  \
  } while (false)

// Registers an operator whose schema is defined in Python.
void add_operator(TorchLibraryHandle library, const std::string& name,
                  void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
  constexpr uint64_t slots_as_of = uint64_t{2} << 56 | uint64_t{10} << 48;  // torch 2.10
  MISHKIT_CALL(torch_library_impl(library, name.c_str(), kernel, slots_as_of));
}

struct Codes {
  int32_t dtype[dtype_count] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(),
                                aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16()};
  int32_t uint8 = aoti_torch_dtype_uint8();
  int32_t cpu = aoti_torch_device_type_cpu();
};
const Codes& codes() {
  static const Codes c;
  return c;
}

// Which of our dtypes torch's code stands for; -1 if none.
int dtype_of(int32_t code) {
  for (int i = 0; i < dtype_count; i++)
    if (codes().dtype[i] == code) return i;
  return -1;
}

int element_size(int32_t dtype) {
  return dtype == codes().dtype[(int)Dtypes::float64]   ? 8
         : dtype == codes().dtype[(int)Dtypes::float32] ? 4
                                                        : 2;
}

// Memory fresh from the system costs a page fault every 4 KiB, many times the cost of the kernel.
// With 2 MiB pages it costs almost nothing. Only whole huge pages are requested, so none is wasted.
void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  static const bool wanted = [] {
    const char* setting = getenv("MISHKIT_HUGE_PAGES");
    return !setting || strcmp(setting, "0") != 0;
  }();
  if (bytes < int64_t{2 * page} || !wanted) return;
  auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
  auto end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

constexpr int most_dimensions = 64;  // as many as torch has

// A tensor owned by this code, with its metadata.
class Tensor {
 public:
  Tensor() = default;
  // Delegates to the other constructor, so that the handle is freed if something below throws.
  explicit Tensor(AtenTensorHandle handle) : Tensor() {
    handle_ = handle;
    MISHKIT_CALL(aoti_torch_get_dim(handle, &dim));
    MISHKIT_CALL(aoti_torch_get_numel(handle, &numel));
    MISHKIT_CALL(aoti_torch_get_sizes(handle, &sizes));
    MISHKIT_CALL(aoti_torch_get_strides(handle, &strides));
    MISHKIT_CALL(aoti_torch_get_dtype(handle, &dtype));
  }
  Tensor(Tensor&& other) { *this = static_cast<Tensor&&>(other); }
  Tensor& operator=(Tensor&& other) {
    AtenTensorHandle mine = handle_;
    dim = other.dim, numel = other.numel, sizes = other.sizes, strides = other.strides;
    dtype = other.dtype, handle_ = other.handle_;
    other.handle_ = mine;
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  static Tensor empty(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
    AtenTensorHandle handle;
    MISHKIT_CALL(
        aoti_torch_empty_strided(dim, sizes, strides, dtype, codes().cpu, 0, &handle));
    return Tensor(handle);
  }
  static Tensor bytes(int64_t count) {
    const int64_t one = 1;
    return empty(1, &count, &one, codes().uint8);
  }
  // A dense copy, with the strides of torch.empty_like.
  Tensor clone() const {
    AtenTensorHandle handle;
    MISHKIT_CALL(aoti_torch_clone(handle_, &handle));
    return Tensor(handle);
  }
  // An uninitialised result with this tensor's (dense) layout.
  Tensor empty_like() const {
    Tensor t = empty(dim, sizes, strides, dtype);
    advise_huge_pages(t.mutable_data(), numel * element_size(dtype));
    return t;
  }
  // The same for a layout with gaps, without them; no two elements share memory.
  Tensor dense_like() const {
    int64_t without_gaps[most_dimensions];
    dense_strides(without_gaps);
    Tensor t = empty(dim, sizes, without_gaps, dtype);
    advise_huge_pages(t.mutable_data(), numel * element_size(dtype));
    return t;
  }
  // The strides of torch.empty_like: those of this tensor if it is dense, and else those of a dense
  // one whose dimensions have the same order in memory.
  void dense_strides(int64_t (&result)[most_dimensions]) const {
    if (dense()) {
      memcpy(result, strides, dim * sizeof *strides);
      return;
    }
    // Of dimensions with one stride, the shorter is the inner one.
    const auto is_inside = [&](int one, int other) {
      return strides[one] < strides[other] ||
             (strides[one] == strides[other] && sizes[one] < sizes[other]);
    };
    int order[most_dimensions];
    for (int i = 0; i < dim; i++) {
      const int one = (int)dim - 1 - i;
      int at = i;
      for (; at > 0 && is_inside(one, order[at - 1]); at--) order[at] = order[at - 1];
      order[at] = one;
    }
    int64_t run = 1;
    for (int i = 0; i < dim; i++) {
      result[order[i]] = run;
      if (sizes[order[i]] > 1) run *= sizes[order[i]];
    }
  }
  // How many bytes lie from its first to its last element; it has at least one.
  uintptr_t extent() const {
    int64_t last = 0;
    for (int64_t i = 0; i < dim; i++) last += (sizes[i] - 1) * strides[i];
    return numel ? (last + 1) * element_size(dtype) : 0;
  }
  // A copy in the (dense) layout of another tensor of the same shape.
  Tensor laid_out_as(const Tensor& other) const {
    Tensor copy = empty(dim, sizes, other.strides, dtype);
    copy.copy(*this);
    return copy;
  }
  void copy(const Tensor& from) { MISHKIT_CALL(aoti_torch_copy_(handle_, from.handle_, 0)); }

  bool on_cpu() const {
    int32_t device;
    MISHKIT_CALL(aoti_torch_get_device_type(handle_, &device));
    return device == codes().cpu;
  }

  const void* data() const {
    const void* p;
    MISHKIT_CALL(torch_get_const_data_ptr(handle_, &p));
    return p;
  }
  void* mutable_data() const {
    void* p;
    MISHKIT_CALL(torch_get_mutable_data_ptr(handle_, &p));
    return p;
  }
  // Still owned by this tensor.
  AtenTensorHandle handle() const { return handle_; }
  StableIValue release() {
    auto handle = handle_;
    handle_ = nullptr;
    StableIValue slot = 0;
    memcpy(&slot, &handle, sizeof handle);
    return slot;
  }

  // Whether its elements fill one run of memory without gaps, in the order of its dimensions.
  bool contiguous() const {
    int64_t run = 1;
    int i = (int)dim - 1;
    while (i >= 0 && (sizes[i] == 1 || strides[i] == run)) run *= sizes[i--];
    return i < 0 || numel < 2;
  }
  // The same, in any order of dimensions.
  bool dense() const { return contiguous() || dense_in_some_order(); }
  bool same_strides(const Tensor& other) const {
    for (int64_t i = 0; i < dim; i++)
      if (sizes[i] != 1 && strides[i] != other.strides[i]) return false;
    return true;
  }
  bool same_sizes(const Tensor& other) const {
    return dim == other.dim && memcmp(sizes, other.sizes, dim * sizeof *sizes) == 0;
  }
  // Whether all elements are one in memory: an expanded scalar.
  bool is_one_number() const {
    for (int64_t i = 0; i < dim; i++)
      if (sizes[i] != 1 && strides[i] != 0) return false;
    return true;
  }
  // Whether two of its elements certainly share memory: an expanded dimension.
  bool overlaps_itself() const {
    if (numel < 2) return false;
    for (int64_t i = 0; i < dim; i++)
      if (sizes[i] > 1 && strides[i] == 0) return true;
    return false;
  }

  int64_t dim, numel;
  int64_t *sizes, *strides;
  int32_t dtype;

 private:
  bool dense_in_some_order() const {
    if (dim > most_dimensions) return false;
    int order[most_dimensions], count = 0;
    for (int i = 0; i < dim; i++) {
      if (sizes[i] == 1) continue;
      int at = count++;
      for (; at > 0 && strides[order[at - 1]] > strides[i]; at--) order[at] = order[at - 1];
      order[at] = i;
    }
    int64_t run = 1;
    for (int k = 0; k < count; k++) {
      if (strides[order[k]] != run) return false;
      run *= sizes[order[k]];
    }
    return true;
  }

  AtenTensorHandle handle_ = nullptr;
};

// The tensors among an operator's arguments, which come first. They are owned from the start, so
// all of them are freed whatever is rejected, and whenever.
class Inputs {
 public:
  Inputs(const char* name, const StableIValue* stack, int count) : name_(name), count_(count) {
    for (int i = 0; i < count; i++) memcpy(&handles_[i], &stack[i], sizeof handles_[i]);
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;
  ~Inputs() {
    for (int i = 0; i < count_; i++)
      if (handles_[i]) aoti_torch_delete_tensor_object(handles_[i]);
  }

  Tensor take(int i) {
    const AtenTensorHandle handle = handles_[i];
    handles_[i] = nullptr;
    Tensor t(handle);
    if (!t.on_cpu()) refuse("the tensors are on different devices");
    return t;
  }

  [[noreturn]] void refuse(const char* why) const {
    fail(std::string("mishkit.") + name_ + ": " + why);
  }

 private:
  static constexpr int most = 5;
  const char* name_;
  int count_;
  AtenTensorHandle handles_[most];
};

}  // namespace
}  // namespace mishkit
