// Builds a lattice on the CPU: each slab of points numbers its vertices in a hash table of its own,
// which stays in the second-level cache; the slabs' keys, few against the corners, are then sorted
// together. Their sorted order is the slots', and its distinct keys are the vertices. A vertex's
// neighbours along an axis are found in one walk through the sorted keys, because adding a constant
// to packed keys keeps their order.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "permutohedral.h"

namespace segkern {
namespace {

__extension__ typedef unsigned __int128 WideKey;

using torch::stable::parallel_for;

struct Bounds {
  double low[kMaxLatticeDims], high[kMaxLatticeDims];
  bool finite = true;
};

Bounds slab_bounds(const PointFeatures& f, int dims, int64_t begin, int64_t end) {
  Bounds bounds;
  for (int j = 0; j < dims; ++j) {
    const float* from = f.data + j * f.dim_stride;
    constexpr int kLanes = 16;
    float low[kLanes], high[kLanes], bad[kLanes] = {};
    std::fill(low, low + kLanes, INFINITY);
    std::fill(high, high + kLanes, -INFINITY);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float v = from[(i + lane) * f.point_stride];
        low[lane] = v < low[lane] ? v : low[lane];
        high[lane] = v > high[lane] ? v : high[lane];
        bad[lane] += v - v;  // NaN from then on where v is not finite
      }
    }
    for (; i < end; ++i) {
      const float v = from[i * f.point_stride];
      low[0] = std::min(low[0], v);
      high[0] = std::max(high[0], v);
      bad[0] += v - v;
    }
    bounds.low[j] = *std::min_element(low, low + kLanes);
    bounds.high[j] = *std::max_element(high, high + kLanes);
    for (const float b : bad) {
      bounds.finite = bounds.finite && b == 0;
    }
  }
  return bounds;
}

Bounds feature_bounds(const PointFeatures& f, int dims, int64_t points) {
  const int64_t slabs = slab_count(points);
  std::vector<Bounds> parts(slabs);
  parallel_for(0, slabs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      parts[s] = slab_bounds(f, dims, slab_begin(points, s), slab_begin(points, s + 1));
    }
  });
  Bounds all = parts[0];
  for (const Bounds& part : parts) {
    for (int j = 0; j < dims; ++j) {
      all.low[j] = std::min(all.low[j], part.low[j]);
      all.high[j] = std::max(all.high[j], part.high[j]);
    }
    all.finite = all.finite && part.finite;
  }
  return all;
}

// Where each of the d stored coordinates lies in a packed key: (coordinate - low) << shift.
// Coordinate 0 is in the highest bits, so that keys sort as coordinates do.
struct KeyFormat {
  int dims;
  double scales[kMaxLatticeDims];
  int64_t low[kMaxLatticeDims];
  int shift[kMaxLatticeDims];
  int bits;
  bool in_range;
};

// Fields hold every coordinate that points within the bounds can have, and one step of the blur
// beyond it, so that adding a step never carries into the next field.
KeyFormat key_format(const Bounds& bounds, int dims) {
  KeyFormat format{};
  format.dims = dims;
  format.in_range = true;
  embedding_scales(dims, format.scales);
  for (int j = dims - 1; j >= 0; --j) {
    double low = 0, high = 0;
    for (int i = j; i < dims; ++i) {
      low += format.scales[i] * bounds.low[i];
      high += format.scales[i] * bounds.high[i];
    }
    if (j > 0) {
      low -= j * format.scales[j - 1] * bounds.high[j - 1];
      high -= j * format.scales[j - 1] * bounds.low[j - 1];
    }
    const double margin = 2.0 * dims + 2 + 1e-6 * std::max(std::fabs(low), std::fabs(high));
    low = std::floor(low - margin);
    high = std::ceil(high + margin);
    // Beyond this the embedding has no fraction left in int32 arithmetic.
    format.in_range = format.in_range && low > -1e9 && high < 1e9;
    format.low[j] = format.in_range ? static_cast<int64_t>(low) : 0;
    format.shift[j] = format.bits;
    int width = 1;
    while (width < 40 && std::ldexp(1.0, width) <= high - low) {
      ++width;
    }
    format.bits += width;
  }
  return format;
}

// Keys of one slab in the order in which they were met.
template <typename Key>
class SlabTable {
 public:
  SlabTable() { resize(12); }

  int32_t find_or_add(Key key) {
    size_t at = hash(key);
    while (cells_[at].id >= 0) {
      if (cells_[at].key == key) {
        return cells_[at].id;
      }
      at = (at + 1) & mask_;
    }
    const auto id = static_cast<int32_t>(keys.size());
    cells_[at] = {key, id};
    keys.push_back(key);
    if (2 * keys.size() > mask_) {
      resize(log_size_ + 2);
    }
    return id;
  }

  std::vector<Key> keys;

 private:
  struct Cell {
    Key key;
    int32_t id;
  };

  size_t hash(Key key) const {
    uint64_t folded = static_cast<uint64_t>(key);
    if constexpr (sizeof(Key) > 8) {
      folded ^= static_cast<uint64_t>(key >> 64) * 0xd6e8feb86659fd93u;
    }
    return static_cast<size_t>(folded * 0x9e3779b97f4a7c15u >> (64 - log_size_));
  }

  void resize(int log_size) {
    log_size_ = log_size;
    mask_ = (size_t{1} << log_size) - 1;
    cells_.assign(mask_ + 1, Cell{0, -1});
    for (size_t i = 0; i < keys.size(); ++i) {
      size_t at = hash(keys[i]);
      while (cells_[at].id >= 0) {
        at = (at + 1) & mask_;
      }
      cells_[at] = {keys[i], static_cast<int32_t>(i)};
    }
  }

  std::vector<Cell> cells_;
  size_t mask_ = 0;
  int log_size_ = 0;
};

// A slab's key, and its number in the list of all slabs' keys.
template <typename Key>
struct NumberedKey {
  Key key;
  int32_t number;
};

// Sorts by key; equal keys stay in the order of the slabs.
template <typename Key>
void sort_keys(std::vector<NumberedKey<Key>>& items, int bits) {
  if constexpr (sizeof(Key) > 8) {
    std::stable_sort(items.begin(), items.end(),
                     [](const auto& a, const auto& b) { return a.key < b.key; });
  } else {
    constexpr int kDigit = 11;
    std::vector<NumberedKey<Key>> other(items.size());
    const int passes = (bits + kDigit - 1) / kDigit;
    for (int pass = 0; pass < passes; ++pass) {
      const int shift = pass * kDigit;
      std::vector<int64_t> at(size_t{1} << kDigit, 0);
      for (const auto& item : items) {
        ++at[item.key >> shift & ((1 << kDigit) - 1)];
      }
      int64_t before = 0;
      for (int64_t& count : at) {
        before += std::exchange(count, before);
      }
      for (const auto& item : items) {
        other[at[item.key >> shift & ((1 << kDigit) - 1)]++] = item;
      }
      items.swap(other);
    }
  }
}

template <typename Key>
class Builder {
 public:
  Builder(const PointFeatures& features, const KeyFormat& format, LatticeView& lattice)
      : features_(features), format_(format), lattice_(lattice) {
    Key ones = 0;
    for (int j = 0; j < format.dims; ++j) {
      ones |= Key{1} << format.shift[j];
    }
    for (int j = 0; j < format.dims; ++j) {
      steps_[j] = ones - (Key{static_cast<uint64_t>(format.dims + 1)} << format.shift[j]);
    }
    steps_[format.dims] = ones;
  }

  void build() {
    const int64_t points = lattice_.points;
    const int64_t slabs = slab_count(points);
    std::vector<SlabTable<Key>> tables(slabs);
    each_slab([&](int64_t s, int64_t begin, int64_t end) { number(tables[s], begin, end); });

    std::vector<int64_t> first(slabs + 1, 0);
    for (int64_t s = 0; s < slabs; ++s) {
      first[s + 1] = first[s] + static_cast<int64_t>(tables[s].keys.size());
    }
    std::vector<NumberedKey<Key>> items(first[slabs]);
    for (int64_t s = 0; s < slabs; ++s) {
      for (size_t i = 0; i < tables[s].keys.size(); ++i) {
        const int64_t number = first[s] + static_cast<int64_t>(i);
        items[number] = {tables[s].keys[i], static_cast<int32_t>(number)};
      }
    }
    tables.clear();
    sort_keys(items, format_.bits);

    std::vector<int32_t> slot_of(items.size()), vertex_of(items.size());
    std::vector<Key> keys;
    keys.reserve(items.size() + 1);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i == 0 || items[i].key != items[i - 1].key) {
        lattice_.offsets[keys.size()] = static_cast<int32_t>(i);
        keys.push_back(items[i].key);
      }
      slot_of[items[i].number] = static_cast<int32_t>(i);
      vertex_of[items[i].number] = static_cast<int32_t>(keys.size() - 1);
    }
    lattice_.count = static_cast<int64_t>(keys.size());
    lattice_.offsets[lattice_.count] = static_cast<int32_t>(items.size());

    const int corners = lattice_.corners();
    each_slab([&](int64_t s, int64_t begin, int64_t end) {
      for (int64_t i = begin * corners; i < end * corners; ++i) {
        const int64_t number = first[s] + lattice_.slot[i];
        lattice_.slot[i] = slot_of[number];
        lattice_.vertex[i] = vertex_of[number];
      }
    });

    keys.push_back(~Key{0});
    parallel_for(0, corners, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis) {
        link(keys, steps_[axis], lattice_.neighbours + axis * lattice_.bound * 2);
      }
    });
  }

 private:
  template <typename Body>
  void each_slab(const Body& body) const {
    const int64_t points = lattice_.points;
    parallel_for(0, slab_count(points), 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        body(s, slab_begin(points, s), slab_begin(points, s + 1));
      }
    });
  }

  // Weights of the slab's points, and in place of slots the numbers in the slab's table.
  void number(SlabTable<Key>& table, int64_t begin, int64_t end) const {
    const int dims = format_.dims, corners = dims + 1;
    const double inverse = 1.0 / corners;
    const LatticeRows& rows = lattice_rows();
    std::unique_ptr<double[]> block(new double[(dims + corners) * kPointBlock]);
    std::unique_ptr<int32_t[]> whole(new int32_t[2 * corners * kPointBlock]);
    double* rest = block.get() + dims * kPointBlock;
    int32_t* rem0 = whole.get();
    int32_t* rank = rem0 + corners * kPointBlock;
    Key last_key[kMaxLatticeDims + 1];
    int32_t last_id[kMaxLatticeDims + 1];
    for (int k = 0; k < corners; ++k) {
      last_key[k] = ~Key{0};
    }
    double sorted[kMaxLatticeDims + 1] = {};
    Key step[kMaxLatticeDims + 2] = {};
    for (int64_t at = begin; at < end; at += kPointBlock) {
      const int64_t n = std::min(kPointBlock, end - at);
      load_point_block(features_, dims, at, n, block.get());
      rows.embed(block.get(), format_.scales, dims, rem0, rest, rank);
      for (int64_t i = 0; i < n; ++i) {
        Key key = 0;
        for (int j = 0; j < corners; ++j) {
          const int place = dims - rank[j * kPointBlock + i];
          sorted[place] = rest[j * kPointBlock + i];
          step[place + 1] = steps_[j];
        }
        for (int j = 0; j < dims; ++j) {
          key |= static_cast<Key>(rem0[j * kPointBlock + i] - format_.low[j]) << format_.shift[j];
        }
        float* weight = lattice_.weight + (at + i) * corners;
        int32_t* id = lattice_.slot + (at + i) * corners;
        weight[0] = static_cast<float>(1.0 + (sorted[0] - sorted[dims]) * inverse);
        for (int k = 0; k < corners; ++k) {
          if (k > 0) {
            key += step[k];
            weight[k] = static_cast<float>((sorted[k] - sorted[k - 1]) * inverse);
          }
          if (key != last_key[k]) {
            last_key[k] = key;
            last_id[k] = table.find_or_add(key);
          }
          id[k] = last_id[k];
        }
      }
    }
  }

  // Neighbours along one axis: those with keys key - step and key + step.
  void link(const std::vector<Key>& keys, Key step, int32_t* neighbours) const {
    const auto count = static_cast<int32_t>(keys.size() - 1);
    for (int32_t v = 0; v < count; ++v) {
      neighbours[2 * v] = count;
    }
    int32_t u = 0;
    for (int32_t v = 0; v < count; ++v) {
      const Key wanted = keys[v] + step;
      while (u < count && keys[u] < wanted) {
        ++u;
      }
      const bool found = u < count && keys[u] == wanted;
      neighbours[2 * v + 1] = found ? u : count;
      if (found) {
        neighbours[2 * u] = v;
      }
    }
  }

  const PointFeatures& features_;
  const KeyFormat& format_;
  LatticeView& lattice_;
  Key steps_[kMaxLatticeDims + 1];
};

}  // namespace

void embedding_scales(int dims, double* scales) {
  for (int i = 0; i < dims; ++i) {
    scales[i] =
        std::sqrt(2.0 / 3.0) * (dims + 1) / std::sqrt(static_cast<double>((i + 1) * (i + 2)));
  }
}

void load_point_block(const PointFeatures& f, int dims, int64_t begin, int64_t n,
                      double* block) {
  for (int j = 0; j < dims; ++j) {
    const float* from = f.data + begin * f.point_stride + j * f.dim_stride;
    double* to = block + j * kPointBlock;
    if (f.point_stride == 1) {
      for (int64_t i = 0; i < n; ++i) {
        to[i] = from[i];
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        to[i] = from[i * f.point_stride];
      }
    }
    std::fill(to + n, to + kPointBlock, 0.0);
  }
}

BuildError build_lattice_cpu(const PointFeatures& features, LatticeView& lattice, int* bits) {
  lattice.count = 0;
  if (lattice.points == 0) {
    lattice.offsets[0] = 0;
    return BuildError::kNone;
  }
  const Bounds bounds = feature_bounds(features, lattice.dims, lattice.points);
  if (!bounds.finite) {
    return BuildError::kNotFinite;
  }
  const KeyFormat format = key_format(bounds, lattice.dims);
  *bits = format.bits;
  // One value is kept free for the end of the sorted keys.
  if (!format.in_range || format.bits > 127) {
    return BuildError::kTooWide;
  }
  if (format.bits <= 63) {
    Builder<uint64_t>(features, format, lattice).build();
  } else {
    Builder<WideKey>(features, format, lattice).build();
  }
  return BuildError::kNone;
}

}  // namespace segkern
