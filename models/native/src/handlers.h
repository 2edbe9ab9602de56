// What the handlers of XLA FFI share: its buffers, the layouts of matrices, optional operands, memory that is not there.
//
// https://openxla.org/xla/custom_call: a handler checks what it is given and never throws.
#pragma once

#include <algorithm>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "activations.h"
#include "xla/ffi/api/ffi.h"

namespace cortex {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

// As `models.native.tiles` numbers them.
enum Codes : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };

using Bytes = ffi::Buffer<ffi::U8>;

// Calls use(weights) with the layout that the attributes say: codes, scales and offsets one after the other in `matrix`.
template <class Use>
ffi::Error with_weights(const Bytes& matrix, int64_t codes, int64_t group, bool half, bool offset, int64_t tiles,
                        int64_t columns, const Use& use) {
  const uint8_t* data = matrix.typed_data();
  const int64_t size = static_cast<int64_t>(matrix.element_count());
  const auto plain = [&](auto kind) {
    using C = decltype(kind);
    if (size != tiles * columns * C::BYTES) return ffi::Error::InvalidArgument("a matrix of another size");
    return use(Plain<C>{data, columns});
  };
  if (codes == FLOAT32) return plain(Float32{});
  if (codes == BFLOAT16) return plain(Bfloat16{});
  if (codes == FLOAT16) return plain(Float16{});
  if (codes != INT8 && codes != INT4) return ffi::Error::InvalidArgument("unknown codes");
  if (group <= 0 || columns % group != 0 || group % LEAST_BLOCK != 0)
    return ffi::Error::InvalidArgument("columns do not divide into groups");
  const auto pick = [&](auto kind) {
    using C = decltype(kind);
    const int64_t scales = tiles * (columns / group) * (half ? Float16::BYTES : Float32::BYTES);
    const uint8_t *scale = data + tiles * columns * C::BYTES, *offsets = scale + scales;
    if (size != tiles * columns * C::BYTES + scales * (1 + offset))
      return ffi::Error::InvalidArgument("a matrix of another size");
    if (half && offset) return use(Coded<C, Float16, true>{data, scale, offsets, columns, group});
    if (half) return use(Coded<C, Float16, false>{data, scale, nullptr, columns, group});
    if (offset) return use(Coded<C, Float32, true>{data, scale, offsets, columns, group});
    return use(Coded<C, Float32, false>{data, scale, nullptr, columns, group});
  };
  return codes == INT8 ? pick(Int8{}) : pick(Int4{});
}

// How many of `rows` the caller wants.
inline int64_t live_of(const Ints& live, int64_t rows) {
  return live.element_count() < 1 ? 0 : std::clamp<int64_t>(live.typed_data()[0], 0, rows);
}

// What a call may have or not, one after the other: `next` gives the address if the caller says that it is there.
class Optional {
 public:
  explicit Optional(ffi::RemainingArgs extra) : extra_(extra) {}

  // Null if it is not there; what has another size is remembered as a misfit.
  const float* next(bool there, int64_t size) {
    if (!there) return nullptr;
    const auto found = used_ < extra_.size() ? extra_.get<Floats>(used_) : ffi::ErrorOr<Floats>(ffi::Unexpected(ffi::Error::InvalidArgument("none")));
    ++used_;
    if (found.has_value() && static_cast<int64_t>(found->element_count()) == size) return found->typed_data();
    misfit_ = true;
    return nullptr;
  }

  bool fits() const { return !misfit_ && used_ == extra_.size(); }

 private:
  ffi::RemainingArgs extra_;
  size_t used_ = 0;
  bool misfit_ = false;
};

template <auto handler>
struct Guarded;

// A handler that tells of memory that is not there, as XLA tells of its own.
template <class... Args, ffi::Error (*handler)(Args...)>
struct Guarded<handler> {
  static ffi::Error call(Args... args) {
    try {
      return handler(std::move(args)...);
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "Out of memory: the scratch of a native kernel");
    }
  }
};

template <auto handler>
constexpr auto guarded = &Guarded<handler>::call;

}  // namespace cortex
