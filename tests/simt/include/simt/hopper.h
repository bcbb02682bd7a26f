// What csrc/common/hopper.cuh promises, on the CPU: barriers that count bytes, boxes of tensors and
// products of a warpgroup, by the bits that the hardware reads: addresses and swizzling of shared
// memory, operand descriptors, fragments.
//
// Stricter than hardware:
//   * a box lands as late as the waits allow, at once, or either by chance (lane, reversed,
//     shuffled order), and its place holds the poison byte from the moment it is asked for;
//   * a product is worked in the wait for its group, and its operands must be then what they were
//     when it was issued;
//   * wgmma.fence stands in front of the products of every group.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "mma.h"
#include "scheduler.h"

namespace simt {

// Shared memory begins where no pattern does, as behind a kernel's static variables.
constexpr std::uint32_t kSharedStart = 0x410;

inline std::uint32_t shared_address(const void* at) {
  const auto* base = static_cast<const char*>(dynamic_shared());
  return static_cast<std::uint32_t>(static_cast<const char*>(at) - base) + kSharedStart;
}
inline char* at_shared_address(std::uint32_t address) {
  return static_cast<char*>(dynamic_shared()) + address - kSharedStart;
}
/// Where a byte of a 128-byte swizzled pattern lies: bits 4-6 of its address, turned by bits 7-9.
inline std::uint32_t swizzled(std::uint32_t address) { return address ^ (address >> 3 & 0x70); }

template <int kCount>
void shrink_registers() {}
template <int kCount>
void grow_registers() {}

struct TensorMap {
  const char* data;
  int rank;
  std::int64_t sizes[5], box[5];  // the innermost axis first, of 2-byte elements
};

inline TensorMap make_tensor_map(const void* data, int rank, const std::int64_t* sizes,
                                 const std::int64_t* box) {
  TensorMap map{static_cast<const char*>(data), rank, {}, {}};
  std::memcpy(map.sizes, sizes, sizeof(std::int64_t) * rank);
  std::memcpy(map.box, box, sizeof(std::int64_t) * rank);
  return map;
}

/// The 64 bits of an mbarrier.
struct BarrierState {
  std::int32_t bytes;  // expected and not there yet
  std::uint8_t arrivals, pending, phase, mark;
  static constexpr std::uint8_t kMark = 0xb7;

  void end_phase_if_due() {
    if (pending == 0 && bytes == 0) {
      phase ^= 1;
      pending = arrivals;
    }
  }
};

inline BarrierState& barrier_state(std::uint64_t* barrier) {
  static_assert(sizeof(BarrierState) == 8, "an mbarrier has 64 bits");
  auto* state = reinterpret_cast<BarrierState*>(barrier);
  if (reinterpret_cast<std::uintptr_t>(barrier) % 8 != 0 || state->mark != BarrierState::kMark) {
    fail("mbarrier: not initialised, or overwritten");
  }
  return *state;
}

/// A copy under way.
struct Box {
  std::uint64_t* barrier;
  TensorMap map;
  std::uint32_t to;
  std::int64_t at[5];

  std::int64_t bytes() const {
    std::int64_t count = 2;
    for (int i = 0; i < map.rank; ++i) {
      count *= map.box[i];
    }
    return count;
  }
  void land() const {
    const std::int64_t rows = bytes() / 128;
    for (std::int64_t row = 0; row < rows; ++row) {
      std::int64_t rest = row, offset = 0, stride = map.sizes[0];
      bool inside = true;
      for (int i = 1; i < map.rank; ++i) {
        const std::int64_t place = at[i] + rest % map.box[i];
        rest /= map.box[i];
        inside = inside && place >= 0 && place < map.sizes[i];
        offset += place * stride;
        stride *= map.sizes[i];
      }
      for (std::int64_t k = 0; k < map.box[0]; ++k) {
        const std::int64_t place = at[0] + k;
        const std::uint32_t there = to + static_cast<std::uint32_t>(128 * row + 2 * k);
        char* const byte = at_shared_address(swizzled(there));
        if (inside && place >= 0 && place < map.sizes[0]) {
          std::memcpy(byte, map.data + 2 * (offset + place), 2);
        } else {
          std::memset(byte, 0, 2);
        }
      }
    }
    BarrierState& state = barrier_state(barrier);
    state.bytes -= static_cast<std::int32_t>(bytes());
    state.end_phase_if_due();
  }
};

inline thread_local std::vector<Box> boxes_under_way;

inline void land_boxes_of(std::uint64_t* barrier) {
  std::vector<Box> others;
  for (const Box& box : boxes_under_way) {
    if (box.barrier == barrier) {
      box.land();
    } else {
      others.push_back(box);
    }
  }
  boxes_under_way.swap(others);
}

inline void init_barrier(std::uint64_t* barrier, int arrivals) {
  if (arrivals < 1 || arrivals > 255) {
    fail("mbarrier.init: the stand-in counts 1 to 255 arrivals");
  }
  std::vector<Box> others;  // those of a block before this one, which ended in an error
  for (const Box& box : boxes_under_way) {
    if (box.barrier != barrier) {
      others.push_back(box);
    }
  }
  boxes_under_way.swap(others);
  const auto count = static_cast<std::uint8_t>(arrivals);
  *reinterpret_cast<BarrierState*>(barrier) = {0, count, count, 0, BarrierState::kMark};
}
inline void publish_barriers() {}

inline void arrive_expecting(std::uint64_t* barrier, int bytes) {
  BarrierState& state = barrier_state(barrier);
  if (state.pending == 0) {
    fail("mbarrier.arrive: more arrivals than the phase counts");
  }
  state.bytes += bytes;
  --state.pending;
  state.end_phase_if_due();
}
inline void arrive(std::uint64_t* barrier) { arrive_expecting(barrier, 0); }

inline void wait_for(std::uint64_t* barrier, std::uint32_t parity) {
  land_boxes_of(barrier);
  while (barrier_state(barrier).phase == (parity & 1)) {
    scheduling_point();
    land_boxes_of(barrier);
  }
}

template <typename... Coordinates>
void load_box(void* to, const TensorMap& map, std::uint64_t* barrier, Coordinates... at) {
  if (static_cast<int>(sizeof...(at)) != map.rank) {
    fail("cp.async.bulk.tensor: coordinates and axes of the map differ");
  }
  Box box{barrier, map, shared_address(to), {at...}};
  if (box.to % 128 != 0 || map.box[0] != 64) {
    fail("cp.async.bulk.tensor: the place of a box must be a multiple of 128 bytes");
  }
  std::memset(at_shared_address(box.to), poison_byte(), static_cast<std::size_t>(box.bytes()));
  const Order order = schedule().order;
  const bool late = order == Order::kLane || (order == Order::kShuffled && steps() / 3 % 2 == 0);
  if (late) {
    boxes_under_way.push_back(box);
  } else {
    box.land();
  }
}

class WarpgroupProducts {
 public:
  void begin() { begun_ = true; }

  template <typename T, int kSums>
  void multiply(float (&sums)[kSums], std::uint64_t a, std::uint64_t b, Site site = Site::here()) {
    if (!begun_) {
      fail("wgmma: no wgmma.fence in front of the group's first product");
    }
    const std::uint64_t both = a * 0x9E3779B97F4A7C15u ^ b;
    const std::uint64_t* lanes = all_lanes(both, site);
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane] != both) {
        fail("wgmma: the lanes of a warp name different operands");
      }
    }
    Product product{sums, a, b, group_, 0, &run<T, kSums>, &sum_of_bits<kSums>};
    product.bits = product.sum(product);
    pending_.push_back(product);
  }

  void commit() {
    ++group_;
    begun_ = false;
  }

  template <int kPending, int kSums>
  void wait(float (&)[kSums], Site site = Site::here()) {
    std::size_t done = 0;
    while (done < pending_.size() && pending_[done].group < group_ - kPending) {
      const Product& product = pending_[done++];
      if (product.sum(product) != product.bits) {
        fail("wgmma: an operand in shared memory changed before its group was waited for");
      }
      product.run(product);
    }
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(done));
    warp_operation(Operation::kSyncWarp, 0xffffffffu, 0, 0, site);
  }

 private:
  struct Product {
    float* sums;
    std::uint64_t a, b;
    int group;
    std::uint64_t bits;
    void (*run)(const Product&);
    std::uint64_t (*sum)(const Product&);
  };

  /// 16-byte chunk `chunk` of row `row` of an operand.
  static const char* chunk_of(std::uint64_t descriptor, int row, int chunk) {
    const auto start = static_cast<std::uint32_t>(descriptor & 0x3fff) << 4;
    const auto stride = static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || (start >> 7 & 7) != 0) {
      fail("wgmma: a descriptor must be of the 128-byte swizzled pattern, from its first row");
    }
    return at_shared_address(swizzled(start + static_cast<std::uint32_t>(row / 8) * stride +
                                      static_cast<std::uint32_t>(row % 8 * 128 + chunk * 16)));
  }
  static int first_row() {
    return static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane_id() / 4;
  }
  template <int kSums>
  static int column(int number) {  // of kSums / 2
    return 8 * (number / 2) + 2 * (lane_id() % 4) + number % 2;
  }
  template <int kSums>
  static std::uint64_t sum_of_bits(const Product& product) {
    std::uint64_t sum = 0;
    const auto add = [&](const char* chunk) {
      std::uint64_t words[2];
      std::memcpy(words, chunk, 16);
      sum = ((sum ^ words[0]) * 0x100000001b3u ^ words[1]) * 0x100000001b3u;
    };
    for (int chunk = 0; chunk < 2; ++chunk) {
      add(chunk_of(product.a, first_row(), chunk));
      add(chunk_of(product.a, first_row() + 8, chunk));
      for (int number = 0; number < kSums / 2; ++number) {
        add(chunk_of(product.b, column<kSums>(number), chunk));
      }
    }
    return sum;
  }
  template <typename T>
  static void read_row(std::uint64_t descriptor, int row, float (&to)[16]) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      std::uint16_t bits[8];
      std::memcpy(bits, chunk_of(descriptor, row, chunk), 16);
      for (int i = 0; i < 8; ++i) {
        to[8 * chunk + i] = static_cast<float>(T::from_bits(bits[i]));
      }
    }
  }
  template <typename T, int kSums>
  static void run(const Product& product) {
    float a[2][16], b[16];
    read_row<T>(product.a, first_row(), a[0]);
    read_row<T>(product.a, first_row() + 8, a[1]);
    for (int number = 0; number < kSums / 2; ++number) {
      read_row<T>(product.b, column<kSums>(number), b);
      for (int half = 0; half < 2; ++half) {
        float total = 0;  // products of 16-bit elements are exact
        for (int k = 0; k < 16; ++k) {
          total += a[half][k] * b[k];
        }
        product.sums[4 * (number / 2) + 2 * half + number % 2] += total;
      }
    }
  }

  std::vector<Product> pending_;
  int group_ = 0;
  bool begun_ = false;
};

}  // namespace simt
