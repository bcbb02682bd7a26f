// Rows computed in a small buffer and written past the caches. A plain store to a line that is not
// cached reads it first; outputs larger than the caches would pay a third of their traffic for that.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace segkern {

// Outputs of at least this many bytes leave the caches anyway.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

inline void stream_store(void* destination, const void* source, int64_t bytes) {
#if defined(__x86_64__)
  auto* to = static_cast<char*>(destination);
  const auto* from = static_cast<const char*>(source);
  const int64_t head = (16 - reinterpret_cast<uintptr_t>(to) % 16) % 16;
  if (bytes < head + 16) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  int64_t i = head;
  for (; i + 16 <= bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
  std::memcpy(to + i, from + i, bytes - i);
#else
  std::memcpy(destination, source, bytes);
#endif
}

// Asks for memory that will be read soon. A loop over two rows of a plane leaves the hardware's
// prefetchers half blind: the second row of the next pair starts where nothing was read before.
inline void prefetch(const void* from, int64_t bytes) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(from) + i);
  }
#endif
}

// Makes streamed rows visible to other threads; once at the end of a thread's share.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace segkern
