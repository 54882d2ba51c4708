// A tile of rows: it stays in the first cache of a core from the first column to the last.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace {

constexpr int64_t TILE = 64;   // rows; 32 KB with the columns of a leaf
constexpr int64_t MOST = 128;  // columns of a leaf
constexpr int64_t AHEAD = 8;   // columns from the one that is computed to the one that is fetched

typedef float Lanes __attribute__((vector_size(64), may_alias));
constexpr int64_t LANES = 16, PARTS = TILE / LANES;

// Rounds half to even what is below 2²² and leaves the rest beyond any code.
template <class Value>
inline Value rounded(Value value) { return (value + 12582912.0f) - 12582912.0f; }

float as_stored(float value) { return static_cast<float>(static_cast<STORED>(value)); }

template <class Function>
inline void each(Function function) {
  for (int64_t i = 0; i < TILE; ++i) function(i);
}

// Reads some rows of a line; what is beyond them is computed with, but never written.
template <class From, class To>
inline void load(const From* from, int64_t rows, To beyond, To* to) {
  if (rows == TILE) return each([&](int64_t i) { to[i] = static_cast<To>(from[i]); });
  for (int64_t i = 0; i < TILE; ++i) to[i] = i < rows ? static_cast<To>(from[i]) : beyond;
}

template <class From, class To>
inline void store(const From* from, int64_t rows, To* to) {
  if (rows == TILE) return each([&](int64_t i) { to[i] = static_cast<To>(from[i]); });
  for (int64_t i = 0; i < rows; ++i) to[i] = static_cast<To>(from[i]);
}

// The lines of a tile lie too far apart for the processor to foresee which one is next.
template <class From>
inline void prefetch(const From* line) {
  for (int64_t i = 0; i < TILE; i += LANES) __builtin_prefetch(line + i);
}

// Calls body(first row, rows) for all tiles, in as many threads as asked for.
template <class Body>
void over_tiles(int64_t rows, int64_t threads, Body body) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row += TILE) body(row, std::min(TILE, rows - row));
}

}  // namespace
