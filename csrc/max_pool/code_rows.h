// Rows of window codes on the CPU: from one byte a code to each index format and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu_rows.h"
#include "window.h"

namespace segkern {

// The start of the index row (batch b, channel c or all channels, window row oh). Channels-last
// rows interleave the channels; contiguous ones belong to a plane.
template <typename T>
T* index_row(const PoolParams& p, int64_t plane_or_batch, int64_t oh) {
  const int64_t row = p.window.index_row(p.format) * (p.channels_last ? p.channels : 1);
  return static_cast<T*>(p.indices) + (plane_or_batch * p.window.out_h + oh) * row;
}

// Stores the codes of a contiguous window row; `code` is zero from out_w up to whole words.
inline void store_code_row(const PoolParams& p, int64_t plane, int64_t oh, const uint8_t* code) {
  const PoolWindow& w = p.window;
  switch (p.format) {
    case IndexFormat::kOffset: {
      uint8_t* to = index_row<uint8_t>(p, plane, oh);
      if (to != code) {
        std::memcpy(to, code, w.out_w);
      }
      break;
    }
    case IndexFormat::kPacked:
      pool_rows().pack_row(code, index_row<uint32_t>(p, plane, oh), w.words_per_row(), w.bits());
      break;
    case IndexFormat::kFlat: {
      int64_t* to = index_row<int64_t>(p, plane, oh);
      for (int64_t ow = 0; ow < w.out_w; ++ow) {
        to[ow] = flat_index(w, oh, ow, code[ow]);
      }
      break;
    }
  }
}

// The codes of a contiguous window row: where they lie, or unpacked into `buffer` (whole words).
inline const uint8_t* load_code_row(const PoolParams& p, int64_t plane, int64_t oh,
                                    uint8_t* buffer) {
  if (p.format == IndexFormat::kOffset) {
    return index_row<uint8_t>(p, plane, oh);
  }
  pool_rows().unpack_row(index_row<uint32_t>(p, plane, oh), buffer, p.window.words_per_row(),
                         p.window.bits());
  return buffer;
}

// Stores the codes of one channels-last window, for all channels.
inline void store_code_lane(const PoolParams& p, int64_t batch, int64_t oh, int64_t ow,
                            const uint8_t* code) {
  const PoolWindow& w = p.window;
  switch (p.format) {
    case IndexFormat::kOffset: {
      uint8_t* to = index_row<uint8_t>(p, batch, oh) + ow * p.channels;
      if (to != code) {
        std::memcpy(to, code, p.channels);
      }
      break;
    }
    case IndexFormat::kPacked: {
      uint32_t* words = index_row<uint32_t>(p, batch, oh) + ow / w.per_word() * p.channels;
      if (ow % w.per_word() == 0) {
        std::memset(words, 0, p.channels * sizeof(uint32_t));
      }
      pool_rows().pack_lane(code, w.bits() * static_cast<int>(ow % w.per_word()), words,
                            p.channels);
      break;
    }
    case IndexFormat::kFlat: {
      int64_t* to = index_row<int64_t>(p, batch, oh) + ow * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) {
        to[c] = flat_index(w, oh, ow, code[c]);
      }
      break;
    }
  }
}

inline const uint8_t* load_code_lane(const PoolParams& p, int64_t batch, int64_t oh, int64_t ow,
                                     uint8_t* buffer) {
  const PoolWindow& w = p.window;
  if (p.format == IndexFormat::kOffset) {
    return index_row<uint8_t>(p, batch, oh) + ow * p.channels;
  }
  const uint32_t* words = index_row<uint32_t>(p, batch, oh) + ow / w.per_word() * p.channels;
  pool_rows().unpack_lane(words, w.bits() * static_cast<int>(ow % w.per_word()),
                          w.bits() == 2 ? 3u : 15u, buffer, p.channels);
  return buffer;
}

// Room for one code row or lane, rounded up to whole words.
inline int64_t code_buffer_size(const PoolParams& p) {
  const int64_t n = p.channels_last ? p.channels : p.window.out_w;
  return (n + 15) / 16 * 16;
}

}  // namespace segkern
