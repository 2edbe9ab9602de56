// Memory that a kernel works in, kept from call to call. Knows bytes, nothing of what is in them.
//
// `models.native.scratch` counts what all of a step's kernels keep; keep the two alike.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace cortex {

// Bytes that are kept now, by all.
inline std::atomic<int64_t> kept_bytes{0};

// So many floats and what fills their last cache line up: what comes next begins with a line, too.
constexpr int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { drop(); }

  // At least `floats` of them, aligned to a cache line; what was in them before may be gone. Throws std::bad_alloc.
  float* get(int64_t floats) {
    if (floats > size_) {
      drop();  // first, so that old and new are never there together
      const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + LINE - 1) / LINE * LINE;
      data_.reset(static_cast<float*>(std::aligned_alloc(LINE, bytes)));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
      kept_bytes += size_ * static_cast<int64_t>(sizeof(float));
    }
    return data_.get();
  }

 private:
  void drop() {
    data_.reset();
    kept_bytes -= size_ * static_cast<int64_t>(sizeof(float));
    size_ = 0;
  }

  static constexpr size_t LINE = 64;
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

// What a thread unfolds for itself to work on at once, whichever thread it is.
inline Scratch& thread_scratch() {
  static thread_local Scratch unfolded;
  return unfolded;
}

// Scratch of whoever calls a kernel. XLA calls from any of its threads, one after the other: with one for each thread the
// same memory would be kept many times.
class Shelf {
 public:
  class Lent {
   public:
    explicit Lent(Shelf& shelf) : shelf_(shelf), scratch_(shelf.take()) {}
    Lent(const Lent&) = delete;
    ~Lent() { shelf_.put(std::move(scratch_)); }
    float* get(int64_t floats) { return scratch_->get(floats); }

   private:
    Shelf& shelf_;
    std::unique_ptr<Scratch> scratch_;
  };

 private:
  std::unique_ptr<Scratch> take() {
    std::lock_guard<std::mutex> held(busy_);
    if (free_.empty()) return std::make_unique<Scratch>();
    std::unique_ptr<Scratch> found = std::move(free_.back());
    free_.pop_back();
    return found;
  }

  void put(std::unique_ptr<Scratch> scratch) {
    std::lock_guard<std::mutex> held(busy_);
    free_.push_back(std::move(scratch));
  }

  std::mutex busy_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

}  // namespace cortex
