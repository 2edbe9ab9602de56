// The threads that share one kernel's work. Knows items and threads, no matrices.
//
// Kernels are a few microseconds long and follow each other closely, so a worker looks for the next one for a while
// before it sleeps. Work that throws std::bad_alloc, on whatever thread, makes run() throw it. Work is handed out in small pieces and nobody waits for a worker that was never scheduled: beside
// other processes on the same cores a kernel is as fast as the threads that really run.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace cortex {

class Team {
 public:
  static Team& instance() {
    // Never destroyed: at exit a worker may still be asleep in it.
    static Team* team = new Team(cores());
    return *team;
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(first, last) for pieces of at most `grain` items that cover [0, items) once. Returns when all are done.
  template <class Work>
  void run(int64_t items, int64_t grain, const Work& work) {
    if (workers_.empty() || items <= grain || !busy_.try_lock()) {
      if (items > 0) work(int64_t{0}, items);
      return;
    }
    std::lock_guard<std::mutex> held(busy_, std::adopt_lock);
    call_ = [](const void* self, int64_t first, int64_t last) { (*static_cast<const Work*>(self))(first, last); };
    self_ = &work;
    items_ = items;
    grain_ = grain;
    next_.store(0, std::memory_order_relaxed);
    open_.store(true, std::memory_order_seq_cst);
    announce();
    take();
    open_.store(false, std::memory_order_seq_cst);
    while (inside_.load(std::memory_order_seq_cst) != 0) rest();
    if (failed_.exchange(false, std::memory_order_relaxed)) throw std::bad_alloc();
  }

 private:
  static constexpr int PATIENCE = 4000;  // looks before sleeping: about 100 microseconds

  explicit Team(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    for (auto& worker : workers_) worker.detach();
  }

  static int cores() {
    if (const char* told = std::getenv("CORTEX_THREADS"); told && std::atoi(told) > 0) return std::atoi(told);
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
  }

  static void rest() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void announce() {
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) == 0) return;
    std::lock_guard<std::mutex> held(sleep_);
    wake_.notify_all();
  }

  void take() {
    for (;;) {
      const int64_t first = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (first >= items_) return;
      try {
        call_(self_, first, first + grain_ < items_ ? first + grain_ : items_);
      } catch (const std::bad_alloc&) {  // out of a worker's thread it would end the process
        failed_.store(true, std::memory_order_relaxed);
      }
    }
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      seen = await(seen);
      // Inside first, then a look at whether the job is still open: run() closes it and then waits for those inside.
      inside_.fetch_add(1, std::memory_order_seq_cst);
      if (open_.load(std::memory_order_seq_cst)) take();
      inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  uint64_t await(uint64_t seen) {
    for (int look = 0; look < PATIENCE; ++look) {
      const uint64_t now = epoch_.load(std::memory_order_acquire);
      if (now != seen) return now;
      rest();
    }
    std::unique_lock<std::mutex> held(sleep_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(held, [&] { return epoch_.load(std::memory_order_seq_cst) != seen; });
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
    return epoch_.load(std::memory_order_acquire);
  }

  std::vector<std::thread> workers_;
  std::mutex busy_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> inside_{0}, asleep_{0};
  std::atomic<bool> open_{false}, failed_{false};
  alignas(64) std::atomic<int64_t> next_{0};
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* self_ = nullptr;
  int64_t items_ = 0, grain_ = 1;
};

}  // namespace cortex
