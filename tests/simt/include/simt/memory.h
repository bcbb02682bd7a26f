// Loads and stores with a cache hint: plain loads and stores here.
#pragma once

#include "atomics.h"

#define SIMT_LOAD(name)      \
  template <typename T>      \
  T name(const T* address) { \
    return *address;         \
  }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldcv)
SIMT_LOAD(__ldlu)
#undef SIMT_LOAD

#define SIMT_STORE(name)                           \
  template <typename T>                            \
  void name(T* address, simt::identity<T> value) { \
    *address = value;                              \
  }
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwb)
SIMT_STORE(__stwt)
#undef SIMT_STORE
