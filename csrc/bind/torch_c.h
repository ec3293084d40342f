// The entry points of PyTorch's stable C ABI that the binding uses, declared by hand.
//
// Requires only a C++17 compiler. No torch header is included, so the library builds without torch,
// and one binary works with every torch from 2.10 on.
//
// Rules for this file, which tools/check_torch_c.py relies on:
//   - the types and prototypes repeat torch's own (torch/csrc/stable/c/shim.h and
//     torch/csrc/inductor/aoti_torch/c/shim.h) letter for letter; only parameter names may differ;
//   - every entry point exists in torch 2.10, or is marked MISHKIT_SINCE(major, minor): then it is
//     a weak symbol, and its address is null if the running torch is older;
//   - it is in the global namespace and is included once per program, by bind.cpp.
//
// Ownership: a tensor handle taken from a kernel's stack, or written through a `ret_new` parameter,
// is owned by its receiver. It ends in aoti_torch_delete_tensor_object, or on the stack as a
// result. Pointers written through a `borrowed` parameter live as long as the tensor they come
// from.
#pragma once

#include <cstddef>
#include <cstdint>

#define MISHKIT_SINCE(major, minor) __attribute__((weak))

extern "C" {

using AOTITorchError = int32_t;  // 0 is success
// One slot of a kernel's stack, filled starting at its first byte (memcpy): a Tensor is a handle
// that the slot owns, an int is int64_t, a float is double, a bool is bool, None is 0.
using StableIValue = uint64_t;
struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
class TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
struct StringOpaque;
using StringHandle = StringOpaque*;
using ParallelFunc = void (*)(int64_t begin, int64_t end, void* ctx);

// ---- Registration. A library lives as long as its handle: the binding never deletes it. ----

// Opens namespace ns to register kernels for the dispatch key (such as "CPU").
AOTITorchError aoti_torch_library_init_impl(
    const char* ns, const char* key, const char* file, uint32_t line, TorchLibraryHandle* ret_new);
// Registers a boxed kernel. The stack holds max(inputs, outputs) slots: the kernel takes ownership
// of the inputs and puts its outputs from slot 0 on. build_version tells how slots are encoded.
AOTITorchError torch_library_impl(
    TorchLibraryHandle library,
    const char* name,
    void (*kernel)(StableIValue* stack, uint64_t inputs, uint64_t outputs),
    uint64_t build_version);

// ---- Reading a tensor; none of these takes ownership of the handle. ----

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* ret);
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* ret);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** borrowed);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** borrowed);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* ret);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* ret);
// The address of element 0, including the storage offset. The mutable version also ends a
// copy-on-write. aoti_torch_get_data_ptr does so even for readers, so it is not used.
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** borrowed);
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** borrowed);

// ---- Making, copying and freeing a tensor. ----

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);
// A tensor object that is not a tensor yet.
AOTITorchError aoti_torch_new_uninitialized_tensor(AtenTensorHandle* ret_new);
// Uninitialised memory from torch's own allocator.
AOTITorchError aoti_torch_empty_strided(
    int64_t dim,
    const int64_t* sizes,
    const int64_t* strides,
    int32_t dtype,
    int32_t device_type,
    int32_t device_index,
    AtenTensorHandle* ret_new);
// Dense, with the strides that torch.empty_like gives: what a fake kernel predicts.
AOTITorchError aoti_torch_clone(AtenTensorHandle tensor, AtenTensorHandle* ret_new);
// to.copy_(from), with broadcasting and conversion of the dtype.
AOTITorchError aoti_torch_copy_(AtenTensorHandle to, AtenTensorHandle from, int32_t non_blocking);

// ---- Strings. A handle taken from a kernel's stack is owned by the kernel, as a tensor is. ----

AOTITorchError torch_string_length(StringHandle string, size_t* ret);
AOTITorchError torch_string_c_str(StringHandle string, const char** borrowed);
AOTITorchError torch_delete_string(StringHandle string);

// ---- Codes, which may differ between versions of torch: query once, do not hard-code. ----

int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_uint8();
int32_t aoti_torch_dtype_bool();
int32_t aoti_torch_device_type_cpu();

// ---- Threads: torch's own pool, so torch.set_num_threads holds. ----

AOTITorchError torch_get_num_threads(uint32_t* ret);
// Splits [begin, end) into pieces of at least grain elements; serial inside a parallel region.
AOTITorchError torch_parallel_for(
    int64_t begin, int64_t end, int64_t grain, ParallelFunc func, void* ctx);

// ---- Errors. ----

// Throws c10::Error, which Python sees as a RuntimeError with msg, unless condition holds. torch
// throws it, so what unwinds the stack is torch's exception in torch's C++ runtime.
void aoti_torch_check(
    bool condition, const char* func, const char* file, uint32_t line, const char* msg);
// Why the last failed call on this thread failed; borrowed until the next failure.
MISHKIT_SINCE(2, 13) const char* torch_exception_get_what_without_backtrace();

}  // extern "C"
